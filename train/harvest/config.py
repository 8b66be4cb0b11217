"""The settings of a harvest, and the facts that decide its rows. Nothing here imports torch."""

import os
import re
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Any

from sae_runtime.activations.text import DOCUMENTS
from sae_runtime.bundle.typed_json import read_json
from sae_runtime.train.settings import check_settings, option

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """The settings of a harvest.

    `batch_tokens` and `device` change nothing but the rounding of the rows. All other settings decide the rows and the
    shards.

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
    context: int = option(128, "tokens per window, special tokens included, >= 1", least=1)
    tokens: int | None = option(None, "rows after which to stop, >= 1 [all of the text]", least=1)
    dtype: str = option("float32", "type that the rows are rounded to", choices=DTYPES)
    special: bool = option(False, "keep the activations of special tokens too")
    skip_first: int = option(0, "leave out the first positions of each window, special tokens counted, >= 0", least=0)
    skip_token: tuple[str, ...] = option((), "leave out this token: an id, or the text of one token")
    batch_tokens: int = option(4096, "tokens per forward pass, padding included, >= context")
    shard_tokens: int = option(65536, "rows per shard at most (a window is not cut), >= 1", least=1)
    device: str | None = option(None, "torch device [cuda if there is one, else cpu]")

    def __post_init__(self) -> None:
        for name in ("model", "hook", "text"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")
        check_settings(self)
        if self.skip_first >= self.context:
            raise ValueError(f"skip_first must be below the context {self.context}, got {self.skip_first}")
        if self.batch_tokens < self.context:
            raise ValueError(f"batch_tokens must be at least the context {self.context}, got {self.batch_tokens}")

    @property
    def called(self) -> str:
        """The model's name in the records. A folder gives its own name, without its path on this machine."""
        return self.name or (Path(os.path.abspath(self.model)).name if Path(self.model).is_dir() else self.model)


def for_hooks(hooks: Sequence[str], **settings: Any) -> dict[str, HarvestConfig]:
    """The settings of a harvest of each hook, by a name for its folder.

    >>> list(for_hooks(["h.3", "input:h.3.mlp@0"], model="gpt2", text=(Path("notes.txt"),)))
    ['h.3', 'input_h.3.mlp@0']

    Raises:
        ValueError: a setting is out of its range, or two hooks have one name.
    """
    configs = {re.sub(r"[^\w.@-]", "_", hook): HarvestConfig(hook=hook, **settings) for hook in hooks}
    if len(configs) < len(hooks):
        raise ValueError(f"of {', '.join(hooks)}, two would have the same folder; name each hook once")
    return configs


def plan(config: HarvestConfig) -> dict[str, Any]:
    """The facts that decide the rows, as JSON. Of a file they are its path, its size and the time of its last change.

    >>> _ = Path("notes.txt").write_text("One paragraph.")
    >>> plan(HarvestConfig(model="gpt2", hook="h.3", text=(Path("notes.txt"),)))["context"]
    128
    """
    settings = {name: value for name, value in asdict(config).items() if name not in ("batch_tokens", "device")}
    settings["text"] = [_stamp(path) for path in config.text]
    settings["skip_token"] = list(config.skip_token)
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
    skip_first: int | None = None
    skip_ids: tuple[int, ...] | None = None


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
    settings = {name: value for name, value in asdict(windows).items() if value is not None}
    if skip_ids := settings.pop("skip_ids", None):
        settings["skip_token"] = tuple(map(str, skip_ids))
    return settings
