"""Features of many tokens to files: Parquet, and delphi's latent cache.

This room may import `sae`, `engine`, `activations`, `bundle` and `core`.
"""
