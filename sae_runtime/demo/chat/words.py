"""Whether a text speaks of the concept, and how varied texts are."""

import re
from collections.abc import Sequence

CONCEPT = "the internet"
_WORDS = re.compile(
    r"\b(internet|online|web|webpages?|websites?|browsers?|networks?|servers?|e-?mails?|urls?|https?|www)\b",
    re.IGNORECASE,
)


def named(text: str) -> list[str]:
    """The concept's words in a text, each once, in small letters.

    >>> named("Look it up online: a Website, or the web. A hostel is none.")
    ['online', 'website', 'web']
    """
    return list(dict.fromkeys(word.lower() for word in _WORDS.findall(text)))


def distinct_2(texts: Sequence[str]) -> float:
    """Pairs of neighbouring words that differ, as a share of all pairs of all texts: distinct-2 of Li et al. (2016).

    >>> distinct_2(["a b a b"])
    0.6666666666666666
    """
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    pairs = [pair for each in words for pair in zip(each, each[1:], strict=False)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0
