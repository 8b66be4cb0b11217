"""Measurements of a fitted SAE: explained variance, use of features, redundancy, and the host model's loss.

May import `train.step`, `train.harvest` and the root of `train`.
"""
