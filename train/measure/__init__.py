"""What a fitted SAE achieves: variance explained, use of features, redundancy, and what the host model loses.

May import `train.step`, `train.harvest` and the root of `train`.
"""
