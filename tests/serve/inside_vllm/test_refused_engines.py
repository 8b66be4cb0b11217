"""Engines that cannot serve SAEs as they should are refused in one sentence, before they load a model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm_processes import LLM_CALLS, MODEL, Called, Raised, called, needs_vllm, refusal, settings_of
from vllm_reference import Reference

from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import Architecture, Manifest
from sae_runtime.serve.vllm.plugin import WORKER

pytestmark = needs_vllm


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for another model, of width 32."""
    path = tmp_path_factory.mktemp("narrow") / "sae"
    shapes = {"W_enc": (32, 64), "W_dec": (64, 32), "b_enc": (64,), "b_dec": (32,), "threshold": (64,)}
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    architecture = Architecture(d_in=32, d_sae=64, selection="threshold")
    bundle.write(path, weights, Manifest(architecture=architecture, allocation=None, slots=64, hook="layers.10"))
    return path


DRAFT = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "compiled": ({"enforce_eager": False}, "--enforce-eager"),
    "pipeline": ({"pipeline_parallel_size": 2}, "pipeline"),
    "speculative": ({"speculative_config": DRAFT}, "speculative"),
    "another worker": ({"worker_cls": "vllm.v1.worker.worker_base.WorkerBase"}, "worker"),
}


def refused(vllm_process: Called, *given: Any, **options: Any) -> str:
    with pytest.raises(Raised) as raised:
        vllm_process("start", str(MODEL), *given, **options, seconds=60)
    assert raised.value.is_value_error, str(raised.value)
    assert "\n" not in raised.value.sentence and len(raised.value.sentence) < 500
    return raised.value.sentence


@pytest.mark.parametrize("name", OPTIONS)
def test_options_in_which_features_would_not_be_read(vllm_process: Called, reference: Reference, name: str) -> None:
    options, expected = OPTIONS[name]
    sentence = refused(vllm_process, settings_of([{"bundle": reference.bundles["topk"]}]), **options)
    assert expected in sentence


def test_an_sae_of_another_width(vllm_process: Called, narrow: Path) -> None:
    sentence = refused(vllm_process, settings_of([{"bundle": narrow}]))
    assert "32" in sentence and "576" in sentence


def test_settings_that_cannot_be(vllm_process: Called) -> None:
    assert "missing" in refused(vllm_process, settings_of([{"bundle": "missing"}]))


def test_a_layer_that_the_model_lacks(vllm_process: Called, reference: Reference) -> None:
    with pytest.raises(Raised, match="layers.99"):
        vllm_process("start", str(MODEL), settings_of([{"bundle": reference.bundles["topk"], "hook": "layers.99"}]))


def test_a_worker_whose_requests_nobody_checks(reference: Reference, tmp_path: Path) -> None:
    with called(LLM_CALLS, tmp_path / "log", VLLM_PLUGINS="another") as call:
        with pytest.raises(Raised, match="VLLM_PLUGINS leaves out sae_runtime"):
            call("start", str(MODEL), settings_of([{"bundle": reference.bundles["topk"]}]), worker_cls=WORKER)


def test_a_server_says_so_as_well(reference: Reference, tmp_path: Path) -> None:
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL), "--dtype", "float32"]
    words += ["--additional-config", json.dumps(settings_of([{"bundle": reference.bundles["topk"]}]))]
    assert "--enforce-eager; add it" in refusal(words, tmp_path / "log")


def test_requests_to_an_engine_without_saes(vllm_process: Called) -> None:
    vllm_process("start", str(MODEL))
    plain = vllm_process("generate", [{"ids": [1, 2, 3], "max_tokens": 3}])
    given: tuple[dict[str, Any], ...] = (
        {"sae_edits": [{"feature": 3, "set": 8}]},
        {"sae_gate": "prompt"},
        {"sae_features": 3},
        {"sae_ticket": "mine"},
        {"sae": {}},
    )
    for asked in given:
        with pytest.raises(Raised, match="serves no SAE") as raised:
            vllm_process("generate", [{"ids": [1, 2, 3], "sae": asked, "max_tokens": 3}])
        assert raised.value.is_value_error
    assert vllm_process("generate", [{"ids": [1, 2, 3], "max_tokens": 3, "sae": {"another_plugin": 1}}]) == plain


def test_another_version(vllm_process: Called, reference: Reference) -> None:
    version = vllm_process("pretend_version", "0.31.4")
    try:
        for other in ("0.31.4", "0.33.0", "0.320.0", "1.32.0"):
            vllm_process("pretend_version", other)
            sentence = refused(vllm_process, settings_of([{"bundle": reference.bundles["topk"]}]))
            assert other in sentence and "0.32" in sentence
    finally:
        vllm_process("pretend_version", version)
