import dataclasses
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import D_IN, KINDS, K, joint, make_manifest, make_weights, make_x, served, slots_of
from numpy.typing import NDArray
from recording import recorded

from sae_runtime import SAE, Edit, Features, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.core.features import from_slots
from sae_runtime.engine.tiling import Tiling
from sae_runtime.exports import witness
from sae_runtime.exports.export import export

BundleOf = Callable[..., Path]
SHAPES = [(), (1,), (12,), (3, 4), (1, 2, 3, 2), (0,), (3, 0), (0, 4)]


def same(a: Features, b: Features) -> bool:
    """Whether two features have the same bits."""
    return a.shape == b.shape and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("indptr", "indices", "values")
    )


@pytest.fixture(params=["mutual", "feature"])
def thresholded(request: pytest.FixtureRequest, bundle_of: BundleOf) -> SAE:
    return load(bundle_of(str(request.param)))


# Encode


@pytest.mark.parametrize("n", [0, 1, 7, 300])
@pytest.mark.parametrize("d_sae", [150, 1500])
def test_encode_agrees_with_numpy(bundle_of: BundleOf, kind: str, d_sae: int, n: int) -> None:
    x, sae = make_x(n), load(bundle_of(kind, d_sae))
    features = sae.encode(x)
    assert (sae.d_in, sae.d_sae, features.d_sae, len(features)) == (D_IN, d_sae, d_sae, n)
    assert witness.disagreement(served(kind, d_sae, x), *slots_of(features)) is None
    batch = sae.encode_batch(x)
    expected = served(kind, d_sae, x) if kind == "token" else joint(kind, d_sae, x)
    assert witness.disagreement(expected, *slots_of(batch)) is None


@pytest.mark.parametrize("shape", SHAPES)
def test_encode_keeps_the_leading_dimensions(sae: SAE, shape: tuple[int, ...]) -> None:
    x = make_x(math.prod(shape))
    for encode in (sae.encode, sae.encode_batch):
        features = encode(x.reshape(*shape, D_IN))
        assert features.shape == shape and features.l0().shape == shape
        np.testing.assert_array_equal(features.to_dense().reshape(-1, 150), encode(x).to_dense())
    indices, values = sae.encode_slots(x.reshape(*shape, D_IN))
    assert indices.shape == values.shape == (*shape, max(sae.encode(x).l0().max(initial=0), 1))


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "int32", ml_dtypes.bfloat16])
def test_encode_casts_other_types_once(sae: SAE, dtype: Any) -> None:
    x = (make_x(9) * 3).astype(dtype)
    first = np.asarray(x).astype(np.float32)
    assert same(sae.encode(x), sae.encode(first))
    assert same(sae.encode_batch(x), sae.encode_batch(first))
    edits = [Edit.set(3, 2.0), Edit.scale(int(sae.encode(first).indices[0]), 2.0)]
    np.testing.assert_array_equal(sae.steer(x, edits), sae.steer(first, edits))


def test_encode_accepts_lists_and_strided_arrays(sae: SAE) -> None:
    x = make_x(12)
    assert same(sae.encode(x[::2].tolist()), sae.encode(x[::2].copy()))
    assert same(sae.encode(np.asfortranarray(x)), sae.encode(x))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_splitting_a_batch_changes_no_row(sae: SAE, size: int) -> None:
    x = make_x(200)
    whole = sae.encode(x)
    parts = [sae.encode(x[begin : begin + size]) for begin in range(0, 200, size)]
    np.testing.assert_array_equal(np.concatenate([part.to_dense() for part in parts]), whole.to_dense())


def test_order_and_padding_change_no_row(sae: SAE) -> None:
    x, order = make_x(50), np.random.default_rng(2).permutation(50)
    whole = sae.encode(x).to_dense()
    np.testing.assert_array_equal(sae.encode(x[order]).to_dense(), whole[order])
    padded = np.concatenate([np.full((5, D_IN), 30, np.float32), x, np.zeros((3, D_IN), np.float32)])
    np.testing.assert_array_equal(sae.encode(padded).to_dense()[5:55], whole)


def test_tiles_change_no_row(sae: SAE, bundle_of: BundleOf, kind: str) -> None:
    x = make_x(50)
    features, edits = sae.encode(x), [Edit.add(3, 1.0), Edit.ablate(5)]
    steered, decoded = sae.steer(x, edits), sae.decode(features)
    gate = np.linspace(0, 1, 50, dtype=np.float32)
    gated = sae.steer(x, edits, gate=gate)
    sae = load(bundle_of(kind), tiling=Tiling(rows=8))
    assert same(sae.encode(x), features)
    np.testing.assert_array_equal(sae.steer(x, edits), steered)
    np.testing.assert_array_equal(sae.steer(x, edits, gate=gate), gated)
    np.testing.assert_allclose(sae.decode(features), decoded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("slots", [1, 4, 149, 150])
@pytest.mark.parametrize("kind", ["mutual", "feature"])
def test_rows_that_fill_all_slots_lose_nothing(bundle_of: BundleOf, kind: str, slots: int) -> None:
    x = make_x(60)
    x[7] *= 10  # a row with far more features than its neighbours
    expected = served(kind, 150, x)
    assert expected.kept.sum(axis=1).max() > 40 and (expected.kept.sum(axis=1) <= 1).any()
    sae = load(bundle_of(kind, slots=slots))
    assert sae.manifest.slots == slots
    assert witness.disagreement(expected, *slots_of(sae.encode(x))) is None
    everything = sae.encode(x, threshold=0.0)
    assert witness.disagreement(witness.threshold(expected.z, 0.0), *slots_of(everything)) is None


def test_a_row_with_many_features_gives_its_neighbours_no_more_slots(bundle_of: BundleOf) -> None:
    sae, sessions = recorded(bundle_of("mutual", slots=4), "encode.onnx")
    l0 = sae.encode(make_x(60)).l0()
    runs = [(rows, slots) for _, rows, slots in sessions.runs]
    assert runs[0] == (60, 4)
    assert [slots for _, slots in runs] == [4 * 4**step for step in range(len(runs))]
    assert [rows for rows, _ in runs] == [60, *((l0 >= slots).sum() for _, slots in runs[:-1])]
    assert 1 < len(runs) and runs[1][0] < 60


@pytest.mark.parametrize("slots", [1, 4, None])
def test_encode_slots_are_what_encode_compresses(bundle_of: BundleOf, kind: str, slots: int | None) -> None:
    x = make_x(60)
    x[7] *= 10  # a row with far more features than its neighbours
    sae = load(bundle_of(kind, slots=None if kind == "token" else slots), tiling=Tiling(rows=16))
    indices, values = sae.encode_slots(x)
    assert indices.dtype == np.int64 and values.dtype == np.float32 and (np.diff(values) <= 0).all()
    assert values.shape[1] == sae.encode(x).l0().max() and not indices[values == 0].any()
    assert same(from_slots([(indices, values)], 150, (60,)), sae.encode(x))


def test_encode_slots_take_the_options_of_encode(bundle_of: BundleOf) -> None:
    x = make_x(20)
    assert load(bundle_of("token")).encode_slots(x, k=3)[0].shape == (20, 3)
    assert load(bundle_of("mutual")).encode_slots(x, threshold=1e9)[1].tolist() == [[0]] * 20


@pytest.mark.parametrize("k", [1, 5, 6, 20, 150])
def test_encode_of_token_choice_keeps_k_features(bundle_of: BundleOf, k: int) -> None:
    x, sae = make_x(20), load(bundle_of("token"))
    for features in (sae.encode(x, k=k), sae.encode_batch(x, k=k), sae.encode_batch(lambda ids: x[ids], 20, k=k)):
        assert witness.disagreement(served("token", 150, x, k), *slots_of(features)) is None


@pytest.mark.parametrize("k", [0.5, 2.5, 6, 100.0])
def test_encode_batch_keeps_k_matches_a_token(thresholded: SAE, k: float) -> None:
    x = make_x(7)
    features = thresholded.encode_batch(x, k=k)
    kind = thresholded.manifest.batch_allocation.kind
    assert witness.disagreement(joint(kind, 150, x, k), *slots_of(features)) is None
    if kind == "mutual":
        assert len(features.values) == min(round(7 * k), (served(kind, 150, x).z > 0).sum())


def test_encode_applies_another_threshold(thresholded: SAE) -> None:
    x, kind = make_x(20), thresholded.manifest.batch_allocation.kind
    z = served(kind, 150, x).z
    threshold = np.random.default_rng(3).uniform(0.1, 3, 150)
    for given in (threshold.astype(np.float32), threshold.tolist(), 1.25, np.float64(1.25), [1.25]):
        features = thresholded.encode(x, threshold=given)
        assert witness.disagreement(witness.threshold(z, np.asarray(given, np.float32)), *slots_of(features)) is None
    own = make_weights(150, kind)["threshold"]
    assert same(thresholded.encode(x, threshold=own), thresholded.encode(x))


@pytest.mark.parametrize("padding", [0.0, 40.0])
def test_padding_takes_no_matches(sae: SAE, kind: str, padding: float) -> None:
    x, valid = make_x(20), np.arange(20) % 3 != 1
    alone = sae.encode_batch(x[valid])
    x[~valid] = padding
    for shape in ((20,), (4, 5)):
        features = sae.encode_batch(x.reshape(*shape, D_IN), valid=valid.reshape(shape))
        assert features.shape == shape
        np.testing.assert_array_equal(features.to_dense().reshape(20, -1)[valid], alone.to_dense())
        assert not features.l0()[~valid.reshape(shape)].any()
    assert alone.l0().sum() == K * valid.sum() or kind == "feature"


def test_threads_may_share_an_sae(sae: SAE) -> None:
    x = [make_x(40, seed) for seed in range(8)]
    edits = [Edit.set(3, 2.0)]
    alone = [(sae.encode(a), sae.encode_batch(a), sae.steer(a, edits)) for a in x]

    def work(number: int) -> bool:
        a, (features, batch, steered) = x[number % 8], alone[number % 8]
        return (
            same(sae.encode(a), features)
            and same(sae.encode_batch(a), batch)
            and np.array_equal(sae.steer(a, edits), steered)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))


def test_threads_may_be_the_first_to_use_a_graph(bundle_of: BundleOf, kind: str) -> None:
    (sae, sessions), x = recorded(bundle_of(kind), "encode.onnx"), make_x(4)
    with ThreadPoolExecutor(8) as pool:
        steered = list(pool.map(lambda _: sae.steer(x, [Edit.set(3, 2.0)]), range(8)))
    assert all(np.array_equal(y, steered[0]) for y in steered)
    assert sessions.opened == {("encode.onnx", False), ("steer.onnx", False)}


def test_repr_of_an_sae_shows_rule_sizes_source_and_graph(tmp_path: Path, bundle_of: BundleOf) -> None:
    assert repr(load(bundle_of("feature"))) == "SAE(feature choice, k 6, 24 -> 150, encode.onnx)"
    model = "sentence-transformers/all-MiniLM-L6-v2"
    manifest = dataclasses.replace(make_manifest(1500, "mutual"), model=model, hook="encoder.layer.3")
    bundle.write(tmp_path / "b", make_weights(1500, "mutual"), manifest)
    export(tmp_path / "b")
    expected = "SAE(mutual choice, k 6, 24 -> 1,500, all-MiniLM-L6-v2 encoder.layer.3, encode.onnx)"
    assert repr(load(tmp_path / "b")) == expected


# Refusals of encode


def test_another_d_in_is_refused_with_both_numbers_and_the_hook(tmp_path: Path, sae: SAE) -> None:
    for x in (np.zeros((3, 25)), np.zeros(25), np.zeros((D_IN, 0))):
        with pytest.raises(ValueError, match=rf"activations have d_in {x.shape[-1]}, this SAE expects 24; was another"):
            sae.encode(x)
    with pytest.raises(ValueError, match="activations have d_in None, this SAE expects 24"):
        sae.encode(1.0)
    manifest = dataclasses.replace(make_manifest(150, "mutual"), model="gpt2", hook="h.6")
    bundle.write(tmp_path / "b", make_weights(150, "mutual"), manifest)
    export(tmp_path / "b")
    message = r"activations have d_in 25, this SAE expects 24 \(gpt2, h\.6\); was another layer captured\?"
    named = load(tmp_path / "b")
    with pytest.raises(ValueError, match=message):
        named.encode(np.zeros((3, 25)))
    with pytest.raises(ValueError, match=message):
        named.steer(np.zeros((3, 25)), [])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("shape", "at", "name"), [((12,), (7,), "7"), ((3, 4), (1, 3), "1, 3"), ((), (), "0")])
def test_a_row_that_is_not_finite_is_named(
    sae: SAE, bad: float, shape: tuple[int, ...], at: tuple[int, ...], name: str
) -> None:
    x = make_x(math.prod(shape)).reshape(*shape, D_IN)
    x[(*at, 5)] = bad
    calls: list[Callable[[], object]] = [
        lambda: sae.encode(x),
        lambda: sae.encode_batch(x),
        lambda: sae.steer(x, []),
    ]
    for call in calls:
        with pytest.raises(
            ValueError, match=f"row {name} of the activations holds NaN or Inf; drop it or mend the model"
        ):
            call()


@pytest.mark.parametrize("scale", [1e308, 3.4e38])
def test_a_row_whose_features_overflow_is_named(sae: SAE, scale: float) -> None:
    """Pre-activations that are not finite would lose features, and take matches from other tokens."""
    x = make_x(30).astype(np.float64)
    x[3] = scale * np.sign(x[3])
    message = "row 3 of the activations (holds NaN or Inf|is so large that its features overflow float32); drop it"
    with pytest.raises(ValueError, match=message):
        sae.encode(x)
    with pytest.raises(ValueError, match=message.replace("3", "0, 3", 1)):
        sae.encode_batch(x.reshape(1, 30, D_IN))


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        (["token"], {"threshold": 1.0}, "threshold belongs to mutual and feature choice; use k here"),
        (
            ["mutual", "feature"],
            {"k": 3},
            "k belongs to encode_batch or to token choice; this SAE is served by",
        ),
        (["token"], {"k": 0}, r"k must be in \(0, d_sae=150\] \(whole for token choice\), got 0"),
        (["token"], {"k": 2.5}, r"k must be in .*whole for token choice\), got 2.5"),
        (["mutual"], {"threshold": -0.1}, r"threshold must be one number or 150, finite and >= 0"),
        (["mutual"], {"threshold": math.nan}, "threshold must be one number or 150, finite and >= 0"),
        (["feature"], {"threshold": np.ones(149)}, r"threshold must be one number or 150, .* got shape \(149,\)"),
        (["feature"], {"threshold": np.ones((1, 150))}, r"threshold must be one number or 150, .* shape \(1, 150\)"),
    ],
)
def test_encode_refuses_options_that_do_not_fit(
    bundle_of: BundleOf, kinds: list[str], options: dict[str, Any], message: str
) -> None:
    for kind in kinds:
        sae = load(bundle_of(kind), threads=1)
        for encode in (sae.encode, sae.encode_slots):
            with pytest.raises(ValueError, match=message):
                encode(make_x(3), **options)


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        (KINDS, {"valid": np.ones(3)}, r"valid must be bool \[3\], .* got float64 \[3\]"),
        (KINDS, {"valid": np.ones((3, 1), bool)}, r"valid must be bool \[3\], .* got bool \[3, 1\]"),
        (KINDS, {"tokens": 3}, "tokens belongs to a function that gives rows; an array of activations has its own"),
        (["token"], {"max_density": np.ones(150)}, "max_density belongs to feature choice, .* fitted by token choice"),
        (["mutual"], {"max_density": np.ones(150)}, "max_density belongs to feature choice, .* fitted by mutual"),
        (["feature"], {"max_density": np.ones(149)}, r"max_density must be 150 numbers from 0 to 1, got .* \[149\]"),
        (KINDS, {"k": 0}, r"k must be in \(0, d_sae=150\] \(whole for token choice\), got 0"),
        (KINDS, {"k": 151}, "got 151"),
        (KINDS, {"k": math.nan}, "got nan"),
        (KINDS, {"k": math.inf}, "got inf"),
        (["token"], {"k": 2.5}, r"k must be in .*whole for token choice\), got 2.5"),
    ],
)
def test_encode_batch_refuses_options_that_do_not_fit(
    bundle_of: BundleOf, kinds: list[str], options: dict[str, Any], message: str
) -> None:
    for kind in kinds:
        with pytest.raises(ValueError, match=message):
            load(bundle_of(kind), threads=1).encode_batch(make_x(3), **options)


def test_encode_batch_of_a_function_needs_tokens_and_refuses_a_mask(sae: SAE) -> None:
    options: list[dict[str, Any]] = [{}, {"tokens": 3, "valid": np.ones(3, bool)}]
    for given in options:
        with pytest.raises(ValueError, match="a function that gives rows needs tokens, their number, and takes no val"):
            sae.encode_batch(lambda ids: make_x(3)[ids], **given)


@pytest.mark.parametrize("tokens", [-1, True, "3", 3.0, 2.5, 10**30])
def test_encode_batch_of_a_function_needs_a_whole_number_of_tokens(loaded: Callable[[str], SAE], tokens: Any) -> None:
    with pytest.raises(ValueError, match="tokens is the number of rows that the function gives, from 0 on, got "):
        loaded("mutual").encode_batch(lambda ids: make_x(3)[ids], tokens)


def test_encode_batch_ignores_the_values_of_padding(sae: SAE) -> None:
    x, valid = make_x(20), np.arange(20) % 3 != 1
    x[~valid] = 0
    expected = sae.encode_batch(x, valid=valid)
    x[~valid] = np.nan
    assert same(sae.encode_batch(x, valid=valid), expected)
    x[3] = np.nan
    with pytest.raises(ValueError, match="row 0, 3 of the activations holds NaN or Inf; drop it or mend the model"):
        sae.encode_batch(x.reshape(1, 20, D_IN), valid=valid[None])


# Encode batches of a function that gives rows


def test_encode_batch_reads_tiles_and_reads_again_only_rows_with_many_features(bundle_of: BundleOf) -> None:
    sae, x = load(bundle_of("mutual"), tiling=Tiling(rows=32)), make_x(300)
    x[17] *= 10  # has more features than slots
    asked: list[NDArray[np.int64]] = []

    def read(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        asked.append(ids)
        return x[ids]

    features = sae.encode_batch(read, 300)
    assert same(features, sae.encode_batch(x))
    assert features.l0()[17] > sae.manifest.slots
    assert max(len(ids) for ids in asked) == 32 and [ids.tolist() for ids in asked[10:]] == [[17]]


def test_encode_batch_of_a_function_equals_encode_for_token_choice(bundle_of: BundleOf) -> None:
    sae, x = load(bundle_of("token"), tiling=Tiling(rows=32)), make_x(100)
    assert same(sae.encode_batch(lambda ids: x[ids], 100), sae.encode(x))


def test_encode_batch_refuses_wrong_rows_of_a_function(sae: SAE, kind: str) -> None:
    x = make_x(9)
    with pytest.raises(ValueError, match=r"read gave activations \[8, d_in\], expected 9 rows"):
        sae.encode_batch(lambda ids: x[:8], 9)
    with pytest.raises(ValueError, match="activations have d_in 23, this SAE expects 24; was another layer captured?"):
        sae.encode_batch(lambda ids: x[ids, 1:], 9)
    x[4] = np.nan
    with pytest.raises(ValueError, match="row 4 of the activations holds NaN or Inf; drop it or mend the model"):
        sae.encode_batch(lambda ids: x[ids], 9)
    x[4] = 3e38 * np.sign(make_weights(150, kind)["W_enc"][:, 0])
    with pytest.raises(ValueError, match="row 4 of the activations is so large that its features overflow float32"):
        sae.encode_batch(lambda ids: x[ids], 9)


# Decode


@pytest.mark.parametrize("shape", SHAPES)
def test_decode_agrees_with_numpy(sae: SAE, kind: str, shape: tuple[int, ...]) -> None:
    features = sae.encode(make_x(math.prod(shape)).reshape(*shape, D_IN))
    x_hat = sae.decode(features)
    assert x_hat.shape == (*shape, D_IN) and x_hat.dtype == np.float32
    expected = (
        features.to_dense().astype(np.float64) @ make_weights(150, kind)["W_dec"] + make_weights(150, kind)["b_dec"]
    )
    assert witness.difference(expected, x_hat) is None


def test_decode_refuses_features_of_another_sae(bundle_of: BundleOf, sae: SAE) -> None:
    features = load(bundle_of("mutual", 1500)).encode(make_x(2))
    with pytest.raises(ValueError, match="features of an SAE with 1500, this one has 150; encode with this one"):
        sae.decode(features)


# Steer


def algebra(kind: str, x: NDArray[np.float32], feature: int, change: Callable[[Any], Any]) -> NDArray[np.float64]:
    """x + (f' - f) W_dec[feature]."""
    matches = served(kind, 150, x)
    f = np.where(matches.kept, matches.z, 0)[:, feature]
    step: NDArray[np.float64] = (change(f) - f)[:, None] * make_weights(150, kind)["W_dec"][feature]
    return x + step


def on_and_off(kind: str, x: NDArray[np.float32]) -> int:
    """The feature that is active on the largest number of tokens."""
    return int(np.argmax(served(kind, 150, x).kept.sum(axis=0)))


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda i: Edit.set(i, 2.5), lambda f: 0 * f + 2.5),
        (lambda i: Edit.add(i, -1.5), lambda f: f - 1.5),
        (lambda i: Edit.scale(i, 3.0), lambda f: 3 * f),
        (lambda i: Edit.ablate(i), lambda f: 0 * f),
        (lambda i: Edit.cap(i, 2.3), lambda f: np.minimum(f, 2.3)),
        (lambda i: Edit(i, factor=2, shift=1, low=2.0, high=5.0), lambda f: np.clip(2 * f + 1, 2, 5)),
    ],
)
def test_steer_applies_the_formula_of_each_edit(
    sae: SAE, kind: str, make: Callable[[int], Edit], change: Callable[[Any], Any]
) -> None:
    x = make_x(60)
    feature = on_and_off(kind, x)
    y = sae.steer(x, [make(feature)])
    assert y.dtype == np.float32 and (y != x).any()
    assert witness.difference(algebra(kind, x, feature, change), y) is None


def test_edits_only_where_active_leave_other_tokens_alone(sae: SAE, kind: str) -> None:
    x = make_x(60)
    feature = on_and_off(kind, x)
    off = ~served(kind, 150, x).kept[:, feature]
    for edit in (Edit.set(feature, 2.5), Edit.add(feature, -1.5), Edit(feature, 2.0, 1.0, 2.0)):
        y, everywhere = (sae.steer(x, dataclasses.replace(edit, only_active=only)) for only in (True, False))
        np.testing.assert_array_equal(y[off], x[off])
        np.testing.assert_allclose(y[~off], everywhere[~off], atol=1e-6)
        assert (everywhere != x).any(axis=1).all()


def test_steering_by_one_edit_equals_a_list_of_it(sae: SAE) -> None:
    x = make_x(12).reshape(3, 4, D_IN)
    np.testing.assert_array_equal(sae.steer(x, Edit.set(3, 2.0)), sae.steer(x, [Edit.set(3, 2.0)]))


def test_steering_without_edits_returns_x(sae: SAE) -> None:
    x = make_x(12).reshape(3, 4, D_IN)
    nothing: list[Any] = [[], [[], [], []], ()]
    for edits in nothing:
        np.testing.assert_array_equal(sae.steer(x, edits), x)
    np.testing.assert_array_equal(sae.steer(x, [Edit(0), Edit(7), Edit.scale(9, 1.0)]), x)


def test_steer_adds_the_changes_of_two_edits(sae: SAE, kind: str) -> None:
    x = make_x(30)
    both = sae.steer(x, [Edit.set(3, 2.0), Edit.set(40, 1.0)]).astype(np.float64)
    apart = sae.steer(x, [Edit.set(3, 2.0)]).astype(np.float64) + sae.steer(x, [Edit.set(40, 1.0)]) - x
    np.testing.assert_allclose(both, apart, atol=1e-5)


def test_scaling_a_feature_that_is_not_in_the_top_k_does_nothing(bundle_of: BundleOf) -> None:
    sae, x = load(bundle_of("token")), make_x(20)
    matches = served("token", 150, x)
    below_the_top = (matches.z > 0) & ~matches.kept
    row, feature = (int(i) for i in np.argwhere(below_the_top)[0])
    steered = sae.steer(x, [Edit.scale(feature, 5.0)])
    np.testing.assert_array_equal(steered[~matches.kept[:, feature]], x[~matches.kept[:, feature]])
    assert not matches.kept[row, feature]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gated", [False, True])
def test_steer_keeps_the_leading_dimensions(sae: SAE, shape: tuple[int, ...], gated: bool) -> None:
    x, edits = make_x(math.prod(shape)), [Edit.set(3, 2.0), Edit.ablate(9)]
    gate = np.linspace(-1, 2, len(x), dtype=np.float32) if gated else np.ones(len(x), np.float32)
    y = sae.steer(x.reshape(*shape, D_IN), edits, gate=gate.reshape(shape) if gated else None)
    assert y.shape == (*shape, D_IN)
    np.testing.assert_array_equal(y.reshape(-1, D_IN), sae.steer(x, edits, gate=gate))


def test_the_gate_scales_the_edit(sae: SAE) -> None:
    x, edits = make_x(12).reshape(3, 4, D_IN), [Edit.set(3, 2.0), Edit.ablate(9)]
    whole = sae.steer(x, edits).astype(np.float64) - x
    rng = np.random.default_rng(4)
    for gate in (0.5, [0.0, 1.0, 0.5, 2.0], rng.uniform(0, 1, (3, 1)), rng.uniform(0, 1, (3, 4)), np.float16(0.25)):
        expected = x + np.broadcast_to(np.asarray(gate, np.float64), (3, 4))[..., None] * whole
        np.testing.assert_allclose(sae.steer(x, edits, gate=gate), expected, atol=1e-5)
    np.testing.assert_array_equal(sae.steer(x, edits, gate=0), x)
    np.testing.assert_allclose(sae.steer(x[0, 0], edits, gate=0.5), x[0, 0] + 0.5 * whole[0, 0], atol=1e-5)


def test_each_request_has_its_own_list(sae: SAE) -> None:
    x = make_x(12).reshape(3, 4, D_IN)
    lists = [[Edit.set(3, 2.0), Edit.ablate(9)], [], [Edit.add(3, -1.0)]]
    y = sae.steer(x, lists)
    for request in range(3):
        np.testing.assert_allclose(y[request], sae.steer(x[request], lists[request]), atol=1e-6)
    np.testing.assert_array_equal(y[1], x[1])
    gate = np.array([[1.0], [1.0], [0.0]])
    np.testing.assert_array_equal(sae.steer(x, lists, gate=gate)[2], x[2])


def test_one_request_does_not_touch_another(sae: SAE) -> None:
    x, other = make_x(12).reshape(3, 4, D_IN), make_x(12, seed=5).reshape(3, 4, D_IN)
    other[1] = x[1]
    edits = [Edit.set(3, 2.0), Edit.scale(9, 2.0)]
    y = sae.steer(x, [[Edit.ablate(4), Edit.ablate(5)], edits, [Edit.set(1, 9.0)]])
    y_other = sae.steer(other, [[Edit.set(7, 1e30), Edit.ablate(8)], edits, []])
    np.testing.assert_array_equal(y_other[1], y[1])


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([Edit.ablate(150)], "feature 150 does not exist, expected 0 to 149"),
        ([Edit.ablate(-1)], "feature -1 does not exist, expected 0 to 149"),
        ([Edit.ablate(3), Edit.add(3, 1.0)], "feature 3 is edited twice in one request; give one edit for it"),
        ([[Edit.ablate(3)]] * 2, r"2 lists of edits need activations \[2, t, d_in\], got \[3, 4, 24\]"),
        ([[], [Edit.ablate(3), Edit.ablate(3)], []], "feature 3 is edited twice"),
    ],
)
def test_steer_refuses_edits_that_do_not_fit(sae: SAE, edits: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sae.steer(make_x(12).reshape(3, 4, D_IN), edits)


@pytest.mark.parametrize("edits", [None, 3, "3", [3], [None], [Edit(3), [Edit(4)]], [[Edit(3)], Edit(4)], {3: 8.0}])
def test_steer_refuses_what_are_no_edits(loaded: Callable[[str], SAE], edits: Any) -> None:
    with pytest.raises(ValueError, match="edits must be an Edit, a list of them, or a list for each request"):
        loaded("mutual").steer(make_x(12).reshape(2, 6, D_IN), edits)


def test_steer_refuses_lists_of_edits_without_requests(sae: SAE) -> None:
    with pytest.raises(ValueError, match=r"12 lists of edits need activations \[12, t, d_in\], got \[12, 24\]"):
        sae.steer(make_x(12), [[Edit.ablate(3)]] * 12)


@pytest.mark.parametrize("gate", [math.nan, math.inf, np.full(12, np.nan)])
def test_a_gate_that_is_not_finite_is_refused(sae: SAE, gate: Any) -> None:
    with pytest.raises(ValueError, match="gate holds NaN or Inf; expected finite numbers, one for each token"):
        sae.steer(make_x(12), [Edit.ablate(3)], gate=gate)


@pytest.mark.parametrize("gate", [np.ones(11), np.ones((12, 1)), np.ones((1, 12))])
def test_a_gate_of_another_shape_is_refused(sae: SAE, gate: Any) -> None:
    with pytest.raises(ValueError, match=r"gate must broadcast to \[12\], one number for each token, got \[1"):
        sae.steer(make_x(12), [Edit.ablate(3)], gate=gate)


@pytest.mark.parametrize("kind", ["mutual", "feature"])
def test_a_token_with_many_features_does_not_give_all_tokens_its_slots(bundle_of: BundleOf, kind: str) -> None:
    sae, x = load(bundle_of(kind), tiling=Tiling(rows=8)), make_x(1600)
    x[::8] *= 50  # one row of each tile
    tracemalloc.start()
    features = sae.encode(x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert features.l0().max() > sae.manifest.slots
    assert peak < 1600 * 150 * 12 / 3, "slots of all tiles were held at once"


def test_encode_without_enough_memory_is_a_memory_error(bundle_of: BundleOf) -> None:
    """This runs in a new process, whose address space is limited after the bundle is loaded."""
    code = f"""
import resource, numpy, sae_runtime
from sae_runtime.engine.tiling import Tiling
sae = sae_runtime.load({str(bundle_of("mutual"))!r}, tiling=Tiling(rows=400_000))
x = numpy.ones((400_000, {D_IN}), numpy.float32)
sae.encode(x[:10])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 150_000_000, used + 150_000_000))
try:
    sae.encode(x)
except MemoryError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("encode.onnx of ") and "give fewer tokens at once" in done.stdout, done.stderr
