"""A transformers model as a function of named tensors that torch's exporter can trace, and its comparison with torch.

May import `exports.graphs` and `exports.witness`, and of `exports.splice` how a graph writes the names of modules.
"""
