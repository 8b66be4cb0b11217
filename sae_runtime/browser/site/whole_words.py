"""Top tokens as people read them: a piece of a word is shown as the word that has it most often in the contexts."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from sae_runtime.browser.site.active_tokens import active_tokens
from sae_runtime.browser.site.shown import TOKEN, bounded
from sae_runtime.store.records import Context, StoredFeature

_CONTINUES = "##"  # how WordPiece marks a piece that is not the first of its word
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")  # tokenizers of words end one at an underscore
_NO_BLANKS = re.compile("[\u0e00-\u0eff\u1780-\u17ff\u2e80-\u9fff\U00020000-\U0003ffff]")  # Thai to Chinese: no blanks
_ALONE = 0.2  # share of the places of a token at which it is a word by itself, from which on it is shown as such
_AROUND = 40  # characters on each side of a token in which its word is looked for


def whole_words(feature: StoredFeature, name_of: Callable[[int], str]) -> list[str]:
    """A text for each top token of a feature.

    Where the store has texts, a token that hardly ever is a word by itself in the feature's contexts is shown as the
    word that has it most often, whatever the case of its letters. Of two tokens of one word, the second is shown as it
    is. Else a token is shown without the marks of its tokenizer, and without blanks around it.

    Args:
        feature: as the store has it.
        name_of: gives the name of a token by its id: load and ##load are two tokens, of other words.
    """
    words = _words_of(feature.contexts, {name for name, _, _ in feature.top_tokens}, name_of)
    shown: list[str] = []
    for name, _, _ in feature.top_tokens:
        own = _plain(name)
        word = _word_of(own, words[name]) if name in words else own
        if word.casefold() in [known.casefold() for known in shown]:
            word = own
        shown.append(bounded(word or name, TOKEN))
    return shown


def distinct(words: Sequence[str], most: int) -> list[str]:
    """The first words that differ in more than their case.

    >>> distinct(["Open", "open", "file", "a"], 2)
    ['Open', 'file']
    """
    kept: dict[str, str] = {}
    for word in words:
        if word.strip():
            kept.setdefault(word.strip().casefold(), word)
    return list(kept.values())[:most]


def _word_of(own: str, counts: Counter[str]) -> str:
    """The word that stands for a token, by how often each word has it."""
    of_any_case: Counter[str] = Counter()
    for word, count in counts.items():
        of_any_case[word.casefold()] += count
    usual = of_any_case.most_common(1)[0][0]
    if of_any_case[own.casefold()] >= _ALONE * counts.total():
        usual = own.casefold()
    return next(word for word, _ in counts.most_common() if word.casefold() == usual)


def _plain(name: str) -> str:
    """The name of a token without marks and blanks; a token of blanks alone keeps them."""
    own = name[len(_CONTINUES) :] if name.startswith(_CONTINUES) and len(name) > len(_CONTINUES) else name
    return own.strip() or own


def _words_of(contexts: Sequence[Context], wanted: set[str], name_of: Callable[[int], str]) -> dict[str, Counter[str]]:
    """How often each word has each wanted active token, by the token's name."""
    words: dict[str, Counter[str]] = defaultdict(Counter)
    for context in contexts:
        text = context.text
        if text is None:
            continue
        for token in active_tokens(context):
            own = text[token.begin : token.end]
            if (name := name_of(int(context.ids[token.number]))) not in wanted or not own.strip():
                continue
            begin = token.begin + len(own) - len(own.lstrip())
            end = token.end - len(own) + len(own.rstrip())
            words[name][_word_at(text, begin, end)] += 1
    return words


def _word_at(text: str, begin: int, end: int) -> str:
    """The word that has these characters; themselves where they are no part of a word."""
    if _NO_BLANKS.search(text, begin, end):
        return text[begin:end]
    low = max(begin - _AROUND, 0)
    for found in _WORD.finditer(text, low, min(end + _AROUND, len(text))):
        if found.start() <= begin and end <= found.end():
            return found[0]
    return text[begin:end]
