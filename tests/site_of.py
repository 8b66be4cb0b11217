"""A site as a test reads it: its JSON files by what they are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: Path) -> Any:
    """The value of a JSON file, which has no number that JSON does not have."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_bytes().decode(), parse_constant=refuse)


def saes(site: Path) -> list[Any]:
    """The SAEs of site.json."""
    listed: list[Any] = read(site / "site.json")["saes"]
    return listed


def overview(site: Path, number: int = 0) -> Any:
    """The overview of an SAE."""
    return read(site / saes(site)[number]["folder"] / "overview.json")


def features(site: Path, number: int = 0) -> Iterator[Any]:
    """The features of an SAE, from all its shards, whose first features the overview names."""
    folder = site / saes(site)[number]["folder"]
    firsts = overview(site, number)["shards"]["features"]
    assert sorted(path.name for path in (folder / "features").iterdir()) == [f"{i:05}.json" for i in range(len(firsts))]
    for place, first in enumerate(firsts):
        shard = read(folder / "features" / f"{place:05}.json")
        assert shard["first"] == first == shard["features"][0]["feature"]
        yield from shard["features"]


def names(site: Path, number: int = 0) -> list[Any]:
    """Label, tokens, density and largest activation of each feature, from the shards of names."""
    folder = site / saes(site)[number]["folder"]
    rows: list[Any] = []
    for place, first in enumerate(overview(site, number)["shards"]["names"]):
        shard = read(folder / "names" / f"{place:04}.json")
        assert shard["first"] == first == len(rows)
        rows += zip(shard["label"], shard["tokens"], shard["density"], shard["max"], strict=True)
    return rows


def text_of(segments: list[Any]) -> str:
    """The text that segments make together."""
    return "".join(one if isinstance(one, str) else one[0] for one in segments)
