"""The libraries that the pages carry are what vendor.json says, and what the documents say."""

import hashlib
import json
from pathlib import Path

import vendor

VENDOR, ROOT = vendor.VENDOR, Path(__file__).parents[2]
LIBRARIES = json.loads((VENDOR / "vendor.json").read_text())["libraries"]


def test_every_file_has_its_hash() -> None:
    told = {name: digest for library in LIBRARIES for name, digest in library["sha256"].items()}
    present = {path.relative_to(VENDOR).as_posix(): path for path in VENDOR.rglob("*") if path.is_file()}
    del present["vendor.json"]
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in present.items()} == told


def test_vendor_json_says_what_make_vendor_fetches() -> None:
    told = [(one["name"], one["version"], one["integrity"], one["licence"]) for one in LIBRARIES]
    assert told == [(one.name, one.version, one.integrity, one.licence) for one in vendor.LIBRARIES]
    for library in LIBRARIES:
        assert any(name.startswith("licences/") for name in library["sha256"])


def test_documents_name_the_versions() -> None:
    guide = (ROOT / "docs/guides/browser.md").read_text()
    for library in LIBRARIES:
        assert f"{library['name']} {library['version']}" in guide


def test_no_script_names_a_source_map() -> None:
    scripts = list(VENDOR.glob("*.js"))
    assert len(scripts) == 2 and not [path for path in scripts if "sourceMappingURL" in path.read_text()]
