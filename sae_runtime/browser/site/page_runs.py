"""Runs of the graph that a page runs, by onnxruntime here, to compare its answers with those of the model."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.browser.site.unfit import UnfitForPage
from sae_runtime.core.edits import Edit
from sae_runtime.core.features import Features, from_slots
from sae_runtime.deployed.host_inputs import read_host_inputs
from sae_runtime.deployed.interventions import intervention_feed
from sae_runtime.deployed.pooling import normalised, pooled
from sae_runtime.model import Model

_LONGEST = 256  # tokens of a text that is compared
_ENOUGH, _ENOUGH_OF_TEXT = 2000, 500  # tokens that are compared; a language model computes logits besides


class PageRuns:
    """The graph that a page runs, open here.

    Attributes:
        inputs: what it takes for texts.

    Args:
        graph: as `write_page_graph` left it.
        model: that it was made of.

    Raises:
        UnfitForPage: the graph takes what no text gives, or onnxruntime refuses it.
    """

    def __init__(self, graph: Path, model: Model) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # as the page's
        self._splices, self._saes = model.layout.splices, model.saes
        own = {name for spliced in self._splices.values() for name in spliced.inputs}
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
            self.inputs = read_host_inputs(
                self._session, own=own, config=model.layout.config, genai=model.layout.genai, graph="the graph"
            )
        except Exception as error:  # onnxruntime has an exception class for each status code
            raise UnfitForPage(f"{' '.join(str(error).split())}; run the model by sae-runtime serve") from error
        self._required = frozenset(own)

    def run(
        self,
        ids: NDArray[np.int64],
        outputs: Sequence[str],
        *,
        slots: Mapping[str, int] | None = None,
        edits: Mapping[str, Sequence[Edit]] | None = None,
    ) -> list[NDArray[Any]]:
        """Outputs for one text, or several of one length.

        Args:
            ids: of the tokens, [b, t].
            outputs: their names.
            slots: features of a token that are read, by SAE.
            edits: in plain numbers, by SAE.
        """
        feed = self.inputs.feed(ids, np.ones_like(ids))
        requests = {name: [each] * len(ids) for name, each in (edits or {}).items()}
        feed |= intervention_feed(self._splices, slots=slots, edits=requests, required=self._required)
        found: list[NDArray[Any]] = self._session.run(list(outputs), feed)
        return found

    def features(self, ids: NDArray[np.int64]) -> dict[str, Features]:
        """All active features of a text's tokens, by SAE."""
        read = {name: sae for name, sae in self._saes.items() if sae.reads}
        # Token choice gives as many features as it is asked for, so that one is asked for its own number alone.
        slots = {name: min(sae.slots * (2 if sae.by_threshold else 1), sae.d_sae) for name, sae in read.items()}
        while True:
            asked = {name: number for name, number in slots.items() if f"{name}_slots" in read[name].spliced.inputs}
            names = [name for sae in read for name in (f"{sae}_indices", f"{sae}_values")]
            arrays = iter(self.run(ids[None], names, slots=asked))
            found = {name: (indices[0], values[0]) for name, indices, values in zip(read, arrays, arrays, strict=True)}
            more = [
                name
                for name in asked
                if read[name].by_threshold and slots[name] < read[name].d_sae and (found[name][1][:, -1:] > 0).any()
            ]
            if not more:
                return {name: from_slots([found[name]], read[name].d_sae, (len(ids),)) for name in read}
            slots |= {name: min(4 * slots[name], read[name].d_sae) for name in more}


def agreement(model: Model, runs: PageRuns, told: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any] | None:
    """How the page's graph agrees with the model on texts; None without a text or an SAE that is read.

    Args:
        model: with its own weights.
        runs: of the page's graph.
        told: model.json's object, for the prompt, the output and the pooling of vectors.
        texts: some sentences; the first of them are read until there are enough tokens.

    Returns:
        texts and tokens: how many; jaccard: active features that both have, out of those of either; values: the mean
        difference of their activations, relative to the model's; vectors: the smallest cosine of a text's two vectors,
        or null; next: the share of tokens after which both write the same token, or null.
    """
    read = [name for name, sae in model.saes.items() if sae.reads]
    if not texts or not read:
        return None
    total = dict.fromkeys(("texts", "tokens", "both", "either", "differences", "sizes", "same"), 0.0)
    cosines = []
    tokenizer = model.tokenizer.lowering() if told["lower_case"] else model.tokenizer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in texts:
            (windows,) = model.windows([text])
            ids = windows[0].ids[:_LONGEST]
            if not len(ids):
                continue
            _add_features(total, model.read([ids], texts=[text])[0], runs.features(ids), read)
            total["texts"] += 1
            total["tokens"] += len(ids)
            if told["kind"] == "vectors":
                vectors = told["vectors"]
                (tokens,) = tokenizer.encode([text], prefix=vectors["prompt"], limit=vectors["limit"])
                cosines.append(_cosine(model.embed(text), _vector(runs, vectors, tokens.ids)))
            elif told["kind"] == "text":
                ours, theirs = model.run(text, outputs="logits")["logits"][: len(ids)], runs.run(ids[None], ["logits"])
                total["same"] += int((ours.argmax(axis=-1) == theirs[0][0].argmax(axis=-1)).sum())
            if total["tokens"] >= (_ENOUGH_OF_TEXT if told["kind"] == "text" else _ENOUGH):
                break
    return {
        "texts": int(total["texts"]),
        "tokens": int(total["tokens"]),
        "jaccard": _share(total["both"], total["either"]),
        "values": _share(total["differences"], total["sizes"], 0.0),
        "vectors": round(min(cosines), 4) if cosines else None,
        "next": _share(total["same"], total["tokens"]) if told["kind"] == "text" else None,
    }


def _add_features(
    total: dict[str, float], ours: Mapping[str, Features], theirs: Mapping[str, Features], names: Sequence[str]
) -> None:
    for name in names:
        a, b = ours[name].to_dense(), theirs[name].to_dense()
        shared = (a > 0) & (b > 0)
        total["both"] += int(shared.sum())
        total["either"] += int(((a > 0) | (b > 0)).sum())
        total["differences"] += float(np.abs(a - b)[shared].sum())
        total["sizes"] += float(a[shared].sum())


def _share(part: float, whole: float, otherwise: float = 1.0) -> float:
    return round(part / whole, 4) if whole else otherwise


def _vector(runs: PageRuns, vectors: Mapping[str, Any], ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """The vector of a prompt and a text, whose tokens these are, as assets/site/model/vectors.js makes it."""
    (array,) = runs.run(ids[None], [vectors["output"]])
    array = array.astype(np.float32)
    if array.ndim > 2:
        mask = np.ones((1, len(ids)), np.int64)
        array = pooled(array, mask, vectors["pooling"], prompt=vectors["prompt_tokens"])
    vector: NDArray[np.float32] = (normalised(array) if vectors["normalise"] else array)[0]
    return vector


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
