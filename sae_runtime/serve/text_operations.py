"""What a deployed model answers of texts: features, run and embed, by tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.edits import Edit, check_feature
from sae_runtime.core.gates import Gate
from sae_runtime.core.labels import shown
from sae_runtime.core.slots import joined_slots
from sae_runtime.deployed.text_features import TextFeatures
from sae_runtime.model import Model
from sae_runtime.serve import json_text
from sae_runtime.serve.bundle_operations import CheckEdits
from sae_runtime.serve.edit_objects import edits_of_text, read_gate
from sae_runtime.serve.errors import Invalid
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.operation import Operation
from sae_runtime.serve.row_lane import RowLane
from sae_runtime.serve.tensors import BYTES, Arrays, Tensor, as_bytes, as_text, of_onnx
from sae_runtime.serve.text_sharing import FeaturesOfTexts, Reading, RunsOfTexts, VectorsOfTexts, Work
from sae_runtime.serve.writing import writing_operation

_TEXT = Tensor("text", BYTES, (-1,))
_ASKED = (Tensor("edits", BYTES, (-1,), optional=True), Tensor("gate", BYTES, (-1,), optional=True))


def text_operations(model: Model, limits: Limits, check_edits: CheckEdits, saw: Callable[..., None]) -> list[Operation]:
    """The operations of a deployed model.

    Args:
        model: the deployed model.
        limits: of the server.
        check_edits: refuses edits.
        saw: is called with the features of texts.
    """
    model.open()  # else callers of features and of vectors would close each other's graph
    found, texts = [], _Texts(model, limits, check_edits)
    if any(sae.reads for sae in model.saes.values()):
        outputs = (
            Tensor("row_splits", "INT64", (-1,)),
            Tensor("ids", "INT64", (-1,)),
            Tensor("tokens", BYTES, (-1,)),
            Tensor("offsets", "INT64", (-1, 2)),
            Tensor("indices", "INT64", (-1, -1)),
            Tensor("values", "FP32", (-1, -1)),
        )
        inputs = (_TEXT, Tensor("sae", BYTES, (1,), optional=True))
        lane = RowLane(FeaturesOfTexts(model, saw))
        found.append(Operation("features", inputs, outputs, texts.read, lane, tensors=features_tensors))
    asked = _ASKED if any(sae.edits for sae in model.saes.values()) else ()
    declared = model.outputs
    ran = tuple(Tensor(name, of_onnx(kind), shape) for name, (kind, shape, _) in declared.items())
    ran += (Tensor("row_splits", "INT64", (-1,)),)
    by_token = {name: of_tokens for name, (_, _, of_tokens) in declared.items()}
    lane = RowLane(RunsOfTexts(model, by_token))
    found.append(Operation("run", (_TEXT, *asked), ran, texts.accept, lane))
    if model.kind == "vectors":
        vectors = (Tensor("embedding", "FP32", (-1, -1)),)
        found.append(Operation("embed", (_TEXT, *asked), vectors, texts.accept, RowLane(VectorsOfTexts(model))))
    if model.kind == "text":
        found.append(writing_operation(model, limits, texts.accept, asked))
    return found


class _Texts:
    """Makes work of tensors."""

    def __init__(self, model: Model, limits: Limits, check_edits: CheckEdits) -> None:
        self._model, self._limits, self._check = model, limits, check_edits

    def read(self, arrays: Arrays, parameters: Mapping[str, Any]) -> tuple[Reading, int]:
        """Texts whose features are wanted."""
        texts = self._texts(arrays["text"])
        named = arrays.get("sae")
        sae = None if named is None else self._model.reads(as_text(named.tolist()[0], "sae")).name
        windows = self._model.windows(texts)
        numbers = [number for number, some in enumerate(windows) for _ in some]
        return Reading(texts, windows, [one.ids for some in windows for one in some], numbers, sae), len(numbers)

    def accept(self, arrays: Arrays, parameters: Mapping[str, Any]) -> tuple[Work, int]:
        """Texts with edits."""
        texts = self._texts(arrays["text"])
        edits = self._each(arrays, "edits", len(texts), self._edits, {})
        gates = self._each(arrays, "gate", len(texts), _gate, "all")
        return Work(texts, edits, gates), len(texts)

    def _texts(self, array: NDArray[Any]) -> list[str]:
        self._limits.check(texts=len(array))
        texts = [as_text(text, f"text {number}") for number, text in enumerate(array.tolist())]
        self._limits.check(characters=sum(map(len, texts)))
        return texts

    def _each(self, arrays: Arrays, name: str, texts: int, read: Callable[[str], Any], default: Any) -> list[Any]:
        """What each text gets of an input that has one value for all, or one for each."""
        given = arrays.get(name)
        if given is None:
            return [default] * texts
        if len(given) not in (1, texts):
            raise Invalid(f"{name} has {len(given)} values for {texts} texts; give one, or one for each")
        each = [read(as_text(text, name)) for text in given.tolist()]
        return each * texts if len(each) == 1 else each

    def _edits(self, text: str) -> dict[str, list[Edit]]:
        return self.resolved(edits_of_text(text, self._limits))

    def resolved(self, by_sae: Mapping[str | None, Sequence[Edit]]) -> dict[str, list[Edit]]:
        """Edits in plain numbers, by SAE, that this server allows."""
        return resolved(self._model, by_sae, self._check)


def resolved(
    model: Model, by_sae: Mapping[str | None, Sequence[Edit]], check_edits: CheckEdits
) -> dict[str, list[Edit]]:
    """The edits of a text in plain numbers by SAE, if the model takes them and the server allows them.

    Args:
        model: the deployed model.
        by_sae: edits of `edit_objects.read_edits`.
        check_edits: refuses edits.

    Raises:
        Invalid: the model has no such SAE, or several and none is named.
        ValueError: a label or a largest activation is not known, or the SAE takes no edits.
    """
    names, plain = list(model.saes), dict[str, list[Edit]]()
    for name, edits in by_sae.items():
        if name is None and len(names) != 1:
            raise Invalid(f"the model has {len(names)} SAEs; name one of {', '.join(names)} as sae of an edit")
        sae = model.saes.get(names[0] if name is None else name)
        if sae is None:
            raise Invalid(f"the model has no SAE {shown(name)}; it has {', '.join(names) or 'none'}")
        if not sae.edits:
            raise Invalid(f"{sae.name} takes no edits: it is a transcoder, or was spliced to be read alone")
        if sae.name in plain:
            raise Invalid(f"edits name {sae.name} in some places and no SAE in others; name it in all")
        plain[sae.name] = sae.resolved(edits)
        for edit in plain[sae.name]:
            check_feature(edit.feature, sae.d_sae)
        check_edits(sae, plain[sae.name])
    return plain


def _gate(text: str) -> Gate:
    """A gate of BYTES: a word as it is, or JSON."""
    return read_gate(json_text.read(text, "gate") if text[:1] in ("[", "{", '"') else text)


def features_tensors(found: tuple[Sequence[TextFeatures], str | None]) -> Arrays:
    """The tensors of the operation `features`: of the texts' features, those of one SAE."""
    seen, sae = found
    slots = [(one.features if sae is None else one.saes[sae]).falling_slots() for one in seen]
    indices, values = joined_slots(slots)
    empty = np.zeros(0, np.int64)
    return {
        "row_splits": np.cumsum([0, *map(len, seen)]),
        "ids": np.concatenate([empty, *(one.ids for one in seen)]),
        "tokens": as_bytes([token for one in seen for token in one.tokens]),
        "offsets": np.concatenate([empty.reshape(0, 2), *(one.offsets for one in seen)]),
        "indices": indices,
        "values": values,
    }
