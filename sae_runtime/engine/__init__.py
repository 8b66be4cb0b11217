"""Encoding and decoding with onnxruntime: sessions, rows, tiles, the batch rule, tensors on devices.

This room may import `core`, `bundle` and `activations`.
"""
