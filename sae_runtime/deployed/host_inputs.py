"""What the graph of a host takes for texts: ids, mask, token types, positions, and keys and values of a past."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.vocabulary import is_of_words
from sae_runtime.engine.trial import TYPES
from sae_runtime.text.settings import first_position

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: of the input.
        dtype: of its numbers.
        shape: a size for each dimension, or a name where callers choose it.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class Past:
    """Keys or values of the tokens that were read before, or another state.

    Attributes:
        port: the input.
        present: the output that takes its place in the next step; "": the graph gives none, as one that is cut.
        empty: the shape without tokens for one request.
        batch: the dimension of the requests.
        time: the dimension of the tokens; None: a state of one size.
    """

    port: Port
    present: str
    empty: tuple[int, ...]
    batch: int
    time: int | None


@dataclass(frozen=True, kw_only=True)
class HostInputs:
    """The inputs of a host's graph, without those of its SAEs.

    Attributes:
        ids: of the tokens, [b, t].
        mask: 1 for tokens and 0 for padding, [b, p + t]; None: the graph takes none.
        types: which of two texts a token is of, [b, t].
        positions: of the tokens, [b, t].
        past: keys and values, in the order of the graph.
        keep: how many logits to give; 0 is all.
        batch: the number of requests, where the graph takes no other.
        time: the number of tokens, likewise.
        first_position: the position of a text's first token; 2 in RoBERTa.
    """

    ids: Port
    mask: Port | None = None
    types: Port | None = None
    positions: Port | None = None
    past: tuple[Past, ...] = ()
    keep: Port | None = None
    batch: int | None = None
    time: int | None = None
    first_position: int = 0

    @property
    def takes_padding(self) -> bool:
        """Whether padding behind a text changes nothing: it is masked, or no token sees what comes after it."""
        return self.mask is not None or any(past.time is not None for past in self.past)

    def empty_past(self, batch: int) -> Arrays:
        """Keys and values of no tokens for some requests, by input."""
        return {
            past.port.name: np.zeros(
                tuple(batch if axis == past.batch else size for axis, size in enumerate(past.empty)), past.port.dtype
            )
            for past in self.past
        }

    def feed(
        self,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        past: Mapping[str, NDArray[Any]] | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> Arrays:
        """The inputs of one run.

        Args:
            ids: of the new tokens [b, t].
            mask: 1 for tokens and 0 for padding, of the past and of the new tokens [b, p + t].
            past: keys and values by input, as `empty_past` gives them; None: no past.
            positions: of the new tokens [b, t]; None: each token counts the tokens of its request before it.
        """
        feed = {self.ids.name: ids.astype(self.ids.dtype, copy=False)}
        if self.mask is not None:
            feed[self.mask.name] = mask.astype(self.mask.dtype, copy=False)
        if self.types is not None:
            feed[self.types.name] = np.zeros(ids.shape, self.types.dtype)
        if self.positions is not None:
            if positions is None:
                counted = np.cumsum(mask, axis=1)[:, mask.shape[1] - ids.shape[1] :] - 1
                positions = np.maximum(counted, 0) + self.first_position
            feed[self.positions.name] = positions.astype(self.positions.dtype, copy=False)
        if self.keep is not None:
            feed[self.keep.name] = np.zeros([1] * len(self.keep.shape), self.keep.dtype)
        if self.past:
            feed.update(self.empty_past(len(ids)) if past is None else past)
        return feed


def read_host_inputs(
    session: Any,
    *,
    own: Collection[str] = (),
    config: Mapping[str, Any] | None = None,
    genai: Mapping[str, Any] | None = None,
    graph: object = "the graph",
) -> HostInputs:
    """What a session takes for texts.

    Args:
        session: an onnxruntime InferenceSession.
        own: names of the inputs of its SAEs.
        config: the host's config.json.
        genai: its genai_config.json; both tell the sizes of keys and values that the graph does not tell.
        graph: the graph in messages.

    Raises:
        ValueError: the graph takes no ids, or something that no text gives.

    >>> from pathlib import Path
    >>> from sae_runtime.engine.sessions import open_session
    >>> inputs = read_host_inputs(open_session(Path(host_path)))
    >>> inputs.ids.name, inputs.mask.name, inputs.past
    ('input_ids', 'attention_mask', ())
    """
    config, genai = config or {}, genai or {}
    required = [_port(value, graph) for value in session.get_inputs() if value.name not in own]
    optional = [value for value in session.get_overridable_initializers() if value.name not in own]
    outputs = [value.name for value in session.get_outputs()]
    found: dict[str, Any] = {}
    past: list[Past] = []
    for port in [*required, *(_port(value, graph) for value in optional if _role(value.name) == "types")]:
        role = _role(port.name)
        if role == "past" and port.dtype.kind == "f":
            past.append(_past(port, _present(port.name, outputs), config, genai, graph))
        elif role in ("ids", "mask", "types", "positions", "keep") and role not in found:
            found[role] = port
        else:
            raise ValueError(f"{graph} takes {port.name}, which no text gives; use a graph that reads texts alone")
    if "ids" not in found:
        names = ", ".join(port.name for port in required) or "nothing"
        raise ValueError(f"{graph} takes {names} and no ids of tokens; use a graph that reads texts")
    batch, time = (size if isinstance(size, int) else None for size in (*found["ids"].shape, None, None)[:2])
    return HostInputs(**found, past=tuple(past), batch=batch, time=time, first_position=first_position(config))


def _port(value: Any, graph: object) -> Port:
    if value.type not in TYPES:
        raise ValueError(
            f"{graph} takes {value.name} as {value.type}, which numpy has not; use a float16 or float32 host"
        )
    return Port(value.name, np.dtype(TYPES[value.type]), tuple(value.shape))


def _role(name: str) -> str:
    """What an input of this name is for."""
    low = name.lower()
    if "past" in low or "cache" in low:
        return "past"
    if "mask" in low:
        return "mask" if "decoder" not in low else "other"
    if "position" in low:
        return "positions"
    if "type" in low or "segment" in low:
        return "types"
    if low.endswith("logits_to_keep"):
        return "keep"
    return "ids" if is_of_words(low) and "decoder" not in low else "other"


def _present(name: str, outputs: Collection[str]) -> str:
    """The output that continues an input of the past; "": none does."""
    for old, new in (("past_key_values", "present"), ("past_key_values", "present_key_values"), ("past", "present")):
        if old in name and (present := name.replace(old, new)) in outputs:
            return present
    return ""


def _past(port: Port, present: str, config: Mapping[str, Any], genai: Mapping[str, Any], graph: object) -> Past:
    rank = len(port.shape)
    if rank < 3:
        raise ValueError(
            f"{graph} takes {port.name} {list(port.shape)}, expected keys and values of 3 or more dimensions"
        )
    batch = next((axis for axis, size in enumerate(port.shape) if not isinstance(size, int)), 0)
    time = rank - 2 if not isinstance(port.shape[-2], int) else None
    known = {rank - 1: _head_size(config, genai), rank - 3: _heads(config, genai)}
    empty = []
    for axis, size in enumerate(port.shape):
        if axis == batch:
            empty.append(1)
        elif axis == time:
            empty.append(0)
        elif isinstance(size, int):
            empty.append(size)
        elif known.get(axis):
            empty.append(known[axis])
        else:
            raise ValueError(
                f"{graph} does not tell the size {size!r} of {port.name}, nor does a config.json or genai_config.json "
                "beside it; put that file there"
            )
    return Past(port, present, tuple(empty), batch, time)


def _decoder(genai: Mapping[str, Any]) -> Mapping[str, Any]:
    model = genai.get("model")
    decoder = model.get("decoder") if isinstance(model, Mapping) else None
    return decoder if isinstance(decoder, Mapping) else {}


def _whole(places: list[tuple[Mapping[str, Any], str]]) -> int:
    """The first of these entries that is a whole number from 1 on; 0 where none is."""
    values = (where.get(name) for where, name in places)
    return next((value for value in values if type(value) is int and 0 < value < 2**31), 0)


def _heads(config: Mapping[str, Any], genai: Mapping[str, Any]) -> int:
    names = ("num_key_value_heads", "num_attention_heads", "n_head", "num_heads")
    return _whole([(_decoder(genai), "num_key_value_heads"), *((config, name) for name in names)])


def _head_size(config: Mapping[str, Any], genai: Mapping[str, Any]) -> int:
    if size := _whole([(_decoder(genai), "head_size"), (config, "head_dim")]):
        return size
    width = _whole([(config, "hidden_size"), (config, "n_embd"), (config, "d_model")])
    heads = _whole([(config, "num_attention_heads"), (config, "n_head"), (config, "num_heads")])
    return width // heads if heads else 0
