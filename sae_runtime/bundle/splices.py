"""What the metadata of a spliced graph say about the SAEs inside it, for programs that serve the graph."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

KEY = "sae_runtime.splice."  # the name of the splice follows


@dataclass(frozen=True, kw_only=True)
class Spliced:
    """One SAE inside a graph, as the graph's metadata keep it under `sae_runtime.splice.NAME`."""

    name: str
    hook: str
    tensor: str  # the activation before editing
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    replace: bool
    d_in: int
    d_sae: int
    weights: str  # sha256 of the SAE's weights

    def to_metadata(self) -> dict[str, str]:
        """The entry of the graph's metadata, which `read_splices` reads back."""
        return {KEY + self.name: json.dumps(asdict(self))}


def read_splices(metadata: Mapping[str, str]) -> dict[str, Spliced]:
    """The SAEs inside a graph by their names, from all of its metadata; other entries do not matter.

    onnxruntime gives the metadata as `session.get_modelmeta().custom_metadata_map`.

    >>> sae = Spliced(name="sae", hook="h.3", tensor="add_7", inputs=("sae_width",), outputs=("sae_values",),
    ...               replace=False, d_in=24, d_sae=150, weights="9f86d081")
    >>> read_splices({"license": "MIT"} | sae.to_metadata())["sae"].hook
    'h.3'

    Raises:
        ValueError: an entry under `sae_runtime.splice.` does not describe a splice.
    """
    return {
        key.removeprefix(KEY): _from_json(text, key.removeprefix(KEY))
        for key, text in metadata.items()
        if key.startswith(KEY)
    }


def _from_json(text: str, name: str) -> Spliced:
    types = {field.name: field.type for field in fields(Spliced)}
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or data.keys() != types.keys():
            raise ValueError(f"the fields are not {', '.join(types)}")
        for key, kind in types.items():
            if not _is_of(data[key], kind) or (key == "name" and data[key] != name):
                raise ValueError(f"{key} is {data[key]!r}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{KEY}{name} does not describe a splice ({error}); splice the host model again") from error
    return Spliced(**data | {key: tuple(data[key]) for key in ("inputs", "outputs")})


def _is_of(value: object, kind: object) -> bool:
    if kind in (str, bool, int):
        return type(value) is kind
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
