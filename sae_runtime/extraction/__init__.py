"""Features of many tokens to files, Parquet or delphi's latent cache, and steered activations to files.

May import `sae`, `engine`, `activations`, `bundle` and `core`.
"""
