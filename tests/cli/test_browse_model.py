"""`sae-runtime browse` with a model, whose copy runs in the page."""

import json
from collections.abc import Callable
from pathlib import Path

from command_line import run
from deployed_model import deploy
from made_store import context, feature, write_store
from site_of import overview, read, saes


def test_the_model_is_told_from_the_stores_and_runs_in_the_page(tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    sae = bundle_of("mutual")
    model = deploy(tmp_path / "model", "bert", {"bundle": sae})
    weights = json.loads((sae / "sae_runtime.json").read_text())["files"]["sae_weights.safetensors"]["sha256"]
    rows = [feature([context("w1 w2 w3", "w2", 4.0)])]
    store = write_store(tmp_path / "store", rows, weights_sha256=weights, sae="first")
    result = run("browse", model, store, "-o", tmp_path / "site", "-q")
    assert result.exit_code == 0, result.stderr
    described = read(tmp_path / "site" / "model" / "model.json")
    assert [one["site"] for one in described["saes"]] == [saes(tmp_path / "site")[0]["name"]] == ["first"]
    assert read(tmp_path / "site" / "site.json")["model"] == "model/model.json"
    assert (tmp_path / "site" / "vendor" / "onnxruntime-web.js").is_file()
    assert overview(tmp_path / "site")["allocation"] == "mutual choice, k 6"
    other = write_store(tmp_path / "other", rows)
    said = run("browse", other, model, "-o", tmp_path / "site", "-q", "--force").stdout
    assert "the model has other SAEs than the stores" in said
