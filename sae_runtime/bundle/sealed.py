"""Model cards that we wrote, told from those that people edited: the last line of ours is the sha256 of all before it.

A card that still has its hash may be written again. Any other text is a person's and stays.
"""

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from sae_runtime.bundle.regular import read_bytes

CARD = "README.md"
HUB, HUB_CALL = "hf://OWNER/NAME", '"OWNER/NAME", "."'
"""What stands in a card for the repository that nobody knows yet; `push` puts its names there."""
_SEAL_BEGIN = "<!-- written by sae-runtime"
_SEAL = re.compile(rf"{_SEAL_BEGIN}, sha256 ([0-9a-f]{{64}}): without edits it may be written again -->\n?")
_REFERENCE = re.compile(rf"{HUB}((?:/[\w.-]+)*)")
LARGEST_CARD = 1 << 20  # bytes


def sealed(text: str) -> str:
    """A text with the line of its hash.

    >>> is_ours(sealed("# An SAE")), is_ours(sealed("# An SAE").replace("An", "My"))
    (True, False)
    """
    text = text.rstrip("\n") + "\n\n"
    return f"{text}{_SEAL_BEGIN}, sha256 {_hash(text)}: without edits it may be written again -->\n"


def is_ours(text: str) -> bool:
    """Whether a card is as it was written: nobody edited it. Ends of lines may have changed."""
    text = text.replace("\r\n", "\n")
    begin = text.rfind(_SEAL_BEGIN)
    seal = _SEAL.fullmatch(text, begin) if begin >= 0 else None
    return seal is not None and seal[1] == _hash(text[:begin])


def read_card(folder: Path, name: str = CARD) -> str | None:
    """The text of a card; None if there is none, or what has its name is a link, no file, too large or no UTF-8.

    >>> read_card(Path("nowhere"))
    """
    with suppress(OSError, ValueError):
        if not (folder / name).is_symlink():
            return read_bytes(folder / name, most=LARGEST_CARD).decode()
    return None


def may_write(folder: Path, name: str = CARD) -> bool:
    """Whether a card may be written in a folder: there is nothing of its name, or a card that nobody edited.

    >>> Path("a bundle").mkdir()
    >>> may_write(Path("a bundle"))
    True
    >>> _ = Path("a bundle/README.md").write_text("What we found")
    >>> may_write(Path("a bundle"))
    False
    """
    path = folder / name
    if not path.exists() and not path.is_symlink():
        return True
    text = read_card(folder, name)
    return text is not None and is_ours(text)


def for_repository(card: str, repository: str, place: str = "", suffix: str = "") -> str:
    """A card with the names of the repository that it is sent to. One that nobody edited keeps its seal.

    Args:
        card: a card.
        repository: owner/name.
        place: the folder, or the graph of a model, in the repository; "": its root.
        suffix: `@` and the revision; "": the main branch.

    >>> for_repository('load("hf://OWNER/NAME/k16")', "me/saes", "layer.3", "@v2")
    'load("hf://me/saes/layer.3/k16@v2")'
    """
    begin = f"hf://{repository}/{place}".rstrip("/")
    text = _REFERENCE.sub(lambda reference: f"{begin}{reference[1]}{suffix}", card)
    text = text.replace(HUB_CALL, f'"{repository}", "{place or "."}"')
    return resealed(text) if is_ours(card) else text


def resealed(text: str) -> str:
    """A text that had a seal, with the seal that it needs now.

    >>> is_ours(resealed(sealed("# An SAE").replace("An", "My")))
    True
    """
    return sealed(without_seal(text.replace("\r\n", "\n")))


def without_seal(text: str) -> str:
    r"""A text that had a seal, without it: one that no command writes over.

    >>> without_seal(sealed("# An SAE"))
    '# An SAE\n'
    """
    return text[: text.rfind(_SEAL_BEGIN)].rstrip("\n") + "\n"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
