"""Read and edit the features of an SAE inside a live torch model, also while it generates."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sae_runtime.core.edits import Edit, as_inputs
from sae_runtime.core.features import Features
from sae_runtime.train.harvest.hook_point import HookPoint, activations_in, find_hook, with_activations
from sae_runtime.train.measure.torch_sae import TorchSAE, open_sae

Gate = Literal["all", "prompt", "generated"] | Collection[int]


@contextmanager
def attach(
    model: Any,
    hook: str,
    sae: TorchSAE | str | Path,
    edits: Sequence[Edit] | Sequence[Sequence[Edit]] = (),
    *,
    gate: Gate = "all",
    replace: bool = False,
) -> Iterator[list[Features]]:
    """Read the features of the activations at a hook, and edit them, while the block lasts.

    Each forward pass appends its features [b, t], as they are before the edits, by the served rule. Padding counts as a
    token. The edits are those of `SAE.steer`, which keep the error x - x_hat. A graph that `splice` makes
    with the same SAE and hook has the same features and outputs. The features of a transcoder can be read but not
    edited.

    Args:
        model: a transformers model; it may generate, with a cache of keys and values or without.
        hook: as `harvest` names it: [input:]MODULE[@CALL]. The activations there are [b, t, d_in].
        sae: a bundle, exported or not, or the result of `open_sae`; it is moved to the model's device.
        edits: one list for all requests, or a list for each of the b. If a request is searched by several beams, all of
            them get its list.
        gate: the tokens that are edited: "all", the tokens of the "prompt" (of a pass before which no token was read),
            the "generated" tokens, or a set of positions, counted from 0 without padding.
        replace: replace the activation by its reconstruction with the edits.

    Returns:
        The list of features, which grows with each forward pass.

    Raises:
        BundleError: the bundle is damaged.
        ValueError: the model has no such hook, the hook has no activations of the SAE's d_in, a pass calls the module
            several times and the hook does not name one call, a feature is out of range or edited twice, the number of
            lists does not fit the requests, the gate is unknown, or a transcoder is to edit or replace the activations
            that it reads.

    >>> model = AutoModelForCausalLM.from_pretrained("gpt2")  # doctest: +SKIP
    >>> with attach(model, "h.6", "my-sae", [Edit.add(12, 5.0)]) as features:  # doctest: +SKIP
    ...     model.generate(**tokens)
    """
    opened = open_sae(sae) if isinstance(sae, str | Path) else sae
    if isinstance(gate, str) and gate not in ("all", "prompt", "generated"):
        raise ValueError(f"the gate must be 'all', 'prompt', 'generated' or a set of positions, got {gate!r}")
    point = find_hook(model, hook)
    requests: Any = edits if edits and not isinstance(edits[0], Edit) else [edits]
    numbers = {name: torch.from_numpy(a) for name, a in as_inputs(requests, opened.manifest.architecture.d_sae).items()}
    work = _Work(opened, point, numbers, gate, replace)
    opened.to(model.device)
    # The caller may call the model with its head or its base; both pass the same masks.
    callers = dict.fromkeys((model, model.base_model))
    handles = [caller.register_forward_pre_hook(work.begin, with_kwargs=True) for caller in callers]
    handles += [caller.register_forward_hook(work.end) for caller in callers]
    handles.append(point.watch(work))
    try:
        yield work.read
    finally:
        for handle in handles:
            handle.remove()


class _Work:
    """What is done at the hook: in each forward pass the features go to `read`, and the activations may be changed."""

    def __init__(self, sae: TorchSAE, point: HookPoint, numbers: dict[str, Tensor], gate: Gate, replace: bool) -> None:
        self.sae, self.point, self.numbers, self.gate, self.replace = sae, point, numbers, gate, replace
        self.edited = numbers["features"].numel() > 0
        if self.edited or replace:
            sae.refuse_transcoder()
        self.read: list[Features] = []
        self.place = _Place()
        self.calls, self.running = 0, False  # calls of the module in this pass; whether a pass of the model runs

    def begin(self, _model: Any, _args: Any, settings: dict[str, Any]) -> None:
        self.calls, self.running = 0, True
        self.place.look(settings)

    def end(self, _model: Any, _args: Any, _output: Any) -> None:
        if self.calls:
            self.point.check_calls(self.calls)
        self.calls, self.running = 0, False

    @torch.no_grad()
    def __call__(self, given: Any) -> Any:
        call, self.calls = self.calls, self.calls + 1
        if call != (self.point.call or 0) and (self.running or self.point.call):
            return None  # an encoder that is called by itself has no begin and no end: each of its calls is a pass
        whole = activations_in(given, self.point.hook, ("batch", "time", self.sae.manifest.architecture.d_in))
        x = whole.float().reshape(-1, whole.shape[2])
        f = self.sae.features(x)
        self.read.append(_sparse(f, whole.shape[:2]))
        if not self.edited and not self.replace:
            return None
        y = self.sae.decode(f, x) if self.replace else x
        change = _change(self.sae, f, x, whole.shape, self.numbers) * self.place.gates(self.gate, whole)
        return with_activations(given, (y.view(whole.shape) + change).to(whole.dtype))


class _Place:
    """The positions of the tokens that the model reads, from the arguments of its last call."""

    def __init__(self) -> None:
        self._seen = 0
        self._mask: Tensor | None = None

    def look(self, settings: dict[str, Any]) -> None:
        past = settings.get("past_key_values")
        self._seen = 0 if past is None else int(past.get_seq_length())
        mask = settings.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def gates(self, gate: Gate, x: Tensor) -> Tensor | float:
        """1 where tokens are edited and 0 elsewhere, broadcastable to [b, t, 1]."""
        if isinstance(gate, str):
            return float(gate == "all" or (gate == "prompt") == (self._seen == 0))
        end = self._seen + x.shape[1]
        if self._mask is None or self._mask.shape[1] < end:
            position = torch.arange(self._seen, end, device=x.device)[None]
        else:
            real = self._mask[:, :end].long()
            position = (real.cumsum(dim=1) - 1).masked_fill(real == 0, -1)[:, self._seen :]
        chosen = torch.tensor(sorted(gate), dtype=torch.long, device=position.device)
        return torch.isin(position, chosen).float()[..., None].to(x.device)


def _change(sae: TorchSAE, f: Tensor, x: Tensor, shape: tuple[int, ...], numbers: dict[str, Tensor]) -> Tensor:
    """The change of activations x [b t, d_in] with features f by the edits: size (f' - f) W_dec[features], `shape`."""
    requests, (b, t, _) = len(numbers["features"]), shape
    if b % requests:
        raise ValueError(f"{requests} lists of edits do not fit {b} requests; give one list, or one for each")
    repeated = {name: a.to(f.device).repeat_interleave(b // requests, dim=0) for name, a in numbers.items()}
    features = repeated.pop("features")
    scale, shift, low, high = (repeated[name][:, None] for name in ("scale", "shift", "low", "high"))
    old = f.view(b, t, -1).gather(2, features[:, None].expand(-1, t, -1))
    new = torch.minimum(torch.maximum(scale * old + shift, low), high)
    change = (new - old) @ sae.W_dec[features]
    size = sae.normalised(x)[2]
    return change if size is None else change * size.view(b, t, 1)


def _sparse(f: Tensor, shape: tuple[int, ...]) -> Features:
    """Features of `shape` tokens from their activations f [n, d_sae]."""
    token, feature = f.nonzero(as_tuple=True)
    indptr = np.concatenate([[0], torch.bincount(token, minlength=len(f)).cumsum(0).cpu().numpy()])
    return Features(indptr, feature.int().cpu().numpy(), f[token, feature].cpu().numpy(), f.shape[1], tuple(shape))
