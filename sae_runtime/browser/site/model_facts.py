"""What model.json says of a host: its inputs, its SAEs, how texts become vectors, and how it writes text."""

from collections.abc import Mapping
from typing import Any

from sae_runtime.browser.site.page_runs import PageRuns
from sae_runtime.browser.site.unfit import UnfitForPage
from sae_runtime.deployed.embedding import chosen_prompt, sentence_of, tokens_of_prompt
from sae_runtime.deployed.host_inputs import Port
from sae_runtime.deployed.pooling import POOLED, VECTORS
from sae_runtime.model import Model

_MESSAGES = ("a question", "42 <b>", "  spaces around  ")
"""Messages by which a chat template shows what it writes around one."""


def host_facts(runs: PageRuns) -> dict[str, Any]:
    """The inputs of a graph.

    Raises:
        UnfitForPage: the graph takes one number of texts or tokens alone.
    """
    inputs = runs.inputs
    if inputs.time is not None or inputs.batch not in (None, 1):
        raise UnfitForPage(
            f"the graph takes texts of [{inputs.batch or 'any'}, {inputs.time or 'any'}] tokens alone; export it with "
            "sizes that callers choose, or run the model by sae-runtime serve"
        )
    ports = {name: _port(getattr(inputs, name)) for name in ("ids", "mask", "types", "positions", "keep")}
    if ports["positions"] is not None:
        ports["positions"]["first"] = inputs.first_position
    past = [
        {
            "input": past.port.name,
            "type": past.port.dtype.name,
            "present": past.present,
            "shape": list(past.empty),
            "batch": past.batch,
            "time": past.time,
        }
        for past in inputs.past
    ]
    return {"inputs": {**ports, "past": past}}


def _port(port: Port | None) -> dict[str, Any] | None:
    if port is None:
        return None
    return {"name": port.name, "type": port.dtype.name, **({} if len(port.shape) == 2 else {"rank": len(port.shape)})}


def read_and_edited(model: Model, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The SAEs of a model.

    Args:
        model: a deployed model.
        names: the name of the site's SAE by the sha256 of its weights.
    """
    return [
        {
            "name": name,
            "site": names.get(sae.spliced.weights),
            "d_sae": sae.d_sae,
            "hook": sae.hook,
            "reads": sae.reads,
            "edits": sae.edits,
            "slots": min(sae.slots * (2 if sae.by_threshold else 1), sae.d_sae),
            "more": sae.by_threshold,
            "inputs": list(sae.spliced.inputs),
        }
        for name, sae in model.saes.items()
    ]


def vector_facts(model: Model) -> dict[str, Any]:
    """How texts become vectors, as `Model.embed` makes them.

    Raises:
        ValueError: `embed` cannot make them.
    """
    outputs = model.outputs
    output = next((name for name in VECTORS if name in outputs), POOLED)
    sentence = sentence_of(model.layout, is_pooled=output == POOLED)
    prompt = chosen_prompt(sentence, None, None, model.layout.home)
    tokenizer = model.tokenizer
    own = tokenizer.max_length if sentence.max_length is None else sentence.max_length
    limits = [limit for limit in (own, tokenizer.positions) if limit is not None]
    limit = min(limits, default=None)
    lowers = model.layout.sentence is not None and model.layout.sentence.lower_case
    skipped = 0
    if not sentence.include_prompt:
        skipped = tokens_of_prompt(tokenizer.lowering() if lowers else tokenizer, prompt, limit)
    if skipped and output == POOLED:
        raise ValueError("the graph pools the prompt's tokens too, which the model's files leave out; embed has no use")
    return {
        "output": output,
        "pooling": list(sentence.pooling),
        "normalise": sentence.normalise,
        "prompt": prompt,
        "prompt_tokens": skipped,
        "include_prompt": sentence.include_prompt,
        "limit": limit,
    }


def text_facts(model: Model) -> dict[str, Any]:
    """How a model writes text, as `Model.generate` lets it.

    Raises:
        ValueError: `generate` cannot.
    """
    loop = model.loop()
    return {
        "logits": "logits",
        "stop_ids": list(model.tokenizer.end_ids),
        "limit": loop.limit,
        "chat": chat_facts(model),
    }


def chat_facts(model: Model) -> dict[str, Any] | None:
    """The text around a user's message by the chat template; None where there is none, or it depends on the message."""
    around: set[tuple[str, str, bool]] = set()
    for message in _MESSAGES:
        try:
            text = model.tokenizer.chat([{"role": "user", "content": message}], add_generation_prompt=True)
        except (ImportError, ValueError):
            return None
        trims = message not in text
        part = message.strip() if trims else message
        if text.count(part) != 1:
            return None
        around.add((*text.split(part), trims and part != message))  # type: ignore[arg-type]
    if len({one[:2] for one in around}) != 1:
        return None
    before, after = next(iter(around))[:2]
    return {"before": before, "after": after, "trims": any(one[2] for one in around)}
