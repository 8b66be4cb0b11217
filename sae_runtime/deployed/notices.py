"""What a deployed model tells beside its answers."""


class LeftOutWarning(UserWarning):
    """Texts are longer than the model reads, and the rest of them was left out."""


class AssumedPoolingWarning(UserWarning):
    """The folder does not say how a text becomes a vector, and the mean was taken."""
