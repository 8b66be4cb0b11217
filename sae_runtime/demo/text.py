"""English text that every Python installation has: its documentation."""

import ast
import functools
import inspect
import itertools
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

LICENCE = "PSF-2.0"  # of the text
_SHORTEST = 80  # characters; shorter texts are rarely prose


def paragraphs(seed: int) -> list[str]:
    """Paragraphs of the language reference and of the standard library's docstrings, in a shuffled order.

    The lines of a paragraph are joined, and each text comes once. Texts that consist mostly of other characters than
    letters, such as tables, listings and signatures, are left out.

    >>> paragraphs(seed=0)[:5] == paragraphs(seed=0)[:5] != paragraphs(seed=1)[:5]
    True
    """
    texts = list(_prose())
    random.Random(seed).shuffle(texts)
    return texts


@functools.cache
def _prose() -> tuple[str, ...]:
    pages = itertools.chain(topics.values(), _docstrings())
    blocks = (block for page in pages for block in re.split(r"\n\s*\n", page))
    texts = (re.sub(r"^[-*] ", "", " ".join(block.split())) for block in blocks)
    return tuple(dict.fromkeys(filter(_is_prose, texts)))


def _docstrings() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.relative_to(library).parts[:-1]):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):  # the library holds broken examples on purpose
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield inspect.cleandoc(ast.get_docstring(node) or "")


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return len(text) >= _SHORTEST and letters > 0.85 * len(text) and ">>>" not in text
