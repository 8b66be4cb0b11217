"""The tokens whose logits each feature raises and lowers most, in blocks, so that memory does not grow with the model.

In numpy:

    logits = head.read(W_dec) @ W_U
    promoted = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    suppressed = np.argsort(logits, axis=1, kind="stable")[:, :count]
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle.folder import MANIFEST, Bundle, record
from sae_runtime.bundle.hooks import parse_hook
from sae_runtime.bundle.manifest import to_json
from sae_runtime.bundle.stats import FILE as STATS
from sae_runtime.bundle.stats import save_stats
from sae_runtime.bundle.token_logits import COUNT, TokenLogits
from sae_runtime.core.progress import progress_bar
from sae_runtime.exports.splice.head import Head, NoHead, find_head
from sae_runtime.exports.splice.placement import bundle_in
from sae_runtime.exports.splice.same_place import find_place

_FEATURES, _TOKENS = 1024, 8192  # of a block: 32 MiB


def token_logits(head: Head, directions: NDArray[np.float32], *, progress: bool = False) -> TokenLogits:
    """What each row of W_dec adds to the logits, the largest and the smallest.

    Args:
        head: of the host.
        directions: W_dec [d_sae, d].
        progress: show the progress on stderr.

    Raises:
        NoHead: the weights of the head are not finite.

    >>> made = token_logits(Head((np.eye(3, 12, dtype=np.float32),)), np.array([[1, -2, 3]], np.float32))
    >>> made.promoted_tokens[0, :2].tolist(), made.suppressed_logits[0, :2].tolist()
    ([2, 0], [-2.0, 0.0])
    """
    count, d_sae = min(COUNT, head.vocabulary), len(directions)
    tokens = np.zeros((2, d_sae, count), np.int32)
    logits = np.zeros((2, d_sae, count), np.float32)
    with progress_bar(d_sae, "features", shown=progress) as bar:
        for begin in range(0, d_sae, _FEATURES):
            rows = slice(begin, begin + _FEATURES)
            best = [_Best(len(directions[rows]), count) for _ in range(2)]
            for first, block in _blocks(head, head.read(np.asarray(directions[rows], np.float32))):
                best[0].add(first, block)
                best[1].add(first, np.negative(block, out=block))
            for side, one in enumerate(best):
                tokens[side, rows], logits[side, rows] = one.tokens, one.values
            bar.update(len(directions[rows]))
    if not np.isfinite(logits).all():
        raise NoHead("the weights of the head of the host are not finite")
    return TokenLogits(tokens[0], logits[0], tokens[1], -logits[1])


def resealed(bundle: Bundle, logits: TokenLogits, folder: Path) -> dict[str, Path]:
    """Write the stats of a bundle with logits, and the manifest that lists them, into a new folder; gives both files.

    >>> from sae_runtime.bundle.folder import read
    >>> sorted(resealed(read(bundle_path), TokenLogits(*np.ones((4, 150, 3), np.float32)), Path("with logits")))
    ['sae_runtime.json', 'stats.safetensors']
    """
    folder.mkdir()
    save_stats(folder / STATS, bundle.stats(), logits)
    files = {**bundle.manifest.files, STATS: record(folder / STATS)}
    (folder / MANIFEST).write_text(to_json(dataclasses.replace(bundle.manifest, files=files)))
    return {STATS: folder / STATS, MANIFEST: folder / MANIFEST}


def head_of(model: ir.Model, bundle: Bundle, value: ir.Value) -> Head | str:
    """The head behind the place that an SAE writes to, or why there is none; it is asked before the SAE is put in."""
    try:
        if bundle.manifest.architecture.d_out is None:
            return find_head(model.graph, value)
        if bundle.manifest.hook_out is None:
            return "the transcoder does not say where its output belongs"
        copy = model.clone()  # a hook may take a norm apart
        try:
            value = find_place(copy, parse_hook(bundle.manifest.hook_out), bundle.manifest.architecture.d_x_hat)
        except ValueError:
            return f"{bundle.manifest.hook_out}, the output of the transcoder, was not found in the host"
        return find_head(copy.graph, value)
    except NoHead as error:
        return str(error)


def with_logits(
    placed: Mapping[str, Bundle], heads: Mapping[str, Head | str], folder: Path, scratch: Path, *, progress: bool
) -> tuple[dict[str, dict[str, Path]], dict[str, str | None]]:
    """Find the tokens that features promote, for the copies of bundles.

    Args:
        placed: the bundles by the names of their SAEs.
        heads: behind the place of each, or why there is none.
        folder: of the graph; a bundle that lies in it is not copied.
        scratch: an empty folder.
        progress: show the progress on stderr.

    Returns:
        the files that each copy has instead of its bundle's own, and why a bundle does not know its tokens, by name.
    """
    instead: dict[str, dict[str, Path]] = {}
    absent: dict[str, str | None] = {}
    for name, bundle in placed.items():
        head = heads[name]
        if not isinstance(head, str) and bundle_in(folder, bundle.path) is not None:
            head = "its bundle lies in the folder of the graph, and stays as it is"
        if not isinstance(head, str):
            try:
                made = token_logits(head, bundle.tensor("W_dec"), progress=progress)
                instead[name] = resealed(bundle, made, scratch / name)
                absent[name] = None
                continue
            except NoHead as error:
                head = str(error)
        absent[name] = head if bundle.logits() is None else None  # what another splice found stays
    return instead, absent


def _blocks(head: Head, read: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The logits of some features for runs of tokens, with the first token of each."""
    unembedding = head.maps[-1]
    for first in range(0, head.vocabulary, _TOKENS):
        yield first, read @ np.asarray(unembedding[:, first : first + _TOKENS], np.float32)


class _Best:
    """The largest values of each row so far, with their tokens; of equal ones the first token."""

    def __init__(self, rows: int, count: int) -> None:
        self.count = count
        self.values = np.full((rows, count), -np.inf, np.float32)
        self.tokens = np.zeros((rows, count), np.int32)

    def add(self, first: int, block: NDArray[np.float32]) -> None:
        """Look at the values of further tokens, [rows, n]."""
        least = self.values[:, -1]
        if not first and block.shape[1] > self.count:  # few are above the last of the first block's best
            least = np.nextafter(np.partition(block, -self.count, axis=1)[:, -self.count], -np.inf)
        row, column = np.nonzero(block > least[:, None])
        rows = np.concatenate([np.repeat(np.arange(len(block)), self.count), row])
        values = np.concatenate([self.values.ravel(), block[row, column]])
        tokens = np.concatenate([self.tokens.ravel(), column.astype(np.int32) + first])
        order = np.lexsort((tokens, -values, rows))
        begins = np.searchsorted(rows[order], np.arange(len(block)))
        kept = order[begins[:, None] + np.arange(self.count)]
        self.values, self.tokens = values[kept], tokens[kept]
