"""Run the graphs of an export on activations and compare what they give with the numpy witness."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from sae_runtime.bundle import files
from sae_runtime.bundle.folder import DERIVED, Bundle, BundleError
from sae_runtime.bundle.graphs import DECODE, ENCODE, EXACT, GPU, JOINT, STEER
from sae_runtime.bundle.manifest import Architecture
from sae_runtime.engine import sessions
from sae_runtime.exports import witness
from sae_runtime.exports.derived import default_max_density
from sae_runtime.exports.graphs.steer import LARGEST

Arrays = dict[str, NDArray[np.generic]]
Run = Callable[[Arrays], list[NDArray[np.float32]]]
_TOKENS = 24  # that the witness looks at


def check_graph(bundle: Bundle, graph: Path) -> None:
    """Raise BundleError where a graph is not valid ONNX or disagrees with the witness.

    Args:
        bundle: whose weights the graph reads.
        graph: the file, in a folder of the bundle's folder; derived.safetensors, if it reads that, lies beside it.
    """
    with files.scratch_file(bundle.path / graph.name) as copy:  # weights are found in a graph's own folder alone
        _copy_with_derived_of(graph, copy, bundle.path)
        _check_form(bundle, copy)
        session = sessions.open_session(copy)
        fault = _fault(bundle, graph.name, lambda feed: list(session.run(None, feed)))
    if fault is not None:
        raise BundleError(
            f"{graph.name} of {bundle.path} disagrees with numpy: {fault}; the graph was left out, please report this"
        )


def sample(
    architecture: Architecture, weights: witness.Weights, rng: np.random.Generator, tokens: int = _TOKENS
) -> NDArray[np.float32]:
    """Activations on which features are active: float32 [tokens, d_in]; one row is 0, one is b_pre.

    The others are sums of a few directions, those of the decoder, or of a transcoder's encoder.
    """
    d_in, d_sae = weights["W_enc"].shape
    bias = weights["b_pre"]
    size = max(float(np.median(np.abs(weights["b_enc"]))), float(np.median(weights.get("threshold", 0))), 1.0)
    chosen = rng.integers(0, d_sae, (tokens, 8))
    amount = rng.gamma(2.0, size, chosen.shape)
    directions = weights["W_dec"] if architecture.d_out is None else weights["W_enc"].T
    x: NDArray[np.float64] = bias + np.einsum("nj,njd->nd", amount, np.asarray(directions)[chosen])
    x += rng.normal(0, 0.1 * size / np.sqrt(d_in), x.shape)
    x[0], x[1] = 0.0, bias
    return x.astype(np.float32)


def served(bundle: Bundle, weights: witness.Weights, z: NDArray[np.float64]) -> witness.Matches:
    """What encode.onnx should keep of z [n, d_sae], by the witness."""
    architecture = bundle.manifest.architecture
    if architecture.k is not None:
        choice = witness.group_choice if architecture.selection == "groupmax" else witness.token_choice
        return choice(z, architecture.k)
    return witness.threshold(z, weights["threshold"])


def _copy_with_derived_of(graph: Path, copy: Path, home: Path) -> None:
    """Write a graph so that it reads derived.safetensors from the folder where the graph lies now."""
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if (entry.key, entry.value) == ("location", DERIVED):
                entry.value = str((graph.parent / DERIVED).relative_to(home).as_posix())
    onnx.save(model, copy)


def _check_form(bundle: Bundle, graph: Path) -> None:
    try:
        onnx.checker.check_model(str(graph), full_check=True)
    except onnx.checker.ValidationError as error:
        if "hard link" not in str(error):
            raise
        raise BundleError(
            f"the weights of {bundle.path} have several hard links, which onnx refuses to read; copy the bundle"
        ) from error


def _fault(bundle: Bundle, name: str, run: Run) -> str | None:
    """What is wrong with a graph, or None."""
    weights, architecture = bundle.weights(), bundle.manifest.architecture
    x = sample(architecture, weights, np.random.default_rng(0))
    if name == DECODE.file:
        return _fault_of_decode(bundle, weights, x, run)
    z = witness.pre_activations(weights, witness.normalise(x, architecture.norm)[0])
    checks: Mapping[str, Callable[[], str | None]] = {
        STEER.file: lambda: _fault_of_steer(bundle, weights, x, z, run),
        JOINT.file: lambda: _fault_of_joint(bundle, x, z, run),
        **dict.fromkeys(
            (ENCODE.file, EXACT.file, GPU.file), lambda: _fault_of_encode(bundle, weights, x, z, run, name)
        ),
    }
    return checks[name]()


def _fault_of_encode(
    bundle: Bundle, weights: witness.Weights, x: NDArray[np.float32], z: NDArray[np.float64], run: Run, name: str
) -> str | None:
    """Look at the rows that the graph is certain of, where it says so."""
    threshold = bundle.manifest.architecture.selection == "threshold"
    feed: Arrays = {"x": x}
    if threshold and name != GPU.file:
        feed["slots"] = np.array([bundle.manifest.architecture.d_sae])
    indices, values, *certain = run(feed)
    if certain:
        sure = certain[0].astype(bool)
        if threshold:
            sure &= values[:, -1] <= 0  # a token that fills all slots may have been cut, and is encoded again
        z, indices, values = z[sure], indices[sure], values[sure]
    return witness.disagreement(served(bundle, weights, z), indices.astype(np.int64), values)


def _fault_of_joint(bundle: Bundle, x: NDArray[np.float32], z: NDArray[np.float64], run: Run) -> str | None:
    allocation = bundle.manifest.allocation
    assert allocation is not None
    max_density = default_max_density(bundle) if allocation.quota else None
    valid = np.arange(len(x)) % 5 != 3
    indices, values = run({"x": x, "valid": valid})
    return witness.disagreement(witness.joint(z, allocation.k, max_density, valid), indices.astype(np.int64), values)


def _fault_of_decode(bundle: Bundle, weights: witness.Weights, x: NDArray[np.float32], run: Run) -> str | None:
    rng = np.random.default_rng(1)
    indices = rng.integers(0, len(weights["W_dec"]), (len(x), 5))
    values = rng.gamma(2.0, 1.0, indices.shape).astype(np.float32)
    feed: Arrays = {"indices": indices, "values": values}
    expected = witness.decode(weights, indices, values)
    if bundle.manifest.architecture.decodes_with_x:
        feed["x"] = x
        expected = witness.completed(weights, expected, x, bundle.manifest.architecture.norm)
    (x_hat,) = run(feed)
    return witness.difference(expected, x_hat)


def _fault_of_steer(
    bundle: Bundle, weights: witness.Weights, x: NDArray[np.float32], z: NDArray[np.float64], run: Run
) -> str | None:
    rng = np.random.default_rng(2)
    matches = served(bundle, weights, z)
    batch = x.reshape(2, len(x) // 2, -1)
    f = np.where(matches.kept, z, 0).reshape(2, len(x) // 2, -1)
    busiest = np.argsort(-matches.kept.sum(axis=0), kind="stable")[:2]  # edits of active features
    others = rng.choice(len(weights["W_dec"]), size=min(2, len(weights["W_dec"])), replace=False)
    features = np.stack([np.unique([*busiest, *others])] * 2).astype(np.int64)
    e = features.shape[1]
    edits = {
        "scale": rng.uniform(-1, 2, (2, e)).astype(np.float32),
        "shift": rng.uniform(-1, 3, (2, e)).astype(np.float32),
        "low": np.full((2, e), -LARGEST, np.float32),
        "high": np.full((2, e), float(z.max(initial=1.0)), np.float32),
        "gate": rng.uniform(0, 1, (2, len(x) // 2, e)).astype(np.float32),
    }
    (y,) = run({"x": batch, "features": features, **edits})
    expected = witness.steer(weights, batch, f, features, bundle.manifest.architecture.norm, **edits)
    fault = witness.difference(expected, y)
    if fault is None and not (run({"x": batch})[0] == batch).all():
        fault = "without edits y differs from x"
    return fault
