"""Requests and answers of `infer` in the Open Inference Protocol: JSON, and tensors as bytes behind it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from sae_runtime.core.labels import shown
from sae_runtime.serve import json_text
from sae_runtime.serve.errors import Invalid
from sae_runtime.serve.http import binary_tensors, tensors_json
from sae_runtime.serve.tensors import BYTES, DTYPES, Arrays

_FIELDS = {"id", "parameters", "inputs", "outputs"}
_DEEPEST, _LARGEST = 8, 1 << 40  # dimensions of a tensor, and its numbers
_OTHERS = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset", "classification")


@dataclass(frozen=True)
class InferenceRequest:
    """A request.

    Attributes:
        id: of the caller; echoed.
        inputs: arrays by name.
        outputs: names of those that are wanted, and whether as bytes; empty: all.
        binary: whether outputs that are not named come as bytes.
        parameters: those that are not the protocol's own.
        seconds: until which the caller waits; None: it does not say.
    """

    id: str | None
    inputs: Arrays
    outputs: Mapping[str, bool]
    binary: bool
    parameters: Mapping[str, Any]
    seconds: float | None


def read(body: bytes, header_length: bytes | None) -> InferenceRequest:
    """The request of a body.

    Args:
        body: inflated.
        header_length: the header Inference-Header-Content-Length, the bytes of JSON in front of those of tensors.

    Raises:
        Invalid: it is none.

    >>> read(b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}', None).inputs["x"]
    array([[1., 2.]], dtype=float32)
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isdigit() and len(header_length) < 16) or int(header_length) > length:
            raise Invalid(f"Inference-Header-Content-Length must be a whole number up to the body's {length} bytes")
        length = int(header_length)
    given = json_text.read_object(body if length == len(body) else body[:length])
    if unknown := given.keys() - _FIELDS:
        raise Invalid(f"a request has no field {shown(min(unknown))}; it has {', '.join(sorted(_FIELDS))}")
    parameters = _parameters(given)
    binary = _flag(parameters.pop("binary_data_output", False), "binary_data_output")
    rest = memoryview(body)[length:]
    inputs: Arrays = {}
    for tensor in _listed(given, "inputs"):
        name, used = _name(tensor, inputs), 0
        inputs[name], used = _array(tensor, name, rest)
        rest = rest[used:]
    if len(rest):
        raise Invalid(f"{len(rest)} bytes stand behind the last tensor; give each its binary_data_size")
    outputs: dict[str, bool] = {}
    for tensor in _listed(given, "outputs", needed=False):
        name = _name(tensor, outputs)
        outputs[name] = _flag(_parameters(tensor).get("binary_data", binary), f"binary_data of {name}")
    identity = given.get("id")
    if identity is not None and not isinstance(identity, str):
        raise Invalid("id must be a text; give a string")
    return InferenceRequest(identity, inputs, outputs, binary, parameters, _seconds(parameters.pop("timeout", None)))


def written(asked: InferenceRequest, answer: Arrays, model: str, version: str) -> tuple[bytes, int | None]:
    """The body of an answer, and the bytes of its JSON where bytes of tensors follow.

    Raises:
        Invalid: JSON cannot hold it.
    """
    told: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name in asked.outputs or answer:
        array = answer[name]
        one: dict[str, Any] = {"name": name, "datatype": binary_tensors.datatype_of(array), "shape": list(array.shape)}
        if asked.outputs.get(name, asked.binary):
            parts.append(binary_tensors.to_bytes(array))
            one["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            one["data"] = tensors_json.to_lists(array, name)
        told.append(one)
    said: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": told}
    if asked.id is not None:
        said["id"] = asked.id
    text = json_text.to_bytes(said)
    return (b"".join([text, *parts]), len(text)) if parts else (text, None)


def _listed(given: Mapping[str, Any], field: str, *, needed: bool = True) -> list[dict[str, Any]]:
    found = given.get(field)
    if found is None and not needed:
        return []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Invalid(f"{field} must be a list of objects, each with a name; give one")
    return found


def _name(tensor: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    name = tensor.get("name")
    if not isinstance(name, str):
        raise Invalid("a tensor must have a name; give a string")
    if name in seen:
        raise Invalid(f"the tensor {shown(name)} stands twice; give it once")
    return name


def _parameters(of: Mapping[str, Any]) -> dict[str, Any]:
    found = of.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Invalid("parameters must be an object; give names and values")
    if other := next((name for name in _OTHERS if name in found), None):
        raise Invalid(f"this server has no {other}; leave it out")
    return dict(found)


def _array(tensor: Mapping[str, Any], name: str, rest: memoryview) -> tuple[NDArray[Any], int]:
    datatype, shape, called = tensor.get("datatype"), tensor.get("shape"), f"the input {shown(name)}"
    if datatype not in (BYTES, "BF16") and not (isinstance(datatype, str) and datatype in DTYPES):
        raise Invalid(f"{called} has the datatype {shown(datatype)}; give one of {', '.join(DTYPES)}, BYTES")
    if not isinstance(shape, list) or len(shape) > _DEEPEST or not all(type(n) is int and 0 <= n for n in shape):
        raise Invalid(f"{called} must have a shape, up to {_DEEPEST} whole numbers from 0 on; give a list")
    if math.prod(max(n, 1) for n in shape) > _LARGEST:
        raise Invalid(f"{called} has a shape of too many numbers; give the tensor's shape")
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        if datatype == "BF16":
            raise Invalid(f"{called} of BF16 must be binary; give binary_data_size and its bytes")
        dtype = None if datatype == BYTES else DTYPES[datatype]
        return tensors_json.from_lists(tensor.get("data"), dtype, tuple(shape), called), 0
    if "data" in tensor:
        raise Invalid(f"{called} has both data and binary_data_size; give one of them")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise Invalid(f"{called} says binary_data_size {shown(size)}, and {len(rest)} bytes are left; give its bytes")
    return binary_tensors.from_bytes(rest[:size], str(datatype), tuple(shape), called), size


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise Invalid(f"{name} must be true or false, got {shown(value)}; give one of them")
    return value


def _seconds(timeout: Any) -> float | None:
    """Triton's parameter, in microseconds; 0 says nothing."""
    if timeout is None or timeout == 0 and type(timeout) is int:
        return None
    if type(timeout) is not int or timeout < 0:
        raise Invalid("timeout must be a whole number of microseconds; give one, or leave it out")
    return timeout / 1e6
