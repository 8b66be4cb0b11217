"""Labels of an SAE's features out of a file of explanations: one for each feature, beside what people gave."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sae_runtime.bundle.labels import Replace, put_labels
from sae_runtime.bundle.parts import MANIFEST
from sae_runtime.core.labels import CONTROL, LONGEST, as_label
from sae_runtime.labelling.explanation_files import read_explanations, tool_of
from sae_runtime.labelling.explanations import Explanation
from sae_runtime.labelling.fit import refuse_other
from sae_runtime.labelling.target import Target, find_target
from sae_runtime.store.schema import STORE


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import did.

    Attributes:
        labels: features that have a label now.
        written: labels that are new or have changed.
        given: features whose label stayed, because a person gave it.
        earlier: features whose label stayed, because an earlier import gave it.
        several: features with several explanations, of which one was chosen.
        empty: records without a feature or a text.
        shortened: labels that were longer than a label may be.
        beyond: features of the file that the SAE does not have.
        warnings: sentences on what may not fit.
    """

    labels: int
    written: int
    given: int = 0
    earlier: int = 0
    several: int = 0
    empty: int = 0
    shortened: int = 0
    beyond: int = 0
    warnings: tuple[str, ...] = ()


@dataclass
class _Best:
    """The explanations of one SAE in a file: the best of each feature."""

    chosen: dict[int, Explanation] = field(default_factory=dict)
    several: set[int] = field(default_factory=set)

    def add(self, one: Explanation) -> None:
        before = self.chosen.get(one.feature)
        if before is None:
            self.chosen[one.feature] = one
            return
        if one.text != before.text:
            self.several.add(one.feature)
        if one.score is not None and (before.score is None or one.score > before.score):
            self.chosen[one.feature] = one


def import_labels(
    target: Target,
    path: str | Path,
    *,
    place: str | None = None,
    source: str | None = None,
    replace: Replace = "nothing",
    any_source: bool = False,
) -> Imported:
    r"""Put the explanations of a file into an SAE's `labels.jsonl`, whole or not at all.

    Of several explanations of a feature, the one with the highest score is taken, where scores are missing the first.
    A line of the file says where its label came from; a line that a person wrote has no `source`.

    Args:
        target: the SAE.
        path: the file or folder, in a form of `explanation_files`.
        place: the SAE in the file, where it has several: Neuronpedia's source, or delphi's module.
        source: what the labels come from; None: as the file's form says.
        replace: which labels that are there give way: "nothing", those that were "imported", or "all".
        any_source: take explanations of another model, or of an SAE of another size.

    Raises:
        OSError: a file may not be read or written.
        ValueError: the file is damaged, holds no explanation, or explains another SAE.

    >>> from sae_runtime.labelling.target import find_target
    >>> _ = Path("a.csv").write_text("feature,label\n12,include\n")
    >>> import_labels(find_target(bundle_path), "a.csv").written
    1
    >>> print(Path(bundle_path, "labels.jsonl").read_text(), end="")
    {"feature": 12, "label": "include", "source": "a.csv"}
    >>> Path(bundle_path, "labels.jsonl").unlink()
    """
    path = Path(path)
    if not any_source and any((path / name).is_file() for name in (MANIFEST, STORE)):
        theirs = find_target(path).weights
        if None not in (theirs, target.weights) and theirs != target.weights:
            raise ValueError(
                f"{path} is of an SAE of other weights than {target.folder}; --any-source takes its labels"
            )
    found, empty = _by_place(read_explanations(path))
    explained = _one_place(found, place, path)
    model, where = next(iter(explained.chosen.values())).model, next(iter(explained.chosen.values())).place
    warnings: Sequence[str] = ()
    if not any_source:
        warnings = refuse_other(target, path, model=model, place=where, highest=max(explained.chosen))
    within = {number: one for number, one in explained.chosen.items() if number < target.d_sae}
    if not within:
        raise ValueError(f"{path} explains no feature from 0 to {target.d_sae - 1}; it is of another SAE")
    tool = source or _tool(path, model)
    lines, shortened = {}, 0
    for feature, one in within.items():
        label = _one_line(one.text)
        if not label:
            empty += 1
            continue
        shortened += len(label) > LONGEST
        origin = _one_line(one.origin or "") or _one_line(tool) or "a file"
        line = {"feature": feature, "label": as_label(_short(label)), "source": _short(origin)}
        line |= {"score": one.score} if one.score is not None else {}
        explainer = _short(_one_line(one.explainer or ""))
        lines[feature] = line | ({"explainer": explainer} if explainer else {})
    put = put_labels(target.folder, target.d_sae, lines, replace=replace)
    return Imported(
        labels=put.labels,
        written=put.written,
        given=put.given,
        earlier=put.earlier,
        several=len(explained.several),
        empty=empty,
        shortened=shortened,
        beyond=len(explained.chosen) - len(within),
        warnings=tuple(warnings),
    )


def _by_place(explanations: Iterable[Explanation | None]) -> tuple[dict[tuple[str | None, str | None], _Best], int]:
    found: dict[tuple[str | None, str | None], _Best] = {}
    empty = 0
    for one in explanations:
        if one is None:
            empty += 1
        else:
            found.setdefault((one.model, one.place), _Best()).add(one)
    return found, empty


def _one_place(found: dict[tuple[str | None, str | None], _Best], place: str | None, path: Path) -> _Best:
    """The explanations of the SAE that is meant."""
    named = [f"{model}/{where}" if model and where else where or model or "no name" for model, where in found]
    wanted = [one for one, name in zip(found, named, strict=True) if place is None or place in (name, one[1])]
    if not found:
        raise ValueError(f"{path} holds no explanation: no record has both a feature and a text")
    shown = f"{', '.join(sorted(named)[:10])}{', ...' * (len(named) > 10)}"
    if not wanted:
        raise ValueError(f"{path} has no explanations of {place!r}; it has those of {shown}")
    if len(wanted) > 1:
        raise ValueError(f"{path} explains {len(wanted)} SAEs, {shown}; choose one by --source")
    return found[wanted[0]]


def _tool(path: Path, model: str | None) -> str:
    """Neuronpedia's files name a model, which tables and our own labels do not."""
    tool = tool_of(path)
    return "neuronpedia" if tool == path.name and model is not None else tool


def _one_line(text: str) -> str:
    return " ".join(CONTROL.sub(" ", unicodedata.normalize("NFC", text)).split())


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"
