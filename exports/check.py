"""Run the graphs of an export on activations and compare their outputs with the numpy witness."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from sae_runtime.bundle import files
from sae_runtime.bundle.folder import DERIVED, Bundle, BundleError
from sae_runtime.bundle.graphs import DECODE, ENCODE, EXACT, GPU, JOINT, STEER
from sae_runtime.bundle.tensors import map_tensor, read_header
from sae_runtime.engine import sessions
from sae_runtime.exports import witness
from sae_runtime.exports.derived import active_activations, default_max_density
from sae_runtime.exports.graphs.external import relocate
from sae_runtime.exports.graphs.steer import LARGEST, ROWS

Arrays = dict[str, NDArray[np.generic]]
Run = Callable[[Arrays], list[NDArray[np.float32]]]  # inputs to outputs; inputs that the graph lacks are left out
Activations = NDArray[np.float32]
_TOKENS = 24
_OF_SAMPLE = 72


def check_graph(bundle: Bundle, graph: Path) -> None:
    """Raise BundleError where a graph is not valid ONNX or disagrees with the witness.

    Args:
        bundle: whose weights the graph reads.
        graph: the file, in a folder inside the bundle's folder; `derived.safetensors`, if the graph reads it, is beside
            the graph.
    """
    with files.scratch_file(bundle.path / graph.name) as copy:  # a graph finds weights in its own folder only
        relocate(graph, copy, {DERIVED: (graph.parent / DERIVED).relative_to(bundle.path).as_posix()})
        _check_form(bundle, copy)
        x = active_activations(bundle, np.random.default_rng(0), _TOKENS)
        fault = fault_of(bundle, graph.name, sessions.open_session(copy), x)
    if fault is not None:
        raise BundleError(
            f"{graph.name} of {bundle.path} disagrees with numpy: {fault}; nothing was exported, please report this"
        )


def fault_of(bundle: Bundle, graph: str, session: Any, x: Activations) -> str | None:
    """How a graph disagrees with the witness on an even number of activations, or None.

    Args:
        bundle: whose weights the witness reads.
        graph: file name of the graph.
        session: of the graph.
        x: activations [m, d_in].

    >>> fault_of(sae._bundle, "encode.onnx", sae._sessions.open("encode.onnx"), x)
    """
    names = {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}

    def run(feed: Arrays) -> list[NDArray[np.float32]]:
        feed = {name: array for name, array in feed.items() if name in names}
        return sessions.run_session(session, feed, bundle.path / graph)

    return _FAULTS[graph](bundle, x, run)


def faults(bundle: Bundle) -> dict[str, str | None]:
    """The fault of each graph of a bundle, and of what graphs read besides the weights; None where there is none.

    The graphs run on the bundle's sample, or on made-up activations where it has none.

    Raises:
        BundleError: a graph is not one that our exporter writes, or a file is missing or altered.

    >>> faults(sae._bundle)["decode.onnx"]
    """
    sample, found = bundle.sample(), dict[str, str | None]()
    x = active_activations(bundle, np.random.default_rng(0), _TOKENS)
    if sample is not None and len(sample):
        x = np.concatenate([x, sample[np.linspace(0, len(sample) - 1, _OF_SAMPLE).astype(np.int64)]])
    opened = sessions.Sessions(bundle, providers=sessions.CPU, threads=None, verify=True)
    for name, record in bundle.manifest.graphs.items():
        session = opened.open(name)
        found[name] = fault_of(bundle, name, session, x)
        if record.derived and DERIVED not in found:
            found[DERIVED] = _fault_of_derived(bundle)
    return found


def _fault_of_derived(bundle: Bundle) -> str | None:
    """The fault of the arrays of derived.safetensors that follow from the weights bit by bit."""
    path = bundle.path / DERIVED
    specs = read_header(path)
    if ROWS in specs and not np.array_equal(map_tensor(path, specs[ROWS]), bundle.tensor("W_enc").T):
        return f"{ROWS} is not W_enc transposed"
    if "max_density" not in specs:
        return None
    close = np.allclose(map_tensor(path, specs["max_density"]), default_max_density(bundle), rtol=1e-12, atol=0)
    return None if close else "max_density is not that of the allocation"


def _check_form(bundle: Bundle, graph: Path) -> None:
    try:
        onnx.checker.check_model(str(graph), full_check=True)
    except onnx.checker.ValidationError as error:
        if "hard link" not in str(error):
            raise
        raise BundleError(
            f"the weights of {bundle.path} have several hard links, which onnx refuses to read; copy the bundle"
        ) from error


def _pre_activations(bundle: Bundle, x: Activations) -> NDArray[np.float64]:
    return witness.pre_activations(bundle.weights(), x, bundle.manifest.architecture.norm)


def _lost(bundle: Bundle, x: Activations) -> NDArray[np.float64]:
    return witness.rounding(bundle.weights(), x, bundle.manifest.architecture.norm)


def _fault_of_encode(bundle: Bundle, x: Activations, run: Run) -> str | None:
    """The fault of an encoder; where the graph gives `certain`, only certain rows count."""
    architecture, z = bundle.manifest.architecture, _pre_activations(bundle, x)
    threshold, lost = architecture.selection == "threshold", _lost(bundle, x)
    indices, values, *certain = run({"x": x} | ({"slots": np.array([architecture.d_sae])} if threshold else {}))
    if certain:
        sure = certain[0].astype(bool)
        if threshold:
            sure &= values[:, -1] <= 0  # where all slots are full, features may be missing, and serving encodes again
        z, indices, values, lost = z[sure], indices[sure], values[sure], lost[sure]
    expected = witness.served(architecture, bundle.weights(), z)
    return witness.disagreement(expected, indices.astype(np.int64), values, lost)


def _fault_of_joint(bundle: Bundle, x: Activations, run: Run) -> str | None:
    allocation = bundle.manifest.allocation
    assert allocation is not None
    max_density = default_max_density(bundle) if allocation.quota else None
    valid = np.arange(len(x)) % 5 != 3
    indices, values = run({"x": x, "valid": valid})
    expected = witness.joint(_pre_activations(bundle, x), allocation.k, max_density, valid)
    return witness.disagreement(expected, indices.astype(np.int64), values, _lost(bundle, x).max(initial=0))


def _fault_of_decode(bundle: Bundle, x: Activations, run: Run) -> str | None:
    rng, weights, architecture = np.random.default_rng(1), bundle.weights(), bundle.manifest.architecture
    indices = rng.integers(0, architecture.d_sae, (len(x), 5))
    values = rng.gamma(2.0, 1.0, indices.shape).astype(np.float32)
    expected, lost = witness.decode(weights, indices, values), witness.decode_rounding(weights, indices, values)
    if architecture.decodes_with_x:
        lost = lost * witness.normalise(x, architecture.norm)[2]
        expected = witness.completed(weights, expected, x, architecture.norm)
    (x_hat,) = run({"indices": indices, "values": values, "x": x})
    return witness.difference(expected, x_hat, lost)


def _fault_of_steer(bundle: Bundle, x: Activations, run: Run) -> str | None:
    rng, weights, architecture = np.random.default_rng(2), bundle.weights(), bundle.manifest.architecture
    z = _pre_activations(bundle, x)
    kept = witness.served(architecture, weights, z).kept
    batch, f = x.reshape(2, len(x) // 2, -1), np.where(kept, z, 0).reshape(2, len(x) // 2, -1)
    busiest = np.argsort(-kept.sum(axis=0), kind="stable")[:2]  # so that some edits are of active features
    others = rng.choice(architecture.d_sae, size=min(2, architecture.d_sae), replace=False)
    features = np.stack([np.unique([*busiest, *others])] * 2).astype(np.int64)
    shape = features.shape
    edits = {
        "scale": rng.uniform(-1, 2, shape).astype(np.float32),
        "shift": rng.uniform(-1, 3, shape).astype(np.float32),
        "low": np.full(shape, -LARGEST, np.float32),
        "high": np.full(shape, float(z.max(initial=1.0)), np.float32),
        "gate": rng.uniform(0, 1, (*batch.shape[:2], shape[1])).astype(np.float32),
    }
    (y,) = run({"x": batch, "features": features, **edits})
    fault = witness.difference(witness.steer(weights, batch, f, features, architecture.norm, **edits), y)
    if fault is None and not (run({"x": batch})[0] == batch).all():
        fault = "without edits y differs from x"
    return fault


_FAULTS: Mapping[str, Callable[[Bundle, Activations, Run], str | None]] = {
    **dict.fromkeys((ENCODE.file, EXACT.file, GPU.file), _fault_of_encode),
    JOINT.file: _fault_of_joint,
    DECODE.file: _fault_of_decode,
    STEER.file: _fault_of_steer,
}
