"""The values that every room speaks of: `Features`, `Edit`, the numpy checks of numbers, and progress on stderr.

Imports nothing else of ours.
"""
