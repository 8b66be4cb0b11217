"""Text of generated tokens, given as soon as it is certain."""

import codecs
import functools
import json
import re
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token of one byte, where a tokenizer falls back on bytes
_LONGEST = 3  # tokens that may wait for the end of a character, which has at most four bytes


class Stream:
    """Turns ids into text, one after the other. The pieces joined are the text of all ids, as `decode` gives it.

    Each id costs the same, however many came before.
    """

    def __init__(self, rust: Any, *, special: bool = False) -> None:
        self._rust, self._special = rust, special
        added = rust.get_added_tokens_decoder()
        self._silent = set() if special else {number for number, token in added.items() if token.special}
        kinds = _decoders(rust.decoder)
        byte_level = "ByteLevel" in kinds and set(kinds) <= {"ByteLevel", "Fuse"}
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace") if byte_level else None
        self._falls_back = "ByteFallback" in kinds
        self._context: list[int] = []  # the tokens of the last piece: what follows may depend on them
        self._waiting: list[int] = []  # tokens whose text is not certain yet

    def push(self, number: int) -> str:
        """The text that is certain now; "" inside a character."""
        token = self._rust.id_to_token(int(number))
        if token is None or number in self._silent:
            return ""
        if self._bytes is not None:
            return self._bytes.decode(_bytes_of(token))
        self._waiting.append(int(number))
        # A wrong byte anywhere in a run of bytes changes the text of the whole run.
        if self._falls_back and _BYTE.fullmatch(token):
            return ""
        text = self._text([*self._context, *self._waiting])
        if text.endswith("\ufffd") and not self._falls_back and len(self._waiting) <= _LONGEST:
            return ""
        return self._given(text)

    def end(self) -> str:
        """The text that is left when no id follows."""
        if self._bytes is not None:
            return self._bytes.decode(b"", final=True)
        return self._given(self._text([*self._context, *self._waiting])) if self._waiting else ""

    def _given(self, text: str) -> str:
        piece = text[len(self._text(self._context)) :] if self._context else text
        if piece:
            self._context, self._waiting = self._waiting, []
        return piece

    def _text(self, ids: list[int]) -> str:
        text: str = self._rust.decode(ids, skip_special_tokens=not self._special)
        return text


def _decoders(decoder: Any) -> list[str]:
    """The kinds of a tokenizer's decoder, or of its parts."""
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return [str(part.get("type")) for part in state.get("decoders", [state])]


def _bytes_of(token: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary; an added token may be plain text."""
    table = _byte_of_character()
    known = [table.get(character) for character in token]
    return token.encode() if None in known else bytes(known)  # type: ignore[arg-type] # all are numbers


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """Which character stands for which byte: a printable one for itself, the others for the rest in their order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}
