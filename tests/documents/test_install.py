"""docs/reference/install.md: what it says of extras is what pyproject.toml declares; test_extras installs its lines."""

import re
import tomllib
from pathlib import Path

from walked_pages import walk

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/install.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_the_page_runs(tmp_path: Path) -> None:
    walk("docs/reference/install.md", tmp_path)


def test_the_table_has_every_extra_and_what_is_in_it() -> None:
    section = PAGE.split("## What each extra installs")[1].split("| line |")[0]
    rows = dict(re.findall(r"^\| `([\w-]+)` \| .+? \| (.+) \|$", section, re.M))
    assert set(rows) == set(EXTRAS)
    for extra, lines in EXTRAS.items():
        inside = [part for line in lines if line.startswith("sae-runtime[") for part in line[12:-1].split(",")]
        assert extra == "dev" or set(re.findall(r"`([\w-]+)`", rows[extra])) == set(inside), extra


def test_the_oldest_versions_are_those_that_are_declared() -> None:
    declared = " ".join(PROJECT["dependencies"] + [line for lines in EXTRAS.values() for line in lines])
    bounds = dict(re.findall(r"([\w-]+)>=([\d.]+)", declared))
    section = PAGE.split("## Versions")[1]
    for names, oldest in re.findall(r"^\| ([a-z][\w, -]+) \| ([\d., ]+) \| ", section, re.M):
        for name, version in zip(names.split(", "), oldest.split(", "), strict=True):
            assert bounds[name] == version, name


def test_the_newest_versions_are_those_of_constraints() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "constraints.txt").read_text().lower(), re.M))
    section = PAGE.split("## Versions")[1]
    for names, newest in re.findall(r"^\| ([a-z][\w, -]+) \| [\d., ]+ \| ([\d., ]+) \|$", section, re.M):
        for name, version in zip(names.split(", "), newest.split(", "), strict=True):
            assert pins[name] == version, name
