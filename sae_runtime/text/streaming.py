"""Text of generated tokens, given as soon as it is certain."""

from typing import Any


class Stream:
    """Turns ids into text, one after the other. The pieces joined are the text of all ids."""

    def __init__(self, rust: Any, *, special: bool = False) -> None:
        self._rust, self._skip = rust, not special
        self._window: list[int] = []  # tokens of the last piece, and those whose text is not certain yet
        self._given = ""  # what the first of these have given

    def push(self, number: int) -> str:
        """The text that is certain now; "" inside a character."""
        self._window.append(int(number))
        text = str(self._rust.decode(self._window, skip_special_tokens=self._skip))
        if text.endswith("\ufffd"):
            return ""
        piece, self._given = text[len(self._given) :], text
        return piece

    def end(self) -> str:
        """The text that is left when no id follows."""
        text = str(self._rust.decode(self._window, skip_special_tokens=self._skip))
        return text[len(self._given) :]
