"""Errors of huggingface_hub in one sentence: what the Hub said, and what to do. Tokens are never part of it."""

from collections.abc import Iterator
from contextlib import contextmanager

from sae_runtime.core.printable import printable

_MOST = 200  # characters of what a server says
_NEXT = "; nothing was published"


@contextmanager
def told(repository: str, token: str) -> Iterator[None]:
    """Raise OSError with one sentence for whatever huggingface_hub raises in the block.

    Args:
        repository: owner/name.
        token: is struck from messages, should a server repeat it.

    >>> with told("me/sae", "hf_secret"):
    ...     raise ConnectionError("no route for hf_secret")
    Traceback (most recent call last):
    OSError: me/sae cannot be published: no route for ***; nothing was published
    """
    try:
        yield
    except Exception as error:  # its class depends on the release: huggingface_hub's, requests', httpx's or OSError
        raise OSError(f"{repository} cannot be published: {_reason(error, token)}{_NEXT}") from error


def _reason(error: BaseException, token: str) -> str:
    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # of a thread that uploads
        error = error.__cause__
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set; unset it"
    status, said = _status(error), _said(error, token)
    name = type(error).__name__
    if name == "RevisionNotFoundError":
        return "the repository has no such branch; leave out --no-create, or name another --revision"
    if status == 401:
        return "the Hub does not take the token, which is wrong or expired; make one that may write, and: hf auth login"
    if status == 403:
        return f"the token may not write there{said}; name a repository of your own, or a token that may write"
    if status == 404:
        return "there is no such repository, or the token may not see it; leave out --no-create, or check its name"
    if status in (409, 412):
        return f"the repository changed meanwhile{said}; push again"
    if status == 413:
        return f"it is too large for the Hub{said}; publish fewer files"
    if status == 429:
        return f"the Hub asks for fewer requests{said}; wait, and push again"
    if status is not None and status >= 500:
        return f"the Hub failed with {status}{said}; push again later"
    if status is not None:
        return f"the Hub answered {status}{said}"
    if any(word in name for word in ("Connect", "Timeout", "Network", "Protocol")):
        first = said.removeprefix(": ")
        return first if name == "ConnectionError" and first else f"the Hub does not answer ({name}); check the network"
    return said.removeprefix(": ") or name


def _status(error: BaseException) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) else None


def _said(error: BaseException, token: str) -> str:
    """What the server said of it, in one line."""
    text = getattr(error, "server_message", None) if _status(error) is not None else str(error)
    lines = [line.strip() for line in str(text or "").splitlines() if line.strip()]
    first = lines[0].replace(token, "***") if lines and token else "".join(lines[:1])
    return f": {printable(first)[:_MOST].rstrip('.')}" if first else ""
