from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import K, make_manifest, make_weights, make_x, served, slots
from numpy.typing import NDArray

from sae_runtime import SAE, BundleError, bundle, load, tuned
from sae_runtime import encoder as module
from sae_runtime.bundle import DERIVED
from sae_runtime.exports import witness
from sae_runtime.exports.export import export

BundleOf = Callable[..., Path]
D_SAE = 512


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let int8 be used for SAEs as small as those of the tests."""
    monkeypatch.setattr(module, "_SMALLEST", 0)


def graphs_of(sae: SAE) -> set[str]:
    return {name for name, _ in sae._sessions._open}


def dense(sae: SAE, x: NDArray[np.float32], **options: Any) -> NDArray[np.float32]:
    return sae.encode(x, **options).to_dense()


@pytest.mark.usefixtures("small")
def test_exact_and_float32_agree_with_numpy(bundle_of: BundleOf, kind: str) -> None:
    x, path = make_x(200), bundle_of(kind, D_SAE, sampled=True)
    exact, plain = load(path, threads=1), load(path, graph="encode.onnx", threads=1)
    for sae, graph in ((exact, "encode_exact.onnx"), (plain, "encode.onnx")):
        assert witness.disagreement(served(kind, D_SAE, x), *slots(sae.encode(x))) is None
        assert graph in graphs_of(sae)
    assert graphs_of(plain) == {"encode.onnx"} and plain.redone == (0, 0)
    assert exact.redone[0] == 0 and exact.redone[1] >= 200


@pytest.mark.usefixtures("small")
def test_tiles_change_no_bit(bundle_of: BundleOf, kind: str) -> None:
    x, path = make_x(100), bundle_of(kind, D_SAE, sampled=True)
    for precision in ("exact", "float32"):
        sae = load(path, precision=precision, threads=1)
        whole = dense(sae, x)
        for tile in (1, 7, 64):
            sae._encoder.tile = tile
            np.testing.assert_array_equal(dense(sae, x), whole)


@pytest.mark.usefixtures("small")
def test_tiles_are_shared_out_evenly(bundle_of: BundleOf, kind: str) -> None:
    encoder = load(bundle_of(kind, D_SAE, sampled=True), threads=3)._encoder
    encoder.tile = 100
    # 1000: four rounds for all, not three and a third.
    for tokens, tile in ((1, 64), (90, 64), (300, 100), (301, 64), (1000, 84)):
        assert encoder.tiles(tokens) == tile
    encoder.tile = 16
    assert encoder.tiles(1000) == 16


@pytest.mark.usefixtures("small")
def test_workers_change_no_bit(bundle_of: BundleOf, kind: str) -> None:
    """With several, each encodes tiles of its own; what comes back stands in the order of the rows."""
    x, path = make_x(200), bundle_of(kind, D_SAE, sampled=True)
    alone, together = load(path, threads=1), load(path, threads=3)
    together._encoder.tile = 16
    for rule in ("served", "batch"):
        np.testing.assert_array_equal(dense(together, x, rule=rule), dense(alone, x, rule=rule))
    assert ("encode_exact.onnx", True) in together._sessions._open
    x[150] = np.nan
    with pytest.raises(ValueError, match="row 150 of the activations holds NaN or Inf"):
        together.encode(x)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["mutual", "feature"])
def test_rows_that_fill_their_slots_are_encoded_wider(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(40)
    x[5] *= 4
    sae = load(bundle_of(kind, D_SAE, width=2, sampled=True), threads=1)
    features = sae.encode(x)
    assert features.l0()[5] > 8
    assert witness.disagreement(served(kind, D_SAE, x), *slots(features)) is None


@pytest.mark.usefixtures("small")
def test_rows_that_are_not_certain_are_encoded_in_full(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(50)
    sae = load(bundle_of(kind, D_SAE, sampled=True), threads=1)
    expected = dense(sae, x)
    session = sae._sessions.open("encode_exact.onnx")
    doubted = np.isin(x[:, 0], x[::7, 0])

    class Doubting:
        def run(self, names: None, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
            indices, values, certain = session.run(names, feed)
            wrong = np.isin(feed["x"][:, 0], x[doubted, 0])
            indices[wrong], values[wrong] = 0, 99
            return [indices, values, certain & ~wrong]

    before = sae.redone
    sae._sessions._open["encode_exact.onnx", False] = Doubting()
    features = sae.encode(x)
    assert witness.disagreement(served(kind, D_SAE, x), *slots(features)) is None
    redone, tokens = np.subtract(sae.redone, before)
    assert redone >= doubted.sum() and tokens >= 50
    np.testing.assert_array_equal(features.to_dense()[~doubted], expected[~doubted])
    plain = load(bundle_of(kind, D_SAE, sampled=True), graph="encode.onnx", threads=1)
    np.testing.assert_array_equal(features.to_dense()[doubted], dense(plain, x)[doubted])


@pytest.mark.usefixtures("small")
def test_rows_that_are_not_finite_or_too_large_are_refused(bundle_of: BundleOf, kind: str) -> None:
    sae, x = load(bundle_of(kind, D_SAE, sampled=True)), make_x(5)
    x[3, 2] = np.inf
    with pytest.raises(ValueError, match="row 3 of the activations holds NaN or Inf"):
        sae.encode(x)
    x[3] = 3e38
    with pytest.raises(ValueError, match="row 3 of the activations is so large that its features overflow"):
        sae.encode(x)


@pytest.mark.usefixtures("small")
def test_k_and_theta_are_handed_on(bundle_of: BundleOf) -> None:
    x = make_x(30)
    for k in (1, 40, D_SAE):
        found = load(bundle_of("token", D_SAE, sampled=True)).encode(x, k=k)
        assert witness.disagreement(served("token", D_SAE, x, k), *slots(found)) is None
    z = witness.latents(make_weights(D_SAE, "mutual"), x)
    for theta in (0.0, 1.25, np.linspace(0.5, 4, D_SAE)):
        found = load(bundle_of("mutual", D_SAE, sampled=True)).encode(x, theta=theta)
        assert witness.disagreement(witness.threshold(z, np.asarray(theta, np.float32)), *slots(found)) is None


def test_small_products_stay_in_float32(bundle_of: BundleOf, kind: str) -> None:
    path = bundle_of(kind, D_SAE, sampled=True)
    assert "encode_exact.onnx" in bundle.read(path).manifest.graphs
    sae = load(path)
    sae.encode(make_x(3))
    assert graphs_of(sae) == {"encode.onnx"} and sae.redone == (0, 0)


@pytest.mark.parametrize(
    ("smallest", "few", "exact"),
    [
        (D_SAE + 1, 32, set()),
        (D_SAE, 32, {"mutual", "feature"}),
        (D_SAE // 2 + 1, 32, {"mutual", "feature"}),
        (D_SAE // 2, 32, {"token", "mutual", "feature"}),
        (D_SAE // 2, K // 2, {"mutual", "feature"}),
        (D_SAE // 2 + 1, K // 2, set()),
    ],
)
def test_the_smallest_dictionary(
    bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch, kind: str, smallest: int, few: int, exact: set[str]
) -> None:
    monkeypatch.setattr(module, "_SMALLEST", smallest)
    monkeypatch.setattr(module, "_FEW_MATCHES", few)
    sae = load(bundle_of(kind, D_SAE, sampled=True), threads=1, verify=False)
    assert sae._encoder.graph == ("encode_exact.onnx" if kind in exact else "encode.onnx")


def test_what_tune_found_comes_before_the_rule(
    bundle_of: BundleOf, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAE_RUNTIME_TUNED", str(tmp_path / "tuned.json"))
    path = bundle_of(kind, D_SAE, sampled=True)
    manifest = bundle.read(path).manifest
    for graph, smallest in (("encode_exact.onnx", D_SAE + 1), ("encode.onnx", 0)):
        monkeypatch.setattr(module, "_SMALLEST", smallest)
        assert load(path, threads=1)._encoder.graph != graph
        tuned.keep(manifest, 1, graph, {})
        assert load(path, threads=1)._encoder.graph == graph
        tuned.place().unlink()
    for graph in ("encode_fast.onnx", "decode.onnx"):  # such a file was not written by tune
        tuned.keep(manifest, 1, graph, {})
        assert load(path, threads=1)._encoder.graph == "encode_exact.onnx"


@pytest.mark.usefixtures("small")
def test_exact_without_its_graph_is_float32(bundle_of: BundleOf, kind: str) -> None:
    x, path = make_x(20), bundle_of(kind, 150)
    sae = load(path)
    np.testing.assert_array_equal(dense(sae, x), dense(load(path, graph="encode.onnx"), x))
    assert graphs_of(sae) == {"encode.onnx"}


@pytest.mark.parametrize(
    ("precision", "options"), [("fast", ""), ("float16", " --precision exact --precision float16")]
)
def test_a_precision_that_was_not_exported(bundle_of: BundleOf, precision: Any, options: str) -> None:
    path = bundle_of("mutual", 150)
    command = f"sae-runtime export {path}{options}"
    with pytest.raises(BundleError, match=rf"has no encode_.*.onnx: not exported yet; run: {command}$"):
        load(path, precision=precision)


def test_an_unknown_precision(bundle_of: BundleOf) -> None:
    with pytest.raises(ValueError, match="precision must be one of exact, float32, float16, fast, got 'int4'"):
        load(bundle_of("mutual"), precision="int4")  # type: ignore[arg-type]


def test_rough_precisions_are_near(tmp_path: Path, kind: str) -> None:
    bundle.write(tmp_path / "b", make_weights(D_SAE, kind), make_manifest(D_SAE, kind), sample=make_x(300, seed=8))
    export(tmp_path / "b", precisions=["fast", "float16"])
    x = make_x(100)
    expected = dense(load(tmp_path / "b", graph="encode.onnx"), x)
    for precision, most in (("fast", 0.15), ("float16", 0.002)):
        found = dense(load(tmp_path / "b", precision=precision), x)  # type: ignore[arg-type]
        both = (found > 0) & (expected > 0)
        assert both.sum() > 0.9 * (expected > 0).sum()
        error = np.abs(found - expected)[both].max() / expected.max()
        assert 0 < error < most
        assert not np.array_equal(found, expected)
    assert load(tmp_path / "b", precision="fast").encode_batch(x).l0().mean() > K / 2


@pytest.mark.usefixtures("small")
def test_derived_weights_are_hashed_unless_told_not_to(copy_of: BundleOf) -> None:
    path = copy_of("mutual", D_SAE, sampled=True)
    altered = bytearray((path / DERIVED).read_bytes())
    altered[-1] ^= 1
    (path / DERIVED).write_bytes(altered)
    with pytest.raises(BundleError, match=rf"{DERIVED} was altered.*; run: sae-runtime export {path}"):
        load(path)
    assert load(path, verify=False).encode(make_x(3)).shape == (3,)
    assert load(path, graph="encode.onnx").encode(make_x(3)).shape == (3,)
    (path / DERIVED).write_bytes(altered[:-4])
    with pytest.raises(BundleError, match=rf"{DERIVED} has .* bytes, expected .*; run: sae-runtime export {path}"):
        load(path, verify=False)
    (path / DERIVED).unlink()
    with pytest.raises(BundleError, match=rf"{DERIVED} is missing.*; run: sae-runtime export {path}"):
        load(path, verify=False)
