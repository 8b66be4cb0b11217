"""decode and steer refuse what encode refuses: arrays that are not sound, and results that overflow float32."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import D_IN, K, make_manifest, make_weights, make_x
from native import native
from numpy.typing import NDArray

from sae_runtime import SAE, Edit, Features, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.stats import Stats
from sae_runtime.core.features import from_slots
from sae_runtime.engine.tiling import Tiling
from sae_runtime.exports import witness
from sae_runtime.exports.export import export

BundleOf = Callable[..., Path]


def features_of(**arrays: Any) -> Features:
    """Features of 2 x 2 tokens with 2, 0, 1 and 2 matches; an argument replaces one of their arrays."""
    sound = {
        "indptr": np.array([0, 2, 2, 3, 5]),
        "indices": np.array([3, 70, 3, 0, 149], np.int32),
        "values": np.array([1, 2, 3, 4, 5], np.float32),
    }
    return Features(**{**sound, "d_sae": 150, "shape": (2, 2), **arrays})


def changed(name: str, place: int, number: float, dtype: Any = None) -> dict[str, NDArray[Any]]:
    array = getattr(features_of(), name).astype(dtype or getattr(features_of(), name).dtype)
    array[place] = number
    return {name: array}


FAULTS: list[tuple[dict[str, Any], str]] = [
    (changed("values", 1, math.nan), "token 0, 0 has the activation nan, expected a number from 0 on"),
    (changed("values", 2, math.inf), "token 1, 0 has the activation inf"),
    (changed("values", 2, math.inf, np.float16), "token 1, 0 has the activation inf"),
    (changed("values", 4, -1), "token 1, 1 has the activation -1"),
    (changed("values", 0, 1e39, np.float64), r"token 0, 0 has the activation 1e\+39"),
    (changed("indices", 2, 150), "token 1, 0 has feature 150, expected 0 to 149"),
    (changed("indices", 3, -1), "token 1, 1 has feature -1, expected 0 to 149"),
    (changed("indices", 4, 2**40, np.int64), "token 1, 1 has feature 1099511627776"),
    (changed("indices", 1, 3), "token 0, 0 has feature 3 after 3; they must ascend"),
    (changed("indices", 3, 149), "token 1, 1 has feature 149 after 149"),
    (changed("indices", 0, 71), "token 0, 0 has feature 70 after 71"),
    (changed("indptr", 1, 3), "indptr does not ascend from 0 to 5"),
    (changed("indptr", 0, 1), "indptr does not ascend from 0 to 5"),
    (changed("indptr", 0, -1), "indptr does not ascend from 0 to 5"),
    (changed("indptr", 4, 4), "indptr does not ascend from 0 to 5"),
    (changed("indptr", 4, 6), "indptr does not ascend from 0 to 5"),
    ({"indptr": np.array([0, 2, 5])}, "3 numbers in indptr and 5 indices for 4 tokens and 5 values"),
    ({"indptr": np.zeros(0, np.int64), "shape": (0,)}, "0 numbers in indptr and 5 indices for 0 tokens"),
    ({"indices": np.zeros(4, np.int32)}, "5 numbers in indptr and 4 indices for 4 tokens and 5 values"),
    ({"shape": (5,)}, "5 numbers in indptr and 5 indices for 5 tokens"),
    ({"indices": np.zeros((5, 1), np.int32)}, r"indices is int32 \[5, 1\], expected a vector of whole numbers"),
    ({"indices": np.ones(5, np.float32)}, r"indices is float32 \[5\], expected a vector of whole numbers"),
    ({"indptr": np.array([0, 2, 2, 3, 5.0])}, r"indptr is float64 \[5\], expected a vector of whole numbers"),
    ({"values": np.ones(5, bool)}, r"values is bool \[5\], expected a vector of numbers"),
    ({"values": np.ones(5, np.complex64)}, r"values is complex64 \[5\], expected a vector of numbers"),
    ({"values": [1, 2, 3, 4, 5]}, "values is list, expected a vector of numbers"),
    ({"indptr": None}, "indptr is NoneType, expected a vector of whole numbers"),
]


@pytest.mark.parametrize(("arrays", "message"), FAULTS)
def test_decode_refuses_features_that_are_not_sound(bundle_of: BundleOf, arrays: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^these are no sound features: {message}.*; make them by encode or from_slo"):
        load(bundle_of("mutual")).decode(features_of(**arrays))


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.uint64, np.int64])
def test_decode_takes_sound_features_of_other_types(bundle_of: BundleOf, dtype: Any) -> None:
    features, sae = features_of(), load(bundle_of("mutual"))
    same = features_of(
        indptr=features.indptr.astype(dtype),
        indices=features.indices.astype(dtype),
        values=features.values.astype("f8"),
    )
    np.testing.assert_array_equal(sae.decode(same), sae.decode(features))
    none = features_of(values=np.zeros(5, np.float32))
    np.testing.assert_array_equal(sae.decode(none)[0, 0], bundle.read(bundle_of("mutual")).tensor("b_dec"))


@pytest.mark.parametrize("tile", [1, 2, 100])
def test_a_reconstruction_that_overflows_is_named(bundle_of: BundleOf, tile: int) -> None:
    sae = load(bundle_of("mutual"), tiling=Tiling(rows=4 * tile))
    many = np.tile(np.arange(150), (4, 1)), np.ones((4, 150), np.float32)
    features = from_slots([many], 150, (2, 2))
    assert np.isfinite(sae.decode(features)).all()
    features.values[2 * 150 :] = 3.4e38
    with pytest.raises(ValueError, match=r"^the reconstruction of token 1, 0 overflows float32; leave the token out"):
        sae.decode(features)
    features.values[:] = 1e30  # the squares overflow, the numbers do not
    assert np.isfinite(sae.decode(features)).all()


@pytest.mark.parametrize(
    "form", [{"selection": "topk", "k": 4, "norm": "length"}, {"selection": "topk", "k": 4, "pre_bias": False}]
)
def test_a_transcoder_or_a_norm_that_overflows_is_named(form: dict[str, Any], tmp_path: Path) -> None:
    skip: dict[str, Any] = {} if "norm" in form else {"d_out": 24, "skip": True}
    sae, x = load(native(tmp_path / "sae", **form, **skip)), make_x(3)
    features = sae.encode(x)
    x[1] = 3e38 * np.sign(x[1])
    assert np.isfinite(sae.decode(features[:1], x[:1])).all()
    with pytest.raises(ValueError, match=r"^the reconstruction of token 1 overflows"):
        sae.decode(features, x)


@pytest.mark.parametrize("tile", [1, 3, 1000])
@pytest.mark.parametrize("requests", [False, True])
def test_an_edit_that_overflows_is_named(sae: SAE, tile: int, requests: bool, bundle_of: BundleOf, kind: str) -> None:
    sae = load(bundle_of(kind), tiling=Tiling(rows=tile))
    x = make_x(12).reshape(3, 4, D_IN)
    gate = np.zeros((3, 4), np.float32)
    gate[1, 2] = 3e38
    edits: Any = [Edit.set(3, 1e30), Edit.set(4, 2.0)]
    edits = [edits] * 3 if requests else edits
    assert np.isfinite(sae.steer(x, edits)).all()
    with pytest.raises(
        ValueError, match=r"^row 1, 2 of the activations overflows float32 by its edits or its features"
    ):
        sae.steer(x, edits, gate=gate)


@pytest.mark.parametrize(
    "edit", [Edit.scale(3, 3.4e38), Edit.add(3, -3.4e38), Edit(3, 3e38, 3e38), Edit.set(3, 3.4e38)]
)
def test_the_largest_edits_give_what_the_witness_gives(sae: SAE, kind: str, edit: Edit) -> None:
    x, weights = make_x(20), make_weights(150, kind)
    z = witness.pre_activations(weights, x)
    kept = witness.token_choice(z, K) if kind == "token" else witness.threshold(z, weights["threshold"])
    numbers = {"scale": edit.factor, "shift": edit.shift, "low": edit.low, "high": edit.high}
    f = np.where(kept.kept, z, 0)[None]
    expected = witness.steer(weights, x[None], f, np.array([[3]]), "none", **numbers)
    assert witness.difference(expected, sae.steer(x, edit)[None]) is None


@pytest.mark.parametrize("number", [1e39, -1e39, math.nan, math.inf, 10**400, np.float64(1e39), np.float16(np.inf)])
@pytest.mark.parametrize("make", [Edit.set, Edit.add, Edit.scale, Edit.cap])
def test_an_edit_of_a_number_beyond_float32_is_refused(make: Any, number: Any) -> None:
    with pytest.raises(ValueError, match=r"of feature 3 (needs finite float32 numbers|must be real numbers)"):
        make(3, number)


def test_a_multiple_of_a_largest_activation_beyond_float32_is_refused(copy_of: Callable[..., Path]) -> None:
    path = copy_of("mutual")
    stats = Stats(np.full(150, 0.5, np.float32), np.full(150, 10, np.float32), 100)
    bundle.put_stats(bundle.read(path), stats)
    sae = load(path)
    assert np.isfinite(sae.steer(make_x(3), Edit.set(3, times=1e30))).all()
    with pytest.raises(ValueError, match=r"an edit of feature 3 needs finite float32 numbers, got 3e\+39"):
        sae.steer(make_x(3), Edit.set(3, times=3e38))


@pytest.mark.parametrize("graph", ["encode.onnx", "encode_exact.onnx"])
def test_steering_refuses_rows_whose_features_overflow_or_is_right(kind: str, graph: str, tmp_path: Path) -> None:
    """By top k, a feature that is not finite may push the edited one out of the largest, so its row is refused."""
    d_sae = 512
    weights = make_weights(d_sae, kind)
    weights["W_enc"] = weights["W_enc"] * np.float32(100)
    bundle.write(tmp_path / "sae", weights, make_manifest(d_sae, kind), sample=make_x(300, seed=8))
    export(tmp_path / "sae")
    sae, rng = load(tmp_path / "sae", graph=graph), np.random.default_rng(0)
    refused = 0
    for trial in range(120):
        x = (rng.normal(0, 1, (1, D_IN)).clip(-3, 3) * 10 ** rng.uniform(35.5, 38)).astype(np.float32)
        x *= rng.random(x.shape) < 0.5
        z = witness.pre_activations(weights, x)
        kept = witness.token_choice(z, K) if kind == "token" else witness.threshold(z, weights["threshold"])
        feature = int(rng.choice(np.flatnonzero(kept.kept[0]))) if trial % 2 else int(rng.integers(d_sae))
        try:
            y = sae.steer(x, Edit.scale(feature, 0.5))
        except ValueError as error:
            assert str(error).startswith("row 0 of the activations overflows float32")
            with pytest.raises(ValueError, match="row 0 of the activations is so large"):
                sae.encode(x)
            refused += 1
            continue
        edits = {"scale": 0.5, "shift": 0.0, "low": -3.4e38, "high": 3.4e38}
        f = np.where(kept.kept, z, 0)[None]
        expected = witness.steer(weights, x[None], f, np.array([[feature]]), "none", **edits)
        assert witness.difference(expected, y[None]) is None
    assert 10 < refused < 110


def test_features_that_a_user_changed_are_checked_at_each_call(sae: SAE) -> None:
    features = sae.encode(make_x(5))
    sae.decode(features)
    features.values[0] = np.nan
    with pytest.raises(ValueError, match="no sound features: token"):
        sae.decode(features)
    with pytest.raises(ValueError, match="features of an SAE with 149"):
        sae.decode(dataclasses.replace(features, d_sae=149))
