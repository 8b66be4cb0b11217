from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import make_manifest, make_weights, make_x

from sae_runtime import BundleError, bundle
from sae_runtime.bundle import MANIFEST, SAMPLE
from sae_runtime.exports import witness
from sae_runtime.exports.export import export
from sae_runtime.exports.price import price
from sae_runtime.manifest import Encoder, Price, from_json, to_json
from sae_runtime.tensors import save_tensors

BundleOf = Callable[..., Path]
D_SAE = 512
# Two channels; features 0 and 1 write into one each, feature 2 into both.
ENCODER = Encoder(d_in=2, d_sae=3, selection="threshold")
WEIGHTS = {"W_dec": np.array([[1, 0], [0, 1], [1, 1]], np.float32), "b_dec": np.zeros(2, np.float32)}


def test_by_hand() -> None:
    x = np.array([[2, 0], [0, 4], [0, 0]], np.float32)
    z = np.array([[2, 1, 0], [0, 4, 0], [0, 0, 0]], np.float64)
    matches = witness.threshold(z, 0.5)
    # Token 0 lacks feature 1 and has feature 2; token 1 is a quarter too small; token 2 is right.
    slots = np.array([[0, 2], [1, 0], [0, 0]]), np.array([[2, 0.5], [3, 0], [0, 0]], np.float32)
    found = price(ENCODER, WEIGHTS, x, matches, slots)
    assert found.tokens == 3 and found.redone is None
    assert found.jaccard == pytest.approx((1 / 3 + 1 + 1) / 3)
    assert found.value_error == pytest.approx((1 / 2 + 1 / 4) / 2)  # tokens without features have no largest value
    # x_hat is (2.5, 0.5), (0, 3), (0, 0), and by float64 (2, 1), (0, 4), (0, 0).
    variance = ((x - x.mean(axis=0)) ** 2).sum()
    assert found.fvu == pytest.approx((0.5**2 + 0.5**2 + 1) / variance)
    assert found.fvu_change == pytest.approx(1.5 / 1 - 1)
    sure = price(ENCODER, WEIGHTS, x, matches, slots, np.array([False, True, True]))
    assert sure.redone == pytest.approx(1 / 3) and sure.jaccard == 1 and sure.value_error == pytest.approx(1 / 8)


def test_of_what_is_right_there_is_none() -> None:
    x = np.array([[2, 1], [0, 4]], np.float32)
    matches = witness.threshold(np.array([[2, 1, 0], [0, 4, 0]], np.float64), 0.5)
    slots = np.array([[0, 1], [1, 0]]), np.array([[2, 1], [4, 0]], np.float32)
    assert price(ENCODER, WEIGHTS, x, matches, slots) == Price(tokens=2, jaccard=1, value_error=0, fvu=0, fvu_change=0)
    nothing = witness.threshold(np.zeros((2, 3)), 0.5)
    empty = np.zeros((2, 1), np.int64), np.zeros((2, 1), np.float32)
    assert price(ENCODER, WEIGHTS, np.ones((2, 2), np.float32), nothing, empty).jaccard == 1


def test_a_bundle_tells_its_prices(tmp_path: Path, kind: str) -> None:
    bundle.write(tmp_path / "b", make_weights(D_SAE, kind), make_manifest(D_SAE, kind), sample=make_x(400, seed=8))
    prices = export(tmp_path / "b", precisions=("exact", "fast", "float16")).manifest.precisions
    assert list(prices) == ["float32", "exact", "fast", "float16"]
    assert all(found.tokens == 256 for found in prices.values())
    for name in ("float32", "exact"):
        assert (
            prices[name].jaccard == 1 and prices[name].value_error < 1e-5 and abs(prices[name].fvu_change or 0) < 1e-5
        )
    assert 0.5 < prices["fast"].jaccard < 1 and 1e-3 < prices["fast"].value_error < 0.5
    assert prices["fast"].jaccard < prices["float16"].jaccard <= 1
    assert prices["float16"].value_error < prices["fast"].value_error
    assert prices["exact"].redone is not None and 0 <= prices["exact"].redone < 1
    assert [name for name, found in prices.items() if found.redone is not None] == ["exact"]
    manifest = bundle.read(tmp_path / "b").manifest
    assert manifest.precisions == prices and from_json(to_json(manifest)) == manifest


def test_without_a_sample_there_are_no_prices_until_one_is_given(tmp_path: Path) -> None:
    path = tmp_path / "b"
    bundle.write(path, make_weights(D_SAE, "mutual"), make_manifest(D_SAE, "mutual"))
    assert export(path).manifest.precisions == {} and not (path / SAMPLE).exists()
    assert bundle.read(path).sample() is None
    x = make_x(50, seed=8)
    exported = export(path, activations=x)
    assert exported.manifest.precisions["exact"].tokens == 50
    found = bundle.read(path)
    assert SAMPLE in found.manifest.files
    np.testing.assert_array_equal(found.sample(), x)
    assert set(export(path).manifest.precisions) == {"float32", "exact", "fast"}, "the sample is kept"


def test_a_bundle_that_is_written_again_has_no_prices_yet(tmp_path: Path, bundle_of: BundleOf) -> None:
    manifest = bundle.read(bundle_of("mutual", D_SAE, sampled=True)).manifest
    assert manifest.precisions
    bundle.write(tmp_path / "b", make_weights(D_SAE, "mutual"), manifest)
    assert bundle.read(tmp_path / "b").manifest.precisions == {}


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (make_x(5)[:, :-1], r"activations must be \[tokens, 24\], got \[5, 23\]; give those of the SAE's hook"),
        (make_x(0), r"activations must be \[tokens, 24\], got \[0, 24\]"),
        (make_x(5)[0], r"activations must be \[tokens, 24\], got \[24\]"),
        (np.where(np.arange(24) == 3, np.nan, make_x(5)), "activations hold NaN or Inf; drop those rows"),
    ],
)
def test_activations_that_do_not_fit(copy_of: BundleOf, x: "np.typing.NDArray[np.float32]", message: str) -> None:
    path = copy_of("mutual")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(ValueError, match=message):
        export(path, activations=x)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_sample_that_is_spoilt_is_refused(copy_of: BundleOf) -> None:
    path = copy_of("mutual", D_SAE, sampled=True)
    original = bundle.read(path)
    altered = bytearray((path / SAMPLE).read_bytes())
    altered[-1] ^= 1
    (path / SAMPLE).write_bytes(altered)
    with pytest.raises(BundleError, match=f"{SAMPLE} was altered"):
        bundle.read(path)
    for x, message in (
        ({"x": make_x(5)[:, :-1]}, r"must hold x, F32 \[tokens, 24\], and nothing else"),
        ({"x": make_x(5).astype(np.float64)}, r"must hold x, F32 \[tokens, 24\]"),
        ({"y": make_x(5)}, "must hold x"),
        ({"x": make_x(5), "y": make_x(5)}, "and nothing else"),
        ({"x": np.full((5, 24), np.inf, np.float32)}, "holds NaN or Inf; make the bundle again"),
    ):
        save_tensors(path / SAMPLE, {name: np.ascontiguousarray(array) for name, array in x.items()})
        listed = {**original.manifest.files, SAMPLE: bundle.record(path / SAMPLE)}
        text = to_json(original.manifest).replace(original.manifest.files[SAMPLE].sha256, listed[SAMPLE].sha256)
        size = f'"size": {original.manifest.files[SAMPLE].size}'
        (path / MANIFEST).write_text(text.replace(size, f'"size": {listed[SAMPLE].size}'))
        with pytest.raises(BundleError, match=message):
            bundle.read(path)
