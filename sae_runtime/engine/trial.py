"""Runs of a graph on inputs that are made up from the names, types and shapes of its inputs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.splices import read_splices
from sae_runtime.bundle.typed_json import read_file
from sae_runtime.bundle.vocabulary import is_of_words

Arrays = dict[str, NDArray[Any]]

_IMAGE_SIDES = (224, 384, 336, 518, 512, 256, 64, 32, 30, 16)  # a graph of images may take one size alone
_SMALLEST_VOCABULARY = 8
TYPES: dict[str, Any] = {  # of inputs, by onnxruntime's names for them
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


def run_on_made_up_inputs(
    session: Any, folder: Path | None = None, *, batch: int = 2, time: int = 5
) -> tuple[Arrays, Arrays]:
    """Run a session on made-up requests, or on made-up images.

    Optional inputs keep their defaults, and those of splices ask for nothing. A past has no tokens.

    Args:
        session: an onnxruntime InferenceSession.
        folder: of the graph; a `genai_config.json` there tells the width of keys and values.
        batch: number of requests or images.
        time: tokens of a request.

    Returns:
        the inputs and the outputs, by name; the same inputs each time.

    Raises:
        ValueError: no inputs that can be made up suit the graph.

    >>> from pathlib import Path
    >>> from sae_runtime.engine.sessions import open_session
    >>> feed, outputs = run_on_made_up_inputs(open_session(Path(host_path)))
    >>> feed["input_ids"].shape, list(outputs)
    ((2, 5), ['last_hidden_state'])
    """
    takes_images = any(_is_side(dim) for value in session.get_inputs() for dim in value.shape)
    ids = np.random.default_rng(0).integers(0, _SMALLEST_VOCABULARY, (batch, time))
    reason: object = "it takes other types"
    for side in _IMAGE_SIDES if takes_images else (0,):
        try:
            feed = made_up_inputs(session, ids, folder, side=side)
            outputs = session.run(None, feed)
        except Exception as error:  # onnxruntime has an exception class for each status code
            reason = error
            continue
        return feed, dict(zip([value.name for value in session.get_outputs()], outputs, strict=True))
    raise ValueError(f"no inputs could be made up that suit the graph ({' '.join(str(reason).split())})")


def made_up_inputs(session: Any, ids: NDArray[np.int64], folder: Path | None = None, *, side: int = 0) -> Arrays:
    """Inputs for texts: their ids, masks of ones, positions, a past without tokens; other numbers are random or zero.

    Optional inputs keep their defaults, and those of splices ask for nothing.

    Args:
        session: an onnxruntime InferenceSession.
        ids: of texts of one length [b, t].
        folder: of the graph; a `genai_config.json` there tells the width of keys and values.
        side: height and width of images, for a graph that takes them.

    Raises:
        KeyError: the graph takes a type that is not a number.

    >>> from pathlib import Path
    >>> from sae_runtime.engine.sessions import open_session
    >>> made_up_inputs(open_session(Path(host_path)), np.array([[3, 1, 2]]))["attention_mask"]
    array([[1, 1, 1]])
    """
    spliced = read_splices(session.get_modelmeta().custom_metadata_map).values()
    own = {name for one in spliced for name in one.inputs}
    sizes = {"batch": len(ids), "time": ids.shape[1], "side": side, "head": _head_size(folder)}
    return {
        value.name: _asks_nothing(value) if value.name in own else _made_up(value, ids, sizes)
        for value in session.get_inputs()
    }


def _head_size(folder: Path | None) -> int:
    """The width of keys and values, which graphs of onnxruntime-genai's builder do not tell; 0 if unknown."""
    try:
        config = read_file(dict[str, Any], (folder or Path()) / "genai_config.json", foreign=True)
        return int(config["model"]["decoder"]["head_size"])
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return 0


def _asks_nothing(value: Any) -> NDArray[Any]:
    """A required input of a splice: no edits [1, 0], and one zero where it has another rank."""
    return np.zeros((1, 0) if len(value.shape) == 2 else (1,) * len(value.shape), TYPES[value.type])


def _made_up(value: Any, ids: NDArray[np.int64], sizes: dict[str, int]) -> NDArray[Any]:
    """Numbers for an input, by its name and its type."""
    dtype: Any = TYPES[value.type]
    shape = [_size(dim, place, sizes) for place, dim in enumerate(value.shape)]
    if "mask" in value.name:
        return np.ones(shape, dtype)
    if np.issubdtype(dtype, np.floating):
        rng = np.random.default_rng([len(shape), *value.name.encode()])
        return rng.standard_normal(shape).astype(dtype)
    if "position" in value.name and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    if is_of_words(value.name):
        return np.resize(ids, shape).astype(dtype)
    return np.zeros(shape, dtype)


def _size(dim: int | str | None, place: int, sizes: dict[str, int]) -> int:
    """A size for a dimension; exporters name some by sums, such as past_sequence_length + sequence_length."""
    if isinstance(dim, int):
        return dim
    text = str(dim).lower()
    if "+" in text or "*" in text:
        terms = ([_size(factor.strip(), place, sizes) for factor in term.split("*")] for term in text.split("+"))
        return sum(math.prod(factors) for factors in terms)
    if text.isdecimal():
        return int(text)
    if "batch" in text or (place == 0 and dim is None):
        return sizes["batch"]
    if "past" in text:
        return 0
    if "channel" in text:
        return 3
    if text == "kv_cache_dim":
        return sizes["head"]
    return sizes["side" if _is_side(dim) else "time"]


def _is_side(dim: int | str | None) -> bool:
    return isinstance(dim, str) and any(word in dim.lower() for word in ("height", "width"))
