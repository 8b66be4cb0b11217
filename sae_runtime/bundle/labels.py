"""The labels of a bundle's features, `labels.jsonl`: a line such as {"feature": 12, "label": "include"} for each.

People write and edit this file, so the manifest does not list it and it has no hash. Other fields of a line are theirs.
"""

import functools
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sae_runtime.bundle.files import new_file
from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.identity import Identity, identity
from sae_runtime.bundle.parts import read_manifest
from sae_runtime.bundle.ready import refuse_ready
from sae_runtime.bundle.regular import open_regular, read_bytes
from sae_runtime.bundle.siblings import lock
from sae_runtime.bundle.typed_json import from_dict, read_json
from sae_runtime.core.edits import check_feature
from sae_runtime.core.labels import Labels, as_label

FILE = "labels.jsonl"
Replace = Literal["nothing", "imported", "all"]
_LINE, _EACH = 1 << 16, 5 << 10  # bytes that a line may have at most, and the lines of all features on average


def read_labels(folder: str | Path, d_sae: int | None = None) -> Labels:
    """The labels of a bundle as its file has them now. A file that is as at the last call is not read again.

    Args:
        folder: the bundle.
        d_sae: number of its features; None: as the manifest says.

    Returns:
        The labels by feature; none where the bundle has no such file.

    Raises:
        OSError: the file may not be read, or the folder does not exist.
        ValueError: it is too large or not UTF-8, or a line is not sound; the message names the line.

    >>> write_labels(bundle_path, {12: "include"})
    >>> dict(read_labels(bundle_path))
    {12: 'include'}
    >>> Path(bundle_path, "labels.jsonl").unlink()
    """
    path = Path(folder) / FILE
    if (now := identity(path)) is not None:
        return _read(path, _features_of(path, d_sae), now)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} does not exist any more, and its labels with it; load the bundle again")
    return Labels({}, source=str(path))


def write_labels(folder: str | Path, labels: Mapping[int, str]) -> None:
    """Write labels of a bundle's features in place of those that it has, whole or not at all.

    A line whose label stays keeps its other fields.

    Args:
        folder: the bundle.
        labels: texts by feature.

    Raises:
        ValueError: the folder is no bundle or is one of the installed package, a feature is out of range, a text is no
            label, or the file that is there is not sound.

    >>> write_labels(bundle_path, {12: "include", 3: "numbers"})
    >>> print(Path(bundle_path, "labels.jsonl").read_text(), end="")
    {"feature": 3, "label": "numbers"}
    {"feature": 12, "label": "include"}
    >>> Path(bundle_path, "labels.jsonl").unlink()
    """
    path = Path(folder) / FILE
    refuse_ready(path)
    d_sae = _features_of(path, None)
    before = label_lines(path, d_sae)
    lines = []
    for feature, label in sorted(Labels(labels).items()):
        check_feature(feature, d_sae)
        line = before.get(feature, {})
        kept = line if line and as_label(line["label"]) == label else {"feature": feature, "label": label}
        lines.append(_text(kept))
    _write(path, lines)


@dataclass(frozen=True)
class Put:
    """What `put_labels` did: labels that are there now, those written, and those that stayed though others came.

    Attributes:
        labels: features that have a label.
        written: labels that are new or have changed.
        given: labels of people that stayed.
        earlier: labels of an earlier import that stayed.
    """

    labels: int
    written: int
    given: int
    earlier: int


def put_labels(
    folder: str | Path, d_sae: int, lines: Mapping[int, Mapping[str, Any]], *, replace: Replace = "nothing"
) -> Put:
    """Add lines of imported labels to a file of labels, whole or not at all.

    A line with the field `source` was imported; every other line is a person's.

    Args:
        folder: the bundle or the store.
        d_sae: number of its features.
        lines: the line of each feature, with `feature`, `label` and `source`.
        replace: the lines that give way to others: "nothing", those that were "imported", or "all".

    Raises:
        ValueError: a feature is out of range, a text is no label, the file that is there is not sound, or the bundle
            is one of the installed package.

    >>> write_labels(bundle_path, {12: "include"})
    >>> put_labels(bundle_path, 150, {12: {"feature": 12, "label": "files", "source": "a.csv"}}).given
    1
    >>> dict(read_labels(bundle_path))
    {12: 'include'}
    >>> Path(bundle_path, "labels.jsonl").unlink()
    """
    path = Path(folder) / FILE
    refuse_ready(path)
    with lock(path.parent, wait=True):  # two imports at once would each write without the labels of the other
        before = label_lines(path, d_sae)
        after = dict(before)
        stayed = {"given": 0, "earlier": 0}
        for feature, line in lines.items():
            check_feature(feature, d_sae)
            there = before.get(feature)
            if there is None or as_label(there["label"]) == as_label(line["label"]):
                after[feature] = dict(line) if there is None else there
                continue
            kind = "earlier" if "source" in there else "given"
            if replace == "all" or (replace == "imported" and kind == "earlier"):
                after[feature] = dict(line)
            else:
                stayed[kind] += 1
        written = sum(before.get(feature) != line for feature, line in after.items())
        if written:
            _write(path, (_text(after[feature]) for feature in sorted(after)))
    return Put(len(after), written, **stayed)


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _write(path: Path, lines: Iterable[str]) -> None:
    with new_file(path, force=True) as file:
        file.write_text("".join(lines), encoding="utf-8", newline="\n")


def copy_labels(source: Path, target: Path) -> None:
    """Copy the labels of a bundle, if it has any, into the folder of a bundle of the same features, as they are.

    >>> Path("new").mkdir()
    >>> copy_labels(Path(bundle_path), Path("new"))
    """
    path = source / FILE
    if identity(path) is not None:
        refuse_link_out(path, source)
        with open_regular(path) as file, (target / FILE).open("wb") as copy:
            shutil.copyfileobj(file, copy)


@functools.lru_cache(maxsize=8)
def _read(path: Path, d_sae: int, _now: Identity) -> Labels:
    return Labels({feature: line["label"] for feature, line in label_lines(path, d_sae).items()}, source=str(path))


def label_lines(path: Path, d_sae: int) -> dict[int, dict[str, Any]]:
    """The objects of the lines of a file of labels, by feature; none where there is no file.

    Raises:
        OSError: the file may not be read.
        ValueError: it is too large or not UTF-8, or a line is not sound; the message names the line.

    >>> label_lines(Path(bundle_path, "labels.jsonl"), 150)
    {}
    """
    if identity(path) is None:
        return {}
    refuse_link_out(path, path.parent)
    lines: dict[int, dict[str, Any]] = {}
    content = read_bytes(path, most=_LINE + _EACH * d_sae).removeprefix(b"\xef\xbb\xbf")
    for number, text in enumerate(content.split(b"\n"), start=1):
        if not text.strip():
            continue
        where = f"line {number} of {path}"
        if len(text) > _LINE:
            raise ValueError(f"{where} has more than {_LINE:,} bytes; give the feature a short label")
        try:
            line = read_json(dict[str, Any], text.decode(), where, foreign=True)
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8 ({error.reason}); save the file as UTF-8") from error
        feature = from_dict(int, line.get("feature"), f"{where}: feature")
        try:
            check_feature(feature, d_sae)
            as_label(line.get("label"))
            if feature in lines:
                raise ValueError(f"feature {feature} has a label in an earlier line; give it one")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        lines[feature] = line
    return lines


def _features_of(path: Path, d_sae: int | None) -> int:
    return read_manifest(path.parent).architecture.d_sae if d_sae is None else d_sae
