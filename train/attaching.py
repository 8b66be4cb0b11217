"""An SAE at work inside a live torch model: features out, edits in, also while it generates."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sae_runtime.core.edits import Edit, as_inputs
from sae_runtime.core.features import Features
from sae_runtime.train.harvest.host_model import find_module
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
    """Read the features of a module's output, and edit them, for as long as the block lasts.

    Each call of the module appends its features [b, t], as they are before editing, by the served rule; padding counts
    as a token. Edits are those of `SAE.steer`: all that the SAE cannot explain stays. A graph that `splice` makes with
    the same SAE and hook gives the same. The features of a transcoder can be read, and cannot be edited.

    Args:
        model: a transformers model; it may generate, with keys and values or without.
        hook: a module of it, as `harvest` names it, that gives a tensor, or a tuple or ModelOutput that begins with
            one, [b, t, d_in].
        sae: a bundle, exported or not, or what `open_sae` makes of it; it is moved to the model's device.
        edits: one list for all requests, or a list for each of the b; a request that is searched by several beams
            takes its list along.
        gate: the tokens that are edited: "all", those of the "prompt" (of a pass that nothing went before), the
            "generated" ones, or some by their position, counted from 0 without padding.
        replace: put the reconstruction, with the edits, in the place of the activation.

    Raises:
        BundleError: the bundle cannot be trusted.
        ValueError: the model has no such module, it gives no activations of the SAE's width, a feature is out of range
            or edited twice, there are other lists of edits than requests, the gate is unknown, or a transcoder is to
            edit or replace what it reads.

    >>> model = AutoModelForCausalLM.from_pretrained("gpt2")  # doctest: +SKIP
    >>> with attach(model, "h.6", "my-sae", [Edit.add(12, 5.0)]) as features:  # doctest: +SKIP
    ...     model.generate(**tokens)
    """
    opened = open_sae(sae) if isinstance(sae, str | Path) else sae
    if isinstance(gate, str) and gate not in ("all", "prompt", "generated"):
        raise ValueError(f"the gate is 'all', 'prompt', 'generated' or some positions, got {gate!r}")
    module = find_module(model.base_model, hook)
    requests: Any = edits if edits and not isinstance(edits[0], Edit) else [edits]
    numbers = {name: torch.from_numpy(a) for name, a in as_inputs(requests, opened.manifest.architecture.d_sae).items()}
    work = _Work(opened, hook, numbers, gate, replace)
    opened.to(model.device)
    # The caller may call the model with its head or its base; both pass the same masks.
    callers = dict.fromkeys((model, model.base_model))
    handles = [caller.register_forward_pre_hook(work.place.look, with_kwargs=True) for caller in callers]
    handles.append(module.register_forward_hook(work))
    try:
        yield work.read
    finally:
        for handle in handles:
            handle.remove()


class _Work:
    """What is done at each call of the hooked module: `read` grows by its features, and its output may change."""

    def __init__(self, sae: TorchSAE, hook: str, numbers: dict[str, Tensor], gate: Gate, replace: bool) -> None:
        self.sae, self.hook, self.numbers, self.gate, self.replace = sae, hook, numbers, gate, replace
        self.edited = numbers["features"].numel() > 0
        if self.edited or replace:
            sae.refuse_transcoder()
        self.read: list[Features] = []
        self.place = _Place()

    @torch.no_grad()
    def __call__(self, _module: Any, _args: Any, output: Any) -> Any:
        whole = _activations(output, self.hook, self.sae.manifest.architecture.d_in)
        x = whole.float().reshape(-1, whole.shape[2])
        f = self.sae.features(x)
        self.read.append(_sparse(f, whole.shape[:2]))
        if not self.edited and not self.replace:
            return output
        y = self.sae.decode(f, x) if self.replace else x
        change = _change(self.sae, f, x, whole.shape, self.numbers) * self.place.gates(self.gate, whole)
        return _with(output, (y.view(whole.shape) + change).to(whole.dtype))


class _Place:
    """Which tokens of its requests the model reads, from the arguments of its last call."""

    def __init__(self) -> None:
        self._seen = 0
        self._mask: Tensor | None = None

    def look(self, _model: Any, _args: Any, settings: dict[str, Any]) -> None:
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
    """What the edits add to the activations x [b t, d_in] with features f: size (f' - f) W_dec[features], `shape`."""
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


def _activations(output: Any, hook: str, width: int) -> Tensor:
    """The tensor in what a module gives."""
    first = output
    if isinstance(output, dict):  # as a ModelOutput is
        first = next(iter(output.values()), None)
    elif isinstance(output, tuple | list):
        first = output[0] if output else None
    if not isinstance(first, Tensor) or first.ndim != 3 or first.shape[2] != width:
        shape = list(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ValueError(f"{hook} gives {shape}, this SAE expects [b, t, {width}]; hook the module it was fitted on")
    return first


def _with(output: Any, y: Tensor) -> Any:
    """What a module gives, with y for its activations."""
    if isinstance(output, Tensor):
        return y
    if isinstance(output, dict):
        output[next(iter(output))] = y
        return output
    if hasattr(output, "_replace"):  # a named tuple
        return output._replace(**{output._fields[0]: y})
    return type(output)([y, *output[1:]])
