"""Text to tokens and back, without transformers: tokenizer.json, the settings beside it, and chat templates.

This room may import `core`, `bundle` and `activations`.
"""
