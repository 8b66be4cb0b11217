"""Wrong matches against float64, over many real activations, in every mode that is called exact.

float64 decides wherever float32 could err: features above each cut, or below it by less than a ten-thousandth of the
token's largest value, are computed again in float64; the others are told apart by a float32 product of torch's. A match
is wrong if it is on the wrong side of the cut by more than 1e-6 of the token's largest value. Where the text gives too
few activations, they come again, each scaled by a random number near 1.
"""

from pathlib import Path

import click
import numpy as np
import torch
import wide
from numpy.typing import NDArray

from sae_runtime import Features, load
from sae_runtime.bundle import folder as bundle

_NEAR = 1e-4  # of the token's largest value; float32 sums of a thousand numbers err by a hundredth of it
_TOLERANCE = 1e-6
_CHUNK = 1024


class Oracle:
    """The served rule of a bundle, in float64 where it matters."""

    def __init__(self, path: Path) -> None:
        read = bundle.read(path)
        self._w = torch.from_numpy(np.array(read.tensor("W_enc")))
        self._rows = np.ascontiguousarray(read.tensor("W_enc").T, np.float64)
        self._b_enc, self._b_dec = (np.array(read.tensor(name), np.float64) for name in ("b_enc", "b_dec"))
        self._theta = np.array(read.tensor("threshold"), np.float64) if "threshold" in read.specs else None
        self._k = int(read.manifest.batch_allocation.k)

    def faults(self, x: NDArray[np.float32], features: Features) -> tuple[int, float]:
        """Wrong matches among features of x [n, d_in], and their largest error over the token's largest value."""
        c = x.astype(np.float64) - self._b_dec
        z = torch.from_numpy(c.astype(np.float32)) @ self._w
        z += torch.from_numpy(self._b_enc.astype(np.float32))
        largest = z.max(dim=1).values.numpy().astype(np.float64).clip(1e-30)
        near = torch.from_numpy((_NEAR * largest).astype(np.float32))[:, None]
        if self._theta is None:
            cut = z.topk(self._k, dim=1).values[:, -1:].clamp(min=0)
        else:
            cut = torch.from_numpy(self._theta.astype(np.float32))
        token, feature = (part.numpy() for part in (z > cut - near).nonzero(as_tuple=True))
        value = np.empty(len(token))
        for part in np.array_split(np.arange(len(token)), max(len(token) // 20_000, 1)):
            value[part] = np.einsum("md,md->m", c[token[part]], self._rows[feature[part]]) + self._b_enc[feature[part]]
        if self._theta is None:
            bound = np.maximum(_kth_largest(token, value, self._k, len(x)), 0)[token]
        else:
            bound = self._theta[feature]
        margin = _TOLERANCE * largest[token]

        key = token * z.shape[1] + feature  # ascending, and so are those of the features
        theirs = np.repeat(np.arange(len(x)), np.diff(features.indptr)) * z.shape[1] + features.indices
        must = (value > bound + margin) & (value > 0)
        wrong = int((must & ~np.isin(key, theirs)).sum())
        at = np.minimum(np.searchsorted(key, theirs), len(key) - 1)
        known = key[at] == theirs  # others lie far below the cut
        wrong += int((~known | (value[at] <= bound[at] - margin[at])).sum())
        error = np.abs(features.values[known] - value[at[known]]) / largest[token[at[known]]]
        return wrong, float(error.max(initial=0))


def _kth_largest(token: NDArray[np.int64], value: NDArray[np.float64], k: int, tokens: int) -> NDArray[np.float64]:
    """The k-th largest value of every token, 0 for one that has fewer; `token` ascends."""
    order = np.lexsort((-value, token))
    count = np.bincount(token, minlength=tokens)
    at = np.minimum(np.cumsum(count) - count + k, len(value)) - 1
    return np.where(count < k, 0.0, value[order][at])


@click.command()
@wide.text_option
@wide.cache_option
@click.option("--d-sae", default=24_576, show_default=True)
@click.option("--steps", default=1000, type=click.IntRange(min=1), show_default=True)
@click.option("--tokens", default=1_000_000, type=click.IntRange(min=1), show_default=True)
@click.option("--kind", "kinds", multiple=True, default=("mutual", "token"), show_default=True)
@click.option("--graph", "graphs", multiple=True, default=("encode_exact.onnx", "encode.onnx"), show_default=True)
def main(
    text: Path,
    cache: Path,
    d_sae: int,
    steps: int,
    tokens: int,
    kinds: tuple[str, ...],
    graphs: tuple[str, ...],
) -> None:
    """Print a row for each allocation and graph."""
    rows = wide.activations(cache, text)
    print("| allocation | graph | tokens | matches | wrong | largest error | encoded again in full |")
    print("|---|---|---|---|---|---|---|")
    for kind in kinds:
        path = wide.bundle(cache, text, kind=kind, d_sae=d_sae, steps=steps)
        oracle = Oracle(path)
        saes = {graph: load(path, graph=graph) for graph in graphs}
        totals = dict.fromkeys(saes, (0, 0, 0.0))
        rng = np.random.default_rng(0)
        for begin in range(0, tokens, _CHUNK):
            ids = np.arange(begin, min(begin + _CHUNK, tokens))
            x = rows.rows(np.sort(ids % len(rows)))
            if begin >= len(rows):
                x *= rng.lognormal(0, 0.1, (len(x), 1)).astype(np.float32)
            for name, sae in saes.items():
                features = sae.encode(x)
                wrong, error = oracle.faults(x, features)
                matches, faults, worst = totals[name]
                totals[name] = (matches + len(features.values), faults + wrong, max(worst, error))
        for name, sae in saes.items():
            matches, faults, worst = totals[name]
            again, of = sae.redone
            share = f"{again / of:.4%}" if of else ""
            print(f"| {kind} | {name} | {tokens:,} | {matches:,} | {faults} | {worst:.1e} | {share} |", flush=True)


if __name__ == "__main__":
    main()
