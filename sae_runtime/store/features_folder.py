"""A folder of features as the builder of a store reads it: part by part, each file compared with the index."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.parts import record
from sae_runtime.bundle.siblings import repaired
from sae_runtime.bundle.typed_json import from_dict, read_file

INDEX = "features.json"
VOCABULARY = "vocabulary.parquet"
_FORMAT_VERSION = 2


@dataclass(frozen=True)
class PartFile:
    """A Parquet file of a part."""

    path: Path

    def batches(self, rows: int) -> Iterator[Any]:
        """Record batches of at most so many rows."""
        with _reading(self.path) as file:
            yield from file.iter_batches(rows)

    def read(self) -> Any:
        """The whole table."""
        with _reading(self.path) as file:
            return file.read()


@dataclass(frozen=True)
class PartFiles:
    """The files of a part; None for a file that this kind of folder does not have."""

    tokens: PartFile | None
    documents: PartFile | None


@dataclass(frozen=True)
class FeaturesFolder:
    """A folder of features: its index, and what the builder needs of it."""

    path: Path
    index: dict[str, Any]
    sha256: str
    per: str
    d_sae: int
    rows: int
    documents: int
    matches: int
    weights_sha256: str

    def parts(self) -> Iterator[PartFiles]:
        """The parts in order; each file is compared with its sha256 before it is given.

        Raises:
            ValueError: a file is missing or altered.
        """
        for part in self.index["parts"]:
            found: dict[str, PartFile] = {}
            for name, expected in part["files"].items():
                path = self.path / name
                if not path.is_file():
                    raise ValueError(f"{path} is missing; extract the features again, which makes what is missing")
                refuse_link_out(path, self.path)
                now = record(path)
                if (now.size, now.sha256) != (expected["size"], expected["sha256"]):
                    raise ValueError(
                        f"{path} was altered: its sha256 differs from that of {INDEX}; extract the features again"
                    )
                found[name.split("/")[0]] = PartFile(path)
            yield PartFiles(found.get("tokens"), found.get("documents"))

    def vocabulary(self) -> dict[int, str]:
        """Names of tokens by id; none where the folder does not know them."""
        path = self.path / VOCABULARY
        if not path.is_file():
            return {}
        refuse_link_out(path, self.path)
        table = PartFile(path).read()
        return dict(zip(table["token"].to_pylist(), table["text"].to_pylist(), strict=True))


def open_features(path: Path) -> FeaturesFolder:
    """Open a finished folder of features.

    Raises:
        ValueError: the folder holds no features, is not finished, or is of another version.
    """
    path = repaired(path)
    index = path / INDEX
    if not index.is_file():
        if (path / "extract.json").is_file():
            raise ValueError(f"{path} is not finished: it has no {INDEX}; run the same extract again, which finishes it")
        problem = f"holds no {INDEX}" if path.is_dir() else "is not a folder" if path.exists() else "does not exist"
        raise ValueError(f"{path} {problem}; name the folder that sae-runtime extract wrote")
    refuse_link_out(index, path)
    found = read_file(dict[str, Any], index, version=_FORMAT_VERSION, field="format_version", most=1 << 28)

    def get(kind: Any, name: str) -> Any:
        return from_dict(kind, found.get(name), f"{index}: {name}")

    architecture = get(dict[str, Any], "architecture")
    get(tuple[dict[str, Any], ...], "parts")
    per = get(str, "per")
    documents = get(int, "documents")
    return FeaturesFolder(
        path=path,
        index=found,
        sha256=record(index).sha256,
        per=per,
        d_sae=from_dict(int, architecture.get("d_sae"), f"{index}: d_sae"),
        rows=documents if per == "document" else get(int, "tokens"),
        documents=documents,
        matches=get(int, "matches"),
        weights_sha256=get(str, "weights_sha256"),
    )


def _reading(path: Path) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
