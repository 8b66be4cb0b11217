"""A table of characters as SentencePiece compiles it: a trie of bytes as a double array, then the texts."""

import struct
from collections.abc import Mapping
from typing import Any

_LEAF, _TAKEN = 0, -1


def charsmap(replaced: Mapping[str, str]) -> bytes:
    """The bytes of a table that puts a text in the place of each key."""
    texts, values = b"", {}
    for key, text in replaced.items():
        values[key.encode()] = len(texts)
        texts += text.encode() + b"\0"
    trie: dict[int, Any] = {}
    for key_bytes, value in values.items():
        node = trie
        for byte in key_bytes:
            node = node.setdefault(byte, {})
        node[_LEAF] = value
    units: dict[int, int] = {0: 0}
    _place(trie, 0, units)
    size = max(units) + 257
    array = struct.pack(f"<{size}I", *(units.get(place, 0) for place in range(size)))
    return struct.pack("<I", len(array)) + array + texts


def _place(node: dict[int, Any], at: int, units: dict[int, int]) -> None:
    """Give the children of a node places that differ from a base in their byte, and go on with each."""
    base = next(base for base in range(1, 1 << 20) if not any(base ^ byte in units for byte in node))
    units[at] |= (at ^ base) << 10 | (1 << 8 if _LEAF in node else 0)
    for byte, child in node.items():
        units[base ^ byte] = child | 1 << 31 if byte == _LEAF else byte
    for byte, child in node.items():
        if byte != _LEAF:
            _place(child, base ^ byte, units)
