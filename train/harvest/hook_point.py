"""Where a hook is in a torch model, and how to read and replace the activations there.

A hook is at the output or at the input of a module, and counts the calls of the module within one forward pass. A
module's output is a tensor, or a tuple, list or ModelOutput that begins with one. Its input is the first of its
arguments by position. A module that is called by keywords alone has its input in `hidden_states`, or in the only tensor
among them that may be activations.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from sae_runtime.bundle.hooks import Hook, parse_hook
from sae_runtime.bundle.transformer_lens import as_module, lens_name, second_norm
from sae_runtime.train.harvest.forward import foreign_errors


@dataclass(frozen=True)
class HookPoint:
    """An activation of a torch model.

    Attributes:
        hook: its canonical text, which names a module of the base model.
        module: the module that it is at.
        is_input: whether it is the module's input; otherwise it is the output.
        call: number of the call within a forward pass, from 0; None if the module is called once.
        in_place: whether an edit reaches all that read this tensor, as an edit of the residual stream does.
        transformer_lens: TransformerLens's name of the same activations; None if it has none.
    """

    hook: str
    module: torch.nn.Module
    is_input: bool = False
    call: int | None = None
    in_place: bool = False
    transformer_lens: str | None = None

    def watch(self, act: Callable[[Any], Any]) -> RemovableHandle:
        """Call `act` at each call of the module, with its output or its `Arguments`; what it gives takes their place.

        None leaves them as they are. `activations_in` finds the activations in them.

        >>> layer = torch.nn.Identity()
        >>> handle = HookPoint("input:h.0", layer, is_input=True).watch(lambda given: with_activations(given, 2))
        >>> layer(1)
        2
        """
        if not self.is_input:
            return self.module.register_forward_hook(lambda _module, _args, output: act(output))

        def before(_module: torch.nn.Module, args: Any, named: Any) -> Any:
            given = Arguments(args, named)
            changed = act(given)
            if changed is not None and self.in_place:
                given.activations(self.hook).copy_(changed.activations(self.hook))
                return None
            return None if changed is None else (changed.args, changed.named)

        return self.module.register_forward_pre_hook(before, with_kwargs=True)

    def check_calls(self, calls: int) -> None:
        """Raise ValueError if a pass that calls the module so many times, at least once, has not one call to hook."""
        if self.call is None and calls > 1:
            raise ValueError(
                f"a forward pass calls {self.hook} {calls} times; name one of its calls, {self.hook}@0 to "
                f"{self.hook}@{calls - 1}"
            )
        if self.call is not None and self.call >= calls:
            last = f"{self.hook.rpartition('@')[0]}@{calls - 1}"
            raise ValueError(
                f"there is no {self.hook}, for a forward pass calls the module {calls} times; write {last}"
            )


@dataclass(frozen=True)
class Arguments:
    """The arguments of a call of a module, by position and by name."""

    args: tuple[Any, ...]
    named: dict[str, Any]

    def activations(self, hook: str) -> Any:
        """The argument that holds the activations.

        Raises:
            ValueError: several of them may.
        """
        if self.args:
            return self.args[0]
        tensors = {name: value for name, value in self.named.items() if _may_be_activations(value)}
        if "hidden_states" not in tensors and len({id(value) for value in tensors.values()}) > 1:
            raise ValueError(
                f"{hook} may be any of {', '.join(tensors)}; hook the output of the module that gives the one you mean"
            )
        return tensors.get("hidden_states", next(iter(tensors.values()), None))

    def with_activations(self, y: Any) -> "Arguments":
        """The arguments with y for the activations, wherever they are given."""
        x = self.activations("the input")

        def changed(value: Any) -> Any:
            return y if value is x else value

        return Arguments(tuple(map(changed, self.args)), {name: changed(value) for name, value in self.named.items()})


def _may_be_activations(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim == 3


def find_hook(model: Any, text: str) -> HookPoint:
    """The place in a transformers model, or in the base of one with a head, that a hook names.

    Raises:
        ValueError: there is no such module, and the message lists close names; or the hook is no hook of a torch model.

    >>> find_hook(model, "input:encoder.layer.3").is_input  # doctest: +SKIP
    True
    """
    base = model.base_model
    modules: dict[str, torch.nn.Module] = dict(base.named_modules())
    kind = _model_type(base)
    parsed = Hook(text) if text in modules else parse_hook(text)  # a module may have a name such as h.0.resid_pre
    if parsed.place == "tensor":
        raise ValueError(f"a torch model is hooked at [input:]MODULE[@CALL], got {text}; write encoder.layer.3")
    hook = as_module(parsed, list(modules), kind)
    # A hook may begin with the name that a model with a head gives its base model.
    known = [name for name in (hook.name, hook.name.removeprefix(f"{base.base_model_prefix}.")) if name in modules]
    if not known:
        close = difflib.get_close_matches(hook.name, filter(None, modules), n=5, cutoff=0)
        raise ValueError(f"{base.name_or_path} has no module {hook.name!r}; close names are {', '.join(close)}")
    hook = replace(hook, name=known[0])
    if hook.place in ("resid_pre", "resid_post"):
        hook = Hook(hook.name, "input" if hook.place == "resid_pre" else "output")
    stream = hook.place == "resid_mid"
    module = modules[second_norm(hook, list(modules), kind) if stream else hook.name]
    lens = str(parsed) if parsed.place == "lens" else lens_name(hook, list(modules), kind)
    return HookPoint(str(hook), module, stream or hook.place == "input", hook.call, stream, lens)


def _model_type(base: Any) -> str | None:
    """The model's type, by which its family is known."""
    config = getattr(base, "config", None)
    parallel = " parallel" if getattr(config, "use_parallel_residual", False) else ""
    kind = getattr(config, "model_type", None)
    return None if kind is None else f"{kind}{parallel}"


class _Reached(BaseException):  # no Exception, because those are the model's own
    """Ends a forward pass when all hooks are read, so that no later layer is computed."""


def hidden_states(
    points: Sequence[HookPoint],
    model: Any,
    arguments: Mapping[str, Any],
    shape: Sequence[int | str],
    *,
    whole: bool = False,
) -> list[torch.Tensor]:
    """The activations at hooks in one forward pass, each [batch, time, d_in].

    Args:
        points: the hooks, in any order.
        model: the model that holds their modules.
        arguments: of its forward pass, by name.
        shape: batch and time; a name stands for any size.
        whole: go on to the end of the model to count the calls; otherwise no layer behind the last hook is computed,
            and the first call counts at a hook without a call.

    Raises:
        MemoryError: the pass does not fit on the device.
        ValueError: the forward pass fails or does not come to a hook, a hook holds no activations, or `whole` finds
            that a module is called several times and its hook does not say which call is meant.
    """
    calls, activations = [0] * len(points), dict[int, torch.Tensor]()
    refusals: list[ValueError] = []

    def reader(number: int, point: HookPoint) -> Callable[[Any], None]:
        def read(given: Any) -> None:
            call, calls[number] = calls[number], calls[number] + 1
            if call != (point.call or 0):
                return
            try:
                x = activations_in(given, point.hook, (*shape, "d_in"))
            except ValueError as error:
                refusals.append(error)
                raise _Reached from None
            goes_on = whole or len(activations) + 1 < len(points)
            activations[number] = x.clone() if goes_on else x  # what follows may compute in place
            if not goes_on:
                raise _Reached

        return read

    handles = [point.watch(reader(number, point)) for number, point in enumerate(points)]
    try:
        with torch.inference_mode(), foreign_errors(model):
            model(**arguments)
    except _Reached:
        pass
    except ValueError:
        if len(activations) < len(points):  # what fails behind the hooks does not matter to them
            raise
    finally:
        for handle in handles:
            handle.remove()
    for refusal in refusals:
        raise refusal
    for number, point in enumerate(points):
        if not calls[number]:
            kind = type(point.module).__name__
            raise ValueError(f"the forward pass never calls {point.hook} ({kind}); hook a module inside it")
        if whole or number not in activations:
            point.check_calls(calls[number])
    return [activations[number] for number in range(len(points))]


@contextmanager
def replaced(point: HookPoint, y: torch.Tensor) -> Iterator[None]:
    """Replace the activations at a hook by y [batch, time, d_in], in one forward pass in the block.

    `hidden_states` reads the same call. The other parts of an output or of arguments stay.

    >>> layer = torch.nn.Identity()
    >>> with replaced(HookPoint("h.0", layer), torch.ones(1)):
    ...     layer(torch.zeros(1)), layer(torch.zeros(1))
    (tensor([1.]), tensor([0.]))
    """
    calls = 0

    def put(given: Any) -> Any:
        nonlocal calls
        calls += 1
        return with_activations(given, y) if calls == (point.call or 0) + 1 else None

    handle = point.watch(put)
    try:
        yield
    finally:
        handle.remove()


def activations_in(given: Any, hook: str, expected: Sequence[int | str]) -> torch.Tensor:
    """The activations in a module's output or `Arguments`.

    Args:
        given: the output, which is a tensor, or a tuple, list or ModelOutput that begins with one; or the arguments.
        hook: names the place in messages.
        expected: the size of each dimension; a name stands for any size.

    Raises:
        ValueError: there is no tensor of the expected sizes.

    >>> activations_in((torch.zeros(1, 2, 3), "more"), "h.0", ("batch", "time", 3)).shape
    torch.Size([1, 2, 3])
    >>> activations_in(torch.zeros(1, 2, 3), "h.0", ("batch", "time", 5))
    Traceback (most recent call last):
    ValueError: h.0 gives [1, 2, 3], expected [batch, time, 5]; hook a layer, for an SAE the one of its training
    """
    if isinstance(given, Arguments):
        given = given.activations(hook)
    if isinstance(given, dict):  # a ModelOutput is a dict
        given = tuple(given.values())
    x: Any = next(iter(given), None) if isinstance(given, tuple | list) else given
    is_tensor = isinstance(x, torch.Tensor) and x.ndim == len(expected) and x.is_floating_point()
    if not is_tensor or any(isinstance(n, int) and n != size for n, size in zip(expected, x.shape, strict=True)):
        shape = list(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        sizes = ", ".join(map(str, expected))
        raise ValueError(f"{hook} gives {shape}, expected [{sizes}]; hook a layer, for an SAE the one of its training")
    return torch.as_tensor(x)


def with_activations(given: Any, y: Any) -> Any:
    """A module's output or `Arguments` with y for its activations; the other parts stay.

    An output may hold its activations twice, as the last of its `hidden_states` too.

    >>> with_activations((torch.zeros(1), "more"), torch.ones(1))
    (tensor([1.]), 'more')
    """
    if isinstance(given, Arguments):
        return given.with_activations(y)
    x = given
    while not isinstance(x, torch.Tensor):
        x = next(iter(x.values() if isinstance(x, dict) else x))

    def changed(part: Any) -> Any:
        if part is x:
            return y
        if isinstance(part, dict):
            for name in list(part):
                part[name] = changed(part[name])
        elif hasattr(part, "_replace"):  # a named tuple
            return part._replace(**{name: changed(value) for name, value in part._asdict().items()})
        elif isinstance(part, tuple | list):
            return type(part)(map(changed, part))
        return part

    return changed(given)
