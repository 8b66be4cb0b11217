"""What `tune` found on this machine: which exact graph is quicker for a bundle, in a file of the user's cache folder.

The file is `sae-runtime/tuned.json` in `$XDG_CACHE_HOME` or `~/.cache`; the variable SAE_RUNTIME_TUNED names another.
It may be deleted at any time.
"""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_runtime.bundle import DERIVED, WEIGHTS
from sae_runtime.files import new_file
from sae_runtime.manifest import Manifest


def place() -> Path:
    """Where the file is, or would be."""
    named = os.environ.get("SAE_RUNTIME_TUNED")
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(named) if named else Path(caches) / "sae-runtime" / "tuned.json"


def find(manifest: Manifest, threads: int) -> str | None:
    """The graph that `tune` found quicker for this bundle as it is, on this machine as it is, with so many threads.

    None where it was not asked, where something that its timings depend on has changed since, or where the file cannot
    be read: opening a bundle never fails for want of it.
    """
    entries = _entries()
    if not entries:
        return None
    key = _key(manifest, threads)
    graph = next((entry.get("graph") for entry in entries if entry.get("key") == key), None)
    return graph if isinstance(graph, str) and graph in manifest.graphs else None


def keep(manifest: Manifest, threads: int, graph: str, found: Mapping[str, Any]) -> None:
    """Write down the quicker graph, in the place of an earlier answer to the same question.

    Args:
        manifest: of the bundle.
        threads: that it was timed with.
        graph: the quicker one.
        found: what led to it, as JSON; for people to read.

    Raises:
        OSError: the file cannot be written.
    """
    key = _key(manifest, threads)
    others = [entry for entry in _entries() if entry.get("key") != key]
    with new_file(place(), force=True) as partial:
        partial.write_text(json.dumps([*others, {"key": key, "graph": graph, **found}], indent=1) + "\n")


def _entries() -> list[dict[str, Any]]:
    try:
        entries = json.loads(place().read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _key(manifest: Manifest, threads: int) -> dict[str, Any]:
    """What a timing depends on: the machine, onnxruntime, sizes for people to read, and every byte that is computed on.

    How many tokens `encode_exact.onnx` leaves uncertain follows from the derived weights.
    """
    encoder = manifest.encoder
    files = {name: manifest.files[name].sha256 for name in (WEIGHTS, DERIVED) if name in manifest.files}
    graphs = {name: record.sha256 for name, record in manifest.graphs.items() if name.startswith("encode")}
    return {
        "cpu": _cpu(),
        "threads": threads,
        "onnxruntime": _onnxruntime(),
        "d_in": encoder.d_in,
        "d_sae": encoder.d_sae,
        "selection": encoder.selection,
        "width": manifest.width,
        "sha256": files | graphs,
    }


def _cpu() -> str:
    """The processor's model name where the system tells, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _onnxruntime() -> str | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    return str(onnxruntime.__version__)
