"""Read and edit the features of an SAE inside a live torch model, also while it generates."""

import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_runtime.bundle.labels import read_labels
from sae_runtime.core.edits import Edit, by_label, edit_arrays
from sae_runtime.core.features import Features
from sae_runtime.core.gates import WordOfPlaces
from sae_runtime.train.gates import Gate, padding
from sae_runtime.train.generations import watched
from sae_runtime.train.harvest.hook_point import HookPoint, activations_in, find_hook, with_activations
from sae_runtime.train.measure.torch_sae import TorchSAE, edited, open_sae
from sae_runtime.train.token_positions import Reader, models_around


@contextmanager
def attach(
    model: Any,
    hook: str,
    sae: TorchSAE | str | Path,
    edits: Edit | Sequence[Edit] | Sequence[Sequence[Edit]] = (),
    *,
    gate: WordOfPlaces | Collection[int] = "all",
    prompt_tokens: int | Sequence[int] | None = None,
    skip_ids: Collection[int] = (),
    replace: bool = False,
) -> Iterator[list[Features]]:
    """Read the features of the activations at a hook, and edit them, while the block lasts.

    Each forward pass appends its features [b, t], as they are before the edits, by the served rule. All tokens are
    read, padding too. A graph that `splice` makes with the same SAE and hook has the same features and outputs. The
    features of a transcoder can be read but not edited. Gradients flow through edits and reconstructions to the
    activations. Blocks may be nested: of several SAEs at one hook the one attached first reads and edits first, and the
    next reads what it wrote. In the block a compiled model runs without its compiled code, which knows no hooks.

    The gate chooses the tokens that are edited. Padding never is, where the model is given a mask of it.

    - "all".
    - "prompt": the tokens that `generate` was given. Where passes are made by hand, those of the first pass of a text;
      single tokens that follow with its cache are generated. In an encoder all tokens are prompt.
    - "generated": the tokens that `generate` chose. The first of them comes from the last token of the prompt, so no
      edit of generated tokens can move it.
    - "last_prompt": the last token of the prompt.
    - "answer": the last token of the prompt and the generated ones, thus every token that a new one comes from.
    - A set of positions, which count a request's tokens from 0, without padding.

    Args:
        model: a transformers model; it may generate, with a cache of keys and values or without.
        hook: as `harvest` names it: [input:]MODULE[@CALL]. The activations there are [b, t, d_in].
        sae: a bundle, exported or not, or the result of `open_sae`; it is moved to the model's device.
        edits: one or a list for all requests, or a list for each of the b. If a request is searched by several beams,
            all of them get its list.
        gate: the tokens that are edited.
        prompt_tokens: number of tokens of the prompt without padding, one for all requests, or one for each; None to
            learn it from the passes.
        skip_ids: tokens that are not edited, such as `tokenizer.all_special_ids`.
        replace: replace the activation by its reconstruction with the edits; the gate is for edits alone.

    Returns:
        The list of features, which grows with each forward pass.

    Raises:
        BundleError: the bundle is damaged.
        ValueError: the model has no such hook, the hook has no activations of the SAE's d_in, a pass calls the module
            several times and the hook does not name one call, a feature is out of range or edited twice, no feature or
            several have a label, an edit needs its largest activation and the bundle has none, the number of lists does
            not fit the requests, the gate is unknown, it is not known which tokens the gate means or which are padding,
            a copy of the model runs, the module is computed again by gradient checkpointing, the model is none of
            transformers or puts time before the batch, a transcoder is to edit or replace the activations that it
            reads, or a token that is not known to be padding is NaN or Inf, or overflows as a feature or by an edit.
            Such padding has no features.

    Warns:
        UserWarning: the model ran, and the module at the hook never did.

    >>> model = AutoModelForCausalLM.from_pretrained("gpt2")  # doctest: +SKIP
    >>> with attach(model, "h.6", "my-sae", [Edit.add(12, 5.0)], gate="answer") as features:  # doctest: +SKIP
    ...     model.generate(**tokens)
    """
    if not hasattr(model, "base_model"):
        raise ValueError(f"attach takes a model of transformers, got {type(model).__name__}; give it the model inside")
    opened = open_sae(sae) if isinstance(sae, str | Path) else sae
    chooses = Gate(gate, prompt_tokens, skip_ids)
    point = find_hook(model, hook)
    requests, d_sae = _requests(edits), opened.manifest.architecture.d_sae
    labels = read_labels(opened.path, d_sae) if by_label(requests) else None
    arrays = edit_arrays(requests, d_sae, opened.largest, labels)
    numbers = {name: torch.from_numpy(array) for name, array in arrays.items()}
    opened.to(model.device)
    models = models_around(model, point.module)
    with ExitStack() as stack:
        stack.enter_context(_eager())
        reader = Reader(models, [stack.enter_context(watched(one)) for one in models], all_tokens=chooses.all_tokens)
        read: list[Features] = []
        work = _Work(opened, point, numbers, reader, chooses, replace, read, _layers_around(model, point.module))
        # The caller may call the model with its head or its base.
        callers = dict.fromkeys((model, model.base_model))
        handles = [caller.register_forward_pre_hook(lambda *_: work.begin()) for caller in callers]
        end: Callable[..., None] = lambda _model, _args, output: work.end(output)  # noqa: E731
        handles += [caller.register_forward_hook(end, always_call=True) for caller in callers]
        handles += reader.follow(lambda: point.watch(work))
        for handle in handles:
            stack.callback(handle.remove)
        yield read
    if work.passes and not work.called:
        warnings.warn(
            f"the model ran {work.passes} times and never called {point.hook}, so nothing was read or edited; hook a "
            "module that the forward pass calls",
            stacklevel=3,
        )


def _requests(edits: Any) -> list[list[Edit]]:
    """The edits of each request; those of one list are for all."""
    given = list(edits) if isinstance(edits, Iterable) else [edits]
    requests = given if given and all(isinstance(one, Sequence) for one in given) else [given]
    for edit in (edit for request in requests for edit in request):
        if not isinstance(edit, Edit):
            raise ValueError(
                f"edits must be a list of Edit, or such a list for each request, got {type(edit).__name__} in a list"
            )
    return requests


def _layers_around(model: Any, module: torch.nn.Module) -> list[Any]:
    """The layers around a module that gradient checkpointing computes again; hooks at a layer itself run once."""
    name = "GradientCheckpointingLayer"  # a class that releases of transformers before 4.53 lack
    layers = [one for one in model.modules() if any(kind.__name__ == name for kind in type(one).__mro__)]
    return [layer for layer in layers if any(one is module for one in layer.children() for one in one.modules())]


_stance, _blocks = ExitStack(), [0]  # of torch.compile, and how many blocks are open


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled models without their compiled code, until the last of several blocks ends.

    Compiled code does not run hooks that came after it, and goes on with those that it was compiled with.
    """
    if not _blocks[0]:
        _stance.enter_context(torch.compiler.set_stance("force_eager"))
    _blocks[0] += 1
    try:
        yield
    finally:
        _blocks[0] -= 1
        if not _blocks[0]:
            _stance.close()


class _Work(threading.local):
    """What is done at the hook: in each forward pass the features go to `read`, and the activations may be changed.

    Each thread counts its own passes.
    """

    def __init__(
        self,
        sae: TorchSAE,
        point: HookPoint,
        numbers: dict[str, Tensor],
        reader: Reader,
        gate: Gate,
        replace: bool,
        read: list[Features],
        layers: list[Any],
    ) -> None:
        self.sae, self.point, self.numbers, self.replace = sae, point, numbers, replace
        self.reader, self.gate, self.read, self.layers = reader, gate, read, layers
        self.edited = numbers["features"].numel() > 0
        if self.edited or replace:
            sae.refuse_transcoder()
        self.passes, self.called = 0, False  # passes of the model; whether any of them called the module
        self.calls, self.running = 0, False  # calls of the module in this pass; whether a pass of the model runs

    def begin(self) -> None:
        self.passes += not self.running
        self.calls, self.running = 0, True

    def end(self, output: Any) -> None:
        calls, self.calls, self.running = self.calls, 0, False
        if calls and output is not None:  # a pass that failed has no output
            self.point.check_calls(calls)

    def __call__(self, given: Any) -> Any:
        call, self.calls, self.called = self.calls, self.calls + 1, True
        if call != (self.point.call or 0) and (self.running or self.point.call):
            return None  # an encoder that is called by itself has no begin and no end: each of its calls is a pass
        # While gradients are computed, a graph task runs.
        again = any(layer.gradient_checkpointing and layer.training for layer in self.layers)
        if again or torch._C._current_graph_task_id() != -1:
            raise ValueError(
                f"gradient checkpointing computes {self.point.hook} a second time in backward, where attach cannot "
                "follow; hook a whole layer, or turn checkpointing off"
            )
        whole = activations_in(given, self.point.hook, ("batch", "time", self.sae.manifest.architecture.d_in))
        if not torch.is_autocast_enabled(whole.device.type):
            return self._act(given, whole)
        with torch.autocast(whole.device.type, enabled=False):  # the SAE computes in float32
            return self._act(given, whole)

    def _act(self, given: Any, whole: Tensor) -> Any:
        # An edit in place must not change what backward reads.
        x = (whole.clone() if self.point.in_place else whole).float().reshape(-1, whole.shape[2])
        f = self._finite(self.sae.features(x), x, whole, "its features")
        self.read.append(_sparse(f.detach(), whole.shape[:2]))
        if not self.edited and not self.replace:
            return None
        y = self.sae.decode(f, x) if self.replace else x
        if self.edited:
            chosen = self.gate.chosen(self.reader.now, whole)
            y = y + (_change(self.sae, f, x, whole.shape, self.numbers) * chosen).view(y.shape)
        y = y.to(whole.dtype)
        self._finite(y, y, whole, f"its edited activation in {str(whole.dtype).removeprefix('torch.')}")
        return with_activations(given, y.view(whole.shape))

    def _finite(self, numbers: Tensor, x: Tensor, whole: Tensor, what: str) -> Tensor:
        """The numbers [b t, any] of tokens x [b t, d_in], with 0 for padding that is not finite.

        Raises:
            ValueError: a token, or what was computed of it, is NaN or Inf, and it is not known to be padding.
        """
        # Finite numbers may have a sum that is not; then each is looked at.
        if bool((numbers.detach().sum() + x.detach().sum()).isfinite()):
            return numbers
        bad = ~(numbers.isfinite().all(dim=1) & x.isfinite().all(dim=1)).view(whole.shape[:2])
        real = bad & ~padding(self.reader.now, bad)
        if real.any():
            request, token = real.nonzero()[0].tolist()
            raise ValueError(
                f"token {token} of request {request} at {self.point.hook} is NaN or Inf, or {what} overflow; mend the "
                "model, or give smaller edits"
            )
        return torch.where(bad.view(-1, 1), 0, numbers)


def _change(sae: TorchSAE, f: Tensor, x: Tensor, shape: tuple[int, ...], numbers: dict[str, Tensor]) -> Tensor:
    """The change of activations x [b t, d_in] with features f by the edits: size (f' - f) W_dec[features], `shape`."""
    requests, (b, t, _) = len(numbers["features"]), shape
    if b % requests:
        raise ValueError(f"{requests} lists of edits do not fit {b} requests; give one list, or one for each")
    if 1 < requests < b:  # one list is broadcast
        numbers = {name: a.repeat_interleave(b // requests, dim=0) for name, a in numbers.items()}
    features, *amounts = (a.to(f.device)[:, None] for a in numbers.values())
    old = f.view(b, t, -1).gather(2, features.expand(b, t, -1))
    change = (edited(old, *amounts) - old) @ sae.W_dec[features[:, 0]]
    size = sae.normalised(x)[2]
    return change if size is None else change * size.view(b, t, 1)


def _sparse(f: Tensor, shape: tuple[int, ...]) -> Features:
    """Features of `shape` tokens from their activations f [n, d_sae]."""
    token, feature = f.nonzero(as_tuple=True)
    indptr = np.concatenate([[0], torch.bincount(token, minlength=len(f)).cumsum(0).cpu().numpy()])
    return Features(indptr, feature.int().cpu().numpy(), f[token, feature].cpu().numpy(), f.shape[1], tuple(shape))
