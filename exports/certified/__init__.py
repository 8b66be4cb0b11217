"""Encoders that are cheaper than the dense product and certify each token: int8 on a CPU, float16 on a GPU.

May import `exports.graphs` and `bundle` of the runtime.
"""
