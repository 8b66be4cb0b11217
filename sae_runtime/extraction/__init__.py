"""Features of many tokens to files, steered activations to files, and features that tell sets of texts apart.

This room may import `model`, `deployed`, `sae`, `engine`, `activations`, `bundle` and `core`.
"""
