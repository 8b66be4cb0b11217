"""Open a spliced graph, and compare its outputs with those of its host, before it is given away."""

from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.bundle.folder import BundleError
from sae_runtime.engine.sessions import open_session, sentence
from sae_runtime.engine.trial import Arrays, run_on_made_up_inputs
from sae_runtime.exports.witness import largest_error

_TOLERANCE = 1e-5  # of the largest number of an output


def first_run(host: Path, spliced: Path, *, converted_from: int | None, replaced: bool = False) -> list[str]:
    """Open a spliced graph; where the host was converted, run both without edits and compare their outputs.

    Args:
        host: the graph without the splice, as its owner has it.
        spliced: the graph with the splice.
        converted_from: the opset of the host, if the spliced graph has another.
        replaced: whether a reconstruction stands in place of an activation, so that the outputs are meant to differ.

    Returns:
        a sentence on each thing that could not be checked here.

    Raises:
        ValueError: onnxruntime refuses the spliced graph but not the host, or their outputs differ.
    """
    try:
        session = open_session(spliced, optimise=converted_from is None)
    except BundleError as error:
        reason = sentence(error.__cause__)
        if refused := _refusal(host):
            return [f"the graph was not run, since onnxruntime here does not run the host either ({refused})"]
        advice = "please report this" if converted_from is None else f"export the host again, not with {converted_from}"
        raise ValueError(f"onnxruntime refuses {host} with the splice in it ({reason}); {advice}") from error
    if converted_from is None:
        return []
    if replaced:
        return [
            f"the host was converted from opset {converted_from}, and its outputs were not compared with the "
            "original's, since a reconstruction takes an activation's place; splice it without --replace to compare"
        ]
    try:
        _, expected = run_on_made_up_inputs(open_session(host, optimise=False), host.parent)
        _, found = run_on_made_up_inputs(session, host.parent)
    except ValueError as error:
        return [
            f"the host was converted from opset {converted_from}, and its outputs were not compared with the "
            f"original's ({sentence(error)})"
        ]
    if differing := _differing(expected, found):
        raise ValueError(
            f"{host} computes something else after onnx's converter brought it from opset {converted_from} to a later "
            f"one ({', '.join(differing)}); export it again with opset 18 or later"
        )
    return []


def _refusal(host: Path) -> str:
    """Why onnxruntime does not open the host; "" if it does."""
    try:
        open_session(host, optimise=False)
    except BundleError as error:
        return sentence(error.__cause__)
    return ""


def _differing(expected: Arrays, found: Arrays) -> list[str]:
    """The outputs of the host that differ, with how far."""
    far = {name: _distance(array, found[name]) for name, array in expected.items() if name in found}
    lost = [f"{name} is missing" for name in expected if name not in found]
    return lost + [f"{name} by {error:.1g} of its largest number" for name, error in far.items() if error > _TOLERANCE]


def _distance(expected: Any, found: Any) -> float:
    """The largest difference, in parts of the largest number; infinite where shapes or places of NaN differ."""
    if expected.shape != found.shape or not np.array_equal(np.isnan(expected), np.isnan(found)):
        return np.inf
    return largest_error(np.nan_to_num(expected), np.nan_to_num(found))
