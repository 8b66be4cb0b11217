"""The pickle inside a file of torch.save, followed without running it.

`torch.load(weights_only=True)` runs only functions that torch trusts. Among them are some that take any amount of
memory, such as bytearray or a storage of a given size. A file of tensors needs a few that only describe tensors, and
two that copy what they are given: a copy of one list in each of thousands of calls would take any amount of memory too.
torch.save writes protocol 2, and torch.load reads no operations of later ones.
"""

import pickletools
from pathlib import Path
from typing import NamedTuple

LARGEST_PICKLE = 1 << 22  # bytes; a tensor takes 200
_MOST_OPERATIONS = 1 << 18  # a tensor takes 40; one that takes a tuple once more counts as all parts of the tuple
_DEEPEST = 50  # tuples inside one another; the hash of a tuple goes through all of them
_CALLED = {
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
}
_COPIES = {"collections.OrderedDict", "torch.Size"}  # of what it is called with
_TYPES = "Float Double Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble".split()
_DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128".split()
_DTYPES += "uint16 uint32 uint64 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu".split()
_NAMED = {
    "torch.storage.UntypedStorage",
    *(f"torch.{name}Storage" for name in _TYPES),
    *(f"torch.{name}" for name in _DTYPES),
}  # only named, to say what a storage holds

# What an opcode takes from the stack; None: all down to the mark.
_PUSHES = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "EMPTY_TUPLE"}
_PUSHES_FILLED = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"}
_TEXTS = {"BINUNICODE", "BINSTRING", "SHORT_BINSTRING"}
_MAKES = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "BINPERSID": 1}
_FILLS = {"APPEND": 1, "APPENDS": None, "SETITEM": 2, "SETITEMS": None, "BUILD": 1}
_MARK = object()


class _Global(str):
    """The name of a function or class, as text would be another thing on the stack."""


class _Thing(NamedTuple):
    """Anything else on the stack.

    Attributes:
        depth: tuples inside one another.
        parts: of tuples, and of those inside them.
        fills: whether it is or holds a list or a dict, of any length.
        again: whether the pickle made it before and takes it once more.
    """

    depth: int = 0
    parts: int = 1
    fills: bool = False
    again: bool = False


_FILLED = _Thing(fills=True)


def check_pickle(file: Path, pickled: bytes) -> None:
    """Refuse a pickle that does more than describe tensors, numbers, texts and what holds them.

    Args:
        file: its file, for messages.
        pickled: the pickle.

    Raises:
        ValueError: it names or calls anything else, or is damaged.

    >>> import pickle
    >>> check_pickle(Path("x.pt"), pickle.dumps({"k": 6}, 2))
    >>> check_pickle(Path("x.pt"), pickle.dumps(bytearray(3), 2))
    Traceback (most recent call last):
    ValueError: x.pt holds pickled objects, which could run anything and are not loaded (__builtin__.bytearray); ...
    """
    try:
        refused = _first_other(pickled)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{file} is damaged (its pickle is not sound); get a sound copy") from error
    if refused is not None:
        raise ValueError(
            f"{file} holds pickled objects, which could run anything and are not loaded ({refused[:80]}); save its "
            "state_dict alone"
        )


def _first_other(pickled: bytes) -> str | None:
    """The first name or operation that a file of tensors does not need; None where there is none.

    On the stack are texts, names of functions, marks, and things.
    """
    stack: list[object] = []
    memo: dict[int, object] = {}

    def taken(count: int | None) -> list[object]:
        begin = len(stack) - 1 - stack[::-1].index(_MARK) if count is None else len(stack) - count
        if begin < 0:
            raise IndexError("the stack is empty")
        parts = stack[begin:]
        del stack[begin:]
        return parts

    operations = 0
    for opcode, argument, _ in pickletools.genops(pickled):
        operations += 1
        if operations > _MOST_OPERATIONS:
            return f"more than {_MOST_OPERATIONS:,} operations"
        name = opcode.name
        if name in _TEXTS:
            stack.append(str(argument))
        elif name in _PUSHES:
            stack.append(_Thing())
        elif name in _PUSHES_FILLED:
            stack.append(_FILLED)
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _MAKES:
            parts = taken(_MAKES[name])
            things = [part for part in parts if isinstance(part, _Thing)]
            depth = 1 + max((thing.depth for thing in things), default=0)
            if depth > _DEEPEST:
                return f"{depth} tuples inside one another"
            size = 1 + len(parts) - len(things) + sum(thing.parts for thing in things)
            holds = any(thing.fills for thing in things)
            stack.append(_Thing(depth, size, holds) if name.startswith("TUPLE") else _Thing())
        elif name in _FILLS:
            parts = taken(_FILLS[name])
            if not stack:
                raise IndexError("nothing is filled")
            if name == "BUILD" and isinstance(parts[0], _Thing) and parts[0].again and parts[0].fills:
                return "a state that several objects copy"
        elif name == "GLOBAL":
            named = _Global(".".join(str(argument).split(" ")))
            if named not in _CALLED | _NAMED:
                return named
            stack.append(named)
        elif name == "REDUCE":
            function, given = taken(2)
            if not isinstance(function, _Global) or function not in _CALLED:
                return str(function)
            if not isinstance(given, _Thing) or (function in _COPIES and given.fills):
                return f"{function} of a list"
            stack.append(_Thing(given.depth, given.parts, True))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[int(argument or 0)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            thing = memo[int(argument or 0)]
            if isinstance(thing, _Thing):
                operations += thing.parts
                thing = thing._replace(again=True)
            stack.append(thing)
        elif name not in ("PROTO", "STOP"):
            return f"the operation {name}"
    return None
