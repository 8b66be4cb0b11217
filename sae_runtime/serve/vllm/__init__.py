"""A skin that runs inside vLLM's processes: each request reads and edits features of the model that vLLM serves.

It may import torch, vLLM and, of this project, `core`, `bundle`, `activations`, `text`, `extraction`, `serve`, the torch
module of an SAE and the point of a hook. It needs no onnxruntime.
"""
