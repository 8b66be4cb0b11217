"""Labels of features: short texts by which people know them, and the feature that a label means."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from numbers import Integral

LONGEST = 1000  # characters of a label
CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # what no label holds
_WHOLE = re.compile("[+-]?[0-9]{1,18}")
_NAMED = 5  # features or labels that a message names
_COMPARED = 2000  # labels that are compared with an unknown one, which takes some 70 us each


def as_label(text: object) -> str:
    r"""A label as it is kept and compared: in Unicode's form NFC, without blanks around it.

    Raises:
        ValueError: it is no text, or is empty, too long or of more than one line, or holds control characters.

    >>> as_label(" cafe\u0301 ") == "caf\u00e9"
    True
    """
    label = unicodedata.normalize("NFC", text).strip() if isinstance(text, str) else None
    if not label:
        raise ValueError(f"a label is a text that is not empty, got {shown(text)}")
    if len(label) > LONGEST:
        raise ValueError(f"a label has at most {LONGEST:,} characters, got {len(label):,}: {shown(label)}")
    if CONTROL.search(label):
        raise ValueError(f"a label is one line without control characters, got {shown(label)}")
    return label


def as_feature(feature: str) -> int | str:
    """What a text names: a whole number is always a feature's number, all else is a label.

    Raises:
        ValueError: it is no label either.

    >>> as_feature("12"), as_feature("12 monkeys")
    (12, '12 monkeys')
    """
    label = as_label(feature)
    return int(label) if _WHOLE.fullmatch(label) else label


def shown(text: object) -> str:
    """A label in messages, cut after 80 characters; terminals may print it.

    >>> shown("open file")
    "'open file'"
    """
    written = ascii(text) if CONTROL.search(str(text)[:81]) else repr(text)
    return written if len(written) <= 82 else f"{written[:80]}..."


class Labels(Mapping[int, str]):
    """The labels of features, by the feature's number; `feature` gives the one that a label means.

    Features may share a label, and then none can be named by it. Labels are compared as `as_label` makes them, with
    their case.

    >>> labels = Labels({12: "include", 40: "a loop"})
    >>> labels[12], labels.feature("a loop"), len(labels)
    ('include', 40, 2)
    """

    def __init__(self, labels: Mapping[int, str], *, source: str = "the mapping that was given") -> None:
        """Check and keep labels.

        Args:
            labels: texts by feature.
            source: where they come from, for messages.

        Raises:
            ValueError: a feature is no whole number, or a text is no label.
        """
        self._labels: dict[int, str] = {}
        for feature, text in labels.items():
            if not isinstance(feature, Integral) or isinstance(feature, bool):
                raise ValueError(f"labels are given by feature, such as {{12: 'include'}}, got {shown(feature)}")
            self._labels[int(feature)] = as_label(text)
        self._features: dict[str, list[int]] = {}  # filled when a label is first looked up
        self.source = source

    def __getitem__(self, feature: int) -> str:
        return self._labels[feature]

    def __iter__(self) -> Iterator[int]:
        return iter(self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __repr__(self) -> str:
        return f"Labels({len(self)} of {self.source})"

    def feature(self, label: str) -> int:
        """The feature that a label means.

        Raises:
            ValueError: no feature has this label, or several have it.

        >>> Labels({12: "include"}).feature("Include")
        Traceback (most recent call last):
        ValueError: 'Include' is no label in the mapping that was given; the closest are 'include' (feature 12)
        """
        found = self._by_label().get(as_label(label), [])
        if len(found) == 1:
            return found[0]
        if found:
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            features = ", ".join(map(str, found[:_NAMED])) + more
            raise ValueError(f"the label {shown(label)} is that of features {features}; name one by its number")
        if not self:
            raise ValueError(
                f"{shown(label)} is a label, and there are none in {self.source}; write lines such as "
                '{"feature": 12, "label": "include"}, or name the feature by its number'
            )
        raise ValueError(f"{shown(label)} is no label in {self.source}; {self._closest(as_label(label))}")

    def _by_label(self) -> dict[str, list[int]]:
        if not self._features:
            features: dict[str, list[int]] = {}
            for feature, label in self._labels.items():
                features.setdefault(label, []).append(feature)
            self._features = features  # in one step, for threads
        return self._features

    def _closest(self, label: str) -> str:
        """Which labels are most like one that is not known."""
        import difflib

        folded: dict[str, str] = {}
        for known in self._by_label():
            folded.setdefault(known.casefold(), known)
        wanted = label.casefold()
        near = [wanted] if wanted in folded else [known for known in folded if wanted in known]
        if len(near) < _NAMED:
            alike = sorted(folded, key=lambda known: abs(len(known) - len(wanted)))[:_COMPARED]
            near += [known for known in difflib.get_close_matches(wanted, alike, _NAMED) if known not in near]
        if not near:
            return "name the feature by its number"
        word = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)")
        near.sort(key=lambda known: (word.search(known) is None, len(known)))
        texts = [folded[known] for known in near[:_NAMED]]
        return f"the closest are {', '.join(f'{shown(t)} (feature {self._by_label()[t][0]})' for t in texts)}"
