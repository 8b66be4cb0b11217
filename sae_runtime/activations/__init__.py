"""Activations on disk and the text that they come from: stored rows, readers of text, windows of tokens.

May import `core` and `bundle`.
"""
