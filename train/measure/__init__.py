"""Measurements of a fitted SAE: explained variance, use of features, redundancy, and the host model's loss.

May import `train.step`, `train.harvest`, the modules `device`, `divided`, `held_out`, `recipe` and `settings` at the
root of `train`, and the rooms `core`, `bundle` and `activations` of the runtime.
"""
