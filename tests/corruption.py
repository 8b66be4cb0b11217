"""Damage files as disks, transfers and careless users do, each by a seed; and end tests that hang."""

import contextlib
import faulthandler
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

EACH = int(os.environ.get("CORRUPTIONS", "15"))  # damages of every kind of checkpoint or bundle
_DEADLINE = 20  # seconds; reading takes a few hundredths
_EDGE = 512  # bytes at both ends of a file, where headers and directories are; most damage is done there
_ARCHIVES = (".npz", ".pt")

Damage = Callable[[random.Random, bytearray], bytearray]


def spoil(folder: Path, seed: int) -> str:
    """Damage one file below a folder, and return a description of the damage.

    Archives carry checksums, which nearly all damage would break; so in half of the cases a member is damaged and
    the archive written again, its checksums right.
    """
    rng = random.Random(seed)
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    damage = rng.choice(_DAMAGES)
    description = f"{damage.__name__} in {file.name}, seed {seed}"
    if file.suffix in _ARCHIVES and rng.random() < 0.5:
        return f"{description}, at {_spoil_member(rng, file, damage)}"
    file.write_bytes(_changed(rng, file.read_bytes(), damage))
    return description


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    """End this process with a traceback if the block takes too long, also in C code."""
    faulthandler.dump_traceback_later(_DEADLINE, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _spoil_member(rng: random.Random, file: Path, damage: Damage) -> str:
    with zipfile.ZipFile(file) as archive:
        members = [(member, archive.read(member)) for member in archive.infolist()]
    which = rng.choice([n for n, (_, content) in enumerate(members) if content])
    with zipfile.ZipFile(file, "w") as archive:
        for n, (member, content) in enumerate(members):
            changed = _changed(rng, content, damage) if n == which else content
            archive.writestr(member.filename, changed, compress_type=member.compress_type)
    return members[which][0].filename


def _changed(rng: random.Random, content: bytes, damage: Damage) -> bytes:
    while (changed := bytes(damage(rng, bytearray(content)))) == content:
        pass
    return changed


def _position(rng: random.Random, content: bytearray) -> int:
    """The position of a damage: anywhere, or near an end."""
    edge = min(_EDGE, len(content))
    return rng.choice((rng.randrange(len(content)), rng.randrange(edge), len(content) - 1 - rng.randrange(edge)))


def _bit(rng: random.Random, content: bytearray) -> bytearray:
    content[_position(rng, content)] ^= 1 << rng.randrange(8)
    return content


def _run(rng: random.Random, content: bytearray) -> bytearray:
    begin, length = _position(rng, content), rng.choice((1, 2, 4, 8, 64))
    end = min(begin + length, len(content))
    content[begin:end] = rng.choice((bytes(end - begin), rng.randbytes(end - begin), b"\xff" * (end - begin)))
    return content


def _truncated(rng: random.Random, content: bytearray) -> bytearray:
    return content[: _position(rng, content)]


def _inserted(rng: random.Random, content: bytearray) -> bytearray:
    at = _position(rng, content)
    content[at:at] = rng.choice((bytes(rng.choice((1, 4, 8))), rng.randbytes(rng.choice((1, 4, 8)))))
    return content


def _swapped(rng: random.Random, content: bytearray) -> bytearray:
    """Swap two runs of equal length; if they would overlap, flip a bit."""
    length = min(rng.choice((1, 4, 16, 256)), max(len(content) // 2, 1))
    one, other = sorted(min(_position(rng, content), len(content) - length) for _ in range(2))
    if one + length > other:
        return _bit(rng, content)
    content[one : one + length], content[other : other + length] = (
        content[other : other + length],
        content[one : one + length],
    )
    return content


def _digit(rng: random.Random, content: bytearray) -> bytearray:
    """Change a digit of a text, such as JSON or the header of safetensors."""
    digits = [n for n, byte in enumerate(content[: 4 * _EDGE]) if byte in b"0123456789"]
    if not digits:
        return _bit(rng, content)
    content[rng.choice(digits)] = rng.choice(b"0123456789")
    return content


_DAMAGES: tuple[Damage, ...] = (_bit, _run, _truncated, _inserted, _swapped, _digit)
