"""config.pbtxt, the configuration of a model of Triton: what we write of it, as text and back."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_runtime.core.labels import shown
from sae_runtime.serve.tensors import BYTES, DTYPES

WRITTEN = "# written by sae-runtime export-triton"
_TYPES = {BYTES: "TYPE_STRING", "BF16": "TYPE_BF16", **{name: f"TYPE_{name}" for name in DTYPES}}  # Triton's names
_TOKENS = re.compile(r"""\s+|\#[^\n]*|(?P<text>"(?:[^"\\\n]|\\.)*")|(?P<word>[\w.+-]+)|(?P<mark>[{}\[\]:,;])""")
_DEEPEST = 50

Message = Mapping[str, list[Any]]
"""A message: the values of each field in the order of the text. A value is a message, a text, or a word."""


@dataclass(frozen=True)
class ConfigTensor:
    """An input or output of a model of Triton.

    Attributes:
        name: of the tensor.
        datatype: as the Open Inference Protocol names it.
        dims: its sizes, -1 for any; without the batch's where the model has a `max_batch_size`.
        optional: whether a request may lack it.
        reshape: the sizes that the backend has in place of `dims`; None: the same.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False
    reshape: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The configuration of one model of Triton.

    Attributes:
        name: of the model, and of its folder.
        backend: "onnxruntime" or "python".
        max_batch_size: rows of a batch; 0: the first dimension is no batch's, and Triton merges no requests.
        inputs, outputs: its tensors.
        delay: microseconds for which Triton lets a request wait for others; None: it merges none.
        device: "CPU" or "GPU".
        instances: how often the model is loaded.
        parameters: texts for the backend, by name.
    """

    name: str
    backend: str
    max_batch_size: int
    inputs: tuple[ConfigTensor, ...]
    outputs: tuple[ConfigTensor, ...]
    delay: int | None = None
    device: str = "CPU"
    instances: int = 1
    parameters: Mapping[str, str] = field(default_factory=dict)


def to_text(config: ModelConfig) -> str:
    """The text of a configuration.

    >>> x = ConfigTensor("x", "FP32", (768,))
    >>> print(to_text(ModelConfig(name="m", backend="python", max_batch_size=8, inputs=(x,), outputs=())).split()[-1])
    }
    """
    lines = [
        WRITTEN,
        f"name: {json.dumps(config.name)}",
        f"backend: {json.dumps(config.backend)}",
        f"max_batch_size: {config.max_batch_size}",
        "version_policy { all { } }",
        *(f"input {_tensor_text(tensor)}" for tensor in config.inputs),
        *(f"output {_tensor_text(tensor)}" for tensor in config.outputs),
    ]
    if config.delay is not None:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {config.delay} }}")
    for key, text in config.parameters.items():
        lines.append(f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(text)} }} }}")
    lines.append(f"instance_group {{ count: {config.instances} kind: KIND_{config.device} }}")
    return "\n".join(lines) + "\n"


def _tensor_text(tensor: ConfigTensor) -> str:
    parts = [f"name: {json.dumps(tensor.name)}", f"data_type: {_TYPES[tensor.datatype]}", f"dims: {list(tensor.dims)}"]
    if tensor.reshape is not None:
        parts.append(f"reshape {{ shape: {list(tensor.reshape)} }}")
    if tensor.optional:
        parts.append("optional: true")
    return f"{{ {' '.join(parts)} }}"


def from_text(text: str) -> ModelConfig:
    """The configuration that a text holds, without fields that `ModelConfig` lacks.

    Raises:
        ValueError: it is no configuration, or a field has a value of another kind.

    >>> from_text('name: "m" backend: "python" input [ { name: "x", data_type: TYPE_FP32, dims: [ 3 ] } ]').inputs
    (ConfigTensor(name='x', datatype='FP32', dims=(3,), optional=False, reshape=None),)
    """
    message = read_message(text)
    batching, groups = message.get("dynamic_batching", []), message.get("instance_group", [{}])
    delay = _whole(_one(batching[0], "max_queue_delay_microseconds", "0")) if batching else None
    parameters = {}
    for entry in message.get("parameters", []):
        (value,) = entry.get("value", [{}])
        parameters[_string(_one(entry, "key", '""'))] = _string(_one(value, "string_value", '""'))
    return ModelConfig(
        name=_string(_one(message, "name", '""')),
        backend=_string(_one(message, "backend", '""')),
        max_batch_size=_whole(_one(message, "max_batch_size", "0")),
        inputs=tuple(map(_tensor, message.get("input", []))),
        outputs=tuple(map(_tensor, message.get("output", []))),
        delay=delay,
        device=str(_one(groups[0], "kind", "KIND_AUTO")).removeprefix("KIND_"),
        instances=sum(_whole(_one(group, "count", "1")) for group in groups),
        parameters=parameters,
    )


def _tensor(entry: Message) -> ConfigTensor:
    if not isinstance(entry, Mapping):
        raise ValueError("an input or output is a message in braces")
    kinds = {theirs: ours for ours, theirs in _TYPES.items()}
    kind = _one(entry, "data_type", "none")
    if kind not in kinds:
        raise ValueError(f"the type {shown(kind)} is none of {', '.join(kinds)}")
    reshape = entry.get("reshape")
    return ConfigTensor(
        _string(_one(entry, "name", '""')),
        kinds[kind],
        tuple(map(_whole, entry.get("dims", []))),
        optional=_one(entry, "optional", "false") == "true",
        reshape=None if reshape is None else tuple(map(_whole, reshape[0].get("shape", []))),
    )


def read_message(text: str) -> Message:
    """The fields of a message in protobuf's text format. Texts keep their quotes.

    Raises:
        ValueError: it is none.

    >>> read_message('a: 1 b { c: ["x", "y"] }  # and a comment')
    {'a': ['1'], 'b': [{'c': ['"x"', '"y"']}]}
    """
    tokens = [*_tokens(text), "}"]
    tokens.reverse()
    message = _message(tokens, 0)
    if tokens:
        raise ValueError("a } is one too many")
    return message


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        found = _TOKENS.match(text, at)
        if found is None:
            raise ValueError(
                f"line {text.count(chr(10), 0, at) + 1} holds {shown(text[at])}, where nothing such stands"
            )
        at = found.end()
        if found.lastgroup is not None:
            yield found[0]


def _message(tokens: list[str], depth: int) -> dict[str, list[Any]]:
    """The fields up to the closing brace; tokens are in reverse order."""
    if depth > _DEEPEST:
        raise ValueError("it has too many messages inside one another")
    fields: dict[str, list[Any]] = {}
    while (name := _next(tokens)) != "}":
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"{shown(name)} stands where a field's name is expected")
        mark = _next(tokens)
        if mark == ":":
            mark = _next(tokens)
        elif mark not in ("{", "["):
            raise ValueError(f"the field {name} has no value")
        values = fields.setdefault(name, [])
        if mark != "[":
            values.append(_value(mark, tokens, depth))
        else:
            while (mark := _next(tokens)) != "]":
                if mark != ",":
                    values.append(_value(mark, tokens, depth))
        if tokens and tokens[-1] in (",", ";"):
            tokens.pop()
    return fields


def _value(token: str, tokens: list[str], depth: int) -> Any:
    if token == "{":
        return _message(tokens, depth + 1)
    if token in "}[]:,;":
        raise ValueError(f"{token} stands where a value is expected")
    return token


def _next(tokens: list[str]) -> str:
    if not tokens:
        raise ValueError("it ends too early")
    return tokens.pop()


def _one(message: Message, name: str, default: str) -> Any:
    values = message.get(name, [default])
    if len(values) != 1:
        raise ValueError(f"the field {name} has {len(values)} values, expected one")
    return values[0]


def _string(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith('"'):
        raise ValueError(f"{shown(value)} stands where a text in quotes is expected")
    try:
        return str(json.loads(value))
    except ValueError:
        raise ValueError(f"{shown(value)} is no text that we read") from None


def _whole(value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"-?[0-9]{1,18}", value):
        raise ValueError(f"{shown(value)} stands where a whole number is expected")
    return int(value)
