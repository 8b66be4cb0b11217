"""Bundles that a stranger changed and sealed again: the manifest's sizes and hashes are those of the changed files."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from sae_runtime.bundle.folder import MANIFEST, record
from sae_runtime.bundle.manifest import from_json, to_json


def reseal(folder: Path) -> Path:
    """Write the sizes and hashes of a bundle's files and graphs into its manifest anew; gives the folder.

    A file that the manifest lists and the folder lacks keeps its record. The manifest itself must be sound.
    """
    manifest = from_json((folder / MANIFEST).read_text())
    there = {name: record(folder / name) for name in (*manifest.files, *manifest.graphs) if (folder / name).is_file()}
    files = {name: there.get(name, old) for name, old in manifest.files.items()}
    graphs = {
        name: dataclasses.replace(old, size=there[name].size, sha256=there[name].sha256) if name in there else old
        for name, old in manifest.graphs.items()
    }
    (folder / MANIFEST).write_text(to_json(dataclasses.replace(manifest, files=files, graphs=graphs)))
    return folder


def changed(folder: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """Change the bytes of one file of a bundle and seal the bundle again; gives the folder."""
    path = folder / name
    data = change(path.read_bytes())
    path.unlink()  # never through a link, which may lead into a bundle of other tests
    path.write_bytes(data)
    return reseal(folder)
