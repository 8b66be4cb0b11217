"""The bundle on disk: its folder, manifest, tensors and graphs, and files that appear whole or not at all.

This room may import `core`.
"""
