"""The texts of the ready SAE: documentation in Python code under permissive licences, with source and licence.

Texts are the docstrings of Python's standard library, its language reference, and the docstrings and project pages of
the packages of constraints.txt, as they are installed. A package counts if all that its metadata says of its licence is
permissive, as listed here. No package gives more than its share, so that no large one decides what the features are
about, and a paragraph comes once.
"""

import hashlib
import importlib.metadata
import re
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from corpus import Text, docstrings_of

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
PYTHON = "PSF-2.0"
SHARE = 250_000  # characters of a package
SHORTEST, LONGEST = 80, 20_000  # characters of a document
_TESTS = {"test", "tests", "testing", "idlelib", "lib2to3", "_vendor", "vendored", "site-packages", "__pycache__"}

# What metadata say, in lower case, and the licence's name in SPDX's list.
PERMISSIVE = {
    "0bsd": "0BSD",
    "2-clause bsd": "BSD-2-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "apache-2.0 with llvm-exception": "Apache-2.0 WITH LLVM-exception",
    "bsd": "BSD",
    "bsd license": "BSD",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsl-1.0": "BSL-1.0",
    "cc0-1.0": "CC0-1.0",
    "cnri-python": "CNRI-Python",
    "isc": "ISC",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit": "MIT",
    "mit license": "MIT",
    "mit-cmu": "MIT-CMU",
    "psf-2.0": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "zlib": "Zlib",
}


def permissive(package: Distribution) -> str | None:
    """The licence of a package in SPDX's words if it is permissive, else None.

    The licence expression counts, else the classifiers, else a short licence field.
    """
    about = package.metadata
    said = about["License-Expression"]
    if not said:
        classified = [one.rpartition(" :: ")[2] for one in about.get_all("Classifier") or []]
        known = [one for one in classified if one.lower() in PERMISSIVE]
        licences = [one for one in about.get_all("Classifier") or [] if one.startswith("License :: OSI Approved :: ")]
        if licences and len(licences) != sum(one.rpartition(" :: ")[2].lower() in PERMISSIVE for one in licences):
            return None
        said = " AND ".join(known) if licences else (about["License"] or "")
    names = [PERMISSIVE.get(part.strip().lower()) for part in re.split(r"\s(?:AND|OR)\s", said)]
    return None if not names or None in names else " AND ".join(dict.fromkeys(filter(None, names)))


def gathered(characters: int, share: int = SHARE) -> list[Text]:
    """Documents of the corpus, at most so many characters, in the order of the hash of their text.

    All of the standard library comes first, then the packages one after the other, in an order of their hash.

    Args:
        characters: of all documents together.
        share: of one package.
    """
    seen: set[bytes] = set()
    found: list[Text] = []
    left = characters
    for source in (_python(), *(_package(one, share) for one in _packages())):
        for one in source:
            if left <= 0:
                break
            text = _new_paragraphs(one.text, seen)
            if len(text) >= SHORTEST:
                left -= len(text)
                found.append(one._replace(text=text))
    return sorted(found, key=lambda one: _hash(one.text))


def _python() -> Iterator[Text]:
    for name, page in topics.items():
        yield Text(page, f"python:pydoc_data/topics:{name}", PYTHON)
    library = Path(sysconfig.get_paths()["stdlib"])
    files = {str(path.relative_to(library)): path for path in library.rglob("*.py")}
    for name in sorted(files, key=_hash):
        if not _TESTS & set(Path(name).parts[:-1]):
            yield from (Text(text, f"python:{name}:{of}", PYTHON) for of, text in docstrings_of(files[name]))


def _packages() -> list[Distribution]:
    named = set(re.findall(r"^([\w.-]+)==", CONSTRAINTS.read_text(), re.MULTILINE))
    every = {one.name.lower().replace("_", "-"): one for one in importlib.metadata.distributions()}
    return [every[name] for name in sorted(every, key=_hash) if name in named]


def _package(package: Distribution, share: int) -> Iterator[Text]:
    licence = permissive(package)
    if licence is None:
        return
    name, left = package.name.lower(), share
    about: Any = package.metadata  # a message, whose payload is the page
    page = about.get_payload()
    candidates = [Text(page, f"{name}:METADATA", licence)] if isinstance(page, str) else []
    for one in candidates:
        left -= len(one.text)
        yield one
    files = {str(file): file for file in package.files or [] if file.suffix == ".py"}
    for path in sorted(files, key=_hash):
        if _TESTS & set(Path(path).parts[:-1]):
            continue
        for of, text in docstrings_of(Path(str(files[path].locate()))):
            if left <= 0:
                return
            left -= len(text)
            yield Text(text, f"{name}:{path}:{of}", licence)


def _new_paragraphs(text: str, seen: set[bytes]) -> str:
    """The paragraphs of a document that no earlier one has; "" for one that is no text."""
    if "\0" in text or len(text) > LONGEST:
        return ""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        try:
            key = _hash(" ".join(paragraph.split()))
        except UnicodeEncodeError:  # half of a character
            continue
        if key not in seen:
            seen.add(key)
            kept.append(paragraph)
    return "\n\n".join(kept).strip()


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
