"""What callers ask of texts: the texts themselves, the edits of each, and the tokens that these reach."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sae_runtime.core.edits import Edit
from sae_runtime.core.gates import Gate, as_gate
from sae_runtime.deployed.interventions import Requests
from sae_runtime.deployed.spliced_sae import SplicedSAE


def as_texts(texts: Any) -> tuple[list[str], bool]:
    """The texts as a list, and whether the caller gave one text alone.

    Raises:
        ValueError: it is neither a text nor texts.

    >>> as_texts("a text")
    (['a text'], True)
    """
    if isinstance(texts, str):
        return [texts], True
    if isinstance(texts, bytes | bytearray | Mapping) or not isinstance(texts, Iterable):
        raise ValueError(f"expected a text or a list of texts, got {type(texts).__name__}; decode bytes as UTF-8")
    return list(texts), False


def as_requests(edits: Any, texts: int, saes: Mapping[str, SplicedSAE], graph: object) -> dict[str, Requests]:
    """The edits of each text in plain numbers, by SAE.

    Args:
        edits: an Edit, a list of them, or a mapping of these by SAE, for all texts; or a list with one of these lists
            or mappings for each text.
        texts: number of texts.
        saes: of the model, by name.
        graph: the graph in messages.

    Raises:
        ValueError: the edits have another form, the model has no such SAE, or the SAE takes no such edit.

    >>> as_requests([], 2, {}, "model.onnx")
    {}
    """
    if isinstance(edits, Edit):
        edits = [edits]
    if isinstance(edits, Mapping) or _are_edits(edits):
        one = _by_sae(edits, saes, graph)
        return {name: [plain] * texts for name, plain in one.items() if plain}
    if not isinstance(edits, Sequence) or isinstance(edits, str):
        raise _no_edits(edits)
    if len(edits) != texts:
        raise ValueError(f"{len(edits)} lists of edits were given for {texts} texts; give one list, or one for each")
    each = [_by_sae(one, saes, graph) for one in edits]
    names = [name for name in saes if any(one.get(name) for one in each)]
    return {name: [one.get(name, []) for one in each] for name in names}


def as_gates(gate: Any, texts: int) -> list[Gate]:
    """The gate of each text.

    Raises:
        ValueError: it is neither a gate nor a list with one for each text.

    >>> as_gates(["all", {0, 3}], 2)
    ['all', Positions(numbers=(0, 3))]
    """
    if not isinstance(gate, list | tuple) or (gate and all(isinstance(one, int | np.integer) for one in gate)):
        return [as_gate(gate)] * texts
    if len(gate) != texts:
        raise ValueError(f"{len(gate)} gates were given for {texts} texts; give one gate, or one for each")
    return [as_gate(one) for one in gate]


def _are_edits(edits: Any) -> bool:
    return isinstance(edits, Sequence) and not isinstance(edits, str) and all(isinstance(one, Edit) for one in edits)


def _by_sae(edits: Any, saes: Mapping[str, SplicedSAE], graph: object) -> dict[str, list[Edit]]:
    """The edits of one text, or of all, in plain numbers."""
    if not isinstance(edits, Mapping):
        listed = [edits] if isinstance(edits, Edit) else edits
        if not _are_edits(listed):
            raise _no_edits(edits)
        if not listed:
            return {}
        if not saes:
            raise ValueError(
                f"{graph} has no SAE, so it takes no edits; put one in: sae-runtime splice {graph} --sae BUNDLE"
            )
        if len(saes) > 1:
            raise ValueError(
                f"the model has the SAEs {', '.join(saes)}; give edits by name, such as {{{next(iter(saes))!r}: [...]}}"
            )
        edits = {next(iter(saes)): listed}
    plain = {}
    for name, some in edits.items():
        listed = [some] if isinstance(some, Edit) else some
        if not _are_edits(listed):
            raise _no_edits(some)
        if name not in saes:
            raise ValueError(
                f"the model has no SAE {name!r}, it has {', '.join(saes) or 'none'}; give edits by its name"
            )
        if listed and not saes[name].edits:
            raise ValueError(f"{name} takes no edits: it is a transcoder, or was spliced to be read alone")
        plain[name] = saes[name].resolved(listed)
    return plain


def _no_edits(given: object) -> ValueError:
    return ValueError(
        f"edits are an Edit, a list of them, a mapping by SAE, or a list with such a list for each text, got "
        f"{type(given).__name__}; make one by Edit.set(3, 8.0)"
    )
