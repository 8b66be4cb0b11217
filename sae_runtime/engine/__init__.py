"""onnxruntime at work: sessions, tiles, the batch rule, checks of what callers give, tensors on devices.

May import `core`, `bundle` and `activations`.
"""
