import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sae_runtime import demo, load, load_model
from sae_runtime.cli import main
from sae_runtime.demo.first_look import LABEL, READY
from sae_runtime.demo.lines import Line, markup
from sae_runtime.demo.text import paragraphs
from sae_runtime.store.open_store import open_store

NAMES = {"ready": "ready"} | {kind: f"{kind}_choice" for kind in demo.KINDS}
SIZES = {"ready": 1536} | {f"{kind}_choice": 192 for kind in demo.KINDS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's folder, from a small run."""
    out = tmp_path_factory.mktemp("demo") / "out"
    smaller = {"TOKENS": 8000, "STEPS": 40, "BATCH": 512, "D_SAE": 192, "_CORPUS": 60}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in smaller.items():
            patch.setattr(demo, name, value)
        demo.run(out)
    return out


def test_the_folder_holds_what_the_docstring_names(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    folders = {"activations", "bundles", "features", "metrics", "model", "plots", "site", "stores", "text"}
    assert names == folders | {"index.html", "summary.json"} and demo.foreign(folder) is None
    for kind in demo.KINDS:
        assert load(folder / "bundles" / kind).manifest.model == "all-MiniLM-L6-v2"
        assert (folder / "features" / kind / "features.json").is_file()
    for kind in demo.ALL:
        store = open_store(folder / "stores" / kind)
        assert store.description.sae == NAMES[kind] and store.description.licence == "PSF-2.0"
        assert 8000 <= store.description.tokens < 8200  # what the SAE was fitted on, and the last document whole
    files = [path for end in ("json", "jsonl", "md", "html") for path in folder.rglob(f"*.{end}")]
    texts = [path.read_text() for path in files if path.name != "harvest.json"]  # which says what a resumed run reads
    assert not any(re.search(r"\.out\.[0-9a-f]{8}\.partial", text) for text in texts), "the folder where it was made"
    assert any('"text/python-docs.jsonl"' in text for text in texts)
    for path in (folder / "plots").iterdir():
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_table_holds_the_measured_figures(folder: Path) -> None:
    table = json.loads((folder / "summary.json").read_text())["table"]
    assert [row["allocation"] for row in table] == ["mutual choice", "token choice", "feature choice"]
    for kind, row in zip(demo.KINDS, table, strict=True):
        measured = load(folder / "bundles" / kind).manifest.measured
        assert row["FVU, served"] == f"{measured['fvu']:.4f}" and row["L0 served"] == f"{measured['l0']:.2f}"
        assert float(row["encode, tokens/s"].replace(",", "")) > 0


def test_the_model_is_one_that_goes_to_production(folder: Path) -> None:
    model = load_model(folder / "model")
    assert {name: sae.d_sae for name, sae in model.saes.items()} == SIZES
    assert model.saes["ready"].labels == load(READY).labels
    assert model.kind == "vectors"
    assert model.embed("Open the file").shape == (384,)


def test_the_site_has_every_sae_and_the_model(folder: Path) -> None:
    said = json.loads((folder / "site" / "site.json").read_text())
    assert {sae["name"]: sae["d_sae"] for sae in said["saes"]} == SIZES
    model = json.loads((folder / "site" / said["model"]).read_text())
    assert {sae["site"] for sae in model["saes"]} == {sae["name"] for sae in said["saes"]}


def test_a_file_of_another_is_told(folder: Path) -> None:
    for name in ("mine.txt", "site/mine.txt", "stores/mutual/mine.txt"):
        (folder / name).write_text("mine")
        assert demo.foreign(folder) == name
        (folder / name).unlink()


def test_page_needs_no_other_file(folder: Path) -> None:
    text = (folder / "index.html").read_text()
    assert text.count("<svg ") == 3
    assert "<img" not in text and "<script" not in text and not re.search('href="(?!#|data:,)', text)
    assert text.count("feature ") >= 6 and "mutual choice" in text
    assert text.index(f"the feature “{LABEL}” set to") < text.index("Features of mutual choice"), (
        "the ready SAE is first"
    )
    assert f"<pre>sae-runtime browse {folder}/site --open</pre>" in text


def test_existing_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileExistsError, match="already exists; pass --force"):
        demo.run(folder)
    called: list[Path] = []
    monkeypatch.setattr(demo, "run", lambda out, force: called.append(out))
    main(["demo", "-o", str(folder.parent / "other")], standalone_mode=False)
    assert called == [folder.parent / "other"]


def test_text_is_unique_and_the_same_for_a_seed() -> None:
    first = paragraphs(seed=0)
    assert len(first) > 1000 and len(set(first)) == len(first)
    assert first == paragraphs(seed=0) != paragraphs(seed=1)


def test_page_escapes_text() -> None:
    assert "<b>" not in markup("<b>", [Line(0.5, "<b>", "<b>", "<b>")])
