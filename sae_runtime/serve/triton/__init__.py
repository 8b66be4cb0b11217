"""Triton: repositories of graphs and of Python models over the plane."""
