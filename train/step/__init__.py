"""One training step: which matches a batch pays for, the losses, and their gradients.

May import `train.world` and, of the runtime, `bundle.quota`.
"""
