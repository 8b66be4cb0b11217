"""The bundle on disk: manifest, weights, files that appear whole or not at all, graphs by name, and hooks.

May import `core`.
"""
