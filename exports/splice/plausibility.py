"""A short run of a spliced graph: whether the activations at its places can be those of its SAEs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.model_files import TOKENIZER, tokenizer_home
from sae_runtime.bundle.plausible import far_figures
from sae_runtime.bundle.splices import Spliced
from sae_runtime.exports import witness
from sae_runtime.exports.splice.short_run import CannotRun, Window, values_of, vocabulary

TEXTS = (
    "The lighthouse keeper counted eleven ships before the fog came in, and none of them answered his signal.",
    "In 1907 the company employed 240 people; ten years later, only the accountant and two clerks were left.",
    "To boil an egg, put it into cold water, heat the water slowly and wait four minutes once it bubbles.",
    "Dear Anna, thank you for your letter of 3 May. I am sorry to hear that the roof leaks again.",
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))",
    "Cells divide by copying their chromosomes first; errors in this process may lead to disease.",
    "The court held that the contract was void, because neither party had signed its second page.",
    "Where does the river meet the sea? Near the old harbour, about two miles south of the bridge.",
    "Our team won 3-1 after extra time, although the referee sent off their best striker.",
    "Prices rose by 2.4 percent in March, more than analysts had expected, while wages stayed flat.",
    "She laughed, closed the piano and said that nobody would ever play that waltz properly.",
    "Install the package with pip, restart the server, and open the page in your browser.",
)
"""Sentences of several kinds, about 250 tokens."""
_RANDOM = 8, 32  # windows of random ids, and the ids of each
# By how many times L0, and by how much the explained variance, may differ at the right place. An SAE of layer 3 of
# all-MiniLM-L6-v2, fitted on Python's documentation, explains 0.81 there, 0.50 of the sentences, 0.29 of random tokens.
_SENTENCES, _OF_RANDOM = (3.0, 0.45), (4.0, 0.7)
_BLOCK = 64  # tokens whose pre-activations are held at once


def doubts(graph: Path, host: Path, placed: Sequence[tuple[Spliced, Bundle]]) -> tuple[str, ...]:
    """A sentence for each SAE whose figures on a few tokens are far from those of its bundle.

    A tokenizer.json beside the host gives the tokens of a few sentences. Without one, the tokens are random, and other
    figures count as far.

    Args:
        graph: the spliced graph, in the folder of its weights.
        host: the host's graph.
        placed: the SAEs in the graph, with their bundles; a bundle without figures has nothing to compare.
    """
    known = [(spliced, bundle) for spliced, bundle in placed if "l0" in bundle.manifest.measured]
    if not known:
        return ()
    try:
        windows, kept = _sentences(tokenizer_home(host)) or _random(graph, tokenizer_home(host))
        of_text = kept is not None
        names = [spliced.tensor for spliced, _ in known]
        values = list(values_of(graph, names, windows))
    except CannotRun as error:
        return tuple(f"the place of {spliced.name} was not checked by a run: {error}" for spliced, _ in known)
    found = []
    for number, (spliced, bundle) in enumerate(known):
        rows = [x[number].reshape(-1, spliced.d_in) for x in values]
        rows = rows if kept is None else [x[keep] for x, keep in zip(rows, kept, strict=True)]
        far = _far(bundle, np.concatenate(rows), of_text=of_text)
        if far:
            where = bundle.manifest.hook or "its hook"
            found.append(
                f"{spliced.hook}: {' and '.join(far)}, on {'a few sentences' if of_text else 'random tokens'}; is it "
                f"{where} of {bundle.manifest.model or 'the model'}, where the SAE was fitted? Compare with "
                "splice --check MODEL"
            )
    return tuple(found)


def _sentences(folder: Path) -> tuple[list[Window], list[NDArray[np.bool_]] | None] | None:
    """The ids of `TEXTS` by the tokenizer in a folder, and which of them are no special tokens."""
    file = folder / TOKENIZER
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else None
    except Exception:  # tokenizers raises classes of its own; without a tokenizer, the ids are random
        tokenizer = None
    if tokenizer is None:
        return None
    tokenizer.no_padding()
    encoded = [tokenizer.encode(text) for text in TEXTS]
    ids = [np.array(one.ids, np.int64) for one in encoded]
    return ids, [np.array(one.special_tokens_mask) == 0 for one in encoded]


def _random(graph: Path, folder: Path) -> tuple[list[Window], None]:
    windows, time = _RANDOM
    return list(np.random.default_rng(0).integers(0, vocabulary(graph, folder), (windows, time))), None


def _far(bundle: Bundle, x: NDArray[np.float32], *, of_text: bool) -> list[str]:
    """What is far from the bundle's figures in those of activations x [n, d_in]."""
    if not np.isfinite(x).all():
        return []
    l0, fvu = figures(bundle, x)
    return far_figures(bundle.manifest, tokens=len(x), l0=l0, fvu=fvu, bounds=_SENTENCES if of_text else _OF_RANDOM)


def figures(bundle: Bundle, x: NDArray[np.float32]) -> tuple[float, float | None]:
    """Mean L0 of activations x [n, d_in] by the served rule, and their FVU; a transcoder has no FVU of them."""
    weights, architecture = bundle.weights(), bundle.manifest.architecture
    active, residue = 0, 0.0
    for start in range(0, len(x), _BLOCK):
        rows = x[start : start + _BLOCK]
        f = features(bundle, rows)
        active += int((f > 0).sum())
        if architecture.d_out is None:
            x_hat = witness.completed(weights, f @ weights["W_dec"] + weights["b_dec"], rows, architecture.norm)
            residue += float(((rows - x_hat) ** 2).sum())
    spread = float(((x - x.mean(axis=0, dtype=np.float64)) ** 2).sum())
    return active / len(x), residue / max(spread, 1e-30) if architecture.d_out is None else None


def features(bundle: Bundle, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The activations of all features [n, d_sae] at x [n, d_in], by the served rule."""
    weights = bundle.weights()
    z = witness.pre_activations(weights, x, bundle.manifest.architecture.norm)
    matches = witness.served(bundle.manifest.architecture, weights, z)
    return np.where(matches.kept, matches.z, 0)
