"""Features of what vLLM's `LLM` wrote and read, in Python."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_runtime.core.features import Features


def features_of(
    llm: Any, outputs: Sequence[Any], names: Sequence[object] | None = None
) -> list[list[dict[str, Features]]]:
    """The features of requests that asked for them by `sae_features`. They are kept in the engine until this call.

    Args:
        llm: vLLM's LLM.
        outputs: what `llm.generate` or `llm.chat` gave.
        names: of the outputs, for messages; None: the ids of their requests.

    Returns:
        For each output, for each of its answers, by the name of the SAE: the features of the tokens that the model
        read, of shape (t,): those of the prompt, then the written ones but the last, which no pass read.

    Raises:
        ValueError: a request asked for no features, they were taken or dropped before, or are NaN or Inf.

    >>> params = SamplingParams(max_tokens=8, extra_args={"sae_features": 5})  # doctest: +SKIP
    >>> outputs = llm.generate(["A text."], params)  # doctest: +SKIP
    >>> features_of(llm, outputs)[0][0]["concepts"].shape  # doctest: +SKIP
    (10,)
    """
    tickets = [output.request_id for output in outputs]
    kept, status = llm.collective_rpc("sae_features", args=(tickets,))[0], llm.collective_rpc("sae_status")[0]
    sizes = {name: one["d_sae"] for name, one in status.items()}
    found: list[list[dict[str, Features]]] = []
    for number, output in enumerate(outputs):
        answers = kept[output.request_id].get(output.request_id, {})
        try:
            found.append([_of_answer(answers, one, output.prompt_token_ids, sizes) for one in output.outputs])
        except ValueError as error:
            called = f"request {output.request_id}" if names is None else names[number]
            raise ValueError(f"{called}: {error}") from error
    return found


def _of_answer(
    answers: Mapping[int, Any], answer: Any, prompt: Sequence[int] | None, sizes: Mapping[str, int]
) -> dict[str, Features]:
    """The features of one of vLLM's CompletionOutputs by SAE, out of what was kept of each answer of its request."""
    if answer.index not in answers:
        raise ValueError(f"answer {answer.index} has no features; ask for them by sae_features, and take them once")
    read = len(prompt or ()) + len(answer.token_ids) - 1
    return {name: as_features(taken, sizes[name], read) for name, taken in answers[answer.index].items()}


def as_features(taken: dict[str, bytes], d_sae: int, tokens: int) -> Features:
    """Features [tokens] out of what `sae_features` gives of one answer and one SAE.

    Raises:
        ValueError: a token was not read, or its features are NaN or Inf.
    """
    positions, indptr = np.frombuffer(taken["positions"], np.int32), np.frombuffer(taken["indptr"], np.int64)
    if len(positions) < tokens or (positions[:tokens] != np.arange(tokens)).any():
        raise ValueError(f"features of {len(positions)} tokens were kept, expected {tokens}; ask for them again")
    end = int(indptr[tokens])
    indices, values = np.frombuffer(taken["indices"], np.int32), np.frombuffer(taken["values"], np.float32)
    if not np.isfinite(values[:end]).all():
        token = np.searchsorted(indptr, np.argmin(np.isfinite(values)), side="right") - 1
        raise ValueError(
            f"token {token} has features that are NaN or Inf, since the model's activation overflows; use another "
            "dtype, or leave the text out"
        )
    return Features(indptr[: tokens + 1].copy(), indices[:end].copy(), values[:end].copy(), d_sae, (tokens,))
