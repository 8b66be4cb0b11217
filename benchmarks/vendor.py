"""Fetch the JavaScript libraries of the browser's pages anew, and say what they are in vendor.json.

`make vendor` calls it. A new version is a new number and a new integrity hash here; `npm view NAME dist.integrity`
gives the hash.
"""

import base64
import hashlib
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

VENDOR = Path(__file__).parents[1] / "sae_runtime/browser/assets/vendor"


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library of npm: what is asked for, and which of its files are taken under which names."""

    name: str
    version: str
    integrity: str
    licence: str
    of_tarball: dict[str, str]
    """Our names, and the names in the tarball."""
    of_wheel: dict[str, str]
    """Our names, and the names in the wheel of onnxruntime: the tarball of onnxruntime-web has no licence."""


LIBRARIES = (
    Library(
        name="onnxruntime-web",
        version="1.30.0",
        integrity="sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        licence="MIT",
        of_tarball={
            "onnxruntime-web.js": "dist/ort.wasm.bundle.min.mjs",
            "ort-wasm-simd-threaded.wasm": "dist/ort-wasm-simd-threaded.wasm",
        },
        of_wheel={
            "licences/onnxruntime-web.txt": "LICENSE",
            "licences/onnxruntime-web-notices.txt": "ThirdPartyNotices.txt",
        },
    ),
    Library(
        name="@huggingface/tokenizers",
        version="0.2.0",
        integrity="sha512-LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        licence="Apache-2.0",
        of_tarball={"tokenizers.js": "dist/tokenizers.min.mjs", "licences/tokenizers.txt": "LICENSE"},
        of_wheel={},
    ),
)


def fetched(library: Library, folder: Path) -> Path:
    """The tarball that npm fetches into a folder, with the integrity that we pinned.

    Raises:
        ValueError: it has another integrity.
    """
    command = ["npm", "pack", "--silent", f"{library.name}@{library.version}"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    tarball = folder / done.stdout.strip()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if integrity != library.integrity:
        raise ValueError(f"{tarball.name} has integrity {integrity}, not {library.integrity}; do not use it")
    return tarball


def contents(library: Library, tarball: Path) -> dict[str, bytes]:
    """The files of a library, by our names. No script names a source map, for which developer tools would ask."""
    taken = {}
    with tarfile.open(tarball) as packed:
        for ours, theirs in library.of_tarball.items():
            member = packed.extractfile(f"package/{theirs}")
            assert member is not None
            taken[ours] = member.read()
    for ours, theirs in library.of_wheel.items():
        taken[ours] = files("onnxruntime").joinpath(theirs).read_bytes()
    return {
        ours: re.sub(rb"\n?//# sourceMappingURL=.*\n?$", b"\n", content) if ours.endswith(".js") else content
        for ours, content in taken.items()
    }


def main() -> None:
    """Write the files of all libraries, and vendor.json."""
    described = []
    with TemporaryDirectory() as folder:
        for library in LIBRARIES:
            tarball = fetched(library, Path(folder))
            taken = contents(library, tarball)
            for name, content in taken.items():
                (VENDOR / name).parent.mkdir(parents=True, exist_ok=True)
                (VENDOR / name).write_bytes(content)
            of_wheel = {"licence_from": f"onnxruntime {version('onnxruntime')}"} if library.of_wheel else {}
            described.append(
                {
                    "name": library.name,
                    "version": library.version,
                    "source": tarball.name,
                    "integrity": library.integrity,
                    "licence": library.licence,
                    **of_wheel,
                    "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in taken.items()},
                }
            )
            print(f"{library.name} {library.version}: {', '.join(taken)}")
    (VENDOR / "vendor.json").write_text(json.dumps({"libraries": described}, indent=2) + "\n")


if __name__ == "__main__":
    main()
