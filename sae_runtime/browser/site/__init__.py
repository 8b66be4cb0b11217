"""The feature browser: a static folder of pages over feature stores, in which a deployed model may run.

May import `bundle`, `core`, `store`, `deployed` and `model`.
"""
