"""What a bundle answers: encode, encode_batch, decode and steer, by tensors."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.arrays import first_nonfinite
from sae_runtime.core.edits import Edit, check_feature
from sae_runtime.core.features import from_slots
from sae_runtime.engine.options import served_feed
from sae_runtime.sae import SAE
from sae_runtime.serve.edit_objects import edits_of_text
from sae_runtime.serve.errors import Invalid
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.merge_trial import NEVER, try_merging
from sae_runtime.serve.operation import Operation
from sae_runtime.serve.row_lane import RowLane
from sae_runtime.serve.scheduler import OneByOne
from sae_runtime.serve.sharing import Decoding, Encoding, Rows, Sparse, Steered, Steering
from sae_runtime.serve.tensors import BYTES, Arrays, Tensor, as_text

CheckEdits = Callable[..., None]
"""Called with an SAE, edits in plain numbers, and how much of them each token gets; raises what is not allowed."""


def bundle_operations(
    sae: SAE, limits: Limits, check_edits: CheckEdits, saw: Callable[..., None], *, merge: bool = True
) -> list[Operation]:
    """The operations of a bundle.

    Args:
        sae: of the bundle.
        limits: of the server.
        check_edits: refuses edits.
        saw: is called with rows that were encoded as fitted, and their slots.
        merge: whether requests may be merged, where a trial shows that this keeps their bits.
    """
    architecture, merges = sae.manifest.architecture, try_merging(sae) if merge else NEVER
    x = Tensor("x", "FP32", (-1, sae.d_in))
    slots = Tensor("indices", "INT64", (-1, -1)), Tensor("values", "FP32", (-1, -1))
    by_threshold = architecture.selection == "threshold"
    option = {
        "threshold": Tensor("threshold", "FP32", (-1,), optional=True),
        "topk": Tensor("k", "INT64", (1,), optional=True),
    }.get(architecture.selection)
    encode = Operation(
        "encode",
        (x, *filter(None, [option])),
        slots,
        _Encode(sae, limits).accept,
        RowLane(Encoding(sae, saw, merges=merges.encode)),
    )
    decoding = Decoding(sae, merges=merges.decode)
    decode = Operation(
        "decode",
        (*slots, *([x] if architecture.decodes_with_x else [])),
        (Tensor("x_hat", "FP32", (-1, sae.d_out)),),
        _Decode(sae, limits, decoding).accept,
        RowLane(decoding),
    )
    found = [encode, decode]
    if sae.manifest.allocation is not None:
        density = Tensor("max_density", "FP64", (sae.d_sae,), optional=True)
        options = (Tensor("k", "FP64", (1,), optional=True), *([density] if by_threshold else []))
        batch = _Batch(sae, limits)
        found.append(Operation("encode_batch", (x, *options), slots, batch.accept, OneByOne(batch.run), is_long=True))
    if architecture.d_out is None:
        steering = Steering(sae, merges=merges.steer, padded=merges.padded)
        steer = _Steer(sae, limits, check_edits, steering)
        numbers = tuple(Tensor(name, "FP32", (-1, -1), optional=True) for name in ("scale", "shift", "low", "high"))
        inputs = (
            Tensor("x", "FP32", (-1, -1, sae.d_in)),
            Tensor("features", "INT64", (-1, -1), optional=True),
            *numbers,
            Tensor("gate", "FP32", (-1, -1), optional=True),
            Tensor("edits", BYTES, (-1,), optional=True),
        )
        outputs = (Tensor("y", "FP32", (-1, -1, sae.d_in)),)
        found.append(Operation("steer", inputs, outputs, steer.accept, RowLane(steering), ranks={"x": 2, "gate": 1}))
    return found


class _Encode:
    def __init__(self, sae: SAE, limits: Limits) -> None:
        self._sae, self._limits = sae, limits

    def accept(self, arrays: Arrays, parameters: Mapping[str, Any]) -> tuple[Rows, int]:
        x = arrays["x"]
        check_rows(x, self._limits)
        k, threshold = arrays.get("k"), arrays.get("threshold")
        if k is None and threshold is None:
            return Rows(x, {}), len(x)
        options: dict[str, Any] = {"threshold": threshold} if k is None else {"k": int(k[0])}
        feed = served_feed(self._sae.manifest.architecture, **{"k": None, "threshold": None, **options})
        kind = tuple((name, array.tobytes()) for name, array in feed.items())
        return Rows(x, options, kind), len(x)


class _Batch:
    def __init__(self, sae: SAE, limits: Limits) -> None:
        self._sae, self._limits = sae, limits

    def accept(self, arrays: Arrays, parameters: Mapping[str, Any]) -> tuple[Any, int]:
        check_rows(arrays["x"], self._limits)
        k = arrays.get("k")
        options = {"k": None if k is None else float(k[0]), "max_density": arrays.get("max_density")}
        return (arrays["x"], options), len(arrays["x"])

    def run(self, work: Any) -> Arrays:
        x, options = work
        indices, values = self._sae.encode_batch(x, **options).falling_slots()
        return {"indices": indices, "values": values}


class _Decode:
    def __init__(self, sae: SAE, limits: Limits, decoding: Decoding) -> None:
        self._sae, self._limits, self._decoding = sae, limits, decoding

    def accept(self, arrays: Arrays, parameters: Mapping[str, Any]) -> tuple[Any, int]:
        indices, values = arrays["indices"], arrays["values"]
        if indices.shape != values.shape:
            raise Invalid(
                f"indices {list(indices.shape)} and values {list(values.shape)} differ; give both of one shape"
            )
        if indices.shape[1] > self._sae.d_sae:
            raise Invalid(
                f"a row has at most {self._sae.d_sae} features, got {indices.shape[1]}; leave unused ones out"
            )
        x = arrays.get("x")
        if x is not None:
            check_rows(x, self._limits)
            if len(x) != len(indices):
                raise Invalid(f"x has {len(x)} rows and indices {len(indices)}; give the x of the features")
        self._limits.check(rows=len(indices))
        if not np.isfinite(values).all() or (values < 0).any():
            raise Invalid("values must be finite and from 0 on; give the values that encode gave")
        try:
            features = from_slots([(indices, values)], self._sae.d_sae, (len(indices),))
        except ValueError:  # which names a graph where the caller gave the slots
            last = self._sae.d_sae - 1
            raise Invalid(f"indices must be 0 to {last}, each once in a row; give those that encode gave") from None
        slots = max(int(features.l0().max(initial=0)), 1)
        return Sparse(features, x, slots), self._decoding.units(len(indices))


class _Steer:
    def __init__(self, sae: SAE, limits: Limits, check_edits: CheckEdits, steering: Steering) -> None:
        self._sae, self._limits, self._check, self._steering = sae, limits, check_edits, steering

    def accept(self, arrays: Arrays, parameters: Mapping[str, Any]) -> tuple[Any, int]:
        x, gate = arrays["x"], arrays.get("gate")
        check_rows(x.reshape(-1, self._sae.d_in), self._limits)
        requests = x.shape[0] if x.ndim == 3 else 1
        edits = [self._sae.resolved(one) for one in self._edits(arrays, requests)]
        for one in edits:
            self._limits.check(edits=len(one))
            for edit in one:
                check_feature(edit.feature, self._sae.d_sae)
            self._check(self._sae, one, gate)
        lists = edits if len(edits) > 1 else [edits[0]]
        work = Steered(
            x.reshape(len(lists), -1, self._sae.d_in), lists, self._gate(gate, x.shape[:-1], len(lists)), x.shape
        )
        return work, self._steering.units(work)

    @staticmethod
    def _gate(gate: NDArray[np.float32] | None, shape: tuple[int, ...], lists: int) -> NDArray[np.float32] | None:
        """The gate [lists, t] of activations of this leading shape."""
        if gate is None:
            return None
        if not np.isfinite(gate).all():
            raise Invalid("gate holds NaN or Inf; give finite numbers, one for each token")
        try:
            return np.broadcast_to(gate, shape).reshape(lists, -1)
        except ValueError:
            raise Invalid(
                f"gate {list(gate.shape)} does not fit tokens {list(shape)}; give a number for each"
            ) from None

    def _edits(self, arrays: Arrays, requests: int) -> list[list[Edit]]:
        texts = arrays.get("edits")
        numbers = [name for name in ("features", "scale", "shift", "low", "high") if name in arrays]
        if texts is not None and numbers:
            raise Invalid(f"edits and {numbers[0]} were both given; give the edits as JSON or as arrays")
        if texts is not None:
            if len(texts) not in (1, requests):
                raise Invalid(f"edits has {len(texts)} texts for {requests} requests; give one, or one for each")
            return [self._of_json(as_text(text, "edits")) for text in texts.tolist()]
        if not numbers:
            return [[]]
        if "features" not in arrays:
            raise Invalid(f"{numbers[0]} was given without features; give the features that are edited")
        features = arrays["features"]
        if len(features) not in (1, requests):
            raise Invalid(f"features has {len(features)} rows for {requests} requests; give one, or one for each")
        self._limits.check(edits=features.shape[1])
        idle = Edit(0)
        defaults = {"scale": idle.factor, "shift": idle.shift, "low": idle.low, "high": idle.high}
        columns = []
        for name, default in defaults.items():
            try:
                columns.append(np.broadcast_to(arrays.get(name, np.float32(default)), features.shape).tolist())
            except ValueError:
                raise Invalid(
                    f"{name} {list(arrays[name].shape)} does not fit features {list(features.shape)}; give one number "
                    "for each"
                ) from None
        return [
            [edit for one in zip(*row, strict=True) if (edit := Edit(*one)) != Edit(edit.feature)]
            for row in zip(features.tolist(), *columns, strict=True)
        ]

    def _of_json(self, text: str) -> list[Edit]:
        by_sae = edits_of_text(text, self._limits)
        if any(name is not None for name in by_sae):
            raise Invalid("edits of a bundle name no SAE; leave sae out")
        return by_sae.get(None, [])


def check_rows(x: NDArray[np.float32], limits: Limits) -> None:
    """Refuse rows that are too many, or not finite."""
    limits.check(rows=len(x))
    if (bad := first_nonfinite(x)) is not None:
        raise Invalid(f"row {bad} of x holds NaN or Inf; drop it or mend the model")
