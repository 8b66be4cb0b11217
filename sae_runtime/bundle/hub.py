"""References to SAEs: paths on this machine, names of ready SAEs, and `hf://` references to the Hugging Face Hub.

The Hub is read through its cache. A file that could run code when it is read is fetched only if the reference names
it.
"""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from sae_runtime.bundle import manifest
from sae_runtime.bundle.extras import require
from sae_runtime.bundle.ready import ready_names, ready_path
from sae_runtime.bundle.siblings import is_there, repaired

SCHEME = "hf://"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NEW_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_DATA = (".json", ".safetensors", ".npz")  # Gemma Scope has .npz alone, which numpy reads without pickle
_FILES = (*_DATA, ".onnx", ".pt", ".pth", ".bin")  # suffixes of files that a reference may name
_CACHED = ("models--", "datasets--", "spaces--")  # what begins the name of a repository in the cache
_LABELS = "labels.jsonl"  # of a bundle
_NAMED = 5  # references in a message
_GRAPHS = ".onnx"  # fetched for bundles alone, whose manifest has the hashes of the graphs


def local(reference: str | Path) -> Path:
    """The path on this machine of a reference; an `hf://` reference is fetched first.

    Args:
        reference: a path, else the name of a ready SAE, or `hf://owner/name[/folder or file][@revision]`.

    Raises:
        FileNotFoundError: the path does not exist.
        ImportError: the reference is to the Hub, and huggingface_hub is not installed.
        OSError: the Hub has no such file or folder, or does not answer.
        ValueError: the reference is a URL of another kind, or has another form.

    >>> local("out/my-sae")
    Traceback (most recent call last):
    FileNotFoundError: out/my-sae does not exist; name a path on this machine, or hf://out/my-sae to fetch it, or ...
    """
    text = str(reference)
    if isinstance(reference, str) and text.startswith(SCHEME):
        return fetch(text)
    if isinstance(reference, str) and "://" in text:
        raise ValueError(
            f"{text} is a URL that sae-runtime cannot read; name a path on this machine, or {SCHEME}owner/name"
        )
    path = repaired(Path(reference))  # a writer that died may have left it under another name
    if is_there(path):
        return path
    name = text.rstrip("/")
    if (ready := ready_path(text.replace(os.sep, "/"))) is not None:  # under Windows, a Path has other separators
        return ready
    names = ready_names()
    is_name = bool(_REPOSITORY.fullmatch(name))
    suggestion = f"{SCHEME}{name} to fetch it" if is_name else f"{SCHEME}owner/name"
    helps = is_name or any(name == ready_name.split("/")[0] for ready_name in names)
    shipped = f", or a ready SAE: {', '.join(names)}" if helps and names else ""
    raise FileNotFoundError(f"{text} does not exist; name a path on this machine, or {suggestion}{shipped}")


def is_repository(name: str) -> bool:
    """Whether the Hub takes a text as the name of a repository, owner/name.

    >>> is_repository("me/my-sae"), is_repository("me/my--sae"), is_repository("my-sae")
    (True, False, False)
    """
    return _NEW_REPOSITORY.fullmatch(name) is not None and ".." not in name and "--" not in name


def leaves(file: Path, folder: Path) -> bool:
    """Whether a file is a link to a file outside of its folder. Links inside a Hub cache do not count.

    A Hub cache keeps the bytes in <repository>/blobs and links to them from <repository>/snapshots/<revision>.

    >>> leaves(Path("my-sae/encode.onnx"), Path("my-sae"))
    False
    """
    target, home = Path(os.path.realpath(file)), Path(os.path.realpath(folder))
    repositories = [above.parent for above in (home, *home.parents) if above.name == "snapshots"]
    blobs = [cache / "blobs" for cache in repositories if cache.name.startswith(_CACHED)]
    return not target.is_relative_to(home) and target.parent not in blobs


def refuse_link_out(file: Path, folder: Path) -> None:
    """Raise ValueError if a file is a link out of its folder, as `leaves` says.

    >>> refuse_link_out(Path("my-sae/encode.onnx"), Path("my-sae"))
    """
    if leaves(file, folder):
        raise ValueError(f"{file} is a link out of its folder, to {file.resolve()}; put the file itself there")


def fetch(reference: str) -> Path:
    """Download a folder or file of the Hub if the cache lacks it, and give its path in the cache.

    For a folder, this fetches its .json, .safetensors and .npz files and labels, and the graphs if it is a bundle. It
    fetches no folder inside, except `checkpoints` if the folder has no tensors itself, as in Llama Scope. A file that
    torch would unpickle is fetched only if the reference names it. huggingface_hub reads `HF_HUB_OFFLINE`, `HF_HOME`
    and tokens.

    Args:
        reference: `hf://owner/name[/folder or file][@revision]`.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: the Hub has no such file or folder, or does not answer.
        ValueError: the reference has another form.

    >>> fetch("hf://owner")
    Traceback (most recent call last):
    ValueError: 'hf://owner' is not a reference to the Hub; write hf://owner/name[/folder][@revision]
    """
    repository, inside, revision = parsed(reference)
    if Path(inside).suffix in _FILES:
        folder = f"{Path(inside).parent}/".removeprefix("./")
        # Some formats describe the weights in such a file.
        allowed = [inside, f"{folder}*.json", f"{folder}config.yaml"]
        return _existing(download(reference, repository, revision, allowed, [f"{folder}*/*"]) / inside, reference)
    folder = f"{inside}/" if inside else ""
    data = [*(f"{folder}*{end}" for end in _DATA), folder + _LABELS]
    snapshot = download(reference, repository, revision, data, [f"{folder}*/*"])
    path = _existing(snapshot / inside, reference)
    further: list[str] = []
    if (path / manifest.FILE).is_file():
        further = [f"{folder}*{_GRAPHS}"]
    elif not any(path.glob("*.safetensors")) and not any(path.glob("*.npz")):
        folder += "checkpoints/"
        further = [f"{folder}*.safetensors"]
    if further:  # from the same commit, even if the branch has moved in the meantime
        download(reference, repository, snapshot.name, further, [f"{folder}*/*"])
    beside = (*path.glob("*"), *path.glob("checkpoints/*"))  # the cache may hold other folders of the repository
    has_tensors = any(file.suffix in (".safetensors", ".npz") for file in beside)
    if not has_tensors and (inner := _bundles_below(repository, inside, snapshot.name)):
        suffix = f"@{revision}" if revision else ""
        named = ", ".join(f"{SCHEME}{repository}/{place}{suffix}" for place in inner[:_NAMED])
        more = f" or another of {len(inner)}" if len(inner) > _NAMED else ""
        raise FileNotFoundError(f"{reference} is no bundle, but holds some in folders; name one: {named}{more}")
    if not any(file.suffix in _DATA for file in path.rglob("*")):
        raise FileNotFoundError(f"{reference} has no {', '.join(_DATA)} there; name the folder of one SAE")
    return path


def _bundles_below(repository: str, inside: str, revision: str) -> list[str]:
    """The folders of bundles below a folder of a repository; none where the Hub does not tell."""
    from huggingface_hub import HfApi

    prefix = f"{inside}/" if inside else ""
    try:
        files = HfApi().list_repo_files(repository, revision=revision)
    except Exception:  # its class depends on the release; offline, nobody can be asked
        return []
    names = [name for name in files if name.startswith(prefix) and name.endswith(f"/{manifest.FILE}")]
    return sorted(name.removesuffix(f"/{manifest.FILE}") for name in names)


def texts_beside(reference: str, path: Path, names: Sequence[str]) -> list[Path]:
    """The folders of a fetched reference that may hold a model card and a licence: its own, then the repository's.

    Such files are fetched too. What the Hub does not give is missing.

    Args:
        reference: `hf://owner/name[/folder or file][@revision]`.
        path: what `fetch` gave for it.
        names: of the files.

    >>> texts_beside("hf://me/sae/layer", Path("cache/snapshots/0123/layer"), ["README.md"])
    [PosixPath('cache/snapshots/0123/layer'), PosixPath('cache/snapshots/0123')]
    """
    repository, inside, _ = parsed(reference)
    levels = len(Path(inside).parts)
    snapshot = path.parents[levels - 1] if levels else path
    folder = path.parent if path.is_file() else path
    prefix = "" if folder == snapshot else f"{folder.relative_to(snapshot).as_posix()}/"
    with contextlib.suppress(ImportError, OSError):
        download(reference, repository, snapshot.name, [*names, *(prefix + name for name in names)], [])
    return list(dict.fromkeys((folder, snapshot)))


def parsed(reference: str) -> tuple[str, str, str | None]:
    """The repository, the path in it and the revision of a reference.

    >>> parsed("hf://me/model/onnx@v2")
    ('me/model', 'onnx', 'v2')

    Raises:
        ValueError: the reference has another form.
    """
    path, at_sign, revision = reference.removeprefix(SCHEME).partition("@")
    parts = path.rstrip("/").split("/")
    repository, inside = "/".join(parts[:2]), parts[2:]
    named = [*inside, *(revision.split("/") if at_sign else [])]
    # A name that is a pattern or `..` could match files that the caller did not name.
    bad = [part for part in named if part in ("", ".", "..") or set(part) & set("*?[\\")]
    if not reference.startswith(SCHEME) or not _REPOSITORY.fullmatch(repository) or bad:
        raise ValueError(f"{reference!r} is not a reference to the Hub; write {SCHEME}owner/name[/folder][@revision]")
    return repository, "/".join(inside), revision or None


def download(
    reference: str, repository: str, revision: str | None, allowed: Sequence[str], ignored: Sequence[str]
) -> Path:
    """The snapshot in the cache, which has every file of the repository that the patterns allow.

    Args:
        reference: named in messages.
        repository: owner/name.
        revision: a branch, a tag or a commit; None: the main branch.
        allowed: patterns of paths, in which `*` stands for any text, slashes too.
        ignored: patterns of those that are left out.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: the Hub has no such repository, or does not answer.

    >>> download("hf://me/model", "me/model", None, ["*.json"], [])  # doctest: +SKIP
    """
    try:
        require("hub")
    except ImportError as error:
        raise ImportError(f"{reference} cannot be fetched: {error}") from error
    from huggingface_hub import constants, snapshot_download

    try:
        snapshot = snapshot_download(
            repository, revision=revision, allow_patterns=list(allowed), ignore_patterns=list(ignored)
        )
    except Exception as error:  # its class depends on the release: huggingface_hub's, requests', httpx's or OSError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set and it is not in the cache"
        raise OSError(f"{reference} cannot be fetched: {reason}; check its name, or name a local folder") from error
    return Path(snapshot)


def _existing(path: Path, reference: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{reference} is not in that repository, or not in the cache while offline")
    return path
