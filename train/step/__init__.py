"""One training step: the matches that a batch pays for, the losses, and their gradients.

May import `train.world` and, of the runtime, `bundle.quota`.
"""
