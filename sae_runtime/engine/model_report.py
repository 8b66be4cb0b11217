"""A report on a spliced model: whether its SAEs are those that were put in, and whether it runs here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.bundle.external_data import check_external
from sae_runtime.bundle.graph_reader import read_metadata
from sae_runtime.bundle.siblings import repaired
from sae_runtime.bundle.splices import Spliced, check_weights, read_splices
from sae_runtime.engine.sessions import open_session, run_session
from sae_runtime.engine.trial import Arrays, run_on_made_up_inputs


def model_report(path: Path, part: Path | None = None) -> dict[str, Any]:
    """Check the weights of a model's SAEs, and run it on made-up inputs: unasked, read, and edited.

    Args:
        path: the graph, `.onnx`.
        part: its part that gives features; it is run too, and must give the same bits.

    Returns:
        graph, outputs (the host's shapes, by name), splices (of each SAE its hook, l0 on the made-up tokens, and moved:
        whether a direction changes an output; None: it does not read or edit) and warnings.

    Raises:
        BundleError: onnxruntime refuses the graph, or an SAE has other weights than those that were put in.
        FileNotFoundError: the graph, or a file of weights, is missing.
        ValueError: the file is not an ONNX graph, describes no splice, or reads files outside of its folder.

    >>> model_report(Path(host_path))["outputs"]
    {'last_hidden_state': [2, 5, 24]}
    """
    splices = read_splices(read_metadata(repaired(path)))
    check_external(path)
    for spliced in splices.values():
        check_weights(path, spliced)
    session, warnings = open_session(path), []
    plain: Arrays = {}
    try:
        feed, plain = run_on_made_up_inputs(session, path.parent)
        described = {name: _described(session, feed, plain, spliced) for name, spliced in splices.items()}
        if part is not None and not _is_part(part, session, feed, splices):
            warnings.append(f"{part} gives other features than {path}; splice the host again")
    except ValueError as error:
        described = {name: {"hook": one.hook, "l0": None, "moved": None} for name, one in splices.items()}
        warnings.append(f"the model was not run: {error}")
    own = {name for one in splices.values() for name in one.outputs}
    shapes = {name: list(array.shape) for name, array in plain.items() if name not in own}
    warnings += [f"{name} has NaN or Inf" for name in shapes if not np.isfinite(plain[name]).all()]
    return {"graph": str(path), "outputs": shapes, "splices": described, "warnings": warnings}


def _is_part(part: Path, session: Any, feed: Arrays, splices: Mapping[str, Spliced]) -> bool:
    """Whether the part of a graph gives the features of the whole."""
    check_external(part)
    cut = open_session(part)
    taken = {value.name for value in (*cut.get_inputs(), *cut.get_overridable_initializers())}
    slots = {f"{name}_slots": np.array([one.slots or one.d_sae]) for name, one in splices.items()}
    asked = feed | {name: array for name, array in slots.items() if name in taken}
    names = [value.name for value in cut.get_outputs()]
    found = run_session(cut, {name: array for name, array in asked.items() if name in taken}, part, names)
    expected = run_session(session, asked, "the model", names)
    return all(np.array_equal(one, other, equal_nan=True) for one, other in zip(found, expected, strict=True))


def _described(session: Any, feed: Arrays, plain: Arrays, spliced: Spliced) -> dict[str, Any]:
    """What one SAE of a model does."""
    l0 = moved = None
    if f"{spliced.name}_slots" in spliced.inputs:
        asked = {f"{spliced.name}_slots": np.array([spliced.slots or spliced.d_sae])}
        (values,) = run_session(session, feed | asked, "the model", [f"{spliced.name}_values"])
        l0 = float((values > 0).sum(axis=-1).mean())
    if f"{spliced.name}_direction" in spliced.inputs:
        direction = np.random.default_rng(0).standard_normal((1, 1, spliced.d_in)).astype(np.float32)
        names = [name for name in plain if name not in spliced.outputs]
        edited = run_session(session, feed | {f"{spliced.name}_direction": direction}, "the model", names)
        moved = any((array != plain[name]).any() for name, array in zip(names, edited, strict=True))
    return {"hook": spliced.hook, "l0": l0, "moved": moved}
