"""The files of a host model besides its graphs and weights: tokenizer, configuration, pooling, model card, licence."""

import filecmp
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sae_runtime.bundle.external_data import external_files
from sae_runtime.bundle.graph_reader import read_metadata
from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.splices import CUT_OF
from sae_runtime.bundle.typed_json import read_file, shown

TOKENIZER, CONFIG, GENAI, MODULES = "tokenizer.json", "config.json", "genai_config.json", "modules.json"
PATTERNS = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "vocab.bpe"),
    *("merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "*.spm", "*.tiktoken"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    *(CONFIG, "generation_config.json", "*processor_config.json", GENAI),
    *(MODULES, "sentence_*_config.json", "config_sentence_transformers.json"),
    *(_TEXTS := ("README.md", "README-host.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt")),
)
"""Names of such files in a model's folder; none holds a program that reading runs."""
IN_MODULES = ("*.json", "*.safetensors")
"""The same in the folders that modules.json names."""


def tokenizer_home(graph: Path) -> Path:
    """The folder of a graph's tokenizer and configuration: the graph's, or the one above where only that has one.

    >>> print(tokenizer_home(Path("model/onnx/model.onnx")))
    model/onnx
    """
    homes = (graph.parent, graph.absolute().parent.parent)
    return next((home for home in homes if (home / TOKENIZER).is_file()), graph.parent)


def named_by_genai(folder: Path, *, required: bool = True) -> str | None:
    """The graph that the configuration of onnxruntime-genai in a folder names; None if there is no configuration.

    Args:
        folder: of the configuration.
        required: whether a configuration must name a graph; if False, one that names none gives None.

    Raises:
        ValueError: it is damaged, a link out of the folder, or names something else than a graph in the folder.

    >>> named_by_genai(Path("model"))
    """
    file = folder / GENAI
    if not file.is_file():
        return None
    refuse_link_out(file, folder)
    name: Any = read_file(dict[str, Any], file, foreign=True)
    for key in ("model", "decoder", "filename"):
        name = name.get(key) if isinstance(name, Mapping) else None
    if name is None and not required:
        return None
    plain = isinstance(name, str) and Path(name).name == name and not set(name) & set("\0\\")
    if not (plain and name.endswith(".onnx")):
        raise ValueError(f"{file} names no graph, but {shown(name)} as model.decoder.filename; make the model again")
    return str(name)


def model_files(folder: Path) -> list[str]:
    """The paths of these files from a model's folder; none of a folder without tokenizer and configuration.

    >>> Path("model").mkdir()
    >>> _ = Path("model/config.json").write_text("{}"), Path("model/notes.txt").write_text("mine")
    >>> model_files(Path("model"))
    ['config.json']

    Raises:
        ValueError: a file is a link out of the folder, or modules.json is damaged.
    """
    if not any((folder / name).is_file() for name in (TOKENIZER, CONFIG, GENAI, MODULES)):
        return []
    inside = [(path, pattern) for _, path in modules(folder) if path != folder for pattern in IN_MODULES]
    found = [*((folder, pattern) for pattern in PATTERNS), *inside]
    names = {file.relative_to(folder).as_posix() for home, pattern in found for file in home.glob(pattern)}
    kept = sorted(name for name in names if (folder / name).is_file())
    for name in kept:
        refuse_link_out(folder / name, folder)
    return kept


def files_to_copy(home: Path, names: Iterable[str], graph: Path) -> dict[str, Path]:
    """The files of a model that the folder of a graph lacks, or has with other content, by name.

    A model card and a licence that are there stay. Others are replaced, but only in place of an older graph.

    Args:
        home: the folder of the model.
        names: of its files.
        graph: the graph that will be written.

    Raises:
        FileExistsError: another file has the name of one, and there is no graph that wants it replaced.

    >>> sorted(files_to_copy(Path("model"), ["config.json"], Path("out/model.onnx")))
    ['config.json']
    """
    found = {}
    for name in names:
        there = graph.parent / name
        if there.exists() and (name in _TEXTS or same_bytes(home / name, there)):
            continue
        if there.exists() and not graph.exists():
            raise FileExistsError(f"{there} is that of another model; name a folder for this model alone")
        found[name] = home / name
    return found


def refuse_shared(there: Path, new: Path, graph: Path) -> None:
    """Raise FileExistsError if a file that another graph beside `graph` reads would be replaced by other bytes.

    >>> refuse_shared(Path("model/config.json"), Path("model/notes.txt"), Path("model/model.onnx"))

    Args:
        there: the file as it is now, if there is one.
        new: what would replace it.
        graph: the graph that is written with it.
    """
    if not there.is_file() or same_bytes(new, there):
        return
    for other in sorted(graph.parent.glob("[!.]*.onnx")):
        read: set[str] = set()
        with suppress(OSError, ValueError):  # what is no graph reads nothing
            if other.name != graph.name and CUT_OF not in read_metadata(other):  # a part reads what its whole reads
                read = external_files(other)
        if any(os.path.realpath(other.parent / name) == os.path.realpath(there) for name in read):
            raise FileExistsError(
                f"{there} holds weights that {other.name} reads, and other ones would replace them; name another "
                f"folder, or remove {other.name}"
            )


def same_bytes(file: Path, other: Path) -> bool:
    """Whether another file holds the same bytes; it may be a second name of the file.

    >>> same_bytes(Path("model/config.json"), Path("model/config.json"))
    True
    """
    filecmp.clear_cache()  # it takes a file of the same size and time for the one that it saw before
    return other.is_file() and (other.samefile(file) or filecmp.cmp(file, other, shallow=False))


def modules(home: Path) -> list[tuple[str, Path]]:
    """The modules of sentence-transformers' modules.json: the class and the folder of each; none without that file.

    >>> modules(Path("model"))
    []

    Raises:
        ValueError: the file is damaged, a link out of the folder, or leads out of it.
    """
    file = home / MODULES
    if not file.is_file():
        return []
    refuse_link_out(file, home)
    found = []
    for number, one in enumerate(read_file(tuple[Mapping[str, Any], ...], file, foreign=True)):
        kind, inside = one.get("type"), one.get("path", "")
        if not isinstance(kind, str) or not isinstance(inside, str):
            raise ValueError(f"{file}: module {number} has no type and path; save the model again")
        if Path(inside).is_absolute() or ".." in Path(inside).parts or set(inside) & set("\0\\"):
            raise ValueError(f"{file} leads out of its folder, to {shown(inside)}; save the model again")
        found.append((kind, home / inside))
    return found
