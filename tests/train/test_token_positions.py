"""A gate chooses the tokens that counting gives, from what is known of a pass, and in a model that generates."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_hosts import random_sae
from gated import D_IN, edited_tokens, expected_tokens, some_ids, still
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from sae_runtime.train.gates import Gate
from sae_runtime.train.token_positions import Pass

pytestmark = pytest.mark.usefixtures("one_thread")

GATES: list[Any] = ["all", "prompt", "last_prompt", "generated", "answer", {0, 2, 4}]
MASKS = {"left": [[0, 0, 1, 1], [0, 1, 1, 1]], "right": [[1, 1, 0, 0], [1, 1, 1, 1]], "no": [[1, 1, 1, 1]] * 2}


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("gate", GATES, ids=str)
def test_a_gate_chooses_the_tokens_that_counting_gives(gate: Any, padding: str) -> None:
    masks = MASKS[padding]
    for begin, end in ((0, 4), (0, 3), (2, 4), (4, 5), (5, 6), (3, 6), (0, 6)):
        ones = torch.ones(2, max(0, end - 4), dtype=torch.long)
        mask = None if padding == "no" else torch.cat([torch.tensor(masks), ones], dim=1)
        now = Pass(start=begin, length=end - begin, mask=mask, prompt=4)
        chosen = Gate(gate).chosen(now, torch.zeros(2, end - begin, 3))
        chosen = (chosen * torch.ones(2, end - begin, 1))[..., 0]
        assert chosen.int().tolist() == expected_tokens(gate, masks, [range(begin, end)])[0]


@pytest.mark.parametrize("gate", [np.array([0, 2]), torch.tensor([0, 2]), range(0, 3, 2), [0, 2], frozenset({0, 2})])
def test_positions_come_in_any_collection(gate: Any) -> None:
    chosen: Any = Gate(gate).chosen(Pass(length=4), torch.zeros(1, 4, 3))
    assert chosen[..., 0].int().tolist() == [[1, 0, 1, 0]]


@pytest.mark.parametrize("gate", ["some", None, {-1}, {1.5}, {True}, ""])
def test_a_gate_that_is_neither_a_word_nor_positions_is_refused(gate: Any) -> None:
    with pytest.raises(ValueError, match="gate"):
        Gate(gate)


def test_rows_of_a_request_share_what_is_said_of_it() -> None:
    mask = torch.tensor(MASKS["left"])
    chosen: Any = Gate("prompt", prompt_tokens=[1, 2]).chosen(Pass(length=4, mask=mask), torch.zeros(4, 4, 3))
    assert chosen[..., 0].int().tolist() == [[0, 0, 1, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0]]
    with pytest.raises(ValueError, match="2 prompt_tokens do not fit 3 requests"):
        Gate("prompt", prompt_tokens=[1, 2]).chosen(Pass(length=4), torch.zeros(3, 4, 3))
    with pytest.raises(ValueError, match="the mask has 4 columns for 5"):
        Gate("prompt").chosen(Pass(length=5, mask=mask), torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="the module is given 5 columns, and the model around it 4"):
        Gate("prompt").chosen(Pass(length=4, mask=mask), torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="not known here which tokens are padding: the module is given 5 columns"):
        Gate("all").chosen(Pass(length=4, mask=mask), torch.zeros(2, 5, 3))
    assert Gate("all").chosen(Pass(length=4, mask=mask > -1), torch.zeros(2, 5, 3)) == 1.0


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_answer_begins_at_the_last_token_of_the_prompt(tmp_path: Path, use_cache: bool) -> None:
    sizes: dict[str, Any] = {"hidden_size": D_IN, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 60}
    model = still(GPTNeoXForCausalLM, GPTNeoXConfig(intermediate_size=32, **sizes), 40)
    ids, mask = some_ids(MASKS["left"])
    settings: dict[str, Any] = {"max_new_tokens": 2, "eos_token_id": None, "pad_token_id": 0, "use_cache": use_cache}
    sae = tmp_path / "sae", random_sae(tmp_path / "sae")
    for gate in ("answer", {0, 3}):
        call = lambda: model.generate(ids, attention_mask=mask, do_sample=False, **settings)  # noqa: E731
        columns = [range(4), range(4, 5) if use_cache else range(5)]
        assert edited_tokens(model, "layers.0", sae, call, gate=gate) == expected_tokens(gate, MASKS["left"], columns)
