"""English text that every Python installation brings along: its documentation."""

import ast
import functools
import inspect
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

_SHORTEST = 80  # characters; less is no prose


def paragraphs(seed: int) -> list[str]:
    """Paragraphs of the language reference and of the standard library's docstrings, in a shuffled order.

    Lines are joined and each text comes once. Tables, listings and signatures, which are mostly no words, are left out.
    """
    texts = list(_prose())
    random.Random(seed).shuffle(texts)
    return texts


@functools.cache
def _prose() -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in (*_reference(), *_docstrings()) if _is_prose(text)))


def _reference() -> Iterator[str]:
    for page in topics.values():
        yield from _split(page)


def _docstrings() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        inside = path.relative_to(library).parts[:-1]
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(inside):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):  # the library holds broken examples on purpose
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _split(inspect.cleandoc(ast.get_docstring(node) or ""))


def _split(page: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", page):
        yield re.sub(r"^[-*] ", "", " ".join(block.split()))


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return len(text) >= _SHORTEST and letters > 0.85 * len(text) and ">>>" not in text
