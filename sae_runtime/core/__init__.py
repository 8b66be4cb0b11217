"""`Features`, `Edit`, the numpy checks of their numbers, and progress on stderr, which every room uses.

This room imports no other room.
"""
