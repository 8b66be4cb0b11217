"""The values that every room speaks of: `Features` and `Edit`, and the numpy checks of their numbers.

Imports nothing else of ours.
"""
