"""Thresholds fitted to pre-activations. With them each token decides for itself, at a mean L0 of k.

This room may import `core`, `bundle` and `activations`.
"""
