"""A small site whose contents a test chooses, written without the code that writes sites.

The values are those of the format that `sae_runtime/browser/site` writes; a test puts what it likes in their place.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sae_runtime.browser

ASSETS = Path(sae_runtime.browser.__file__).parent / "assets"
SHARD = 4  # features of a shard
CURVE = {"rank": [1, 2, 3, 4], "value": [0.3, 0.1, 0.02, 0.001]}


def context(parts: Sequence[Any], peak: int = 1, **more: Any) -> dict[str, Any]:
    """A context of these segments, in the top band."""
    return {"band": 0, "value": 4.0, "peak": peak, "parts": parts, "file": "a.txt", "row": 7, "licence": "MIT"} | more


def feature(number: int, **more: Any) -> dict[str, Any]:
    """A feature that is active on ten tokens."""
    row: dict[str, Any] = {"feature": number, "label": f"label {number}", "source": "person", "density": 0.01}
    row |= {"count": 10, "mean": 2.0, "max": 4.0, "histogram": [4, 3, 2, 1], "bands": [[2.0, 4.0, 5], [0.5, 2.0, 5]]}
    row |= {"tokens": [["cake", 5, 2.0], ["tea", 3, 1.0]], "neighbours": [[0, 0.5], [1, 0.25]], "together": [[2, 0.5]]}
    row |= {"promoted": [["bread", 1.5]], "suppressed": [["iron", -1.5]]}
    row["contexts"] = [context(["a ", ["cake", 4.0], " and ", ["tea", 1.0]]), context(["b ", ["tea", 1.0]], band=1)]
    return row | more


def overview(name: str, d_sae: int, **more: Any) -> dict[str, Any]:
    """What the site says of an SAE as a whole."""
    row: dict[str, Any] = {"name": name, "model": "gpt2", "hook": "h.6", "d_sae": d_sae, "per": "token", "tokens": 900}
    row |= {"documents": 9, "matches": 300, "l0": 3.0, "active": [1, 2, 300], "dead": 1, "density": CURVE, "law": None}
    row |= {"histogram_of_density": {"edges": [-4, -3, -2, -1, 0], "counts": [1, 2, 3, 1]}, "allocation": "token, k 3"}
    row |= {"measured": {"explained_variance": 0.8, "fvu": 0.2, "l0": 3.0, "dead": 1}, "licences": ["MIT"]}
    row |= {"texts": [{"file": "a.txt", "documents": 9}], "left_out": ["promoted tokens: none"]}
    firsts = list(range(0, d_sae, SHARD))
    row |= {"shards": {"features": firsts, "names": [0]}}
    starter = {"feature": 1, "label": "label 1", "density": 0.01, "max": 4.0, "text": ["a ", ["cake", 4.0], " b"]}
    return row | {"starters": [starter]} | more


def write_site(
    folder: Path,
    saes: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    overviews: Mapping[str, Any] | None = None,
    names: Mapping[str, Any] | None = None,
    described: Mapping[str, Any] | None = None,
    **site: Any,
) -> Path:
    """Write a site.

    Args:
        folder: to make.
        saes: the features of each SAE, whose name is also that of its folder.
        overviews: other values of every overview.json.
        names: other columns of every shard of names.
        described: other values of every SAE in site.json.
        site: other values of site.json.
    """
    shutil.copytree(ASSETS / "site", folder / "code")
    (folder / "code" / "index.html").rename(folder / "index.html")
    shutil.copytree(ASSETS / "shared", folder / "code" / "shared")
    (folder / "vendor").symlink_to(ASSETS / "vendor")
    told = [_sae(folder / "data" / name, name, rows, overviews or {}, names or {}) for name, rows in saes.items()]
    whole = {"format": 1, "made_by": "sae-runtime 0.2.0", "title": "A site", "model": None}
    whole |= {"saes": [{**sae, **(described or {})} for sae in told]}
    write_json(folder / "serve.json", {})
    write_json(folder / "site.json", whole | site)
    return folder


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as a stranger may: lone surrogates stay escapes, NaN stays NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _sae(
    folder: Path, name: str, rows: Sequence[Mapping[str, Any]], overviews: Mapping[str, Any], names: Mapping[str, Any]
) -> dict[str, Any]:
    count = len(rows)
    write_json(folder / "overview.json", {**overview(name, count), **overviews})
    columns: dict[str, Any] = {column: [row[column] for row in rows] for column in ("label", "density", "max")}
    columns["tokens"] = [
        [text for text, *_ in row["tokens"]] if isinstance(row["tokens"], list) else [] for row in rows
    ]
    write_json(folder / "names" / "0000.json", {"first": 0, **columns, **names})
    for shard, first in enumerate(range(0, count, SHARD)):
        content = {"first": first, "features": rows[first : first + SHARD]}
        write_json(folder / "features" / f"{shard:05}.json", content)
    told = {"name": name, "folder": f"data/{name}", "d_sae": count, "tokens": 900, "per": "token", "hook": "h.6"}
    return told | {"model": "gpt2", "weights_sha256": "0" * 64}
