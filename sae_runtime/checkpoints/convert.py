"""Make a bundle of another library's checkpoint."""

import dataclasses
import hashlib
from pathlib import Path
from types import ModuleType

from sae_runtime.bundle import files
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.card import with_licence
from sae_runtime.bundle.hub import SCHEME, local, texts_beside
from sae_runtime.bundle.licences import LICENCE_FILES, check_licence, licence_of, licence_text
from sae_runtime.bundle.sealed import CARD
from sae_runtime.checkpoints import (
    batch_topk,
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    goodfire,
    hook_z,
    llama_scope,
    openai,
    qwen_scope,
    sae_lens,
    sparsify,
    unserved,
)
from sae_runtime.checkpoints.checkpoint import Checkpoint

# `recognise` asks the readers in this order; readers that must open a torch file come last.
FORMATS: dict[str, ModuleType] = {
    "sae-lens": sae_lens,
    "sparsify": sparsify,
    "llama-scope": llama_scope,
    "gemma-scope": gemma_scope,
    "batch-topk": batch_topk,
    "circuit-tracer": circuit_tracer,
    "qwen-scope": qwen_scope,
    "hook-z": hook_z,
    "openai": openai,
    "goodfire": goodfire,
    "dictionary-learning": dictionary_learning,
}


def convert(
    source: str | Path,
    output: str | Path,
    *,
    format: str | None = None,
    licence: str | None = None,
    force: bool = False,
) -> Checkpoint:
    """Write the bundle of a checkpoint.

    The licence that a README.md or a LICENSE beside the checkpoint states goes into the model card, and the text of a
    LICENSE into the bundle.

    Args:
        source: a folder or file, or `hf://owner/name[/folder][@revision]`.
        output: the folder to make.
        format: a key of `FORMATS`; None recognises the format from the files.
        licence: of the SAE, for its model card; None: what the checkpoint's files state.
        force: replace the output if it is a bundle and holds nothing else.

    Returns:
        The checkpoint; its `warnings` are for the user. If it has no threshold yet, the bundle has none either.

    Raises:
        FileExistsError: the output exists, and `force` is not set or it is not a bundle alone.
        FileNotFoundError: the source does not exist.
        ImportError: torch is not installed and the file is of torch.save, or huggingface_hub is not installed and the
            source is on the Hub.
        ValueError: the format is unknown, or the checkpoint is damaged, incomplete or computes what a bundle cannot.

    >>> convert("missing", "out")
    Traceback (most recent call last):
    FileNotFoundError: missing does not exist; name a path on this machine, or hf://owner/name
    """
    output, licence = Path(output), None if licence is None else check_licence(licence)
    files.check_free(output, force=force, kind="folder", foreign=bundles.foreign)
    path = local(source)
    if (path / bundles.MANIFEST).is_file():
        raise ValueError(f"{path} is a bundle already, and if it holds cfg.json, SAELens opens it as it is")
    name = recognise(path) if format is None else format
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    try:
        checkpoint: Checkpoint = FORMATS[name].read(path)
        manifest = checkpoint.manifest()
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be served ({error}); get a sound copy of the checkpoint") from error
    record = bundles.record(checkpoint.file)
    origin = {"file": checkpoint.file.name, "sha256": record.sha256}
    folders = [path] if path.is_dir() else []  # what lies beside a single file may be of something else
    if str(source).startswith(SCHEME):
        origin["reference"] = str(source)
        folders = texts_beside(str(source), path, (CARD, *LICENCE_FILES))
    if (stated := licence_of(*folders)) is not None:
        origin["licence"] = stated
    if (text := licence_text(*folders)) is not None:
        origin["licence_sha256"] = hashlib.sha256(text).hexdigest()
    provenance = {"format": name, **manifest.provenance, "source": origin}
    manifest = with_licence(dataclasses.replace(manifest, provenance=provenance), licence)
    bundles.write(output, checkpoint.weights, manifest, licence=text, force=force)
    return checkpoint


def recognise(path: Path) -> str:
    """The format of the checkpoint at `path`, a key of `FORMATS`.

    Raises:
        ValueError: no format fits, a file is damaged, or a link leaves the folder.

    >>> Path("notes").mkdir()
    >>> recognise(Path("notes"))
    Traceback (most recent call last):
    ValueError: notes (nothing) is no checkpoint of a known format; ...
    """
    for name, reader in FORMATS.items():
        if reader.recognises(path):
            return name
    unserved.refuse(path)
    content = "a file" if path.is_file() else ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise ValueError(
        f"{path} ({content}) is no checkpoint of a known format; name the folder or file of one SAE, or --format "
        f"({', '.join(FORMATS)})"
    )
