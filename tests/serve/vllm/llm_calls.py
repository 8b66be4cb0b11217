"""Functions that run in vLLM's environment: one engine, which generates with what each request asks of its SAEs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_ENGINE: list[Any] = []


def start(model: str, sae: Mapping[str, Any] | None = None, **options: Any) -> None:
    """Start an engine, in the place of the one before. `sae` is the `additional_config`."""
    from vllm import LLM

    end()
    given: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, **options}
    if sae is not None:
        given["additional_config"] = dict(sae)
    _ENGINE.append(LLM(model=model, **given))


def end() -> None:
    """End the engine."""
    import gc

    while _ENGINE:
        _ENGINE.pop().llm_engine.engine_core.shutdown()
    gc.collect()


def generate(requests: Sequence[Mapping[str, Any]], packed: bool = True) -> list[dict[str, Any]]:
    """The answers of requests that run together, or one after the other.

    Args:
        requests: each has `ids`, the tokens of its prompt; `sae`, what it asks as `extra_args`; and other fields of
            SamplingParams, of which greedy choice is the default.
        packed: whether they run together.

    Returns:
        Of each request `tokens`, a list for each of its answers; and where it asks for features `features`, a dict by
        SAE for each answer: indptr, indices and values.
    """
    if packed:
        return _generate(requests)
    return [answer for request in requests for answer in _generate([request])]


def _generate(requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    from vllm import SamplingParams

    prompts, parameters = [], []
    for request in requests:
        given = {"temperature": 0.0, "max_tokens": 24, **request}
        prompt: dict[str, Any] = {"prompt_token_ids": list(given.pop("ids"))}
        sae = given.pop("sae", None)
        if "cache_salt" in given:
            prompt["cache_salt"] = given.pop("cache_salt")
        prompts.append(prompt)
        parameters.append(SamplingParams(**given, extra_args=dict(sae) if sae else None))
    outputs = _ENGINE[0].generate(prompts, parameters, use_tqdm=False)
    answers: list[dict[str, Any]] = [{"tokens": [list(one.token_ids) for one in output.outputs]} for output in outputs]
    reading = [i for i, request in enumerate(requests) if "sae_features" in (request.get("sae") or {})]
    if reading:
        from sae_runtime.serve.vllm.reading import features_of

        for i, children in zip(reading, features_of(_ENGINE[0], [outputs[i] for i in reading]), strict=True):
            answers[i]["features"] = [{name: _plain(f) for name, f in by_sae.items()} for by_sae in children]
    return answers


def _plain(features: Any) -> dict[str, Any]:
    return {name: np.asarray(getattr(features, name)) for name in ("indptr", "indices", "values")}


def rpc(method: str, *arguments: Any) -> Any:
    """What a method of the workers gives, one for each of them."""
    return _ENGINE[0].collective_rpc(method, args=arguments)
