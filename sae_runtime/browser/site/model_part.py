"""The model of a site: the spliced graph as a page runs it, its tokenizer, and model.json, which describes both."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_runtime.model import Model

WriteGraph = Callable[..., list[Path]]
"""`sae_runtime.exports.page_graph.write_page_graph`; the browser itself needs no onnx."""


def write_model_part(
    model: Model,
    folder: Path,
    *,
    write_graph: WriteGraph,
    saes: Mapping[str, str],
    sentences: Sequence[str],
    int8: bool = False,
    large: bool = False,
) -> dict[str, Any]:
    """Write what a page needs to run a model, and give the object of model.json, which is among it.

    Args:
        model: a deployed model.
        folder: `model/` of a site; it is made.
        write_graph: writes the graph for a page.
        saes: the name of the site's SAE by the sha256 of its weights.
        sentences: texts of the corpus, for examples and to measure what int8 changes.
        int8: keep the host's weights in eight bits.
        large: write a model that is larger than a page loads at ease.

    Returns:
        The object of model.json. Where its "problem" is no null, the page cannot run the model, and the folder has
        model.json alone.
    """
    raise NotImplementedError
