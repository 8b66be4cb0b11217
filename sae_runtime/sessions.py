"""onnxruntime sessions, opened without surprises."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_runtime.bundle import BundleError
from sae_runtime.extras import require

CPU = ("CPUExecutionProvider",)


def open_session(path: Path, *, providers: Sequence[str] = CPU, threads: int | None = None) -> Any:
    """An onnxruntime InferenceSession for a graph.

    Args:
        path: the graph; its weights lie beside it.
        providers: onnxruntime execution providers, the preferred one first.
        threads: threads an operator may use; None leaves it to onnxruntime (all cores).

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: a provider is unknown here or could not start.
        BundleError: onnxruntime refuses the graph or the weights that it refers to.
    """
    require("cpu")
    import onnxruntime

    if not providers or not set(providers) <= set(onnxruntime.get_available_providers()):
        raise ValueError(
            f"providers {list(providers)} are not all available, expected some of "
            f"{onnxruntime.get_available_providers()}; run: sae-runtime doctor"
        )
    options = onnxruntime.SessionOptions()
    # Warnings would tell of every optional input that it is not a constant, which is what it is for.
    options.log_severity_level = 3
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime raises a class of its own for every status code
        reason = " ".join(str(error).split())
        raise BundleError(f"onnxruntime refuses {path} ({reason}); run: sae-runtime export {path.parent}") from error
    if session.get_providers()[0] != providers[0]:
        raise ValueError(f"{providers[0]} could not start, only {session.get_providers()}; run: sae-runtime doctor")
    return session
