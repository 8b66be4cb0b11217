"""Names of tokens as people read them, from the names that tokenizers have."""

from collections.abc import Mapping
from pathlib import Path

from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.extraction.part_files import VOCABULARY

_SPACE_OF_BYTES, _SPACE_OF_PIECES = "Ġ", "▁"


def read_vocabulary(features: Path) -> dict[int, str]:
    """The names of tokens that a features folder has; none where it has none.

    Raises:
        ValueError: the file is not such a table.

    >>> read_vocabulary(Path("."))
    {}
    """
    import pyarrow.parquet

    path = features / VOCABULARY
    if not path.is_file():
        return {}
    refuse_link_out(path, features)
    try:
        table = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True).read(["token", "text"])
        return dict(zip(table["token"].to_pylist(), map(str, table["text"].to_pylist()), strict=True))
    except (pyarrow.ArrowException, KeyError, OSError) as error:
        raise ValueError(f"{path} is no table of tokens that extract wrote; extract the features again") from error


def readable(names: Mapping[int, str]) -> dict[int, str]:
    """Names in which bytes and blanks stand for themselves.

    A vocabulary of bytes, as GPT-2's, writes each byte as a letter of its own, a blank as Ġ; one of pieces writes a
    blank as ▁. Bytes that are a part of a character keep their letters.

    >>> readable({0: "Ġopen", 1: "Ã©"}), readable({0: "▁open"}), readable({0: "##ing"})
    ({0: ' open', 1: 'é'}, {0: ' open'}, {0: '##ing'})
    """
    if not any(name.startswith(_SPACE_OF_BYTES) for name in names.values()):
        return {token: name.replace(_SPACE_OF_PIECES, " ") for token, name in names.items()}
    byte_of = _bytes()
    return {token: _decoded(name, byte_of) for token, name in names.items()}


def _decoded(name: str, byte_of: Mapping[str, int]) -> str:
    try:
        return bytes(byte_of[letter] for letter in name).decode()
    except (KeyError, UnicodeDecodeError):  # a token of another kind, or a part of a character
        return name


def _bytes() -> dict[str, int]:
    """The byte that each letter of a vocabulary of bytes stands for (GPT-2's `bytes_to_unicode`)."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + place): byte for place, byte in enumerate(others)}
