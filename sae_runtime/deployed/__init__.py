"""A folder that holds a deployed model: which files it has, its sessions, its inputs.

This room may import `core`, `bundle`, `engine` and `text`.
"""
