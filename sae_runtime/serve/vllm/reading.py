"""Features of what vLLM's `LLM` wrote and read, in Python."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_runtime.core.features import Features


def features_of(llm: Any, outputs: Sequence[Any]) -> list[list[dict[str, Features]]]:
    """The features of requests that asked for them by `sae_features`. They are kept in the engine until this call.

    Args:
        llm: vLLM's LLM.
        outputs: what `llm.generate` or `llm.chat` gave.

    Returns:
        For each output, for each of its answers, by the name of the SAE: the features of the tokens that the model
        read, of shape (t,): those of the prompt, then the written ones but the last, which no pass read.

    Raises:
        ValueError: a request asked for no features, or they were taken or dropped before.

    >>> params = SamplingParams(max_tokens=8, extra_args={"sae_features": 5})  # doctest: +SKIP
    >>> outputs = llm.generate(["A text."], params)  # doctest: +SKIP
    >>> features_of(llm, outputs)[0][0]["concepts"].shape  # doctest: +SKIP
    (10,)
    """
    tickets = [output.request_id for output in outputs]
    kept, status = llm.collective_rpc("sae_features", args=(tickets,))[0], llm.collective_rpc("sae_status")[0]
    found = []
    for output in outputs:
        answers = kept[output.request_id].get(output.request_id, {})
        if missing := [one.index for one in output.outputs if one.index not in answers]:
            raise ValueError(
                f"answer {missing[0]} of request {output.request_id} has no features; ask for them by sae_features, "
                "and take them once"
            )
        read = [len(output.prompt_token_ids or ()) + len(one.token_ids) - 1 for one in output.outputs]
        found.append(
            [
                {name: as_features(taken, status[name]["d_sae"], t) for name, taken in answers[one.index].items()}
                for one, t in zip(output.outputs, read, strict=True)
            ]
        )
    return found


def as_features(taken: dict[str, bytes], d_sae: int, tokens: int) -> Features:
    """Features [tokens] out of what `sae_features` gives of one answer and one SAE.

    Raises:
        ValueError: a token was not read.
    """
    positions, indptr = np.frombuffer(taken["positions"], np.int32), np.frombuffer(taken["indptr"], np.int64)
    if len(positions) < tokens or (positions[:tokens] != np.arange(tokens)).any():
        raise ValueError(f"features of {len(positions)} tokens were kept, expected {tokens}; ask for them again")
    end = int(indptr[tokens])
    indices, values = np.frombuffer(taken["indices"], np.int32), np.frombuffer(taken["values"], np.float32)
    return Features(indptr[: tokens + 1].copy(), indices[:end].copy(), values[:end].copy(), d_sae, (tokens,))
