"""Every kind of edit, in multiples of the largest activation, only where a feature is active, and with a gate.

The truth is float64 numpy that knows f, the largest activations and the words of the edit, but not its formula.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_witness
from conftest import D_IN, K, make_weights, make_x, run_graph
from conftest import served as served_by_numpy
from numpy.typing import NDArray

from sae_runtime import SAE, Edit, load
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.folder import put_stats
from sae_runtime.bundle.labels import write_labels
from sae_runtime.bundle.stats import counted
from sae_runtime.core.edits import as_inputs
from sae_runtime.exports import witness

BundleOf = Callable[..., Path]
Array = NDArray[np.float64]
Change = Callable[[Array, float], Array]  # of f [t] and of the feature's largest activation
D_SAE, B, T = 150, 3, 40
AMOUNT = 2.7
KINDS_OF_EDITS: dict[str, tuple[Callable[..., Edit], Change]] = {
    "set": (lambda i, **o: Edit.set(i, AMOUNT, **o), lambda f, top: 0 * f + AMOUNT),
    "set below 0": (lambda i, **o: Edit.set(i, -AMOUNT, **o), lambda f, top: 0 * f - AMOUNT),
    "set to 0": (lambda i, **o: Edit.set(i, 0.0, **o), lambda f, top: 0 * f),
    "set, times": (lambda i, **o: Edit.set(i, times=2, **o), lambda f, top: 0 * f + 2 * top),
    "set, -times": (lambda i, **o: Edit.set(i, times=-0.5, **o), lambda f, top: 0 * f - top / 2),
    "add": (lambda i, **o: Edit.add(i, AMOUNT, **o), lambda f, top: f + AMOUNT),
    "add, times": (lambda i, **o: Edit.add(i, times=-0.3, **o), lambda f, top: f - 0.3 * top),
    "scale": (lambda i, **o: Edit.scale(i, -1.5, **o), lambda f, top: -1.5 * f),
    "ablate": (lambda i, **o: Edit.ablate(i, **o), lambda f, top: 0 * f),
    "cap": (lambda i, **o: Edit.cap(i, 1.2, **o), lambda f, top: np.minimum(f, 1.2)),
    "cap below 0": (lambda i, **o: Edit.cap(i, -1.2, **o), lambda f, top: np.minimum(f, -1.2)),
    "cap, times": (lambda i, **o: Edit.cap(i, times=0.6, **o), lambda f, top: np.minimum(f, 0.6 * top)),
    "own": (
        lambda i, **o: Edit(i, factor=2, shift=0.5, low=1.5, high=4.0, **o),
        lambda f, top: np.clip(2 * f + 0.5, 1.5, 4.0),
    ),
    "own, times": (
        lambda i, **o: Edit(i, factor=-1, shift=0.5, low=0.1, of_largest=True, **o),
        lambda f, top: np.maximum(0.5 * top - f, 0.1 * top),
    ),
}
NEED_A_GATE = {"add", "add, times", "own", "own, times"}  # a graph's inputs cannot confine these to active tokens


@pytest.fixture(scope="module")
def x() -> NDArray[np.float32]:
    return make_x(B * T).reshape(B, T, D_IN)


@pytest.fixture(scope="module")
def with_stats(bundle_of: BundleOf, tmp_path_factory: pytest.TempPathFactory, x: Any) -> Callable[[str], SAE]:
    """Give an SAE whose bundle has stats of x; made once for each kind."""
    made: dict[str, SAE] = {}

    def give(kind: str) -> SAE:
        if kind not in made:
            path = Path(shutil.copytree(bundle_of(kind), tmp_path_factory.mktemp("stats") / kind))
            f = activations(kind, x).reshape(-1, D_SAE)
            put_stats(bundles.read(path), counted((f > 0).sum(axis=0), f.max(axis=0), len(f)))
            made[kind] = load(path)
        return made[kind]

    return give


def activations(kind: str, x: NDArray[np.float32]) -> Array:
    matches = served_by_numpy(kind, D_SAE, x.reshape(-1, D_IN))
    return np.where(matches.kept, matches.z, 0).reshape(*x.shape[:-1], D_SAE)


def chosen(kind: str, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Features that are active on some tokens of each request and not on others, the same for every run."""
    active = activations(kind, x) > 0
    some = (active.any(axis=1) & ~active.all(axis=1)).all(axis=0)
    return np.random.default_rng(3).permutation(np.flatnonzero(some))


def expected(kind: str, x: Any, edits: list[list[tuple[int, Change, bool]]], gate: Any = 1.0) -> Array:
    """y in float64, where each edit is (feature, change, only_active)."""
    f = activations(kind, x)
    top = f.reshape(-1, D_SAE).max(axis=0).astype(np.float32).astype(np.float64)
    new = f.copy()
    for request, of_request in enumerate(edits):
        for feature, change, only_active in of_request:
            old = f[request, :, feature]
            edited = change(old, top[feature])
            new[request, :, feature] = np.where(old > 0, edited, old) if only_active else edited
    rows = make_weights(D_SAE, kind)["W_dec"].astype(np.float64)
    return np.asarray(x + np.asarray(gate)[..., None] * ((new - f) @ rows))


@pytest.mark.parametrize("only_active", [False, True])
@pytest.mark.parametrize("name", KINDS_OF_EDITS)
def test_each_kind_of_edit_in_sae_steer(with_stats: Any, kind: str, x: Any, name: str, only_active: bool) -> None:
    make, change = KINDS_OF_EDITS[name]
    feature = int(chosen(kind, x)[0])
    edit = make(feature, only_active=only_active)
    wanted = [[(feature, change, only_active)]] * B
    sae = with_stats(kind)
    assert witness.difference(expected(kind, x, wanted), sae.steer(x, edit)) is None
    gate = np.random.default_rng(2).uniform(-1, 2, (B, T))
    assert witness.difference(expected(kind, x, wanted, gate), sae.steer(x, [[edit]] * B, gate=gate)) is None


@pytest.mark.parametrize("only_active", [False, True])
@pytest.mark.parametrize("name", KINDS_OF_EDITS)
def test_each_kind_of_edit_in_a_graph_and_in_torch(
    with_stats: Any, kind: str, x: Any, name: str, only_active: bool
) -> None:
    make, change = KINDS_OF_EDITS[name]
    feature = int(chosen(kind, x)[1])
    sae = with_stats(kind)
    edits = [[make(feature, only_active=only_active)], [], [make(feature)]]
    if only_active and name in NEED_A_GATE:
        with pytest.raises(ValueError, match=rf"this edit of feature {feature} .* sae_when \[\[{feature}\]\]"):
            as_inputs(edits, D_SAE, sae.stats.largest)
        return
    inputs = as_inputs(edits, D_SAE, sae.stats.largest)
    wanted = expected(kind, x, [[(feature, change, only_active)], [], [(feature, change, False)]])
    (y,) = run_graph(sae._bundle.path, "steer.onnx", x=x, **inputs)
    assert witness.difference(wanted, y) is None
    in_torch = np.stack([by_torch(kind, x[b], {key: a[b] for key, a in inputs.items()}) for b in range(B)])
    np.testing.assert_allclose(in_torch, wanted, rtol=1e-6, atol=1e-6)


def by_torch(kind: str, x: Any, inputs: dict[str, Any]) -> Array:
    """The formula of the graph's inputs in torch, for one request."""
    weights = make_weights(D_SAE, kind)
    z = torch_witness.pre_activations(weights, x)
    f = (torch_witness.token(z, K) if kind == "token" else torch_witness.threshold(z, weights["threshold"]))[0]
    ids = torch_witness.whole(inputs["features"])
    scale, shift, low, high = (torch_witness.double(inputs[name]) for name in ("scale", "shift", "low", "high"))
    rows = torch_witness.double(weights["W_dec"])[ids]
    edited = torch.minimum(torch.maximum(f[:, ids] * scale + shift, low), high)
    return np.asarray(torch_witness.double(x) + (edited - f[:, ids]) @ rows)


@pytest.mark.parametrize("seed", range(4))
def test_random_lists_of_edits_for_each_request(with_stats: Any, kind: str, x: Any, seed: int) -> None:
    rng, pool = np.random.default_rng(seed), chosen(kind, x)
    edits, wanted = [], []
    for count in rng.permutation([0, 3, 7]):
        features = rng.choice(pool, count, replace=False).tolist()
        kinds = rng.choice(list(KINDS_OF_EDITS), count)
        only = rng.random(count) < 0.5
        drawn = [
            (feature, KINDS_OF_EDITS[name], bool(o)) for feature, name, o in zip(features, kinds, only, strict=True)
        ]
        edits.append([make(feature, only_active=o) for feature, (make, _), o in drawn])
        wanted.append([(feature, change, o) for feature, (_, change), o in drawn])
    gate = rng.uniform(-1, 2, (B, T))
    sae = with_stats(kind)
    assert witness.difference(expected(kind, x, wanted, gate), sae.steer(x, edits, gate=gate)) is None
    assert witness.difference(expected(kind, x, wanted), sae.steer(x, edits)) is None


def test_edits_by_label_in_sae_steer_and_in_a_graph(with_stats: Any, kind: str, x: Any) -> None:
    sae = with_stats(kind)
    pool = chosen(kind, x)[:6].tolist()
    write_labels(sae._bundle.path, {feature: f"label = {i}" for i, feature in enumerate(pool[:4])})
    names = ("set, times", "own", "cap", "set", "ablate", "add, times")
    features = ["label = 0", " label = 1", "label = 2\n", "label = 3", str(pool[4]), pool[5]]
    edits = [
        KINDS_OF_EDITS[name][0](feature, only_active=name == "set")
        for name, feature in zip(names, features, strict=True)
    ]
    change = [(feature, KINDS_OF_EDITS[name][1], name == "set") for name, feature in zip(names, pool, strict=True)]
    wanted = expected(kind, x, [change, [], change[:1]])
    lists = [edits, [], edits[:1]]
    assert witness.difference(wanted, sae.steer(x, lists)) is None
    assert witness.difference(expected(kind, x, [change] * B), sae.steer(x, edits)) is None
    inputs = as_inputs(lists, D_SAE, sae.stats.largest, sae.labels)
    (y,) = run_graph(sae._bundle.path, "steer.onnx", x=x, **inputs)
    assert witness.difference(wanted, y) is None
    with pytest.raises(ValueError, match=f"feature {pool[0]} is edited twice in one request"):
        sae.steer(x, [edits[0], Edit.ablate(pool[0])])
    (sae._bundle.path / "labels.jsonl").unlink()


def test_edits_only_where_active_do_not_depend_on_the_tile(with_stats: Any, bundle_of: BundleOf, x: Any) -> None:
    from sae_runtime.engine.tiling import Tiling

    sae = with_stats("mutual")
    pool = chosen("mutual", x)
    edits = [Edit.add(int(pool[0]), 2.0, only_active=True), Edit.set(int(pool[1]), 3.0), Edit.add(int(pool[2]), 1.0)]
    small = load(sae._bundle.path, tiling=Tiling(rows=7))
    flat = x.reshape(-1, D_IN)
    for gate in (None, 0.5):
        np.testing.assert_allclose(small.steer(flat, edits, gate=gate), sae.steer(flat, edits, gate=gate), atol=1e-5)
    assert sae.steer(flat[:0], edits).shape == (0, D_IN) and sae.steer(flat[0], edits).shape == (D_IN,)


def test_multiples_need_stats_and_a_feature_that_was_active(bundle_of: BundleOf, tmp_path: Path, x: Any) -> None:
    with pytest.raises(ValueError, match=r"feature 3 is edited in multiples .* not known; measure it: .* --stats"):
        load(bundle_of("mutual")).steer(x, Edit.set(3, times=2))
    path = Path(shutil.copytree(bundle_of("mutual"), tmp_path / "copy"))
    put_stats(bundles.read(path), counted(np.zeros(D_SAE, np.int64), np.zeros(D_SAE), 10))
    sae = load(path)
    with pytest.raises(
        ValueError, match="feature 3 was active on none of the tokens of the bundle's stats.*plain number"
    ):
        sae.steer(x, [Edit.ablate(1), Edit.cap(3, times=2)])
    with pytest.raises(ValueError, match="feature 150 does not exist, expected 0 to 149"):
        sae.steer(x, Edit.set(150, times=2))
    np.testing.assert_array_equal(sae.steer(x, Edit.set(3, 2.0)), load(bundle_of("mutual")).steer(x, Edit.set(3, 2.0)))
