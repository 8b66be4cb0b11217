"""Features of many tokens to files, Parquet or delphi's latent cache, and steered activations to files.

This room may import `sae`, `engine`, `activations`, `bundle` and `core`.
"""
