"""Put the graphs into a bundle, each one checked against the numpy witness before it is left there."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime import bundle as bundles
from sae_runtime import files, quota, sessions
from sae_runtime.bundle import DERIVED, Bundle
from sae_runtime.exports import witness
from sae_runtime.exports.decode import decode_graph
from sae_runtime.exports.encode import encode_graph
from sae_runtime.exports.joint import joint_graph
from sae_runtime.exports.steer import LARGEST, steer_graph
from sae_runtime.manifest import GraphRecord, to_json
from sae_runtime.tensors import TensorSpec, read_header, save_tensors

Arrays = dict[str, NDArray[np.generic]]
Run = Callable[[str, Arrays], list[NDArray[np.float32]]]
_TOKENS = 24  # tokens of the sample that the witness looks at


def export(path: str | Path) -> Bundle:
    """Write encode.onnx, decode.onnx, steer.onnx and, for batch-level rules, encode_joint.onnx into a bundle.

    Graphs that are there already are replaced, one by one, and the manifest last.

    Args:
        path: a bundle's folder.

    Returns:
        The bundle as it is now.

    Raises:
        BundleError: the folder is no valid bundle, or a graph disagrees with the witness (then nothing changes).
    """
    bundle = bundles.read(path)
    derived: dict[str, TensorSpec] = {}
    if bundle.manifest.allocation.kind == "feature":
        derived = _write_derived(bundle)
    graphs = {
        "encode.onnx": encode_graph(bundle),
        "decode.onnx": decode_graph(bundle),
        "steer.onnx": steer_graph(bundle),
    }
    if bundle.manifest.allocation.kind != "token":
        graphs["encode_joint.onnx"] = joint_graph(bundle, derived.get("cap"))
    with contextlib.ExitStack() as renames:
        partials: dict[str, Path] = {}
        for name, model in graphs.items():
            partials[name] = renames.enter_context(files.new_file(bundle.path / name, force=True))
            ir.save(model, partials[name])
            onnx.checker.check_model(str(partials[name]), full_check=True)
        _check(bundle, partials)
        records = {
            name: GraphRecord(
                **dataclasses.asdict(bundles.record(partial)), row_independent=name != "encode_joint.onnx"
            )
            for name, partial in sorted(partials.items())
        }
    listed = {name: record for name, record in bundle.manifest.files.items() if name != DERIVED}
    if derived:
        listed[DERIVED] = bundles.record(bundle.path / DERIVED)
    manifest = dataclasses.replace(bundle.manifest, graphs=records, files=listed)
    with files.new_file(bundle.path / bundles.MANIFEST, force=True) as partial:
        partial.write_text(to_json(manifest))
    return bundles.read(path, verify=False)


def _write_derived(bundle: Bundle) -> dict[str, TensorSpec]:
    """The caps of feature choice, too large for a graph, computed from the few numbers in the manifest."""
    with files.new_file(bundle.path / DERIVED, force=True) as partial:
        save_tensors(partial, {"cap": default_cap(bundle)})
    return read_header(bundle.path / DERIVED)


def default_cap(bundle: Bundle) -> NDArray[np.float64]:
    """The cap of each feature that a feature choice bundle was fitted with: float64 [d_sae].

    Raises:
        ValueError: the bundle is not of feature choice.
    """
    allocation = bundle.manifest.allocation
    if allocation.quota is None:
        raise ValueError(f"only feature choice has caps, this bundle is of {allocation.kind} choice")
    return quota.caps(allocation.quota, allocation.k, bundle.manifest.encoder.d_sae)


def _check(bundle: Bundle, graphs: dict[str, Path]) -> None:
    """Run every graph on a sample and raise BundleError if one disagrees with the witness."""
    open_sessions = {name: sessions.open_session(path) for name, path in graphs.items()}

    def run(name: str, feed: Arrays) -> list[NDArray[np.float32]]:
        return list(open_sessions[name].run(None, feed))

    weights = {name: bundle.tensor(name) for name in bundle.specs}
    x = sample(weights, np.random.default_rng(0))
    z = witness.latents(weights, x)
    faults = {
        "encode.onnx": _check_encode(bundle, weights, x, z, run),
        "decode.onnx": _check_decode(weights, x, run),
        "steer.onnx": _check_steer(bundle, weights, x, z, run),
    }
    if "encode_joint.onnx" in graphs:
        faults["encode_joint.onnx"] = _check_joint(bundle, x, z, run)
    for name, fault in faults.items():
        if fault is not None:
            raise bundles.BundleError(
                f"{name} of {bundle.path} disagrees with numpy: {fault}; nothing was changed, please report this"
            )


def sample(weights: witness.Weights, rng: np.random.Generator) -> NDArray[np.float32]:
    """Activations on which features fire: float32 [24, d_in], a few decoder rows each; one row is 0, one b_dec."""
    d_sae, d_in = weights["W_dec"].shape
    bias = weights["b_dec"]
    size = max(float(np.median(np.abs(weights["b_enc"]))), float(np.median(weights.get("threshold", bias))), 1.0)
    chosen = rng.integers(0, d_sae, (_TOKENS, 8))
    amount = rng.gamma(2.0, size, chosen.shape)
    x: NDArray[np.float64] = bias + np.einsum("nj,njd->nd", amount, np.asarray(weights["W_dec"])[chosen])
    x += rng.normal(0, 0.1 * size / np.sqrt(d_in), x.shape)
    x[0], x[1] = 0.0, bias
    return x.astype(np.float32)


def served(bundle: Bundle, weights: witness.Weights, z: NDArray[np.float64]) -> witness.Matches:
    """What encode.onnx should keep of z [n, d_sae], by the witness."""
    if bundle.manifest.encoder.k is not None:
        return witness.token_choice(z, bundle.manifest.encoder.k)
    return witness.threshold(z, weights["threshold"])


def _check_encode(
    bundle: Bundle, weights: witness.Weights, x: NDArray[np.float32], z: NDArray[np.float64], run: Run
) -> str | None:
    encoder = bundle.manifest.encoder
    feed: Arrays = {"x": x}
    if encoder.selection == "threshold":
        feed["width"] = np.array([encoder.d_sae])
    indices, values = run("encode.onnx", feed)
    return witness.disagreement(served(bundle, weights, z), indices.astype(np.int64), values)


def _check_joint(bundle: Bundle, x: NDArray[np.float32], z: NDArray[np.float64], run: Run) -> str | None:
    allocation = bundle.manifest.allocation
    cap = default_cap(bundle) if allocation.quota else None
    valid = np.arange(len(x)) % 5 != 3
    indices, values = run("encode_joint.onnx", {"x": x, "valid": valid})
    return witness.disagreement(witness.joint(z, allocation.k, cap, valid), indices.astype(np.int64), values)


def _check_decode(weights: witness.Weights, x: NDArray[np.float32], run: Run) -> str | None:
    rng = np.random.default_rng(1)
    indices = rng.integers(0, len(weights["W_dec"]), (len(x), 5))
    values = rng.gamma(2.0, 1.0, indices.shape).astype(np.float32)
    (x_hat,) = run("decode.onnx", {"indices": indices, "values": values})
    return witness.difference(witness.decode(weights, indices, values), x_hat)


def _check_steer(
    bundle: Bundle, weights: witness.Weights, x: NDArray[np.float32], z: NDArray[np.float64], run: Run
) -> str | None:
    rng = np.random.default_rng(2)
    matches = served(bundle, weights, z)
    batch = x.reshape(2, len(x) // 2, -1)
    f = np.where(matches.kept, z, 0).reshape(2, len(x) // 2, -1)
    busiest = np.argsort(-matches.kept.sum(axis=0), kind="stable")[:2]  # where an edit of f itself shows
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
    (y,) = run("steer.onnx", {"x": batch, "features": features, **edits})
    fault = witness.difference(witness.steer(weights, batch, f, features, **edits), y)
    if fault is None and not (run("steer.onnx", {"x": batch})[0] == batch).all():
        fault = "without edits y differs from x"
    return fault
