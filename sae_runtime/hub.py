"""SAEs from the Hugging Face Hub, through its own cache: only what cannot run code when it is read."""

import re
from pathlib import Path

from sae_runtime.extras import require

SCHEME = "hf://"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DATA = (".json", ".safetensors", ".npz")  # npz: Gemma Scope has nothing else, and numpy reads it without unpickling
_FILES = (*_DATA, ".onnx", ".pt", ".pth", ".bin")  # what may be asked for by its name
_GRAPHS = ".onnx"  # of bundles only, whose manifest knows their hashes
_BUNDLE = "sae_runtime.json"


def local(path: str | Path) -> Path:
    """A path of this machine, to which what is not there is fetched.

    Args:
        path: a path, which wins where something stands there; else `owner/name`, or `hf://...` as for `fetch`.

    Raises:
        ImportError: it can only be on the Hub, and huggingface_hub is not installed.
        OSError: it is neither here nor on the Hub, or the Hub cannot be asked.
        ValueError: an `hf://` reference that is none.
    """
    if isinstance(path, Path) or Path(path).exists():
        return Path(path)
    if path.startswith(SCHEME):
        return fetch(path)
    return fetch(SCHEME + path) if _REPOSITORY.fullmatch(path) else Path(path)


def fetch(reference: str) -> Path:
    """Where a folder or file of the Hub lies on this machine, downloaded where it is not there yet.

    Of a folder come its .json, .safetensors and .npz files, none of the folders in it (but those of `checkpoints`,
    where a folder has tensors only there, as in Llama Scope), and of a bundle the graphs. What torch would unpickle
    comes only where its file is named. `HF_HUB_OFFLINE`, `HF_HOME` and tokens are those of huggingface_hub.

    Args:
        reference: `hf://owner/name[/folder or file][@revision]`.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: there is nothing of that name, or the Hub cannot be asked.
        ValueError: the reference is no such thing.
    """
    repository, inside, revision = _parsed(reference)
    if Path(inside).suffix in _FILES:
        folder = f"{Path(inside).parent}/".removeprefix("./")
        allowed = [inside, f"{folder}*.json"]  # which may say what the file is
        return _existing(_download(reference, repository, revision, allowed, [f"{folder}*/*"]) / inside, reference)
    folder = f"{inside}/" if inside else ""
    snapshot = _download(reference, repository, revision, [f"{folder}*{end}" for end in _DATA], [f"{folder}*/*"])
    path = _existing(snapshot / inside, reference)
    further = []
    if (path / _BUNDLE).is_file():
        further = [f"{folder}*{_GRAPHS}"]
    elif not any(path.glob("*.safetensors")) and not any(path.glob("*.npz")):
        folder += "checkpoints/"
        further = [f"{folder}*.safetensors"]
    if further:  # of the same commit, also where the branch has moved meanwhile
        _download(reference, repository, snapshot.name, further, [f"{folder}*/*"])
    if not any(file.suffix in _DATA for file in path.rglob("*")):
        raise FileNotFoundError(f"{reference} has no {', '.join(_DATA)} there; name the folder of one SAE")
    return path


def _parsed(reference: str) -> tuple[str, str, str | None]:
    """Repository, path in it and revision."""
    place, at, revision = reference.removeprefix(SCHEME).partition("@")
    parts = place.rstrip("/").split("/")
    repository, inside = "/".join(parts[:2]), parts[2:]
    named = [*inside, *(revision.split("/") if at else [])]
    # Of patterns for file names, and of folders above, nothing good can come.
    bad = [part for part in named if part in ("", ".", "..") or set(part) & set("*?[\\")]
    if not reference.startswith(SCHEME) or not _REPOSITORY.fullmatch(repository) or bad:
        raise ValueError(f"{reference!r} is no place on the Hub; write {SCHEME}owner/name[/folder][@revision]")
    return repository, "/".join(inside), revision or None


def _download(reference: str, repository: str, revision: str | None, allowed: list[str], ignored: list[str]) -> Path:
    """The snapshot in the cache, with at least the files that the patterns allow, where they exist."""
    try:
        require("hub")
    except ImportError as error:
        raise ImportError(f"{reference} is not here, and to look on the Hub {error}") from error
    from huggingface_hub import constants, snapshot_download

    try:
        found = snapshot_download(repository, revision=revision, allow_patterns=allowed, ignore_patterns=ignored)
    except Exception as error:  # of huggingface_hub, requests, httpx or the file system, as releases differ
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set and it is not in the cache"
        raise OSError(
            f"{reference} is not here and cannot be fetched: {reason}; check its name, or name a local folder"
        ) from error
    return Path(found)


def _existing(path: Path, reference: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{reference} is not in that repository, or not in the cache while offline")
    return path
