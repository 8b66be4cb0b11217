"""What a site shows of numbers and texts: four digits, and texts of bounded length that UTF-8 can write."""

import functools
import math
import re
from collections.abc import Iterable

_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs, which UTF-8 cannot write
LABEL = 200  # characters of a label
TOKEN = 60  # of a token
NAME = 200  # of a model, a hook, a file, a licence


def short(number: float | None) -> float | None:
    """A number with four significant digits; None for what JSON cannot write.

    >>> short(0.000123456), short(4.5178), short(7.0), short(float("nan"))
    (0.0001235, 4.518, 7, None)
    """
    if number is None or not math.isfinite(number):
        return None
    rounded = float(f"{number:.4g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e15 else rounded


def shorts(numbers: Iterable[float]) -> list[float | None]:
    """Each number with four significant digits.

    >>> shorts([1.0, 0.123456])
    [1, 0.1235]
    """
    return [short(number) for number in numbers]


def bounded(text: str, most: int) -> str:
    r"""A text of at most so many characters, the last one an ellipsis where it is cut.

    >>> bounded("a label", 20), bounded("a long label", 7), bounded("half \ud800", 20)
    ('a label', 'a long…', 'half �')
    """
    return _HALVES.sub("\ufffd", text if len(text) <= most else text[: most - 1] + "…")


def name(text: str | None) -> str | None:
    """A name of a model, a hook or a licence as the site shows it.

    >>> name("gpt2"), name(None)
    ('gpt2', None)
    """
    return None if text is None else bounded(text, NAME)


def model_name(text: str | None) -> str | None:
    r"""The name of a host model; of a folder on somebody's disk its last part.

    >>> model_name("openai/gpt2"), model_name("/home/anna/gpt2/"), model_name(None)
    ('openai/gpt2', 'gpt2', None)
    """
    return file_name(text) if text is not None and re.match(r"[/\\~.]|[A-Za-z]:[/\\]", text) else name(text)


@functools.lru_cache(maxsize=1024)
def file_name(path: str | None) -> str | None:
    r"""The name of a file without the folders of the disk that it lay on; an address is shown whole.

    >>> file_name("/home/anna/text/a.jsonl"), file_name("C:\\text\\b.txt"), file_name("hf://datasets/org/c.parquet")
    ('a.jsonl', 'b.txt', 'hf://datasets/org/c.parquet')
    """
    if path is None or "://" in path:
        return name(path)
    return name(re.split(r"[/\\]", path.rstrip("/\\"))[-1])
