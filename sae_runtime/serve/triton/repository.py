"""A model repository of Triton: its folders, written whole or not at all, and checked before they have their names.

    repository/NAME.OPERATION/config.pbtxt
    repository/NAME.OPERATION/VERSION/model.onnx/model.onnx     of the ONNX backend, with its weights beside it
    repository/NAME.OPERATION/VERSION/model.py, served/         of the Python backend: served/ is the bundle or model

Nothing in a repository is a link or is read from elsewhere, so it can be moved, and storage that copies it works.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_runtime.bundle import files
from sae_runtime.bundle.external_data import check_external
from sae_runtime.bundle.graphs import JOINT
from sae_runtime.core.printable import printable
from sae_runtime.serve.errors import NotFound
from sae_runtime.serve.triton.backend import open_plane
from sae_runtime.serve.triton.config import WRITTEN, ModelConfig, from_text, to_text
from sae_runtime.serve.triton.rules import faults, signature

CONFIG, GRAPH, PROGRAM, SERVED = "config.pbtxt", "model.onnx", "model.py", "served"
BACKENDS = ("onnxruntime", "python")
_VERSION = re.compile("[1-9][0-9]*", re.ASCII)
_NEVER_MERGED = ("encode_batch", "generate")  # their answers depend on all of a request

Source = Path | str | Callable[[Path], None]
"""A file to copy, a text to write, or what makes the file at the path that it is given."""


@dataclass(frozen=True)
class Planned:
    """A version of a model that will be written.

    Attributes:
        config: of the model; versions of one model share it.
        version: from 1 on.
        content: what each file of the version's folder is made of, by its path from there, in the order of writing.
    """

    config: ModelConfig
    version: int
    content: Mapping[str, Source]


def write_repository(path: Path, planned: Sequence[Planned], *, force: bool = False) -> None:
    """Write a repository and check it. It appears whole or not at all.

    Args:
        path: the folder to make.
        planned: its models.
        force: replace a repository that was written so.

    Raises:
        FileExistsError: the folder exists and `force` is not set, or it holds something else.
        ValueError: versions of one model differ in their inputs and outputs, or a rule of Triton is broken.
    """
    texts: dict[str, str] = {}
    for one in planned:
        if texts.setdefault(one.config.name, to_text(one.config)) != to_text(one.config):
            raise ValueError(
                f"the versions of {one.config.name} differ in inputs or outputs, and Triton has one configuration for "
                "all of them; give one of them another name: NAME=PATH"
            )
    with files.new_folder(path, force=force, foreign=foreign) as folder:
        for one in planned:
            home = folder / one.config.name
            for name, source in one.content.items():
                file = home / str(one.version) / name
                file.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(source, Path):
                    shutil.copyfile(source, file)
                elif isinstance(source, str):
                    file.write_text(source)
                else:
                    source(file)
            (home / CONFIG).write_text(texts[one.config.name])
        check_repository(folder)


def foreign(repository: Path) -> str | None:
    """An entry of a folder that is no model that we wrote; None if there is none.

    >>> Path("repository/mine").mkdir(parents=True)
    >>> foreign(Path("repository"))
    'mine'
    """
    for entry in sorted(repository.iterdir()):
        config = entry / CONFIG
        if not config.is_file() or not config.read_bytes().startswith(WRITTEN.encode()):
            return entry.name
    return None


def check_repository(repository: Path) -> list[ModelConfig]:
    """Check every model of a repository by the rules of Triton and its backends, and open what it serves.

    Returns:
        The configuration of each model.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a rule is broken; the sentence names the model.
    """
    if not repository.is_dir():
        raise FileNotFoundError(f"{repository} is no folder; name a repository that export-triton wrote")
    found = []
    for model in sorted(entry for entry in repository.iterdir() if entry.is_dir()):
        try:
            config = from_text((model / CONFIG).read_text())
            problems = list(_model_faults(model, config))
        except (OSError, ValueError) as error:
            raise ValueError(f"{printable(model)} is no model that Triton takes: {error}; export it again") from error
        if problems:
            raise ValueError(f"{printable(model)} is no model that Triton takes: {problems[0]}; export it again")
        found.append(config)
    if not found:
        raise ValueError(f"{repository} holds no model; export one: sae-runtime export-triton PATH -o {repository}")
    return found


def _model_faults(model: Path, config: ModelConfig) -> Iterator[str]:
    if config.name != model.name:
        yield f"its configuration names {printable(config.name)!r}, and its folder {printable(model.name)!r}"
    if config.backend not in BACKENDS:
        yield f"the backend is {printable(config.backend)!r}, expected {' or '.join(BACKENDS)}"
        return
    if config.max_batch_size < 0 or config.instances < 1 or config.device not in ("CPU", "GPU"):
        yield "max_batch_size is from 0 on, instances from 1 on, and the device KIND_CPU or KIND_GPU"
    if config.delay is not None and config.max_batch_size == 0:
        yield "dynamic_batching has nothing to merge where max_batch_size is 0"
    for file in sorted(model.rglob("*")):
        if file.is_symlink() or (file.is_file() and os.stat(file).st_nlink > 1):
            yield f"{file.relative_to(model)} is a link, which storage that copies a repository may lose"
    versions = [entry for entry in model.iterdir() if entry.is_dir()]
    if not versions:
        yield "it has no folder of a version, such as 1"
    for version in sorted(versions):
        if not _VERSION.fullmatch(version.name):
            yield f"{printable(version.name)!r} is no version; versions are whole numbers from 1 on, as 1 and 20"
        elif config.backend == "python":
            yield from _python_faults(version, config)
        else:
            yield from _onnx_faults(version, config)


def _onnx_faults(version: Path, config: ModelConfig) -> Iterator[str]:
    """Faults of a version of the ONNX backend: model.onnx is a graph, or a folder with the graph and its weights."""
    graph = version / GRAPH / GRAPH if (version / GRAPH).is_dir() else version / GRAPH
    check_external(graph)
    form = signature(graph)
    yield from (f"version {version.name}: {fault}" for fault in faults(config, form))
    # Only the batch rule has an input for rows that do not count.
    if config.max_batch_size > 0 and "valid" in {**form.defaulted, **form.required}:
        yield f"version {version.name}: {JOINT.file} decides over all rows of a call, so max_batch_size must be 0"


def _python_faults(version: Path, config: ModelConfig) -> Iterator[str]:
    """Faults of a version of the Python backend; what it serves is opened, and must have the operation."""
    operation = config.parameters.get("operation")
    if not (version / PROGRAM).is_file():
        yield f"version {version.name} has no {PROGRAM}"
    if config.max_batch_size > 0 and operation in _NEVER_MERGED:
        yield f"{operation} is never merged over requests, so max_batch_size must be 0"
    if config.name.rpartition(".")[2] != operation:
        yield f"its name ends in no .{operation}, the operation that it serves"
        return
    plane = open_plane(config.name, version, {"path": SERVED, **config.parameters}, merge=False)
    try:
        known = plane.metadata(config.name)
    except NotFound as error:
        yield f"version {version.name}: {error}"
        return
    finally:
        plane.close()
    has = {(tensor.name, tensor.datatype) for tensor in (*known.inputs, *known.outputs)}
    for tensor in (*config.inputs, *config.outputs):
        if (tensor.name, tensor.datatype) not in has:
            yield f"version {version.name}: {operation} has no {tensor.name} of {tensor.datatype}"
    required = {tensor.name for tensor in known.inputs if not tensor.optional}
    for name in sorted(required - {tensor.name for tensor in config.inputs}):
        yield f"version {version.name}: {operation} needs the input {name}, which is not declared"
