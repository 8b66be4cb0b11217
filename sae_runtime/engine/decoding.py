"""Features back to activations: decode.onnx and steer.onnx, tile by tile."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime.bundle.graphs import DECODE, STEER
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.core.arrays import as_float32, first_nonfinite
from sae_runtime.core.edits import Edit, edit_arrays, without_gate
from sae_runtime.core.features import Features, name_of_token
from sae_runtime.engine.answers import checked
from sae_runtime.engine.options import Feed
from sae_runtime.engine.rows import rows_of
from sae_runtime.engine.sessions import Sessions

Edits = Edit | Sequence[Edit] | Sequence[Sequence[Edit]]


def decode(
    sessions: Sessions, manifest: Manifest, features: Features, x: ArrayLike | None, *, tile: int
) -> NDArray[np.float32]:
    """Reconstructions of features with decode.onnx; arguments, result and errors are those of `SAE.decode`.

    `tile` tokens are decoded at once.
    """
    architecture = manifest.architecture
    if not isinstance(features, Features):
        raise ValueError(f"decode takes the Features that encode gives, got {type(features).__name__}; encode first")
    if features.d_sae != architecture.d_sae:
        raise ValueError(
            f"features of an SAE with {features.d_sae}, this one has {architecture.d_sae}; encode with this one"
        )
    features.check()
    rows = None
    if architecture.decodes_with_x:
        if x is None:
            raise ValueError("this SAE needs the activations to decode; call decode(features, x)")
        rows = rows_of(x, manifest)
        if rows.shape != features.shape:
            raise ValueError(
                f"x has tokens {list(rows.shape)}, the features {list(features.shape)}; give the x of the features"
            )
    x_hat, one_tile = np.empty((len(features), architecture.d_x_hat), np.float32), len(features) <= tile
    for part in _slices(len(features), tile):
        indices, values = (features if one_tile else features[part]).to_slots()
        feed: Feed = {"indices": indices, "values": values}
        if rows is not None:
            feed["x"] = rows(part)
        outputs = sessions.run(DECODE.file, feed)
        (decoded,) = checked(DECODE.file, outputs, (np.float32, (len(indices), architecture.d_x_hat)))
        if (bad := first_nonfinite(decoded)) is not None:
            raise ValueError(
                f"the reconstruction of token {name_of_token(part.start + bad, features.shape)} overflows float32; "
                "leave the token out, or make its features smaller"
            )
        if one_tile:
            x_hat = decoded
        else:
            x_hat[part] = decoded
    return x_hat.reshape(*features.shape, architecture.d_x_hat)


def steer(
    sessions: Sessions,
    manifest: Manifest,
    x: ArrayLike,
    edits: Edits,
    gate: ArrayLike | None,
    *,
    tile: int,
    resolve: Callable[[Sequence[Edit]], list[Edit]],
    encode: Callable[[NDArray[np.float32]], Features],
) -> NDArray[np.float32]:
    """Edited activations with steer.onnx; arguments, result and errors are those of `SAE.steer`.

    `tile` tokens are edited at once. `resolve` gives the edits in numbers. `encode` finds the tokens of an edit that
    the graph cannot confine to them.
    """
    architecture = manifest.architecture
    if architecture.d_out is not None:
        raise ValueError("this is a transcoder: its features do not reconstruct x, and cannot edit it")
    rows = rows_of(x, manifest)
    flat, shape = rows.all(), rows.shape
    requests = _requests(edits, shape, architecture.d_in)
    plain = [[without_gate(edit) or edit for edit in resolve(request)] for request in requests]
    feed: Feed = edit_arrays(plain, architecture.d_sae)
    confined = feed.pop("only_active")
    confines, edit_slots = confined.any(), feed["features"].shape[1]
    batch = flat.reshape(len(requests), len(flat) // len(requests), architecture.d_in)
    tokens = {"x": batch}
    if gate is not None or confines:
        tokens["gate"] = _gates(1.0 if gate is None else gate, shape).reshape(*batch.shape[:2], 1)
    y = np.empty_like(batch)
    for part in _slices(batch.shape[1], max(tile // len(requests), 1)):
        feed |= {name: np.ascontiguousarray(array[:, part]) for name, array in tokens.items()}
        if confines:
            feed["gate"] = feed["gate"] * _where_active(encode(feed["x"]), feed["features"], confined)
        (edited,) = checked(STEER.file, sessions.run(STEER.file, feed), (np.float32, feed["x"].shape))
        # Without edits y is x, which is finite.
        if edit_slots and (bad := first_nonfinite(edited.reshape(-1, architecture.d_in))) is not None:
            request, token = divmod(bad, edited.shape[1])
            name = name_of_token(request * batch.shape[1] + part.start + token, shape)
            raise ValueError(
                f"row {name} of the activations overflows float32 by its edits or its features; give smaller edits or "
                "a smaller gate, or drop the row"
            )
        if edited.shape == y.shape:  # one tile, which is the whole
            y = edited
        else:
            y[:, part] = edited
    return y.reshape(*shape, architecture.d_in)


def _requests(edits: Edits, shape: tuple[int, ...], d_in: int) -> Sequence[Sequence[Edit]]:
    """The edits of each request of activations [*shape, d_in]; edits of all tokens are one request."""
    if isinstance(edits, Edit):
        return [[edits]]
    lists = isinstance(edits, list | tuple)
    if lists and all(isinstance(edit, Edit) for edit in edits):
        return [edits]  # type: ignore[list-item]
    if not lists or not all(isinstance(e, list | tuple) and all(isinstance(edit, Edit) for edit in e) for e in edits):
        raise ValueError(
            "edits must be an Edit, a list of them, or a list for each request; make one by Edit.set(3, 8.0)"
        )
    if len(shape) != 2 or len(edits) != shape[0]:
        raise ValueError(f"{len(edits)} lists of edits need activations [{len(edits)}, t, d_in], got {[*shape, d_in]}")
    return edits  # type: ignore[return-value]


def _where_active(f: Features, features: NDArray[np.int64], confined: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A gate [b, t, e]: 0 for edits that are confined, on the tokens where their feature is not active, else 1."""
    gate = np.ones((*f.shape, features.shape[1]), np.float32)
    request, token = np.unravel_index(np.repeat(np.arange(len(f)), f.l0().ravel()), f.shape)
    for b, e in np.argwhere(confined):
        gate[b, :, e] = 0
        gate[b, token[(request == b) & (f.indices == features[b, e]) & (f.values > 0)], e] = 1
    return gate


def _slices(tokens: int, tile: int) -> Iterator[slice]:
    return (slice(begin, begin + tile) for begin in range(0, tokens, tile))


def _gates(gate: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    array = as_float32(gate, "gate")
    if not np.isfinite(array).all():
        raise ValueError("gate holds NaN or Inf; expected finite numbers, one for each token")
    try:
        return np.broadcast_to(array, shape)
    except ValueError as error:
        raise ValueError(
            f"gate must broadcast to {list(shape)}, one number for each token, got {list(array.shape)}"
        ) from error
