"""Why a page cannot run a model."""


class UnfitForPage(ValueError):
    """A model that a page cannot run; the message is a sentence for the page's reader.

    >>> str(UnfitForPage("the model takes images"))
    'the model takes images'
    """
