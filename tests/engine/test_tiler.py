import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import K, make_manifest, make_weights, make_x, served, slots_of
from numpy.typing import NDArray
from recording import RecordingSessions, recorded

from sae_runtime import SAE, BundleError, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import DERIVED
from sae_runtime.engine.tiler import Tiler
from sae_runtime.engine.tiling import Tiling
from sae_runtime.exports import witness

BundleOf = Callable[..., Path]
D_SAE = 512


SMALL = Tiling(smallest=0)  # chooses encode_exact.onnx for the small SAEs of these tests


def dense(sae: SAE, x: NDArray[np.float32], **options: Any) -> NDArray[np.float32]:
    return sae.encode(x, **options).to_dense()


def test_both_exact_graphs_agree_with_numpy(bundle_of: BundleOf, kind: str) -> None:
    x, path = make_x(200), bundle_of(kind, D_SAE, sampled=True)
    saes = {}
    for graph in ("encode_exact.onnx", "encode.onnx"):
        saes[graph], sessions = recorded(path, graph)
        assert witness.disagreement(served(kind, D_SAE, x), *slots_of(saes[graph].encode(x))) is None
        assert (graph, False) in sessions.opened
    assert sessions.opened == {("encode.onnx", False)} and saes["encode.onnx"].redone == (0, 0)
    assert saes["encode_exact.onnx"].redone[0] == 0 and saes["encode_exact.onnx"].redone[1] >= 200


def test_tiles_change_no_bit(bundle_of: BundleOf, kind: str) -> None:
    x, path = make_x(100), bundle_of(kind, D_SAE, sampled=True)
    for graph in ("encode_exact.onnx", "encode.onnx"):
        whole = dense(load(path, graph=graph, threads=1), x)
        for rows in (1, 7, 64):
            tiled = load(path, graph=graph, threads=1, tiling=Tiling(rows=rows))
            np.testing.assert_array_equal(dense(tiled, x), whole)


def test_tiles_are_shared_out_evenly() -> None:
    tiling = Tiling()
    # 1000 tokens: four full rounds instead of three and a third.
    for tokens, tile in ((1, 64), (90, 64), (300, 100), (301, 64), (1000, 84)):
        assert tiling.shared_tile(100, tokens=tokens, workers=3) == tile
    assert tiling.shared_tile(16, tokens=1000, workers=3) == 16


def test_only_encode_exact_shares_tiles_out(bundle_of: BundleOf, kind: str) -> None:
    for graph, tile in (("encode_exact.onnx", 84), ("encode.onnx", 100)):
        sessions = RecordingSessions(bundle_of(kind, D_SAE, sampled=True), threads=3)
        tiler = Tiler(sessions.bundle.manifest, sessions, graph, Tiling(rows=100))
        assert tiler.tile_for(1000) == tile and tiler.tile == 100


def test_workers_change_no_bit(bundle_of: BundleOf, kind: str) -> None:
    """Each of several workers encodes its own tiles; the results have the order of the rows."""
    x, path = make_x(200), bundle_of(kind, D_SAE, sampled=True)
    alone = load(path, threads=1, tiling=SMALL)
    together, sessions = recorded(path, "encode_exact.onnx", threads=3, tiling=Tiling(rows=16))
    np.testing.assert_array_equal(dense(together, x), dense(alone, x))
    np.testing.assert_array_equal(together.encode_batch(x).to_dense(), alone.encode_batch(x).to_dense())
    assert ("encode_exact.onnx", True) in sessions.opened
    x[150] = np.nan
    with pytest.raises(ValueError, match="row 150 of the activations holds NaN or Inf"):
        together.encode(x)


def test_encoding_goes_on_after_close(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(100)
    sae = load(bundle_of(kind, D_SAE, sampled=True), graph="encode_exact.onnx", threads=2, tiling=Tiling(rows=16))
    whole = dense(sae, x)
    sae.close()
    np.testing.assert_array_equal(dense(sae, x), whole)
    sae.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_lock_that_a_thread_holds_does_not_stop_a_forked_process(bundle_of: BundleOf) -> None:
    sae, x = load(bundle_of("mutual", D_SAE, sampled=True), graph="encode_exact.onnx", threads=1), make_x(8)
    with sae._sessions.lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            sae.encode(x)
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("kind", ["mutual", "feature"])
def test_rows_that_fill_their_slots_are_encoded_wider(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(40)
    x[5] *= 4
    sae = load(bundle_of(kind, D_SAE, slots=2, sampled=True), threads=1, tiling=SMALL)
    features = sae.encode(x)
    assert features.l0()[5] > 8
    assert witness.disagreement(served(kind, D_SAE, x), *slots_of(features)) is None


def test_rows_that_are_not_certain_are_encoded_in_full(bundle_of: BundleOf, kind: str) -> None:
    x, path = make_x(50), bundle_of(kind, D_SAE, sampled=True)
    expected = dense(load(path, graph="encode_exact.onnx", threads=1), x)
    doubted = np.isin(x[:, 0], x[::7, 0])

    class Doubting(RecordingSessions):
        def altered(self, name: str, feed: dict[str, Any], outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
            if name != "encode_exact.onnx":
                return outputs
            indices, values, certain = outputs
            wrong = np.isin(feed["x"][:, 0], x[doubted, 0])
            indices[wrong], values[wrong] = 0, 99
            return [indices, values, certain & ~wrong]

    sessions = Doubting(path)
    sae = SAE(sessions, "encode_exact.onnx")
    features = sae.encode(x)
    assert witness.disagreement(served(kind, D_SAE, x), *slots_of(features)) is None
    redone, tokens = sae.redone
    assert redone >= doubted.sum() and tokens >= 50
    np.testing.assert_array_equal(features.to_dense()[~doubted], expected[~doubted])
    plain = load(path, graph="encode.onnx", threads=1)
    np.testing.assert_array_equal(features.to_dense()[doubted], dense(plain, x)[doubted])


def test_rows_that_are_not_finite_or_too_large_are_refused(bundle_of: BundleOf, kind: str) -> None:
    sae, x = load(bundle_of(kind, D_SAE, sampled=True), tiling=SMALL), make_x(5)
    x[3, 2] = np.inf
    with pytest.raises(ValueError, match="row 3 of the activations holds NaN or Inf"):
        sae.encode(x)
    x[3] = 3e38
    with pytest.raises(ValueError, match="row 3 of the activations is so large that its features overflow"):
        sae.encode(x)


def test_k_and_threshold_reach_the_int8_graph(bundle_of: BundleOf) -> None:
    x = make_x(30)
    for k in (1, 40, D_SAE):
        found = load(bundle_of("token", D_SAE, sampled=True), tiling=SMALL).encode(x, k=k)
        assert witness.disagreement(served("token", D_SAE, x, k), *slots_of(found)) is None
    z = witness.pre_activations(make_weights(D_SAE, "mutual"), x)
    for threshold in (0.0, 1.25, np.linspace(0.5, 4, D_SAE)):
        found = load(bundle_of("mutual", D_SAE, sampled=True), tiling=SMALL).encode(x, threshold=threshold)
        assert witness.disagreement(witness.threshold(z, np.asarray(threshold, np.float32)), *slots_of(found)) is None


def test_a_small_sae_is_loaded_with_encode_onnx(bundle_of: BundleOf, kind: str) -> None:
    path = bundle_of(kind, D_SAE, sampled=True)
    assert "encode_exact.onnx" in bundle.read(path).manifest.graphs
    sae = load(path)
    sae.encode(make_x(3))
    assert sae.graph == "encode.onnx" and sae.redone == (0, 0)


@pytest.mark.parametrize(
    ("smallest", "base_k", "exact"),
    [
        (D_SAE + 1, 32, set()),
        (D_SAE, 32, {"mutual", "feature"}),
        (D_SAE // 2 + 1, 32, {"mutual", "feature"}),
        (D_SAE // 2, 32, {"token", "mutual", "feature"}),
        (D_SAE // 2, K // 2, {"mutual", "feature"}),
        (D_SAE // 2 + 1, K // 2, set()),
    ],
)
def test_the_size_rule_chooses_the_graph(
    bundle_of: BundleOf, kind: str, smallest: int, base_k: int, exact: set[str]
) -> None:
    tiling = Tiling(smallest=smallest, base_k=base_k)
    sae = load(bundle_of(kind, D_SAE, sampled=True), threads=1, verify=False, tiling=tiling)
    assert sae.graph == ("encode_exact.onnx" if kind in exact else "encode.onnx")


def test_without_encode_exact_any_size_takes_encode_onnx(bundle_of: BundleOf, kind: str) -> None:
    x, path = make_x(20), bundle_of(kind, 150)
    sae = load(path, tiling=SMALL)
    assert sae.graph == "encode.onnx"
    np.testing.assert_array_equal(dense(sae, x), dense(load(path, graph="encode.onnx"), x))


@pytest.mark.parametrize("graph", ["encode_gpu.onnx", "decode.onnx", "encode_exact", "exact"])
def test_a_graph_that_the_bundle_lacks_is_refused_with_those_it_has(bundle_of: BundleOf, graph: str) -> None:
    path = bundle_of("mutual", D_SAE, sampled=True)
    has = "expected encode.onnx or encode_exact.onnx; name one of these, or export more with --graph"
    with pytest.raises(BundleError, match=re.escape(f"{path} has no encoder graph {graph!r}, {has}")):
        load(path, graph=graph)


@pytest.mark.parametrize("graph", [None, "encode.onnx", "encode_exact.onnx", "unknown"])
def test_a_bundle_without_graphs_is_refused_with_the_command(tmp_path: Path, graph: str | None) -> None:
    bundle.write(tmp_path / "b", make_weights(150, "mutual"), make_manifest(150, "mutual"))
    with pytest.raises(BundleError, match=r"has no encode.*onnx: not exported yet; run: sae-runtime export .*b$"):
        load(tmp_path / "b", graph=graph)


def test_derived_weights_are_hashed_unless_told_not_to(copy_of: BundleOf) -> None:
    path = copy_of("mutual", D_SAE, sampled=True)
    altered = bytearray((path / DERIVED).read_bytes())
    altered[-1] ^= 1
    (path / DERIVED).write_bytes(altered)
    with pytest.raises(BundleError, match=rf"{DERIVED} was altered.*, or run: sae-runtime export {path}"):
        load(path, tiling=SMALL)
    assert load(path, verify=False, tiling=SMALL).encode(make_x(3)).shape == (3,)
    assert load(path, graph="encode.onnx").encode(make_x(3)).shape == (3,)
    (path / DERIVED).write_bytes(altered[:-4])
    with pytest.raises(BundleError, match=rf"{DERIVED} has .* bytes, expected .*, or run: sae-runtime export {path}"):
        load(path, verify=False, tiling=SMALL)
    (path / DERIVED).unlink()
    with pytest.raises(BundleError, match=rf"{DERIVED} is missing.*, or run: sae-runtime export {path}"):
        load(path, verify=False, tiling=SMALL)
