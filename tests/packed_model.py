"""A stand-in for vLLM's model and its runner: packed rows, blocks that give two tensors, norms that add them up."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 50


class Norm(nn.Module):
    """Adds up what a block gives, in place, as vLLM's kernels do."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        if residual is None:
            return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        residual += x
        x.copy_(residual / (residual.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt())
        return x, residual


class Block(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.input_layernorm, self.mlp = Norm(), nn.Linear(d, d)

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            residual, hidden_states = hidden_states.clone(), self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


class Base(nn.Module):
    def __init__(self, d: int, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, d)
        self.layers, self.norm = nn.ModuleList(Block(d) for _ in range(blocks)), Norm()

    def forward(self, input_ids: Tensor, positions: Tensor) -> Any:
        hidden, residual = self.embed(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        normed, _ = self.norm(hidden, residual)
        return normed


class PackedModel(nn.Module):
    """A language model of vLLM's kind."""

    def __init__(self, d: int, blocks: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Base(d, blocks)
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Any:
        return self.model(input_ids=input_ids, positions=positions)


class Runner:
    """Keeps the order of requests where vLLM's first runner does."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self.model_config = model, SimpleNamespace(hf_text_config=SimpleNamespace(model_type="llama"))
        self.input_batch = SimpleNamespace(req_ids=list[str](), num_reqs=0)
        self.input_ids = SimpleNamespace(gpu=torch.zeros(512, dtype=torch.long))

    def get_model(self) -> nn.Module:
        return self._model

    def short(self) -> None:
        self._model(torch.zeros(8, dtype=torch.long), torch.zeros(8, dtype=torch.long))

    def run(self, order: Sequence[str], ids: Mapping[str, Sequence[int]], padding: int = 3) -> Tensor:
        """A pass over packed rows with some rows of padding behind them."""
        self.input_batch.req_ids, self.input_batch.num_reqs = [*order, "left over"], len(order)
        packed = torch.tensor([number for one in order for number in ids[one]] + [0] * padding)
        self.input_ids.gpu[: len(packed)] = packed
        hidden: Tensor = self._model(packed, torch.zeros_like(packed))
        return hidden


def scheduled(
    new: Mapping[str, tuple[Mapping[str, Any] | None, int]],
    counts: Mapping[str, int],
    *,
    cached: Mapping[str, int] | None = None,
    finished: Sequence[str] = (),
    positions: Mapping[str, int] | None = None,
) -> Any:
    """What the scheduler sends: new requests with plan and length of prompt, and positions of those it sent before."""
    known, first = cached or {}, positions or {}
    return SimpleNamespace(
        finished_req_ids=set(finished),
        scheduled_new_reqs=[
            SimpleNamespace(
                req_id=name,
                prompt_len=prompt,
                num_computed_tokens=first.get(name, 0),
                sampling_params=SimpleNamespace(extra_args=None if plan is None else {"sae": plan}),
            )
            for name, (plan, prompt) in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(req_ids=list(known), num_computed_tokens=list(known.values())),
        num_scheduled_tokens=dict(counts),
        total_num_scheduled_tokens=sum(counts.values()),
    )
