"""What a plane refuses, and why. Every skin maps these errors, and no others, to the codes of its protocol."""


class Refused(Exception):
    """A request that gets no answer; the message is one sentence for its caller."""


class NotFound(Refused):
    """There is no model, version or operation of this name."""


class Invalid(Refused, ValueError):
    """The request cannot be answered as it is."""


class TooLarge(Invalid):
    """The request exceeds a limit of this server."""


class Full(Refused):
    """Too much waits already; the same request may succeed later.

    Attributes:
        retry_after: seconds after which a caller may try again.

    >>> Full(2.0).retry_after
    2.0
    """

    def __init__(self, retry_after: float, why: str = "the server is full") -> None:
        super().__init__(f"{why}; try again in {retry_after:g} s")
        self.retry_after = retry_after


class TimedOut(Refused):
    """The request was not answered in its time."""


class Closing(Refused):
    """The server ends, and takes no new requests."""


def out_of_time() -> TimedOut:
    """What a caller is told whose time is over."""
    return TimedOut("the request was not answered in its time; ask for less, or try again later")
