"""Requests of every kind of edit and gate, for one SAE."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from vllm_bundles import KINDS
from vllm_reference import Reference

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "Once upon a time there was a little",
    "Water boils at one hundred degrees",
    "def add(a, b):\n    return",
    "The license grants you the right to",
    "My favourite animal is the dog, because",
)
QUESTIONS = ("What is the sun?", "Name three colours.", "Who wrote Hamlet?", "How do I boil an egg?")


def chat(reference: Reference, *turns: str) -> list[int]:
    """Tokens of a chat whose turns are of the user and of the assistant in turn, with the beginning of an answer."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    given = reference.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(reference.tokenizer(given, add_special_tokens=False)["input_ids"])


def active(reference: Reference, ids: list[int], name: str) -> list[int]:
    """The features that are active on a prompt, the first token left out, the most active first."""
    f = reference.answer({"ids": ids, "max_tokens": 1}, list(KINDS)).features[name][1:]
    return [int(i) for i in np.argsort(-f.sum(axis=0), kind="stable")]


def every_kind(reference: Reference, name: str) -> list[dict[str, Any]]:
    """Twelve requests whose edits are of every kind and whose gates are all of them; two edit nothing."""
    ids = [reference.tokenizer(text)["input_ids"] for text in TEXTS] + [chat(reference, q) for q in QUESTIONS]
    ids += [ids[0], ids[6]]
    largest = reference.sae(name).largest
    assert largest is not None
    strong = [[i for i in active(reference, one, name)[:40] if largest[i] > 0] for one in ids]
    labelled = [[i for i in active(reference, one, name) if i % 10 == 0 and largest[i] > 0] for one in ids]

    def at(request: int, place: int, times: float) -> tuple[int, float]:
        feature = strong[request][place]
        return feature, round(times * float(largest[feature]), 3)

    a, b, c = at(1, 0, 1.5), at(2, 2, 0.6), at(6, 1, 1)
    asked: list[Mapping[str, Any]] = [
        {},
        {"sae_edits": [{"feature": a[0], "set": a[1]}], "sae_gate": "all"},
        {
            "sae_edits": [{"feature": b[0], "add": b[1]}, {"feature": strong[2][0], "ablate": True}],
            "sae_gate": "answer",
        },
        {"sae_edits": [{"feature": strong[3][0], "scale": -3.0}], "sae_gate": "prompt"},
        {"sae_edits": [{"feature": strong[4][i], "ablate": True} for i in range(6)]},
        {"sae_edits": [{"feature": strong[5][i], "cap": 0.1} for i in range(6)], "sae_gate": "generated"},
        {"sae_edits": [{"feature": c[0], "set": c[1]}], "sae_gate": "text"},
        {"sae_edits": [{"feature": f"feature of row {labelled[7][0]}", "set": "x2"}], "sae_gate": "last_prompt"},
        {"sae_edits": [{"feature": strong[8][1], "add": "x1.5"}], "sae_gate": [3, 5, 20, 34, 35, 36, 40]},
        {"sae_edits": [{"feature": strong[9][2], "set": "x2.2", "only_active": True}], "sae_gate": "text"},
        {"sae_edits": [{"feature": labelled[10][0], "set": "x1.2"}], "sae_gate": "generated"},
        {},
    ]
    return [
        {"ids": one, "sae": {**sae, "sae_features": 100}, "max_tokens": 16 + i % 5}
        for i, (one, sae) in enumerate(zip(ids, asked, strict=True))
    ]


def of_sae(request: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A request whose edits name their SAE, as a server of several wants it."""
    asked = dict(request["sae"])
    if "sae_edits" in asked:
        asked["sae_edits"] = [{**edit, "sae": name} for edit in asked["sae_edits"]]
    return {**request, "sae": asked}
