"""Who may ask: keys of callers, and the names under which browsers may know this server."""

import base64
import codecs
import hmac
import ipaddress
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from sae_runtime.bundle.regular import read_bytes

_LARGEST = 1 << 20


def read_keys(path: Path) -> tuple[bytes, ...]:
    r"""The keys of a file, one on a line; empty lines and lines that begin with # are none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no key, or one that no header can hold.

    >>> _ = Path("keys").write_text("# of the team\nfirst-key-of-16-bytes\n")
    >>> read_keys(Path("keys"))
    (b'first-key-of-16-bytes',)
    """
    try:
        lines = [line.strip() for line in read_bytes(path, most=_LARGEST).removeprefix(codecs.BOM_UTF8).splitlines()]
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file of keys {path}; write one, with a key on a line") from None
    keys = {number: line for number, line in enumerate(lines, 1) if line and not line.startswith(b"#")}
    if not keys:
        raise ValueError(f"{path} has no key; write one on a line")
    for number, key in keys.items():
        if len(key) < 16 or not all(32 < byte < 127 for byte in key):
            why = "a key is at least 16 printable ASCII characters without spaces; write another"
            raise ValueError(f"line {number} of {path} is no key: {why}")
    return tuple(keys.values())


def knows(keys: Sequence[bytes], authorization: bytes) -> bool:
    """Whether the header Authorization holds one of the keys, as Bearer or as a browser's password.

    All keys are compared, each in a time that does not tell how much of it was right.

    >>> knows([b"first-key-of-16-bytes"], b"Bearer first-key-of-16-bytes"), knows([b"first-key-of-16-bytes"], b"")
    (True, False)
    """
    scheme, _, given = authorization.strip().partition(b" ")
    given = given.strip()
    if scheme.lower() == b"basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except ValueError:
            return False
    elif scheme.lower() != b"bearer":
        return False
    found = False
    for key in keys:
        found |= hmac.compare_digest(key, given)
    return found


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own.

    >>> is_loopback("127.0.0.1"), is_loopback("127.evil.example")
    (True, False)
    """
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, behind which any address may be
        return False


def stranger(headers: Mapping[bytes, bytes], hosts: Collection[str] | None) -> str | None:
    """Why a request is one that a page of another site made a browser send; None: it is none.

    Args:
        headers: by name.
        hosts: names under which this server may be asked; None: any.

    >>> stranger({b"host": b"evil.example:8080"}, ("localhost",))
    'the Host is none of localhost; ask by one of them, or start the server with --host or --api-key-file'
    """
    host = headers.get(b"host", b"").decode("latin-1").lower()
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if hosts is not None and host and not is_loopback(name.strip("[]")) and name not in hosts:
        known = ", ".join(hosts)
        return f"the Host is none of {known}; ask by one of them, or start the server with --host or --api-key-file"
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1").lower().partition("://")[2] != host:
        return "the request comes from a page of another site; ask from this server's own page, or without Origin"
    return None
