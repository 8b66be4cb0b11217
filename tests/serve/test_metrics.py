"""The text of /metrics, read by prometheus_client's own parser, against what was asked."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import make_x
from prometheus_client.parser import text_string_to_metric_families

import sae_runtime
from sae_runtime.core.edits import Edit
from sae_runtime.serve.catalogue import open_all
from sae_runtime.serve.errors import Invalid
from sae_runtime.serve.guarding import Guards
from sae_runtime.serve.http.metrics import Metrics
from sae_runtime.serve.live import Live
from sae_runtime.serve.plane import Plane
from sae_runtime.serve.policy import Policy

pytestmark = pytest.mark.usefixtures("one_thread")
Numbers = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def plane(bundle_of: Callable[..., Path]) -> Iterator[Plane]:
    loaded = open_all([f"one={bundle_of('mutual')}", f"two@3={bundle_of('token')}"])
    made = Plane(loaded, watcher=Live(loaded), policy=Guards(Policy(largest_edit=5.0), loaded))
    yield made
    made.close()


def numbers(metrics: Metrics) -> Numbers:
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def of_sae(found: Numbers, name: str, model: str, version: str = "1", **labels: str) -> float | None:
    key = tuple(sorted({"model": model, "version": version, "sae": model, **labels}.items()))
    return found.get((f"sae_runtime_{name}", key))


def test_figures_of_each_bundle_beside_its_manifest(plane: Plane, bundle_of: Callable[..., Path]) -> None:
    metrics, x = Metrics(plane), make_x(50)
    assert of_sae(numbers(metrics), "l0", "one", of="recent") is None
    for rows in (x[:1], x[1:20], x[20:]):
        plane.infer("one.encode", {"x": rows})
    plane.infer("one.encode", {"x": x, "threshold": np.array([1e9], np.float32)})  # not the bundle's own rule
    found, sae = numbers(metrics), sae_runtime.load(bundle_of("mutual"))
    features = sae.encode(x)
    assert of_sae(found, "tokens_total", "one") == 50
    assert of_sae(found, "matches_total", "one") == len(features.values)
    assert of_sae(found, "l0", "one", of="recent") == pytest.approx(len(features.values) / 50)
    assert of_sae(found, "l0", "one", of="manifest") == sae.manifest.measured.get("l0")
    assert of_sae(found, "tokens_total", "two", "3") == 0
    sampled = of_sae(found, "sampled_total", "one")
    assert sampled is not None and 1 <= sampled <= 48


def test_requests_queue_and_outcomes(plane: Plane) -> None:
    metrics, x = Metrics(plane), make_x(4)
    for _ in range(3):
        plane.infer("one.encode", {"x": x})
    with pytest.raises(Invalid, match="at most 5"):
        plane.infer("one.steer", {"x": x, "features": np.array([[3]]), "shift": np.array([[6]], np.float32)})
    plane.infer("one.steer", {"x": x, "features": np.array([[3]]), "shift": np.array([[-4]], np.float32)})
    metrics.http.finished("/v2/models/{name}/infer", "200", 0.02)
    metrics.http.finished("/v2/models/{name}/infer", "400", 0.001)
    found = numbers(metrics)
    assert found["sae_runtime_requests_total", (("operation", "one.encode"), ("outcome", "ok"))] == 3
    assert found["sae_runtime_requests_total", (("operation", "one.steer"), ("outcome", "ok"))] == 1
    assert found["sae_runtime_request_seconds_count", (("operation", "one.encode"),)] == 3
    assert found["sae_runtime_batch_rows_sum", (("operation", "one.encode"),)] == 12
    assert found["sae_runtime_http_requests_total", (("code", "400"), ("route", "/v2/models/{name}/infer"))] == 1
    assert found["sae_runtime_waiting_requests", ()] == found["sae_runtime_waiting_bytes", ()] == 0
    assert of_sae(found, "edits_total", "one") == 1, "what the policy refuses is no edit"
    assert of_sae(found, "largest_edit", "one") == 4.0
    buckets = [value for (name, _), value in found.items() if name == "sae_runtime_http_seconds_bucket"]
    assert buckets == sorted(buckets) and buckets[-1] == 2


def test_no_gate_passes_the_policy(plane: Plane) -> None:
    """A gate multiplies an edit, so one above 1 would pass the bound."""
    x = make_x(2)
    shift, features = np.array([[4]], np.float32), np.array([[3]])
    for gate in (2.0, -1.0):
        with pytest.raises(Invalid, match="from 0 to 1"):
            plane.infer(
                "one.steer", {"x": x, "features": features, "shift": shift, "gate": np.full(2, gate, np.float32)}
            )
    half = plane.infer("one.steer", {"x": x, "features": features, "shift": shift, "gate": np.full(2, 0.5, np.float32)})
    sae = plane.find("one").sae
    assert sae is not None
    assert np.array_equal(half["y"], sae.steer(x, [Edit.add(3, 4.0)], gate=np.full(2, 0.5, np.float32)))


def test_a_policy_that_no_bundle_can_keep_is_refused_at_the_start(bundle_of: Callable[..., Path]) -> None:
    loaded = open_all([f"one={bundle_of('mutual')}"])
    with pytest.raises(ValueError, match=r"one \(version 1\): .* 'no such label'"):
        Guards(Policy(refuse_feature=("no such label",)), loaded)
    for one in loaded:
        one.close()
