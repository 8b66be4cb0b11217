"""Thresholds fitted to pre-activations, so that every token is decided for itself at a mean L0 of k.

May import `core`, `bundle` and `activations`; `train` may import this room.
"""
