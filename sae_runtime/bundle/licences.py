"""Licences: the identifiers that the Hugging Face Hub knows, and the licence that a folder's files state."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sae_runtime.bundle.regular import read_bytes

LICENCE = "LICENSE"
"""The file of a bundle that keeps the text of its source's licence."""
LICENCE_FILES = (LICENCE, "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_LARGEST = 1 << 20  # bytes of a model card or a licence
_LONGEST = 100  # characters of a licence's name
_LONGEST_LINE = 400  # characters of a line of front matter that states one
_FIELD = re.compile(r"""(license|license_name):\s*(["']?)([A-Za-z0-9][\w.+ -]{0,99}?)\2\s*(#.*)?""")

KNOWN = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc intel-research lppl-1.3c ms-pl apple-ascl mpl-2.0 odc-by odbl openrail++ osl-3.0
    postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3
    llama4 gemma
    """.split()
)
"""Identifiers that the Hub takes as `license` of a model card; any other licence is `other` with a name there."""

_FIRST_LINES = {  # how the text of a licence begins
    "apache-2.0": re.compile(r"\s*Apache License\s+Version 2\.0\b"),
    "mit": re.compile(r"\s*(The )?MIT License\b", re.IGNORECASE),
}


def check_licence(text: str) -> str:
    """A licence that a user names, without spaces around it.

    Raises:
        ValueError: it is empty, longer than 100 characters, or not printable.

    >>> check_licence(" MIT ")
    'MIT'
    """
    licence = text.strip()
    if not licence or len(licence) > _LONGEST or not licence.isprintable():
        raise ValueError(
            f"a licence is a name such as mit or apache-2.0, of at most {_LONGEST} characters, got {text[:_LONGEST]!r}"
        )
    return licence


def front_matter(licence: str) -> list[str]:
    """The lines of a model card's front matter that state a licence.

    >>> front_matter("MIT"), front_matter("ours only")
    (['license: mit'], ['license: other', 'license_name: ours-only'])
    """
    if licence.lower() in KNOWN:
        return [f"license: {licence.lower()}"]
    slug = re.sub(r"[^a-z0-9.-]+", "-", licence[:_LONGEST].lower()).strip("-.")
    named = re.search("[a-z]", slug) is not None
    return ["license: other", *([f"license_name: {slug}"] if named else [])]


def stated_in(card: str) -> str | None:
    r"""The licence that the front matter of a model card states; None if it states none.

    >>> stated_in('---\nlicense: "apache-2.0"\n---\n# A model')
    'apache-2.0'
    """
    fields = _fields(card)
    licence = fields.get("license")
    if licence == "other":
        return fields.get("license_name", licence)
    return licence


def has_field(card: str) -> bool:
    r"""Whether the front matter of a model card has the field `license`, in whatever form.

    >>> has_field("---\nlicense: [mit, apache-2.0]\n---\n"), has_field("# An SAE")
    (True, False)
    """
    return any(re.match(r"(['\"]?)license\1\s*:", line) for line in _front_lines(card))


def licence_of(*folders: Path) -> str | None:
    r"""The licence that files in some folders state: a README.md, else a licence by how its text begins.

    Args:
        folders: looked at in this order.

    >>> Path("their-sae").mkdir()
    >>> _ = Path("their-sae/README.md").write_text("---\nlicense: mit\n---\n")
    >>> licence_of(Path("their-sae"))
    'mit'
    """
    for folder in folders:
        if licence := stated_in(_text(folder / "README.md")):
            return licence
        for name in LICENCE_FILES:
            text = _text(folder / name)
            for licence, beginning in _FIRST_LINES.items():
                if beginning.match(text):
                    return licence
    return None


def licence_text(*folders: Path) -> bytes | None:
    """The text of the first licence in some folders; None if they have none.

    >>> licence_text(Path("nowhere"))
    """
    for file in (folder / name for folder in folders for name in LICENCE_FILES):
        with suppress(OSError, ValueError):
            return read_bytes(file, most=_LARGEST)
    return None


def _text(file: Path) -> str:
    """The text of a small file; "" if it cannot be read, as of a file that is not there."""
    with suppress(OSError, ValueError):
        return read_bytes(file, most=_LARGEST).decode()
    return ""


def _fields(card: str) -> Mapping[str, str]:
    """The one-line texts of the front matter, without their quotes."""
    fields: dict[str, str] = {}
    for line in _front_lines(card):
        field = _FIELD.fullmatch(line) if len(line) <= _LONGEST_LINE else None  # the pattern is slow on very long ones
        if field is not None:
            fields[field[1]] = field[3]
    return fields


def _front_lines(card: str) -> list[str]:
    """The lines of the front matter; none where it does not end."""
    first, *lines = card.removeprefix("\ufeff").splitlines() or [""]
    end = next((number for number, line in enumerate(lines) if line.strip() == "---"), 0)
    return lines[:end] if first.strip() == "---" else []
