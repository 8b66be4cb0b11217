"""Any checkpoint in, a bundle out."""

import dataclasses
from pathlib import Path
from types import ModuleType

from sae_runtime import bundle as bundles
from sae_runtime import files
from sae_runtime.checkpoints import (
    batch_topk,
    dictionary_learning,
    gemma_scope,
    llama_scope,
    openai,
    sae_lens,
    sparsify,
)
from sae_runtime.checkpoints.checkpoint import Checkpoint
from sae_runtime.hub import SCHEME, fetch

# In the order in which they are asked; those that tell by the tensors of a torch file come last.
FORMATS: dict[str, ModuleType] = {
    "sae-lens": sae_lens,
    "sparsify": sparsify,
    "llama-scope": llama_scope,
    "gemma-scope": gemma_scope,
    "batch-topk": batch_topk,
    "openai": openai,
    "dictionary-learning": dictionary_learning,
}


def convert(source: str | Path, output: str | Path, *, format: str | None = None, force: bool = False) -> Checkpoint:
    """Write the bundle of a foreign checkpoint.

    Args:
        source: its folder or file, or `hf://owner/name[/folder][@revision]`.
        output: the folder to make.
        format: one of `FORMATS`; None recognises it from the files.
        force: replace what stands at the output already.

    Returns:
        The checkpoint as it was read; its `warnings` are for its user. It has no threshold, and its bundle none either,
        where the library stores none.

    Raises:
        FileExistsError: the output exists and `force` is not set.
        FileNotFoundError: there is no such source.
        ImportError: it is a file of torch.save or on the Hub, and torch or huggingface_hub is not installed.
        ValueError: the format is unknown, or the checkpoint damaged, incomplete or beyond what a bundle computes.
    """
    output = Path(output)
    files.check_free(output, force=force)
    path = _local(source)
    name = recognise(path) if format is None else format
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    try:
        checkpoint: Checkpoint = FORMATS[name].read(path)
        checkpoint.check()
        manifest = checkpoint.manifest()
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be served ({error}); get a sound copy of the checkpoint") from error
    record = bundles.record(checkpoint.file)
    origin = {"file": checkpoint.file.name, "sha256": record.sha256}
    if str(source).startswith(SCHEME):
        origin["reference"] = str(source)
    provenance = {"format": name, **manifest.provenance, "source": origin}
    manifest = dataclasses.replace(manifest, provenance=provenance)
    bundles.write(output, checkpoint.weights, manifest, force=force)
    return checkpoint


def recognise(path: Path) -> str:
    """The format of the checkpoint at `path`, a key of `FORMATS`.

    Raises:
        ValueError: none fits, or a file is damaged or leaves the folder.
    """
    for name, reader in FORMATS.items():
        if reader.recognises(path):
            return name
    found = "a file" if path.is_file() else ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise ValueError(
        f"{path} ({found}) is no checkpoint of a known format; name the folder or file of one SAE, or --format "
        f"({', '.join(FORMATS)})"
    )


def _local(source: str | Path) -> Path:
    if str(source).startswith(SCHEME):
        return fetch(str(source))
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; name a checkpoint's folder or file, or {SCHEME}owner/name")
    if (path / bundles.MANIFEST).is_file():
        raise ValueError(f"{path} is a bundle already; with --to it is converted into a format of another library")
    return path
