"""Which tokens `attach` edits, seen by torch hooks, and which tokens a gate means, by counting them one by one."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases_common import Weights, hooked

from sae_runtime import Edit
from sae_runtime.train import attach

D_IN, FEATURE, AMOUNT = 32, 7, 5.0
Passes = list[list[list[int]]]  # 1 for the tokens that were edited, of each row of each pass


def still(kind: Any, config: Any, louder: float = 1.0) -> Any:
    """A model with random weights, always the same, without dropout, with embeddings so many times as large."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight *= louder
    return model


def edited_tokens(
    model: Any, hook: str, sae: tuple[Path, Weights], call: Callable[[], object], **settings: Any
) -> Passes:
    """Which tokens of each call of a module an edit changes while `call` runs with the SAE attached."""
    path, weights = sae
    after: list[Any] = []

    def edit_and_call() -> None:
        with attach(model, hook, path, [Edit.add(FEATURE, AMOUNT)], **settings):
            after.extend(hooked(model.base_model, hook, call))

    before = hooked(model.base_model, hook, edit_and_call)
    change = AMOUNT * weights["W_dec"][FEATURE]
    passes: Passes = []
    for x, y in zip(before, after, strict=True):
        moved = abs(y - x - change).max(axis=-1) < 1e-2
        assert (moved | (abs(y - x).max(axis=-1) < 1e-6)).all(), "a token was changed by something else"
        passes.append(moved.astype(int).tolist())
    return passes


def is_chosen(gate: str | Collection[int], position: int, prompt: int) -> bool:
    """Whether a gate means the token at a position, behind a prompt of so many tokens."""
    if not isinstance(gate, str):
        return position in gate
    return {
        "all": True,
        "prompt": position < prompt,
        "last_prompt": position == prompt - 1,
        "generated": position >= prompt,
        "answer": position >= prompt - 1,
    }[gate]


def expected_tokens(
    gate: str | Collection[int], masks: Sequence[Sequence[int]], columns: Sequence[Sequence[int]]
) -> Passes:
    """Which tokens a gate means in passes that read these columns; the mask [rows, columns] is that of the prompt."""
    passes: Passes = []
    for read in columns:
        rows = []
        for mask in masks:
            prompt, row = sum(mask), []
            for column in read:
                padding = column < len(mask) and mask[column] == 0
                seen = sum(mask[:column]) + max(0, column - len(mask))
                row.append(int(not padding and is_chosen(gate, seen, prompt)))
            rows.append(row)
        passes.append(rows)
    return passes


def in_steps(prompt: int, steps: int) -> list[range]:
    """The columns of the passes of a model with a cache: the prompt, then a new token in each."""
    return [range(prompt), *(range(prompt + step, prompt + step + 1) for step in range(steps - 1))]


def again_and_again(prompt: int, steps: int) -> list[range]:
    """The columns of the passes of a model without a cache: all of them in each pass."""
    return [range(prompt + step) for step in range(steps)]


def some_ids(masks: Sequence[Sequence[int]], words: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of tokens, 0 for padding, and their mask."""
    mask = torch.tensor(masks)
    ids = torch.from_numpy(np.random.default_rng(len(masks)).integers(5, words, mask.shape))
    return ids * mask, mask
