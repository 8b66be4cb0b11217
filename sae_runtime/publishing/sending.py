"""Send a bundle, a folder of bundles or a deployed model to a repository of the Hugging Face Hub.

Files go up first, and one commit makes all of them visible: what is interrupted leaves the repository as it was.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sae_runtime.bundle.extras import require
from sae_runtime.bundle.hub import SCHEME, is_repository, local
from sae_runtime.bundle.licences import check_licence
from sae_runtime.bundle.parts import NAMES
from sae_runtime.bundle.regular import read_bytes
from sae_runtime.bundle.sealed import CARD, LARGEST_CARD, for_repository
from sae_runtime.publishing.cards_sent import stating, to_send
from sae_runtime.publishing.chosen import Chosen, check_place, chosen
from sae_runtime.publishing.hub_errors import told

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_SMALL = 1 << 20  # bytes of a file that may go up inside the commit


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What was published, or would be.

    Attributes:
        reference: `hf://owner/name[/folder][@revision]`, which `load` or `load_model` takes.
        kind: "bundle", "bundles" or "model".
        files: the size in bytes of each file, by its path in the repository.
        bundles: the references of the bundles, which `load` takes; those of a model are inside it.
        kept: model cards that stay as somebody edited them on the Hub.
        removed: files of an older bundle in its place, which the new one does not have.
        commit: the address of the commit; None: nothing was sent.
    """

    reference: str
    kind: str
    files: dict[str, int]
    bundles: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    commit: str | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


def push(
    path: str | Path,
    repository: str,
    *,
    folder: str = "",
    private: bool = False,
    create: bool = True,
    revision: str | None = None,
    message: str | None = None,
    licence: str | None = None,
    dry_run: bool = False,
    progress: bool = False,
) -> Pushed:
    """Send a bundle, a folder of bundles or a deployed model to the Hub, and give the reference that opens it.

    It is checked as `load` checks it. Only its own files are sent, with their model cards, into which the names of the
    repository are put; the files here stay as they are. huggingface_hub finds the token (`HF_TOKEN`, or what
    `hf auth login` stored) and the Hub (`HF_ENDPOINT`).

    Args:
        path: the folder, the graph of a deployed model, or what else names a bundle for `load`.
        repository: owner/name.
        folder: where it goes in the repository; "": its root.
        private: make the repository private if it is made; one that is there must be private.
        create: make the repository, and the branch, if it is not there.
        revision: a branch; None: the main one.
        message: of the commit.
        licence: for model cards that state none.
        dry_run: send nothing, and ask nobody.
        progress: show huggingface_hub's progress bars.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ImportError: huggingface_hub is not installed.
        OSError: there is no token, or the Hub refuses, fails or does not answer; nothing was published.
        ValueError: it is no sound bundle or model, a name has a form that the Hub does not take, or the card states
            another licence.

    >>> made = push(bundle_path, "me/my-sae", dry_run=True)
    >>> made.reference, made.commit, sorted(made.files)[:3]
    ('hf://me/my-sae', None, ['README.md', 'cfg.json', 'decode.onnx'])
    """
    _check_names(repository, folder, revision)
    licence = None if licence is None else check_licence(licence)
    what = chosen(local(path))
    suffix = f"@{revision}" if revision else ""
    cards = {
        name: _filled(what, name, _stating(what, name, text, licence), repository, folder, suffix)
        for name, text in what.cards.items()
    }
    inside = "/".join(filter(None, (folder, what.graph)))
    reference = f"{SCHEME}{repository}{f'/{inside}' if inside else ''}{suffix}"
    prefix = f"{folder}/" if folder else ""
    opens = tuple(f"{SCHEME}{repository}/{prefix}{place}".rstrip("/") + suffix for place in what.bundles)
    cards = {prefix + name: text for name, text in cards.items()}
    sizes = {prefix + name: file.stat().st_size for name, file in what.files.items()}
    if dry_run:
        sizes |= {name: len(text.encode()) for name, text in cards.items()}
        return Pushed(reference=reference, kind=what.kind, files=dict(sorted(sizes.items())), bundles=opens)
    try:
        require("hub")
    except ImportError as error:
        raise ImportError(f"{repository} cannot be published: {error}") from error
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if not token:
        raise OSError(
            f"{repository} cannot be published: there is no token; run `hf auth login`, or set HF_TOKEN to one that "
            "may write"
        )
    api = HfApi(token=token)
    with _quiet(progress=progress), told(repository, token):
        _prepare(api, repository, private=private, create=create, revision=revision)
        remote = set(api.list_repo_files(repository, revision=revision))
        cards, kept = to_send(cards, remote, lambda name: _remote_text(api, repository, name, revision))
        sizes |= {name: len(text.encode()) for name, text in cards.items()}
        places = [prefix + (f"{place}/" if place else "") for place in what.bundles]
        removed = sorted({place + name for place in places for name in NAMES} & remote - sizes.keys())
        message = message or f"Publish {PurePosixPath(inside or repository).name} with sae-runtime"
        commit = _sent(api, what, cards, removed, prefix, repository, revision, message)
    return Pushed(
        reference=reference,
        kind=what.kind,
        files=dict(sorted(sizes.items())),
        bundles=opens,
        kept=tuple(kept),
        removed=tuple(removed),
        commit=commit,
    )


def _check_names(repository: str, folder: str, revision: str | None) -> None:
    if not is_repository(repository):
        raise ValueError(f"{repository!r} is not the name of a repository; write owner/name")
    if folder:
        check_place(folder, f"the folder {folder}")
    if revision is not None and (not _BRANCH.fullmatch(revision) or ".." in revision):
        raise ValueError(f"{revision!r} is not the name of a branch; write letters, digits, _, ., - and /")


def _stating(what: Chosen, name: str, text: str, licence: str | None) -> str:
    """A card that states the licence; the licence of a model is not that of its bundles, nor its host's."""
    return text if licence is None or what.kind == "model" and name != CARD else stating(text, licence)


def _filled(what: Chosen, name: str, text: str, repository: str, folder: str, suffix: str) -> str:
    """A card with the reference of the bundle or the model that it describes."""
    inner = name.rpartition("/")[0]
    place = "/".join(filter(None, (folder, inner, "" if inner else what.graph)))
    return for_repository(text, repository, place, suffix)


def _prepare(api: "HfApi", repository: str, *, private: bool, create: bool, revision: str | None) -> None:
    """Make the repository and the branch where they are not there; refuse a public one where a private one is meant."""
    if create:
        api.create_repo(repository, private=True if private else None, exist_ok=True)
    if private and not api.repo_info(repository).private:
        raise ValueError("the repository is there and is public; make it private on the Hub, or leave out --private")
    if create and revision is not None:
        api.create_branch(repository, branch=revision, exist_ok=True)


def _remote_text(api: "HfApi", repository: str, name: str, revision: str | None) -> str:
    file = api.hf_hub_download(repository, name, revision=revision)
    return read_bytes(Path(file), most=LARGEST_CARD).decode(errors="replace")


def _sent(
    api: "HfApi",
    what: Chosen,
    cards: dict[str, str],
    removed: list[str],
    prefix: str,
    repository: str,
    revision: str | None,
    message: str,
) -> str:
    """Upload the files, compare what was read with what was checked, commit, and give the commit's address."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files = [CommitOperationAdd(prefix + name, _content(file)) for name, file in what.files.items()]
    api.preupload_lfs_files(repository, additions=files, revision=revision)
    for name, addition in zip(what.files, files, strict=True):
        if addition.upload_info.sha256.hex() != what.sha256[name]:
            raise ValueError(f"{what.files[name]} changed while it was sent; push again when its writer is done")
    texts = [CommitOperationAdd(name, text.encode()) for name, text in cards.items()]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *files,
        *texts,
        *(CommitOperationDelete(name) for name in removed),
    ]
    made = api.create_commit(repository, operations, commit_message=message, revision=revision)
    return str(made.commit_url)


def _content(file: Path) -> str | bytes:
    """What huggingface_hub reads a file from: a small one, which it may read later than it hashes, from memory."""
    return read_bytes(file, most=_SMALL) if file.stat().st_size <= _SMALL else os.path.realpath(file)


@contextmanager
def _quiet(*, progress: bool) -> Iterator[None]:
    """Let huggingface_hub show its progress bars or not, and neither its log nor its warnings, while the block runs."""
    from huggingface_hub import utils

    log = logging.getLogger("huggingface_hub")
    level = log.level

    hidden = not (progress and sys.stderr.isatty()) and not utils.are_progress_bars_disabled()  # type: ignore[attr-defined]
    if hidden:
        utils.disable_progress_bars()  # type: ignore[attr-defined]  # not in its __all__
    log.setLevel(logging.ERROR)  # what it tries again is told if it fails at last
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        log.setLevel(level)
        if hidden:
            utils.enable_progress_bars()  # type: ignore[attr-defined]
