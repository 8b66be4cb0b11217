"""Functions that run in vLLM's environment: one engine, which generates with what each request asks of its SAEs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_ENGINE: list[Any] = []
_PREEMPTED: list[str] = []


def start(model: str, additional_config: Mapping[str, Any] | None = None, **options: Any) -> None:
    """Start an engine, in the place of the one before."""
    from vllm import LLM

    end()
    given: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, **options}
    _ENGINE.append(LLM(model=model, **given, additional_config=dict(additional_config or {})))


def end() -> None:
    """End the engine."""
    import gc

    while _ENGINE:
        _ENGINE.pop().llm_engine.engine_core.shutdown()
    gc.collect()


def generate(requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answers of requests that run together.

    Args:
        requests: each has `ids`, the tokens of its prompt; `sae`, what it asks as `extra_args`; and other fields of
            SamplingParams, of which greedy choice is the default.

    Returns:
        Of each request `tokens` and `logprobs` of the chosen tokens, a list for each of its answers; `cached`, the
        number of tokens of its prompt whose keys and values were there; and where it asks for features `features`, for
        each answer, by SAE: indptr, indices and values.
    """
    outputs = _ENGINE[0].generate(*_given(requests), use_tqdm=False)
    return _answers(requests, outputs)


def generate_while_others_end(requests: Sequence[Mapping[str, Any]], ended: Sequence[int]) -> list[dict[str, Any]]:
    """As `generate`, while the requests of some numbers are aborted after 1, 2, 3 ... steps, and have no answer."""
    engine, outputs = _ENGINE[0].llm_engine, {}
    for number, (prompt, parameters) in enumerate(zip(*_given(requests), strict=True)):
        engine.add_request(f"one-{number}", prompt, parameters)
    steps = 0
    while engine.has_unfinished_requests():
        outputs.update({output.request_id: output for output in engine.step() if output.finished})
        if steps < len(ended):
            engine.abort_request([f"one-{ended[steps]}"])
        steps += 1
    left = [number for number in range(len(requests)) if number not in ended]
    return _answers([requests[number] for number in left], [outputs[f"one-{number}"] for number in left])


def generate_alike(prompts: Sequence[Sequence[int]], sae: Mapping[str, Any], times: int) -> list[list[list[int]]]:
    """The tokens that several prompts get by one object of parameters, each time that it is used."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0.0, max_tokens=8, extra_args=dict(sae))
    given = [{"prompt_token_ids": list(ids)} for ids in prompts]
    runs = [_ENGINE[0].generate(given, parameters, use_tqdm=False) for _ in range(times)]
    return [[list(output.outputs[0].token_ids) for output in outputs] for outputs in runs]


def extract(texts: Any, out: Any, **settings: Any) -> Any:
    """What `sae_runtime.serve.vllm.corpus.extract` gives."""
    from sae_runtime.serve.vllm.corpus import extract

    return extract(_ENGINE[0], texts, out, **settings)


def count_preemptions() -> list[str]:
    """The requests that were preempted since the last call, in an engine of one process."""
    from vllm.v1.core.sched.scheduler import Scheduler

    if not hasattr(Scheduler, "inner"):
        Scheduler.inner = Scheduler._preempt_request

        def preempt(self: Any, request: Any, *given: Any, **named: Any) -> Any:
            _PREEMPTED.append(request.request_id)
            return Scheduler.inner(self, request, *given, **named)

        Scheduler._preempt_request = preempt
    found = list(_PREEMPTED)
    _PREEMPTED.clear()
    return found


def rpc(method: str, *arguments: Any) -> Any:
    """What a method of the workers gives, one for each of them."""
    return _ENGINE[0].collective_rpc(method, args=arguments)


def pretend_version(version: str) -> str:
    """Let vLLM have another version in this process; gives the one that it had."""
    import vllm

    before: str = vllm.__version__
    vllm.__version__ = version
    return before


def _given(requests: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    from vllm import SamplingParams

    prompts, parameters = [], []
    for request in requests:
        given = {"temperature": 0.0, "max_tokens": 24, "logprobs": 0, **request}
        prompt: dict[str, Any] = {"prompt_token_ids": list(given.pop("ids"))}
        sae = given.pop("sae", None)
        prompts.append(prompt)
        parameters.append(SamplingParams(**given, extra_args=dict(sae) if sae else None))
    return prompts, parameters


def _answers(requests: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = [
        {
            "tokens": [list(one.token_ids) for one in output.outputs],
            "logprobs": [
                [by[t].logprob for t, by in zip(one.token_ids, one.logprobs, strict=True)] for one in output.outputs
            ],
            "cached": output.num_cached_tokens,
        }
        for output in outputs
    ]
    reading = [i for i, request in enumerate(requests) if (request.get("sae") or {}).get("sae_features")]
    if reading:
        from sae_runtime.serve.vllm.reading import features_of

        for i, children in zip(reading, features_of(_ENGINE[0], [outputs[i] for i in reading]), strict=True):
            answers[i]["features"] = [{name: _plain(f) for name, f in by_sae.items()} for by_sae in children]
    return answers


def _plain(features: Any) -> dict[str, Any]:
    return {name: np.asarray(getattr(features, name)) for name in ("indptr", "indices", "values")}
