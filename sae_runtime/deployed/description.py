"""What a deployed model is, by its files alone: nothing is opened by onnxruntime, and no weights are read."""

from collections.abc import Mapping
from dataclasses import dataclass

from sae_runtime.bundle.graph_reader import read_ports
from sae_runtime.bundle.labels import read_labels
from sae_runtime.bundle.model_files import TOKENIZER
from sae_runtime.deployed.layout import Layout
from sae_runtime.deployed.pooling import POOLED, VECTORS
from sae_runtime.text.settings import read_settings


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a deployed model is.

    Attributes:
        kind: a few words.
        tokenizer: the folder of its tokenizer; None: it has none.
        max_length: tokens of a text, where the files tell it.
        labels: number of labels of each SAE whose bundle is there.
    """

    kind: str
    tokenizer: str | None
    max_length: int | None
    labels: Mapping[str, int]


def described(layout: Layout) -> Description:
    """Say what a deployed model is.

    >>> from sae_runtime.deployed.layout import read_layout
    >>> described(read_layout(host_path)).kind
    'embedding model, whose files do not say how it pools'

    Raises:
        ValueError: the graph or labels are damaged.
    """
    has_tokenizer = (layout.home / TOKENIZER).is_file()
    return Description(
        kind=_kind(layout),
        tokenizer=str(layout.home) if has_tokenizer else None,
        max_length=_max_length(layout),
        labels={name: len(read_labels(bundle)) for name, bundle in layout.bundles.items()},
    )


def _kind(layout: Layout) -> str:
    inputs, outputs = read_ports(layout.graph)
    own = {name for spliced in layout.splices.values() for name in (*spliced.inputs, *spliced.outputs)}
    outputs = [name for name in outputs if name not in own]
    if any("past" in name for name in inputs):
        return "language model with keys and values"
    if any(name in (*VECTORS, POOLED) for name in outputs):
        sentence = layout.sentence
        if sentence is None or sentence.problem is not None:
            return "embedding model, whose files do not say how it pools"
        return f"embedding model, {' and '.join(sentence.pooling)} pooling{', normalised' * sentence.normalise}"
    return f"model that gives {', '.join(outputs[:4])}{', ...' * (len(outputs) > 4)}"


def _max_length(layout: Layout) -> int | None:
    """The smallest of what the files say, as `load_model` counts."""
    model = layout.genai.get("model")
    told, sentence = read_settings(layout.home), layout.sentence
    length = told.max_length if sentence is None or sentence.max_length is None else sentence.max_length
    said = [length, told.positions, model.get("context_length") if isinstance(model, Mapping) else None]
    return min((length for length in said if type(length) is int and length > 0), default=None)
