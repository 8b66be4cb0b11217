"""No operation of the plane passes the policy, and what it allows is answered as without one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_x
from deployed_model import D_SAE, deploy

from sae_runtime.core.edits import Edit
from sae_runtime.serve.catalogue import open_all
from sae_runtime.serve.errors import Invalid
from sae_runtime.serve.guarding import Guards
from sae_runtime.serve.live import Live
from sae_runtime.serve.plane import Plane
from sae_runtime.serve.policy import Policy

pytestmark = pytest.mark.usefixtures("one_thread")
ALLOWED, REFUSED = '[{"feature": 3, "add": 5.0}]', '[{"feature": 3, "add": 5.1}]'
POLICY = Policy(largest_edit=5.0, refuse_feature=("4", "writer:5", "6"), edit_kind=("add", "set"))


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> list[str]:
    home, bundle = tmp_path_factory.mktemp("served"), bundle_of("mutual", D_SAE)
    vectors, writer = (deploy(home / kind, kind, {"bundle": bundle}) for kind in ("bert", "gpt2"))
    return [f"vectors={vectors}", f"writer={writer}", f"bundle={bundle_of('mutual')}"]


@pytest.fixture(scope="module")
def plane(specs: list[str]) -> Iterator[Plane]:
    loaded = open_all(specs)
    made = Plane(loaded, policy=Guards(POLICY, loaded), watcher=Live(loaded))
    yield made
    made.close()


@pytest.fixture(scope="module")
def free(specs: list[str]) -> Iterator[Plane]:
    made = Plane(open_all(specs))
    yield made
    made.close()


def texts(*given: str) -> Any:
    return np.array([text.encode() for text in given], object)


WAYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "bundle.steer by JSON": ("bundle.steer", lambda edits: {"x": make_x(2), "edits": texts(edits)}),
    "vectors.run": ("vectors.run", lambda edits: {"text": texts("w1 w2"), "edits": texts(edits)}),
    "vectors.run of each text": (
        "vectors.run",
        lambda edits: {"text": texts("w1 w2", "w3"), "edits": texts("[]", edits)},
    ),
    "vectors.embed": ("vectors.embed", lambda edits: {"text": texts("w1 w2"), "edits": texts(edits)}),
    "writer.run": ("writer.run", lambda edits: {"text": texts("w1 w2"), "edits": texts(edits)}),
    "writer.generate": ("writer.generate", lambda edits: {"text": texts("w1 w2"), "edits": texts(edits)}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_operation_keeps_the_policy(plane: Plane, free: Plane, way: str) -> None:
    name, inputs = WAYS[way]
    parameters = {"max_new_tokens": 4} if name.endswith("generate") else {}
    same, other = (one.infer(name, inputs(ALLOWED), parameters=parameters) for one in (plane, free))
    assert all(np.array_equal(same[output], other[output]) for output in other)
    refused = [
        REFUSED,
        '[{"feature": 3, "add": -5.1, "only_active": true}]',
        '[{"feature": 4, "set": 1.0}]',
        '[{"feature": 6, "set": 1.0}]',
        '[{"feature": 3, "scale": 0.5}]',
        '[{"feature": 2, "add": 1.0}, {"feature": 3, "ablate": true}]',
    ]
    for edits in refused:
        with pytest.raises(Invalid, match="this server"):
            plane.infer(name, inputs(edits), parameters=parameters)
        free.infer(name, inputs(edits), parameters=parameters)
    if name.startswith("writer"):
        with pytest.raises(Invalid, match="feature 5 may not be edited"):
            plane.infer(name, inputs('[{"feature": 5, "set": 1.0}]'), parameters=parameters)
    else:
        plane.infer(name, inputs('[{"feature": 5, "set": 1.0}]'), parameters=parameters)


@pytest.mark.parametrize(
    "numbers",
    [
        {"shift": 5.1},
        {"scale": 0.0, "shift": -6.0},
        {"low": 5.1, "shift": 1.0},
        {"scale": 1e30, "low": 0.0, "high": 6.0},
        {"shift": 1.0, "high": 4.0},  # of no single kind
    ],
)
def test_edits_as_tensors_keep_the_policy(plane: Plane, numbers: dict[str, float]) -> None:
    tensors = {name: np.array([[number]], np.float32) for name, number in numbers.items()}
    with pytest.raises(Invalid, match="this server"):
        plane.infer("bundle.steer", {"x": make_x(2), "features": np.array([[3]]), **tensors})


def test_the_calls_of_the_routes_keep_it_too(plane: Plane) -> None:
    edits: dict[str | None, list[Edit]] = {None: [Edit.add(3, 5.1)]}
    with pytest.raises(Invalid, match="at most 5"):
        plane.embed("vectors", ["w1"], edits).result(20)
    with pytest.raises(Invalid, match="at most 5"):
        plane.generate("writer", "w1 w2", edits, max_new_tokens=2).result(20)


def test_texts_and_edits_are_watched(plane: Plane) -> None:
    live = plane.watcher
    assert isinstance(live, Live)
    before = {key: one.totals() for key, one in live.saes.items()}
    (seen,) = plane.features("vectors", ["w1 w2 w3"]).result(20)
    plane.embed("vectors", ["w1"], {None: [Edit.add(3, 5.0)]}).result(20)
    plane.generate("writer", "w1 w2", {None: [Edit.add(3, 4.0)]}, max_new_tokens=2).result(20)
    (vectors,), (writer,) = ([key for key in live.saes if key[0] == name] for name in ("vectors", "writer"))
    now = live.saes[vectors].totals()
    assert now.tokens - before[vectors].tokens == 3 == len(seen) - 2, "[CLS] and [SEP] are left out"
    assert now.matches - before[vectors].matches == seen.features.l0()[1:4].sum()
    assert now.edits - before[vectors].edits == 1
    assert live.saes[writer].totals().edits - before[writer].edits == 1
