"""`Features`, `Edit` and the numpy checks of their numbers, which every room uses.

This room imports no other room.
"""
