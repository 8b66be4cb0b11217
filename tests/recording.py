"""Sessions that note what they run, and SAEs on them."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sae_runtime import SAE
from sae_runtime.bundle import folder as bundle
from sae_runtime.engine.sessions import CPU, Sessions
from sae_runtime.engine.tiling import DEFAULT, Tiling


class RecordingSessions(Sessions):
    """Notes each run: the graph, the rows and the slots that it gave; a test may alter the outputs."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        super().__init__(bundle.read(path), providers=CPU, threads=threads, verify=True)
        self.runs: list[tuple[str, int, int]] = []

    def run(self, name: str, feed: dict[str, NDArray[Any]], *, shared: bool = False) -> Any:
        """Run a graph and note it."""
        outputs = self.altered(name, feed, super().run(name, feed, shared=shared))
        self.runs.append((name, len(next(iter(feed.values()))), outputs[0].shape[-1]))
        return outputs

    def altered(self, name: str, feed: dict[str, NDArray[Any]], outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs that the caller gets."""
        return outputs


def recorded(path: Path, graph: str, *, threads: int = 1, tiling: Tiling = DEFAULT) -> tuple[SAE, RecordingSessions]:
    """An SAE and its sessions."""
    sessions = RecordingSessions(path, threads=threads)
    return SAE(sessions, graph, tiling), sessions
