"""Graphs that this installation writes anew from a bundle's weights, for bundles whose graphs are a stranger's."""

import dataclasses
import os
import shutil
import tempfile
import weakref
from pathlib import Path

from sae_runtime.bundle import folder
from sae_runtime.bundle.extras import require
from sae_runtime.bundle.folder import DERIVED, MANIFEST, Bundle, BundleChanged
from sae_runtime.bundle.graphs import ON_REQUEST
from sae_runtime.bundle.manifest import to_json


def rebuilt(bundle: Bundle, *, verify: bool = True) -> Bundle:
    """A private copy of a bundle with graphs that are exported anew; `remove_with` removes it.

    Neither the bundle's graphs nor its derived.safetensors are copied or read. The weights are copied rather than
    linked: nobody can change the copy, and onnx refuses weights that have several links.

    Args:
        bundle: the bundle, which may be read-only.
        verify: as for `folder.read`.

    Raises:
        BundleChanged: the bundle changed since it was read.
        ImportError: the extra `export` is not installed.
        OSError: the copy does not fit into the folder of temporary files.

    >>> copy = rebuilt(sae._bundle)
    >>> copy.manifest.graphs == sae.manifest.graphs, copy.path == sae._bundle.path
    (True, False)
    >>> shutil.rmtree(copy.path)
    """
    require("export")
    from sae_runtime.exports.export import export

    manifest = bundle.manifest
    copied = {name: record for name, record in manifest.files.items() if name != DERIVED}
    graphs = [name for name, graph in ON_REQUEST.items() if graph.file in manifest.graphs]
    path = Path(tempfile.mkdtemp(prefix="sae-runtime-"))
    try:
        with bundle.unchanged(*copied):
            for name in copied:
                shutil.copyfile(bundle.path / name, path / name)
        (path / MANIFEST).write_text(to_json(dataclasses.replace(manifest, files=copied, graphs={})))
        export(path, graphs=graphs)
        return folder.read(path, verify=verify)
    except BaseException as error:
        shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(
                f"{path}: graphs cannot be built there ({error}); set TMPDIR to a folder with room"
            ) from error
        raise


def remove_with(owner: object, path: Path) -> None:
    """Remove a rebuilt bundle when its owner is gone, but not at the end of a process that was forked.

    >>> owner, path = lambda: None, Path(tempfile.mkdtemp())
    >>> remove_with(owner, path)
    >>> del owner
    >>> path.exists()
    False
    """
    weakref.finalize(owner, _remove, path, os.getpid())


def refuse_other(bundle: Bundle, weights: str) -> None:
    """Raise `BundleChanged` if a bundle has not the weights with this sha256.

    >>> refuse_other(sae._bundle, sae.manifest.files["sae_weights.safetensors"].sha256)
    """
    if bundle.manifest.files[folder.WEIGHTS].sha256 != weights:
        raise BundleChanged(bundle.path)


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(path, ignore_errors=True)
