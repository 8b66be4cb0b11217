"""Activations on disk, and the text and the windows of tokens that they come from.

This room may import `core` and `bundle`.
"""
