"""Static pages about SAEs: the report of evaluations, and the site about the features of stores.

May import `core`, `bundle` and `store`, and for a model in the page `deployed` and `model`.
"""
