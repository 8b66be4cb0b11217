"""Put the graphs into a bundle, each one checked against the numpy witness before it is left there."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime import bundle as bundles
from sae_runtime import files, sessions
from sae_runtime.bundle import DERIVED, Bundle
from sae_runtime.exports import witness
from sae_runtime.exports.decode import decode_graph
from sae_runtime.exports.derived import default_cap, write_derived
from sae_runtime.exports.encode import encode_graph
from sae_runtime.exports.exact import exact_graph
from sae_runtime.exports.fast import fast_graph, half_graph
from sae_runtime.exports.gpu import gpu_graph
from sae_runtime.exports.joint import joint_graph
from sae_runtime.exports.price import price
from sae_runtime.exports.steer import LARGEST, steer_graph
from sae_runtime.manifest import Encoder, GraphRecord, Price, to_json
from sae_runtime.tensors import TensorSpec

Arrays = dict[str, NDArray[np.generic]]
Run = Callable[[str, Arrays], list[NDArray[np.float32]]]
PRECISIONS = {
    "float32": "encode.onnx",
    "exact": "encode_exact.onnx",
    "fast": "encode_fast.onnx",
    "float16": "encode_half.onnx",
    "gpu": "encode_gpu.onnx",
}
_TOKENS = 24  # tokens that the witness looks at
_PRICED = 256  # tokens of the sample on which precisions are measured


def export(
    path: str | Path,
    *,
    precisions: Collection[str] = ("exact", "fast"),
    activations: NDArray[np.float32] | None = None,
) -> Bundle:
    """Write encode.onnx, decode.onnx, steer.onnx (no transcoder's), encode_joint.onnx (of a batch's budget), and more.

    Graphs that are there already are replaced, one by one, and the manifest last.

    Args:
        path: a bundle's folder.
        precisions: further encoders: "exact", "fast" (both only where int8 can be used, see `has_integers`), "float16",
            and "gpu", which is "exact" for GPUs.
        activations: typical ones [m, d_in], to take the place of the bundle's sample; they make int8 fine.

    Returns:
        The bundle as it is now.

    Raises:
        ValueError: an unknown precision, or activations of another width or that are not finite.
        BundleError: the folder is no valid bundle, or a graph disagrees with the witness (then none changes, but those
            whose derived weights changed are gone).
    """
    if unknown := set(precisions) - set(PRECISIONS):
        raise ValueError(f"precisions must be some of {', '.join(PRECISIONS)}, got {', '.join(sorted(unknown))}")
    bundle = bundles.read(path)
    if activations is not None:
        bundle = bundles.with_sample(bundle, activations)
    weights, encoder = bundle.weights(), bundle.manifest.encoder
    typical = bundle.sample()
    if typical is None:
        guess = sample(encoder, weights, np.random.default_rng(1), 4 * encoder.d_in)
    specs = write_derived(bundle, guess if typical is None else typical, precisions)
    graphs = _graphs(bundle, specs, precisions)
    with contextlib.ExitStack() as renames:
        partials: dict[str, Path] = {}
        for name, model in graphs.items():
            partials[name] = renames.enter_context(files.new_file(bundle.path / name, force=True))
            ir.save(model, partials[name])
            _check_form(bundle, partials[name])
        run = _runner(partials)
        _check(bundle, weights, sample(encoder, weights, np.random.default_rng(0)), run, set(graphs))
        prices = {} if typical is None else _prices(bundle, weights, typical[:_PRICED], run, set(graphs))
        records = {
            name: GraphRecord(
                **dataclasses.asdict(bundles.record(partial)),
                row_independent=name != "encode_joint.onnx",
                derived=_reads_derived(graphs[name]),
            )
            for name, partial in sorted(partials.items())
        }
    listed = {name: record for name, record in bundle.manifest.files.items() if name != DERIVED}
    if specs:
        listed[DERIVED] = bundles.record(bundle.path / DERIVED)
    manifest = dataclasses.replace(bundle.manifest, graphs=records, files=listed, precisions=prices)
    with files.new_file(bundle.path / bundles.MANIFEST, force=True) as partial:
        partial.write_text(to_json(manifest))
    for name in set(bundle.manifest.graphs) - set(graphs):  # of an earlier export
        (bundle.path / name).unlink(missing_ok=True)
    return bundles.read(path, verify=False)


def _check_form(bundle: Bundle, graph: Path) -> None:
    try:
        onnx.checker.check_model(str(graph), full_check=True)
    except onnx.checker.ValidationError as error:
        if "hard link" not in str(error):
            raise
        raise bundles.BundleError(
            f"the weights of {bundle.path} have several hard links, which onnx refuses to read; copy the bundle"
        ) from error


def _graphs(bundle: Bundle, specs: Mapping[str, TensorSpec], precisions: Collection[str]) -> dict[str, ir.Model]:
    graphs = {"encode.onnx": encode_graph(bundle), "decode.onnx": decode_graph(bundle)}
    if bundle.manifest.encoder.d_out is None:
        graphs["steer.onnx"] = steer_graph(bundle, specs.get("W_enc_rows"))
    allocation = bundle.manifest.allocation
    if allocation is not None and allocation.kind != "token":
        graphs["encode_joint.onnx"] = joint_graph(bundle, specs.get("cap"))
    if "fast" in precisions and "int8_weights" in specs:
        graphs["encode_fast.onnx"] = fast_graph(bundle, specs)
    if "exact" in precisions and "int8_weights" in specs:
        graphs["encode_exact.onnx"] = exact_graph(bundle, specs)
    if "W_enc_half" in specs:
        graphs["encode_half.onnx"] = half_graph(bundle, specs)
    if "half_weights" in specs:
        graphs["encode_gpu.onnx"] = gpu_graph(bundle, specs)
    return graphs


def _reads_derived(model: ir.Model) -> bool:
    weights = (value.const_value for value in model.graph.initializers.values())
    return any(isinstance(tensor, ir.ExternalTensor) and tensor.location == DERIVED for tensor in weights)


def _runner(graphs: dict[str, Path]) -> Run:
    open_sessions = {name: sessions.open_session(path) for name, path in graphs.items()}
    return lambda name, feed: list(open_sessions[name].run(None, feed))


def _check(bundle: Bundle, weights: witness.Weights, x: NDArray[np.float32], run: Run, names: set[str]) -> None:
    """Run every graph on a sample and raise BundleError if one disagrees with the witness."""
    z = witness.latents(weights, witness.normalise(x, bundle.manifest.encoder.norm)[0])
    faults = {
        "encode.onnx": _check_encode(bundle, weights, x, z, run, "encode.onnx"),
        "decode.onnx": _check_decode(bundle, weights, x, run),
    }
    if "steer.onnx" in names:
        faults["steer.onnx"] = _check_steer(bundle, weights, x, z, run)
    if "encode_joint.onnx" in names:
        faults["encode_joint.onnx"] = _check_joint(bundle, x, z, run)
    for name in names & {"encode_exact.onnx", "encode_gpu.onnx"}:
        faults[name] = _check_encode(bundle, weights, x, z, run, name)
    for name, fault in faults.items():
        if fault is not None:
            raise bundles.BundleError(
                f"{name} of {bundle.path} disagrees with numpy: {fault}; the graph was left out, please report this"
            )


def _prices(
    bundle: Bundle, weights: witness.Weights, x: NDArray[np.float32], run: Run, names: set[str]
) -> dict[str, Price]:
    """What each precision costs on activations x."""
    encoder = bundle.manifest.encoder
    matches = served(bundle, weights, witness.latents(weights, witness.normalise(x, encoder.norm)[0]))
    prices = {}
    for precision, name in PRECISIONS.items():
        if name in names:
            prices[precision] = price(encoder, weights, x, matches, *_encode(bundle, x, run, name))
    return prices


def _encode(
    bundle: Bundle, x: NDArray[np.float32], run: Run, name: str
) -> tuple[tuple[NDArray[np.int64], NDArray[np.float32]], NDArray[np.bool_] | None]:
    """Slots with every match of a token, by a graph; and of which tokens it is certain, where it says so."""
    encoder = bundle.manifest.encoder
    feed: Arrays = {"x": x}
    if encoder.selection == "threshold" and name != "encode_gpu.onnx":
        feed["width"] = np.array([encoder.d_sae])
    indices, values, *certain = run(name, feed)
    if not certain:
        return (indices.astype(np.int64), values), None
    sure = certain[0].astype(bool)
    if encoder.selection == "threshold":
        sure &= values[:, -1] <= 0  # a token that fills all slots may have been cut, and is encoded again
    return (indices.astype(np.int64), values), sure


def sample(
    encoder: Encoder, weights: witness.Weights, rng: np.random.Generator, tokens: int = _TOKENS
) -> NDArray[np.float32]:
    """Activations on which features fire: float32 [tokens, d_in], a few directions each; one row is 0, one b_pre.

    The directions are those of the decoder, or of a transcoder's encoder.
    """
    d_in, d_sae = weights["W_enc"].shape
    bias = weights["b_pre"]
    size = max(float(np.median(np.abs(weights["b_enc"]))), float(np.median(weights.get("threshold", 0))), 1.0)
    chosen = rng.integers(0, d_sae, (tokens, 8))
    amount = rng.gamma(2.0, size, chosen.shape)
    directions = weights["W_dec"] if encoder.d_out is None else weights["W_enc"].T
    x: NDArray[np.float64] = bias + np.einsum("nj,njd->nd", amount, np.asarray(directions)[chosen])
    x += rng.normal(0, 0.1 * size / np.sqrt(d_in), x.shape)
    x[0], x[1] = 0.0, bias
    return x.astype(np.float32)


def served(bundle: Bundle, weights: witness.Weights, z: NDArray[np.float64]) -> witness.Matches:
    """What encode.onnx should keep of z [n, d_sae], by the witness."""
    encoder = bundle.manifest.encoder
    if encoder.k is not None:
        choice = witness.group_choice if encoder.selection == "groupmax" else witness.token_choice
        return choice(z, encoder.k)
    return witness.threshold(z, weights["threshold"])


def _check_encode(
    bundle: Bundle, weights: witness.Weights, x: NDArray[np.float32], z: NDArray[np.float64], run: Run, name: str
) -> str | None:
    (indices, values), certain = _encode(bundle, x, run, name)
    if certain is not None:  # of the others nothing is said
        z, indices, values = z[certain], indices[certain], values[certain]
    return witness.disagreement(served(bundle, weights, z), indices, values)


def _check_joint(bundle: Bundle, x: NDArray[np.float32], z: NDArray[np.float64], run: Run) -> str | None:
    allocation = bundle.manifest.allocation
    assert allocation is not None
    cap = default_cap(bundle) if allocation.quota else None
    valid = np.arange(len(x)) % 5 != 3
    indices, values = run("encode_joint.onnx", {"x": x, "valid": valid})
    return witness.disagreement(witness.joint(z, allocation.k, cap, valid), indices.astype(np.int64), values)


def _check_decode(bundle: Bundle, weights: witness.Weights, x: NDArray[np.float32], run: Run) -> str | None:
    rng = np.random.default_rng(1)
    indices = rng.integers(0, len(weights["W_dec"]), (len(x), 5))
    values = rng.gamma(2.0, 1.0, indices.shape).astype(np.float32)
    feed: Arrays = {"indices": indices, "values": values}
    expected = witness.decode(weights, indices, values)
    if bundle.manifest.encoder.decodes_with_x:
        feed["x"] = x
        expected = witness.completed(weights, expected, x, bundle.manifest.encoder.norm)
    (x_hat,) = run("decode.onnx", feed)
    return witness.difference(expected, x_hat)


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
    expected = witness.steer(weights, batch, f, features, bundle.manifest.encoder.norm, **edits)
    fault = witness.difference(expected, y)
    if fault is None and not (run("steer.onnx", {"x": batch})[0] == batch).all():
        fault = "without edits y differs from x"
    return fault
