"""Features and steering for many callers: one plane without HTTP, and thin skins over it.

It may import `core`, `bundle`, `engine`, `text`, `deployed`, `generation`, `sae` and `model`.
"""
