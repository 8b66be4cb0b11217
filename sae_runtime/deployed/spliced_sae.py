"""An SAE inside a deployed model: its sizes, and what its bundle says of its features."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.external_data import located
from sae_runtime.bundle.identity import Identity, identity
from sae_runtime.bundle.labels import read_labels
from sae_runtime.bundle.parts import MANIFEST, read_manifest
from sae_runtime.bundle.splices import Spliced
from sae_runtime.bundle.stats import FILE, Stats, read_stats
from sae_runtime.bundle.tensors import read_header
from sae_runtime.bundle.token_logits import TokenLogits, read_logits
from sae_runtime.core.edits import Edit, by_label, resolved
from sae_runtime.deployed.layout import Layout


@dataclass(frozen=True)
class SplicedSAE:
    """An SAE inside a deployed model.

    Attributes:
        spliced: what the graph says of it.
        bundle: the folder of its bundle; None: it is not there, or holds another SAE by now.
        graph: the graph.
        absent: why there is no bundle.
        by_threshold: whether a token may have any number of features, so that it may need more slots.
    """

    spliced: Spliced
    bundle: Path | None
    graph: Path
    absent: str
    by_threshold: bool

    def __repr__(self) -> str:
        return f"SplicedSAE({self.name}, {self.spliced.d_in:,} -> {self.d_sae:,}, {self.hook})"

    @property
    def name(self) -> str:
        """Of the splice."""
        return self.spliced.name

    @property
    def hook(self) -> str:
        """Where the activation is in the host."""
        return self.spliced.hook

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.spliced.d_sae

    @property
    def slots(self) -> int:
        """Features of a token that are read at first; a token that has more is read again."""
        return min(self.spliced.slots or self.d_sae, self.d_sae)

    @property
    def reads(self) -> bool:
        """Whether the graph gives its features."""
        return f"{self.name}_values" in self.spliced.outputs

    @property
    def edits(self) -> bool:
        """Whether the graph takes edits of its features; those of a transcoder can only be read."""
        return f"{self.name}_features" in self.spliced.inputs

    @property
    def labels(self) -> Mapping[int, str]:
        """The labels of features, as the bundle's labels.jsonl has them now; none if there is no such file.

        Raises:
            ValueError: the model has no bundle of this SAE, or the file is not sound.
        """
        return read_labels(self._home("labels"), self.d_sae)

    @property
    def largest(self) -> NDArray[np.float32] | None:
        """The largest activation of each feature, float32 [d_sae]; None: the bundle has no stats.

        Raises:
            ValueError: the model has no bundle of this SAE, or its stats are not sound.
        """
        return None if (stats := self.stats) is None else stats.largest

    @property
    def stats(self) -> Stats | None:
        """How often and how strongly each feature was active on measured tokens; None: the bundle has no stats.

        Raises:
            ValueError: the model has no bundle of this SAE, or its stats are not sound.
        """
        folder = self._home("largest activations")
        return _stats(folder, self.d_sae, identity(folder / MANIFEST))

    @property
    def logits(self) -> TokenLogits | None:
        """The tokens that each feature promotes and suppresses most; None: `splice` found no head of float weights.

        Raises:
            ValueError: the model has no bundle of this SAE, or its stats are not sound.
        """
        folder = self._home("promoted tokens")
        return read_logits(folder / FILE, self.d_sae) if FILE in read_manifest(folder).files else None

    def resolved(self, edits: Sequence[Edit]) -> list[Edit]:
        """The same edits in numbers; labels and largest activations are read where an edit needs them.

        Raises:
            ValueError: they are not known, or a label is not that of one feature.
        """
        largest = self.largest if any(edit.of_largest for edit in edits) else None
        return resolved(edits, largest, self.labels if by_label([edits]) else None)

    def _home(self, what: str) -> Path:
        if self.bundle is None:
            raise ValueError(f"the {what} of {self.name} are not known: {self.absent}")
        return self.bundle


@functools.lru_cache(maxsize=8)
def _stats(folder: Path, d_sae: int, _now: Identity | None) -> Stats | None:
    """Of a bundle; its manifest changes whenever they are measured again."""
    return read_stats(folder / FILE, d_sae) if FILE in read_manifest(folder).files else None


def spliced_saes(layout: Layout) -> dict[str, SplicedSAE]:
    """The SAEs of a deployed model, by name.

    >>> from sae_runtime.deployed.layout import read_layout
    >>> spliced_saes(read_layout(host_path))
    {}
    """
    return {name: _sae(layout, spliced) for name, spliced in layout.splices.items()}


def _sae(layout: Layout, spliced: Spliced) -> SplicedSAE:
    bundle = layout.bundles.get(spliced.name)
    absent = layout.unused.get(spliced.name, f"{layout.graph.parent} has no bundle of it; splice the host again")
    by_threshold = spliced.file is not None and "threshold" in read_header(located(layout.graph, spliced.file))
    return SplicedSAE(spliced, bundle, layout.graph, absent, by_threshold)
