"""The graph of a deployed model for a web page: every input has to be fed, and every file lies beside the graph."""

from pathlib import Path


def write_page_graph(graph: Path, folder: Path, *, int8: bool = False) -> list[Path]:
    """Write the graph of a spliced model as onnxruntime-web runs it: `model.onnx` and the files of its weights.

    onnxruntime-web takes an input that has a default for a constant, so the inputs of SAEs lose their defaults.

    Args:
        graph: the graph of a deployed model.
        folder: where the files go; it exists.
        int8: keep the host's weights as int8 numbers, with a scale for each column of a product and each row of a table.

    Returns:
        The files that were written, the graph first.
    """
    raise NotImplementedError
