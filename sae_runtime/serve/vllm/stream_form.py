"""In which form a module of vLLM gives or takes activations, found by a short run of the model.

Many of vLLM's blocks give two tensors whose sum is the residual stream, which the next norm adds up. Its norms give two
tensors as well, and there the activation is the first. Which is meant is seen by what the next module does with them.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Form = Literal["one", "sum", "first"]
"""The activation is the only tensor, the sum of two, or the first of two."""


@dataclass(frozen=True)
class Pair:
    """The activations in what a module takes or gives.

    Attributes:
        first: float [rows, d].
        second: of the same shape, where there is one.
        rebuilt: what the module takes or gives with other tensors for the two.
    """

    first: Tensor
    second: Tensor | None
    rebuilt: Callable[[Tensor, Tensor | None], Any]


def in_output(output: Any) -> Pair | None:
    """The activations in a module's output; None if it has none.

    >>> in_output((torch.ones(2, 3), None)).second is None
    True
    """
    parts = _parts(output)
    if not parts or not _is_rows(parts[0]):
        return None
    shape, count = parts[0].shape, 2 if len(parts) > 1 and _are_alike(parts[0], parts[1]) else 1

    def rebuilt(*changed: Tensor | None) -> Any:
        whole = *(one.view(shape) for one in changed[:count] if one is not None), *parts[count:]
        return whole if isinstance(output, tuple) else whole[0]

    return Pair(_rows(parts[0]), _rows(parts[1]) if count == 2 else None, rebuilt)


def in_arguments(args: tuple[Any, ...], named: dict[str, Any]) -> Pair | None:
    """The activations in the arguments of a module: `hidden_states` or `x`, or the first rows of numbers among them."""
    given: dict[int | str, Any] = dict(enumerate(args))
    given |= {name: value for name, value in named.items()}
    places = [place for place in dict.fromkeys(("hidden_states", "x", *given)) if _is_rows(given.get(place))]
    if not places:
        return None
    first = given[places[0]]
    # A tensor may be given twice, as the activations and as the stream that they are added to later.
    seconds = [place for place in places if given[place] is not first and _are_alike(first, given[place])]

    def rebuilt(y: Tensor, other: Tensor | None) -> Any:
        changed = {**given, places[0]: y.view(first.shape)}
        if seconds and other is not None:
            changed[seconds[0]] = other.view(first.shape)
        return tuple(changed[i] for i in range(len(args))), {name: changed[name] for name in named}

    return Pair(_rows(first), _rows(given[seconds[0]]) if seconds else None, rebuilt)


def watched(module: nn.Module, act: Callable[[Pair | None], Any], *, is_input: bool) -> RemovableHandle:
    """Let a function see the activations at each call of a module, and give what the module takes or gives instead.

    Args:
        module: at a hook.
        act: gives what is `Pair.rebuilt`, or None where nothing changes.
        is_input: whether the module's input is meant.

    >>> seen = []
    >>> handle = watched(nn.Identity(), seen.append, is_input=False)
    """
    if is_input:
        return module.register_forward_pre_hook(
            lambda _m, args, named: act(in_arguments(args, named)), with_kwargs=True
        )
    return module.register_forward_hook(lambda _m, _args, output: act(in_output(output)))


def form_of(model: nn.Module, module: nn.Module, *, is_input: bool, run: Callable[[], object]) -> tuple[Form, Tensor]:
    """In which form a module has its activations.

    Args:
        model: that holds the module.
        module: at the hook.
        is_input: whether its input is meant.
        run: runs the model once on some tokens.

    Returns:
        The form, and a tensor like the activations, [rows, d].

    Raises:
        ValueError: the run calls the module not once, does not tell the form, or has no row for each token.
    """
    seen: list[tuple[Tensor, Tensor | None]] = []
    rows: list[int] = []  # of what the model gives
    told: list[str | None] = []  # None until the module that gets both tensors has run

    def known(pair: Pair | None) -> Any:
        """Random numbers in the place of the activations, since those of a run without a cache may be anything."""
        if pair is None:
            return None
        first, second = torch.randn_like(pair.first), None if pair.second is None else torch.randn_like(pair.second)
        seen.append((first.clone(), None if second is None else second.clone()))
        return pair.rebuilt(first, second)

    def before(_module: nn.Module, args: Any, named: Any) -> None:
        if len(seen) == 1 and not told:
            told.extend(_told(*seen[0], [*args, *named.values()]))

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        if told == [None]:  # it gets both: a norm that adds them up, or one that lets the second pass
            outputs, whole = _parts(output), _whole(*seen[0])
            passes = any(_equal(one, seen[0][1]) for one in outputs)
            told[:] = ["sum" if any(_equal(one, whole) for one in outputs) else "first" if passes else "unknown"]

    def given(outputs: tuple[Any, ...]) -> None:
        before(model, outputs, {})
        rows.extend(len(_rows(one)) for one in outputs[:1] if _is_rows(one))

    with ExitStack() as stack:
        handles = [watched(module, known, is_input=is_input)]
        # A norm at the end has no module behind it, and the model gives what it gave.
        handles += [model.register_forward_hook(lambda _m, _args, output: given(_parts(output)))]
        for leaf in (one for one in model.modules() if not list(one.children())):
            handles += [leaf.register_forward_pre_hook(before, with_kwargs=True), leaf.register_forward_hook(after)]
        for handle in handles:
            stack.callback(handle.remove)
        run()
    return _seen_form(seen, told, rows)


def _seen_form(
    seen: Sequence[tuple[Tensor, Tensor | None]], told: Sequence[str | None], rows: Sequence[int]
) -> tuple[Form, Tensor]:
    """What a run over tokens, for each of which the model gives a row, has shown: as `form_of`."""
    if len(seen) != 1:
        raise ValueError(
            f"a pass of vLLM's model calls it with activations {len(seen)} times; hook a module of one call"
        )
    first, second = seen[0]
    if rows and len(first) != rows[0]:  # such as one of each head of attention
        raise ValueError(f"it has {len(first)} rows of activations for {rows[0]} tokens; hook another module")
    if second is None:
        return "one", first
    if told not in (["sum"], ["first"]):
        raise ValueError("no module after it reads its two tensors in a way that is known; hook another module")
    return cast(Form, told[0]), first


def _whole(first: Tensor, second: Tensor | None) -> Tensor:
    return first if second is None else first + second


def _told(first: Tensor, second: Tensor | None, given: list[Any]) -> list[str | None]:
    """What the arguments of a later module tell about two tensors: nothing, the form, or that it gets both."""
    whole = _whole(first, second)
    if second is None:
        return []
    if any(_equal(value, whole) for value in given):
        return ["sum"]
    if any(_equal(value, first) for value in given):
        return [None if any(_equal(value, second) for value in given) else "first"]
    return []


def _equal(a: Any, b: Tensor | None) -> bool:
    if b is None or not _is_rows(a) or _rows(a).shape != b.shape:
        return False
    tolerance = float(torch.finfo(b.dtype).eps * b.float().abs().max())
    return torch.allclose(_rows(a).float(), b.float(), rtol=0, atol=tolerance)


def _parts(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else (output,)


def _is_rows(value: Any) -> bool:
    """Whether a value is [rows, d], or [1, rows, d] as in models that run by transformers' own code inside vLLM."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return value.ndim == 2 or (value.ndim == 3 and len(value) == 1)


def _are_alike(first: Tensor, second: Any) -> bool:
    return _is_rows(second) and second.shape == first.shape


def _rows(value: Tensor) -> Tensor:
    return value.view(value.shape[-2:])
