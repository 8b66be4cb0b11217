"""The change that edits of several requests make to the packed rows of a pass."""

from collections.abc import Mapping, Sequence
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
        old = _in_tiles(sae, x, self.features).gather(1, columns)
        scale, shift, low, high = self._numbers[:, owners]
        new = edited(old, scale, shift, low, high, self._only_active[owners])
        moved = torch.zeros(len(x), len(self.features), device=x.device).scatter_add_(1, columns, new - old)
        change = moved @ sae.W_dec[self.features]
        size = sae.normalised(x)[2]
        return change if size is None else change * size


def _in_tiles(sae: TorchSAE, x: Tensor, features: Tensor) -> Tensor:
    rows = max(1, _NUMBERS // sae.manifest.architecture.d_sae)
    return torch.cat([sae.some_features(tile, features) for tile in torch.split(x, rows)])


def strongest(sae: TorchSAE, x: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """The strongest features of activations x [n, d_in]: their numbers and values, falling, both [n, k].

    Args:
        sae: of the activations.
        x: float32.
        most: features of a row; None: every active one, so that k is what the fullest row has.

    >>> strongest(open_sae(bundle_path), torch.zeros(2, 24), 5)[0].shape
    torch.Size([2, 5])
    """
    d_sae = sae.manifest.architecture.d_sae
    found = []
    for tile in torch.split(x, max(1, _NUMBERS // d_sae)):
        f = sae.features(tile)
        k = max(1, int((f > 0).sum(dim=1).max())) if most is None else min(most, d_sae)
        found.append(f.topk(k, dim=1))
    widest = max(values.shape[1] for values, _ in found)
    values = torch.cat([torch.nn.functional.pad(values, (0, widest - values.shape[1])) for values, _ in found])
    indices = torch.cat([torch.nn.functional.pad(numbers, (0, widest - numbers.shape[1])) for _, numbers in found])
    return indices, values


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
