"""Files of a checkpoint: how a reader gets them, and the JSON files among them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.typed_json import read_file, shown

_LARGEST = 1 << 53  # magnitude of a number of a configuration


def home(path: Path) -> Path:
    """The folder of a checkpoint: `path` itself, or the parent if `path` is a file."""
    return path if path.is_dir() else path.parent


def find(path: Path, name: str) -> Path | None:
    """A file of the checkpoint at `path`, or None if there is no such file.

    Args:
        path: the checkpoint, a folder or one of its files.
        name: the file, relative to the folder.

    Raises:
        ValueError: the file is a link that leaves the folder. Links to the blobs of the same Hub cache are allowed.

    >>> Path("ae.pt").touch()
    >>> find(Path("."), "ae.pt"), find(Path("."), "config.json")
    (PosixPath('ae.pt'), None)
    """
    file = home(path) / name
    if not file.is_file():
        return None
    refuse_link_out(file, home(path))
    return file


def has(path: Path, *names: str) -> bool:
    """Whether the checkpoint at `path` has all these files, and, if `path` is a file, is one of them."""
    if path.is_file() and path.name not in {Path(name).name for name in names}:
        return False
    return all(find(path, name) is not None for name in names)


@dataclass(frozen=True)
class Config:
    """A JSON object whose fields are checked when they are read.

    Every getter raises ValueError if the field has another type, or if it is missing and there is no default.

    >>> config = Config(Path("cfg.json"), {"d_in": 24, "k": "6", "activation": "topk"})
    >>> config.size("d_in"), config.flag("signed", False), config.choice("activation", ("topk", "groupmax"))
    (24, False, 'topk')
    >>> config.integer("k")
    Traceback (most recent call last):
    ValueError: cfg.json: k is '6', expected a whole number
    """

    file: Path
    fields: dict[str, Any]

    def __contains__(self, key: str) -> bool:
        return self.fields.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _LARGEST:
            raise self._wrong(key, "a whole number")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        if (value := self.integer(key, default)) < 1:
            raise self._wrong(key, "at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            raise self._wrong(key, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str) or not value.isprintable() or value != value.encode(errors="ignore").decode():
            raise self._wrong(key, "a string of printable characters")
        return value

    def choice(self, key: str, choices: Iterable[str], default: str | None = None) -> str:
        """One of several strings."""
        value = self.text(key, default)
        if value not in choices:
            raise ValueError(f"{self.file}: {key} is {value}, expected one of {', '.join(choices)}")
        return value

    def maybe_text(self, key: str) -> str | None:
        """A string, or None if the field is missing."""
        return self.text(key) if key in self else None

    def inner(self, key: str) -> "Config":
        """The object in the field; an empty one if the field is missing."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return Config(self.file, value)

    def _get(self, key: str, default: Any) -> Any:
        value = self.fields.get(key)
        if value is None and default is None:
            raise ValueError(f"{self.file} does not say {key}; get the configuration that was saved with the weights")
        return default if value is None else value

    def _wrong(self, key: str, expected: str) -> ValueError:
        return ValueError(f"{self.file}: {key} is {shown(self.fields.get(key))}, expected {expected}")


def read_config(file: Path) -> Config:
    """The object in a JSON file.

    Raises:
        ValueError: the file is not JSON, does not hold an object, or is too large for a configuration.

    >>> Path("cfg.json").write_text('{"d_in": 24}')
    12
    >>> read_config(Path("cfg.json")).size("d_in")
    24
    """
    try:
        return Config(file, read_file(dict[str, Any], file, foreign=True))
    except ValueError as error:
        raise ValueError(f"{error}; get it again") from error


def config_of(path: Path, name: str) -> Config | None:
    """The object in a JSON file of the checkpoint at `path`; None if there is no such file.

    Raises:
        ValueError: see `find` and `read_config`.
    """
    file = find(path, name)
    return None if file is None else read_config(file)


def config_and_weights(path: Path, config: str, weights: str, library: str) -> tuple[Config, Path]:
    """The configuration and the file of weights of the checkpoint at `path`.

    Raises:
        ValueError: one of them is missing; see also `config_of`.

    >>> config_and_weights(Path("."), "cfg.json", "sae.safetensors", "sparsify")
    Traceback (most recent call last):
    ValueError: . lacks cfg.json or sae.safetensors, which sparsify writes; get the whole folder
    """
    cfg, file = config_of(path, config), find(path, weights)
    if cfg is None or file is None:
        raise ValueError(f"{path} lacks {config} or {weights}, which {library} writes; get the whole folder")
    return cfg, file
