"""The change that edits of several requests make to the packed rows of a pass."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.core.gates import by_word
from sae_runtime.serve.vllm.packed_rows import Rows
from sae_runtime.train.measure.torch_sae import TorchSAE, edited

_IDLE = {"features": None, "scale": 1.0, "shift": 0.0, "low": -torch.inf, "high": torch.inf, "only_active": False}
_NUMBERS = 1 << 24  # pre-activations that are computed at once


class EditTables:
    """The edits of some requests as tensors, for passes in which these requests are together.

    Args:
        edits: of each request the arrays of `edit_arrays`, as lists.
        device: of the model.

    Attributes:
        features: numbers of all features that some request edits, [u].
    """

    def __init__(self, edits: Sequence[Mapping[str, list[Any]]], device: torch.device) -> None:
        union = np.unique(np.concatenate([np.asarray(one["features"], np.int64) for one in edits]))
        longest = max(len(one["features"]) for one in edits)
        padded = {
            name: [[*one[name], *[union[0] if idle is None else idle] * (longest - len(one[name]))] for one in edits]
            for name, idle in _IDLE.items()
        }
        self.features = torch.from_numpy(union).to(device)
        columns = np.searchsorted(union, np.array(padded["features"], np.int64))
        self._columns = torch.from_numpy(columns).to(device)
        numbers = np.array([padded[name] for name in ("scale", "shift", "low", "high")], np.float32)
        self._numbers = torch.from_numpy(numbers).to(device)
        self._only_active = torch.tensor(padded["only_active"], dtype=torch.bool, device=device)

    def change(self, sae: TorchSAE, x: Tensor, owners: Tensor) -> Tensor:
        """The change of activations x [n, d_in] by the edits of the request that each row belongs to, [n, d_in].

        As for `attach`: size (f' - f) W_dec[features], f' = clip(scale f + shift, low, high).

        Args:
            sae: of the activations.
            x: float32, before the edits.
            owners: number of each row's request, [n].
        """
        columns = self._columns[owners]
        old = torch.cat([sae.some_features(tile, self.features) for tile in _tiles(sae, x)]).gather(1, columns)
        scale, shift, low, high = self._numbers[:, owners]
        new = edited(old, scale, shift, low, high, self._only_active[owners])
        moved = torch.zeros(len(x), len(self.features), device=x.device).scatter_add_(1, columns, new - old)
        change = moved @ sae.W_dec[self.features]
        size = sae.normalised(x)[2]
        return change if size is None else change * size


def bounded(change: Tensor, x: Tensor, most: float) -> Tensor:
    """A change of x, both [n, d_in], that leads no number beyond a bound; where it is NaN, it is 0.

    A NaN does not stay with its caller: vLLM's attention multiplies what an earlier request left in a block of the
    cache by 0, and that is NaN for all who get the block.

    Args:
        change: float32.
        x: float32. Where it is beyond the bound already, it may come nearer.
        most: the bound.

    >>> bounded(torch.tensor([[torch.inf, 3.0, torch.nan]]), torch.ones(1, 3), 100.0)
    tensor([[99.,  3.,  0.]])
    """
    return change.nan_to_num(0.0, torch.inf, -torch.inf).clamp((-most - x).clamp(max=0), (most - x).clamp(min=0))


def _tiles(sae: TorchSAE, x: Tensor) -> Sequence[Tensor]:
    """Rows of x in parts, each small enough for all its pre-activations at once."""
    return torch.split(x, max(1, _NUMBERS // sae.manifest.architecture.d_sae))


def strongest(sae: TorchSAE, x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The strongest features of activations x [n, d_in]: their numbers and values, falling, both [n, k].

    A row that is NaN or Inf has one feature, the first, whose value is Inf.

    Args:
        sae: of the activations.
        x: float32.
        most: features of a row.

    >>> from sae_runtime.train.measure.torch_sae import open_sae
    >>> strongest(open_sae(bundle_path), torch.zeros(2, 24), 5)[0].shape
    torch.Size([2, 5])
    """
    found = [f.topk(min(most, f.shape[1]), dim=1) for f in _features(sae, x)]
    return torch.cat([numbers for _, numbers in found]), torch.cat([values for values, _ in found])


def every_active(sae: TorchSAE, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every active feature of activations x [n, d_in], without room for those that other rows have more.

    Special tokens may have a hundred times the features of others. Of rows that are NaN or Inf see `strongest`.

    Args:
        sae: of the activations.
        x: float32.

    Returns:
        How many each row has, [n], and the numbers, ascending in a row, and the values of all of them, both [m].

    >>> from sae_runtime.train.measure.torch_sae import open_sae
    >>> every_active(open_sae(bundle_path), torch.full((2, 24), torch.nan))[2]
    tensor([inf, inf])
    """
    found = []
    for f in _features(sae, x):
        active = f > 0
        found.append((active.sum(dim=1), active.nonzero()[:, 1], f[active]))
    counts, numbers, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    return counts, numbers, values


def _features(sae: TorchSAE, x: Tensor) -> Iterator[Tensor]:
    """The features of each tile of rows."""
    for tile in _tiles(sae, x):
        broken = ~tile.isfinite().all(dim=1)
        f = sae.features(tile.masked_fill(broken[:, None], 0))
        f[:, 0].masked_fill_(broken, torch.inf)
        yield f


def reached(gate: str | list[int], rows: Rows, prompt_tokens: int) -> NDArray[np.int64]:
    """Numbers in the batch of the rows that a gate reaches; special tokens are not known here.

    Args:
        gate: a word, or positions.
        rows: of a request.
        prompt_tokens: number of tokens of its prompt.

    >>> reached("generated", Rows("a", start=4, count=3, position=7), prompt_tokens=8).tolist()
    [5, 6]
    """
    places = rows.positions
    inside = np.isin(places, gate) if isinstance(gate, list) else by_word(gate, places, prompt_tokens)  # type: ignore[arg-type]
    return rows.start + np.flatnonzero(inside)
