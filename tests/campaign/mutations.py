"""Changes of a stranger's files as data, so that a found input is kept as a line of JSON.

`draw` makes changes by chance; `apply` carries them out. Each is a dict: `do` names a function of `_CHANGES`, `file`
the file, and the rest are its arguments.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Change = dict[str, Any]
_VALUES: Sequence[Any] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 63, 65, 2**31, 2**63, -(2**63) - 1, 1e400, 1e308, 0.5, -0.0, float("nan")),
    *("", "x", "../x", "/etc/passwd", "\x1b[31m", "\u202e", "$\\frac$", "1", "topk", "threshold", "F16", "encode.onnx"),
    *([], {}, [[]], [1, 2], {"a": 1}, [24, 64], [0, 10**12]),
)
_NUMBERS = ("nan", "inf", "-inf", "1e38", "-1e38", "1e-42", "0", "-1", "0.5", "3")
_OPERATORS = (
    "Neg",
    "Abs",
    "Relu",
    "Identity",
    "Exp",
    "Loop",
    "If",
    "Cast",
    "Tile",
    "Expand",
    "RandomNormal",
    "Add",
    "Sin",
)


def draw(rng: random.Random, folder: Path, times: int = 2) -> list[Change]:
    """One to `times` changes of the files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [_draw_one(rng, rng.choice(files), folder) for _ in range(rng.randint(1, times))]


def apply(folder: Path, changes: Sequence[Mapping[str, Any]]) -> None:
    """Carry out changes; one that no longer fits its file, since another came first, does nothing."""
    for change in changes:
        path = folder / change["file"]
        try:
            data: bytes = _CHANGES[change["do"]](path.read_bytes(), change)
        except (ValueError, LookupError, TypeError, ArithmeticError, OSError, AttributeError, RecursionError):
            continue
        except Exception as error:  # protobuf's own
            if type(error).__module__.startswith("google"):
                continue
            raise
        path.unlink()  # never through a hard link
        path.write_bytes(data)


def _draw_one(rng: random.Random, path: Path, folder: Path) -> Change:
    change: Change = {"file": str(path.relative_to(folder))}
    data = path.read_bytes()
    if rng.random() < 0.2:
        edge = rng.choice((len(data), min(len(data), 400)))
        at = rng.randrange(max(edge, 1))
        removed = rng.choice((0, 1, 1, 8, len(data)))
        return change | {
            "do": "bytes",
            "at": at,
            "removed": removed,
            "new": rng.randbytes(rng.choice((0, 1, 1, 8))).hex(),
        }
    if path.suffix == ".json":
        value = json.loads(data)
        if rng.random() < 0.05:
            return change | {
                "do": "nest",
                "text": rng.choice(("[", '{"a":', '"')),
                "times": rng.choice((2000, 200_000)),
            }
        key = _draw_path(rng, value)
        kind = rng.choice(("set", "set", "set", "remove", "twice", "add"))
        if kind == "remove":
            return change | {"do": "remove", "path": key}
        return change | {
            "do": kind if kind == "twice" else "set",
            "path": key + ["new"] * (kind == "add"),
            "value": _value(rng),
        }
    if path.suffix == ".onnx":
        model = onnx.load_model_from_string(data)
        node = rng.randrange(max(len(model.graph.node), 1))
        kind = rng.choice(sorted(_GRAPH_CHANGES))
        return change | {
            "do": "graph",
            "kind": kind,
            "node": node,
            "value": rng.choice(_OPERATORS),
            "number": rng.choice(_VALUES[:16]),
        }
    if path.suffix == ".safetensors":
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        if rng.random() < 0.4:
            return change | {"do": "header", "path": _draw_path(rng, header), "value": _value(rng)}
        return change | {
            "do": "number",
            "tensor": rng.choice(sorted(header)),
            "at": rng.random(),
            "value": rng.choice(_NUMBERS),
        }
    return change | {"do": "bytes", "at": 0, "removed": rng.randrange(len(data) + 1), "new": ""}


def _value(rng: random.Random) -> Any:
    return rng.choice(_VALUES)


def _draw_path(rng: random.Random, value: Any) -> list[Any]:
    path: list[Any] = []
    while isinstance(value, dict | list) and value and (not path or rng.random() < 0.7):
        key = rng.choice(sorted(value)) if isinstance(value, dict) else rng.randrange(len(value))
        path.append(key)
        value = value[key]
    return path


def _bytes(data: bytes, change: Mapping[str, Any]) -> bytes:
    at = change["at"]
    return data[:at] + bytes.fromhex(change["new"]) + data[at + change["removed"] :]


def _set(data: bytes, change: Mapping[str, Any]) -> bytes:
    value = json.loads(data)
    *way, last = change["path"]
    part = value
    for key in way:
        part = part[key]
    part[last] = change["value"]
    return json.dumps(value).encode()


def _remove(data: bytes, change: Mapping[str, Any]) -> bytes:
    value = json.loads(data)
    *way, last = change["path"]
    part = value
    for key in way:
        part = part[key]
    del part[last]
    return json.dumps(value).encode()


def _twice(data: bytes, change: Mapping[str, Any]) -> bytes:
    """The first key of the path once more, at the end."""
    body = json.dumps(json.loads(data))
    return f"{body[:-1]}, {json.dumps(change['path'][0])}: {json.dumps(change['value'])}}}".encode()


def _nest(data: bytes, change: Mapping[str, Any]) -> bytes:
    return str(change["text"] * change["times"]).encode()


def _header(data: bytes, change: Mapping[str, Any]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = _set(data[8 : 8 + length], change)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _number(data: bytes, change: Mapping[str, Any]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length])[change["tensor"]]
    kind = {"F32": "<f4", "F64": "<f8", "F16": "<f2"}.get(entry["dtype"])
    begin, end = (8 + length + offset for offset in entry["data_offsets"])
    changed = bytearray(data)
    if kind is None:
        changed[begin + int(change["at"] * (end - begin))] ^= 0x5A
    else:
        size = np.dtype(kind).itemsize
        at = begin + size * int(change["at"] * ((end - begin) // size))
        with np.errstate(over="ignore"):
            changed[at : at + size] = np.array(float(change["value"])).astype(kind).tobytes()
    return bytes(changed)


def _graph(data: bytes, change: Mapping[str, Any]) -> bytes:
    model = onnx.load_model_from_string(data)
    _GRAPH_CHANGES[change["kind"]](model, model.graph.node[change["node"]], change)
    return bytes(model.SerializeToString())


def _attribute(model: Any, node: Any, change: Mapping[str, Any]) -> None:
    attribute = node.attribute[0]
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = int(change["number"])
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = float(change["number"])
    else:
        node.attribute.pop()


def _constant(model: Any, node: Any, change: Mapping[str, Any]) -> None:
    inside = [tensor for tensor in model.graph.initializer if not tensor.external_data]
    tensor = inside[change["node"] % len(inside)]
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[:1] = change["number"]
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _outside(model: Any, node: Any, change: Mapping[str, Any]) -> None:
    outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
    entry = outside[change["node"] % len(outside)].external_data
    which = entry[change["node"] % len(entry)]
    which.value = {"location": "../../x.bin"}.get(which.key, str(change["number"]))


def _moved(model: Any, node: Any, change: Mapping[str, Any]) -> None:
    """Another offset, within the file."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "offset":
                entry.value = str(int(entry.value) + 4)
                return


def _twin(model: Any, node: Any, change: Mapping[str, Any]) -> None:
    model.graph.node.append(node)


def _gone(model: Any, node: Any, change: Mapping[str, Any]) -> None:
    model.graph.node.remove(node)


def _swapped(model: Any, node: Any, change: Mapping[str, Any]) -> None:
    inputs = list(node.input)
    del node.input[:]
    node.input.extend(reversed(inputs))


def _shape(model: Any, node: Any, change: Mapping[str, Any]) -> None:
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 3


_GRAPH_CHANGES: Mapping[str, Any] = {
    "operator": lambda model, node, change: setattr(node, "op_type", change["value"]),
    "domain": lambda model, node, change: setattr(node, "domain", "com.microsoft"),
    "attribute": _attribute,
    "constant": _constant,
    "outside": _outside,
    "moved": _moved,
    "twin": _twin,
    "gone": _gone,
    "swapped": _swapped,
    "input": lambda model, node, change: node.input.__setitem__(0, model.graph.input[0].name),
    "output": lambda model, node, change: setattr(model.graph.output[0], "name", "other"),
    "kind": lambda model, node, change: setattr(model.graph.input[0].type.tensor_type, "elem_type", 11),
    "shape": _shape,
    "opset": lambda model, node, change: setattr(model.opset_import[0], "version", int(change["number"])),
    "function": lambda model, node, change: model.functions.add(
        name=node.op_type, domain="", input=["a"], output=["a"]
    ),
}
_CHANGES: Mapping[str, Any] = {
    "bytes": _bytes,
    "set": _set,
    "remove": _remove,
    "twice": _twice,
    "nest": _nest,
    "header": _header,
    "number": _number,
    "graph": _graph,
}
