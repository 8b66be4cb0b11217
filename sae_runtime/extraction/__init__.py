"""Features of a corpus to files, steered activations to files, and features that tell sets of texts apart.

This room may import `model`, `deployed`, `text`, `sae`, `engine`, `activations`, `bundle` and `core`.
"""
