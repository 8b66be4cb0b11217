"""The model cards on their way to a repository: its names and a licence put in, and cards edited on the Hub left."""

import re
from collections.abc import Callable

from sae_runtime.bundle.card import NOT_STATED
from sae_runtime.bundle.licences import front_matter, has_field, stated_in
from sae_runtime.bundle.markdown import inline
from sae_runtime.bundle.sealed import is_ours, resealed


def stating(card: str, licence: str) -> str:
    r"""A card that states a licence, where it stated none.

    Raises:
        ValueError: it states another one, or several.

    >>> print(stating("---\ntags:\n- onnx\n---\n# An SAE\n\nLicence: not stated.", "MIT"))
    ---
    license: mit
    tags:
    - onnx
    ---
    # An SAE
    <BLANKLINE>
    Licence: `MIT`.
    """
    lines = front_matter(licence)
    stated = stated_in(card)
    if stated is not None:
        if stated_in("\n".join(["---", *lines, "---"])) != stated.lower():
            raise ValueError(f"the model card states the licence {stated}; change it there, or leave out --licence")
        return card
    if has_field(card):
        raise ValueError("the model card has a licence that is no single name; change it there, or leave out --licence")
    end = "\r\n" if "\r\n" in card else "\n"
    added = "".join(line + end for line in lines)
    if begin := re.match("\ufeff?---[ \t]*\r?\n", card):
        text = card[: begin.end()] + added + card[begin.end() :]
    else:
        text = f"---{end}{added}---{end}{end}{card}"
    text = text.replace(NOT_STATED, f"Licence: {inline(licence)}.")
    return resealed(text) if is_ours(card) else text


def to_send(cards: dict[str, str], remote: set[str], read: Callable[[str], str]) -> tuple[dict[str, str], list[str]]:
    """The cards that are sent, and the paths of those that stay as somebody edited them on the Hub.

    A card on the Hub stays where ours is one that nobody edited. One without a text, as the Hub makes it for a new
    repository, is replaced, and its licence is kept.

    Args:
        cards: the texts by their paths in the repository.
        remote: the paths of the files that are there.
        read: gives the text of a file that is there.

    >>> to_send({"README.md": "ours"}, {"README.md"}, lambda path: "theirs")
    ({'README.md': 'ours'}, [])
    """
    sent, kept = {}, []
    for path, text in cards.items():
        if path in remote and is_ours(text):
            there = read(path)
            body = there.partition("\n---")[2] if there.startswith("---") else there
            if body.strip() and not is_ours(there):
                kept.append(path)
                continue
            licence = stated_in(there)
            if licence is not None and stated_in(text) is None:
                text = stating(text, licence)
        sent[path] = text
    return sent, kept
