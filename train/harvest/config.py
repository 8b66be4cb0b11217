"""The settings of a harvest, and the facts that decide its rows. Nothing here imports torch."""

import os
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Any

from sae_runtime.activations.text import DOCUMENTS
from sae_runtime.bundle.typed_json import read_json
from sae_runtime.train.config import option

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """The settings of a harvest.

    `batch_tokens` and `device` change at most the rounding of the rows. All other settings decide the rows and shards.

    >>> HarvestConfig(model="gpt2", hook="h.3", text=(Path("notes.txt"),)).called
    'gpt2'

    Raises:
        ValueError: a value is out of its range.
    """

    model: str = option(MISSING, "transformers folder or hub name")
    hook: str = option(MISSING, "module whose output is kept, as named_modules has it, e.g. encoder.layer.3")
    name: str | None = option(None, "name to record for the model [its folder's name, or the hub's]")
    text: tuple[Path, ...] = option(MISSING, "text files, UTF-8; .jsonl: one object a line, its field 'text'")
    document: str = option("paragraph", "what a document is in a text file", choices=DOCUMENTS)
    context: int = option(128, "tokens per window, special tokens included, >= 1")
    tokens: int | None = option(None, "rows after which to stop, >= 1 [all of the text]")
    dtype: str = option("float32", "type that the rows are rounded to", choices=DTYPES)
    special: bool = option(False, "keep the activations of special tokens too")
    batch_tokens: int = option(4096, "tokens per forward pass, padding included, >= context")
    shard_tokens: int = option(65536, "rows per shard at most (a window is not cut), >= 1")
    device: str | None = option(None, "torch device [cuda where there is one, else cpu]")

    def __post_init__(self) -> None:
        for name in ("model", "hook", "text"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")
        for name, known in (("document", DOCUMENTS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("context", "tokens", "shard_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if self.batch_tokens < self.context:
            raise ValueError(f"batch_tokens must be >= context, got {self.batch_tokens} for windows of {self.context}")

    @property
    def called(self) -> str:
        """The model's name for the record: a folder gives its own name and not its path on this machine."""
        return self.name or (Path(os.path.abspath(self.model)).name if Path(self.model).is_dir() else self.model)


def plan(config: HarvestConfig) -> dict[str, Any]:
    """The facts that decide the rows, as JSON. A file is known by its size and its time of change."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("batch_tokens", "device")}
    settings["text"] = [_stamp(path) for path in config.text]
    folder = Path(config.model)
    if folder.is_dir():
        settings["model"] = str(folder.resolve())
        settings["model_files"] = [_stamp(path) for path in sorted(folder.iterdir()) if path.is_file()]
    return settings


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()} ({stat.st_size} bytes, changed at {stat.st_mtime_ns} ns)"


@dataclass(frozen=True)
class _Windows:
    """The documents, windows and tokens of a harvest, as far as its index names them."""

    document: str | None = None
    context: int | None = None
    special: bool | None = None


def as_harvested(activations: Path) -> dict[str, Any]:
    """The windows that stored activations came from, as settings of a harvest; a plain file has none.

    Raises:
        ValueError: the index of the folder is not readable.

    >>> as_harvested(Path(activations_path))
    {}
    """
    index = activations / "activations.json"
    if not index.is_file():
        return {}
    try:
        windows = read_json(_Windows, index.read_bytes(), str(index), more=True)
    except ValueError as error:
        raise ValueError(f"{error}; harvest again") from error
    return {name: value for name, value in asdict(windows).items() if value is not None}
