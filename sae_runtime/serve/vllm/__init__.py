"""A skin that runs inside vLLM's processes: each request reads and edits features of the model that vLLM serves.

It may import torch and vLLM, and of this project `core`, `bundle`, `activations`, `text`, `extraction`, `serve`, and
the torch module of an SAE. It needs no onnxruntime.
"""
