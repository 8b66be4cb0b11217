"""The settings of a harvest, and the facts that decide its rows. Nothing here imports torch."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from sae_runtime.activations.reading import DOCUMENTS, STDIN, Reading, standard_input
from sae_runtime.bundle.typed_json import read_file
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
    hook: str = option(
        MISSING, "activation that is kept: [input:]MODULE[@CALL], e.g. encoder.layer.3, or TransformerLens name"
    )
    name: str | None = option(None, "name to record for the model [its folder's name, or the hub's]")
    text: tuple[Path, ...] = option(
        MISSING,
        "text to read: .txt, .md, .jsonl, .json, .csv, .tsv, .parquet, .arrow, ...; also packed, .gz or .zst; a folder "
        "of these or of datasets.save_to_disk; - for standard input",
    )
    document: str = option("paragraph", "what a document is in plain text", choices=DOCUMENTS)
    text_field: str = option("text", "field or column that holds the text, where a file has fields")
    ids_field: str | None = option(None, "field or column of token ids, a list for each document, instead of its text")
    id_field: str | None = option(None, "field or column that names a document, to keep with its file and row")
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
        _ = self.reading  # which checks its settings
        if self.skip_first >= self.context:
            raise ValueError(f"skip_first must be below the context {self.context}, got {self.skip_first}")
        if self.batch_tokens < self.context:
            raise ValueError(f"batch_tokens must be at least the context {self.context}, got {self.batch_tokens}")

    @property
    def reading(self) -> Reading:
        """Where the documents are in the files."""
        names = ("document", "text_field", "ids_field", "id_field")
        return Reading(**{name: getattr(self, name) for name in names})

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


def refuse_other_settings(configs: Mapping[str, HarvestConfig]) -> None:
    """Raise ValueError unless configs differ in their hooks alone, and their names can be names of folders.

    >>> refuse_other_settings(for_hooks(["h.3", "h.6"], model="gpt2", text=(Path("notes.txt"),)))
    """
    if not configs:
        raise ValueError("there is nothing to harvest; give one config at least")
    first = next(iter(configs.values()))
    for name, config in configs.items():
        if Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is not the name of a folder; rename that hook's")
        if replace(config, hook=first.hook) != first:
            raise ValueError(f"{name} has other settings than the first; hooks of one pass differ in the hook alone")


def plan(config: HarvestConfig) -> dict[str, Any]:
    """The facts that decide the rows, as JSON. Of a file they are its path, its size and the time of its last change.

    Of standard input they are its size and its hash.

    >>> _ = Path("notes.txt").write_text("One paragraph.")
    >>> plan(HarvestConfig(model="gpt2", hook="h.3", text=(Path("notes.txt"),)))["context"]
    128
    """
    from sae_runtime.activations.documents import files_of  # it needs numpy, and the command's help does not

    settings = {name: value for name, value in asdict(config).items() if name not in ("batch_tokens", "device")}
    settings["text"] = [_stamp(file) for path in config.text for file in files_of(path)]
    settings["skip_token"] = list(config.skip_token)
    folder = Path(config.model)
    if folder.is_dir():
        settings["model"] = str(folder.resolve())
        settings["model_files"] = [_stamp(path) for path in sorted(folder.iterdir()) if path.is_file()]
    return settings


def _stamp(path: Path) -> str:
    if path == STDIN:
        content = standard_input(Reading())
        return f"standard input ({len(content)} bytes, sha256 {sha256(content).hexdigest()})"
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
        windows = read_file(_Windows, index, more=True)
    except ValueError as error:
        raise ValueError(f"{error}; harvest again") from error
    settings = {name: value for name, value in asdict(windows).items() if value is not None}
    if skip_ids := settings.pop("skip_ids", None):
        settings["skip_token"] = tuple(map(str, skip_ids))
    return settings
