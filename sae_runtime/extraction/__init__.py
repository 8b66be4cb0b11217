"""Features of many tokens to files: Parquet, and delphi's latent cache.

May import `sae`, `engine`, `activations`, `bundle` and `core`.
"""
