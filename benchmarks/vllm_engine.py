"""One vLLM engine that answers lines of JSON about itself; vllm_tokens.py and vllm_bfloat16.py start it.

It runs in an environment that has vLLM and this project. Its argument is JSON: the arguments of `vllm.LLM`. Questions:

- {"prompts": [[id, ...], ...], "tokens": 64, "asked": [{"sae_features": 5}, ...], "bare": false}: greedy answers of so
  many tokens, what each request asks, and whether a bare hook of torch adds a vector to the stream of layer 10
  meanwhile. The answer has seconds by the clock and of the processors, the tokens that were written, and how many
  features were taken out.
- the same with "save": PATH: the features of all requests also go into an .npz file.
- "status": what the worker tells of its SAEs.
"""

import contextlib
import json
import os
import sys
import time
from typing import Any

import numpy as np
import torch

LAYER = 10
ENVIRONMENT = {  # of a process that holds an engine
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process starts faster
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    """Answer until stdin ends. vLLM's own lines go to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM

    llm = LLM(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        question = json.loads(line)
        answer = llm.collective_rpc("sae_status")[0] if question == "status" else answered(llm, **question)
        print(json.dumps(answer), file=answers, flush=True)


def answered(
    llm: Any,
    prompts: list[list[int]],
    tokens: int,
    asked: list[dict[str, Any]] | None = None,
    bare: bool = False,
    save: str | None = None,
) -> dict[str, Any]:
    """Run the requests together."""
    from vllm import SamplingParams

    given = [
        SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, extra_args=args or None)
        for args in asked or [{}] * len(prompts)
    ]
    reads = any("sae_features" in (params.extra_args or {}) for params in given)
    wall, processor = time.perf_counter(), time.process_time()
    with bare_hook(llm) if bare else contextlib.nullcontext():
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], given, use_tqdm=False)
    features: list[Any] = []
    if reads:
        from sae_runtime.serve.vllm.reading import features_of

        features = [one for request in features_of(llm, outputs) for by_sae in request for one in by_sae.values()]
    seconds = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    if save:
        found = [(np.diff(one.indptr), one.indices, one.values) for one in features]
        counts, indices, values = (np.concatenate([one[number] for one in found]) for number in range(3))
        np.savez(save, counts=counts, indices=indices, values=values)
    written = [list(output.outputs[0].token_ids) for output in outputs]
    return {**seconds, "written": written, "read": sum(len(one.values) for one in features)}


@contextlib.contextmanager
def bare_hook(llm: Any) -> Any:
    """Add one vector to every row at the layer: the least that any hook of torch costs."""
    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    layer = dict(model.named_modules())[f"model.layers.{LAYER}"]
    vector = torch.zeros(model.config.hidden_size, dtype=next(model.parameters()).dtype)
    handle = layer.register_forward_hook(lambda _module, _args, output: (output[0] + vector, output[1]))
    yield
    handle.remove()


if __name__ == "__main__":
    main()
