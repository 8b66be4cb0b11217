"""Features of many tokens to files, Parquet or delphi's latent cache, steered activations to files, and features that
tell texts apart.

This room may import `model`, `deployed`, `sae`, `engine`, `activations`, `bundle` and `core`.
"""
