"""How rows belong to tokens: made-up models that pad, mix, shift, drop or dice, and the decoders of real ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import BART, T5, save_model
from cases_common import all_rows, harvested, random_texts, word_tokenizer, write_paragraphs
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModel

from sae_runtime.activations.documents import documents
from sae_runtime.train.harvest.alignment import Alignment, find_alignment
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.forward import arguments
from sae_runtime.train.harvest.hook_point import replaced
from sae_runtime.train.harvest.reader import Reader

pytestmark = pytest.mark.usefixtures("one_thread")

TABLE = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(3, 19)
ALIGNED = Alignment((False,))


def embedded(ids: Tensor, real: Tensor) -> Tensor:
    return TABLE[ids]


def padded_to(multiple: int) -> Callable[[Tensor, Tensor], Tensor]:
    def read(ids: Tensor, real: Tensor) -> Tensor:
        return TABLE[torch.nn.functional.pad(ids, (0, -ids.shape[1] % multiple))]

    return read


def averaged(ids: Tensor, real: Tensor) -> Tensor:
    """Every row has the mean of its text, padding too."""
    return TABLE[ids] + TABLE[ids].mean(dim=1, keepdim=True)


def shared(ids: Tensor, real: Tensor) -> Tensor:
    """Every row depends on all texts of the batch."""
    return TABLE[ids] + TABLE[ids].mean(dim=(0, 1))


def summed(ids: Tensor, real: Tensor) -> Tensor:
    """A causal model."""
    return TABLE[ids].cumsum(dim=1)


READ: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Alignment]] = {
    "plain": (embedded, ALIGNED),
    "causal": (summed, ALIGNED),
    "half precision": (lambda ids, real: summed(ids, real).bfloat16(), ALIGNED),
    "time first": (lambda ids, real: TABLE[ids].transpose(0, 1), Alignment((True,))),
    "padded to 8": (padded_to(8), Alignment((False,), multiple=8)),
    "padded to 16": (padded_to(16), Alignment((False,), multiple=16)),
    "mixed with padding": (averaged, Alignment((False,), alone=True)),
    "mixed with other texts": (shared, Alignment((False,), alone=True)),
    "a token without a number": (lambda ids, real: TABLE[ids].where(ids[..., None] != 5, torch.nan), ALIGNED),
}


@pytest.mark.parametrize("what", READ)
def test_what_can_be_read_is_read_so(what: str) -> None:
    read, expected = READ[what]
    assert find_alignment(["h"], lambda ids, real: [read(ids, real)], TOKENS) == expected


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "shifted right": (lambda ids, real: TABLE[ids.roll(1, 1)], "does not depend on that token"),
    "shifted left": (lambda ids, real: summed(torch.cat([ids[:, 1:], ids[:, :1]], 1), real), "does not depend"),
    "a row before all": (lambda ids, real: TABLE[torch.nn.functional.pad(ids, (1, 0))], "a row for each token"),
    "two tokens in a row": (lambda ids, real: TABLE[ids[:, ::2]], "a row for each token"),
    "latents": (lambda ids, real: TABLE[:16].repeat(len(ids), 1, 1), r"gives \[2, 16, 4\], expected \[2, 32, d_in\]"),
    "few latents": (lambda ids, real: TABLE[:6].repeat(len(ids), 1, 1), "a row for each token"),
    "positions": (lambda ids, real: TABLE[: ids.shape[1]].repeat(len(ids), 1, 1), "does not depend on that token"),
    "dice": (lambda ids, real: TABLE[ids] + torch.randn(1), "gives other rows each time it reads the same text"),
    "the last token is dropped": (
        lambda ids, real: TABLE[torch.cat([ids[:, :-1], ids[:, -2:-1]], 1)],
        "does not depend on that token",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_row_for_each_token_is_refused(what: str) -> None:
    read, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        find_alignment(["h"], lambda ids, real: [read(ids, real)], TOKENS)


def test_hooks_of_one_pass_have_their_own_order_and_share_what_is_needed() -> None:
    def read(ids: Tensor, real: Tensor) -> list[Tensor]:
        return [padded_to(8)(ids, real), TABLE[ids].transpose(0, 1), averaged(ids, real)]

    assert find_alignment(["a", "b", "c"], read, TOKENS) == Alignment((False, True, False), multiple=8, alone=True)


@pytest.mark.parametrize("kind", ["bart", "marian", "pegasus", "mbart", "t5", "umt5"])
def test_a_decoders_rows_are_those_of_their_tokens(kind: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make: Any = AutoModel.from_config
        model = make(CONFIG_MAPPING[kind](**(T5 if "t5" in kind else BART)))
    model.save_pretrained(tmp_path / "model")
    word_tokenizer(bos=True).save_pretrained(tmp_path / "model")
    text = write_paragraphs(tmp_path / "text.txt", random_texts([3, 40, 9]))
    for side in ("encoder", "decoder"):
        hook = f"{side}.embed_tokens"
        made = harvested(tmp_path / "model", hook, text, tmp_path / side, context=16)
        assert made.tokens is not None and len(made.tokens) == 52
        expected = model.get_input_embeddings()(torch.from_numpy(made.tokens)).detach().numpy()
        scale = getattr(model.get_submodule(hook), "embed_scale", 1.0)
        np.testing.assert_allclose(all_rows(made), scale * expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["xlnet", "longformer", "t5"])
def test_hidden_states_go_back_to_where_they_came_from(kind: str, tmp_path: Path) -> None:
    """As many texts as tokens, so that an exchange of the two would keep the shape and change the numbers."""
    save_model(kind, tmp_path / "model")
    text = write_paragraphs(tmp_path / "text.txt", random_texts([7] * 8))
    hook = {"xlnet": "layer.0", "longformer": "encoder.layer.0", "t5": "decoder.block.0"}[kind]
    config = HarvestConfig(model=str(tmp_path / "model"), hook=hook, text=(text,), context=8)
    reader = Reader(config, head=True)
    batch = reader.read(list(reader.windows(documents(config.text, config.reading))))
    assert batch.hidden.shape[:2] == batch.ids.shape == (8, 8)
    given = arguments(reader.model, batch.ids, batch.real)
    with torch.inference_mode():
        untouched = reader.model(**given).last_hidden_state
        with replaced(reader.points[0], reader.laid_out(batch.hidden.clone())):
            same = reader.model(**given).last_hidden_state
        with replaced(reader.points[0], reader.laid_out(batch.hidden.flip(0))):
            other = reader.model(**given).last_hidden_state
    assert torch.equal(same, untouched)
    assert not torch.allclose(other, untouched, atol=1e-2)
