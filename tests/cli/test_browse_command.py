"""`sae-runtime browse`: which path is what, what it writes and says, and the server of --open."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import misused, refused, run
from made_store import context, feature, never_active, write_store
from site_of import overview, read

from sae_runtime.cli.browse import command


@pytest.fixture
def store(tmp_path: Path) -> Path:
    rows = [feature([context("open the file", "file", 4.0)]), never_active()]
    return write_store(tmp_path / "store", rows)


def test_a_site_of_a_store(store: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    result = run("browse", store, "-o", site, "-q", "--title", "Mine")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert lines == ["site", "features", "contexts", "size", "note", "open it"]
    assert f"sae-runtime browse {site} --open" in result.stdout and "name its bundle by --sae" in result.stdout
    described = read(site / "site.json")
    assert (described["format"], described["title"], described["model"]) == (1, "Mine", None)
    assert {path.name for path in site.iterdir()} == {"index.html", "code", "site.json", "serve.json", "data"}
    assert read(site / "serve.json") == {}
    assert b"<script" in (site / "index.html").read_bytes() and (site / "code" / "shared" / "look.css").is_file()
    told = json.loads(run("browse", store, "-o", site, "-q", "--force", "--json").stdout)
    assert (told["site"], told["features"], told["saes"], told["model"]) == (str(site), 2, ["store"], None)
    assert told["size"] == sum(path.stat().st_size for path in site.rglob("*") if path.is_file())


def test_a_bundle_says_how_the_sae_was_fitted(tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    sae = bundle_of("mutual")
    weights = json.loads((sae / "sae_runtime.json").read_text())["files"]["sae_weights.safetensors"]["sha256"]
    store = write_store(tmp_path / "store", [feature()] * 3, weights_sha256=weights)
    shown = run("browse", store, "-o", tmp_path / "site", "--sae", sae, "-q").stdout
    assert "note" not in shown
    assert overview(tmp_path / "site")["allocation"] == "mutual choice, k 6"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("sae_runtime.json", "{}", "is a bundle; name a feature store, and the bundle by --sae"),
        ("features.json", "{}", "has features of a corpus; make a store of them: sae-runtime features build"),
        ("extract.json", "{}", "has features that are not finished; run the same sae-runtime extract again"),
        ("site.json", "{}", "is a site already; open it: sae-runtime browse"),
        ("config.json", "{}", "has no graph, .onnx; make one: sae-runtime export-model, then sae-runtime splice"),
        ("notes.txt", "", "is no feature store; make one: sae-runtime features build"),
    ],
)
def test_a_path_that_is_no_store_is_called_what_it_is(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / name).write_text(content)
    assert f"it {said}" in refused("browse", tmp_path / "it", "-o", tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_paths_that_do_not_go_together_are_refused(store: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(b"")
    one, two, site = tmp_path / "one", tmp_path / "two", tmp_path / "site"
    assert "does not exist; name a feature store" in refused("browse", tmp_path / "nowhere", "-o", site)
    assert "is a file; name a feature store" in refused("browse", store / "store.json", "-o", site)
    assert "a store is named twice" in refused("browse", store, f"{store}/../store", "-o", site)
    assert "a site has one model, got" in refused("browse", store, one, two, "-o", site)
    assert "is a model, and no feature store is named" in refused("browse", one, "-o", site)
    assert "--int8 and --in-page are about a model" in misused("browse", store, "-o", site, "--int8")
    assert "Missing option '-o'" in misused("browse", store)
    assert "--open without -o opens one site" in misused("browse", store, "--open")
    assert "no store has the features of" in refused("browse", store, "-o", site, "--sae", _bundle(tmp_path))
    assert not site.exists()


def test_open_serves_the_site_until_it_is_interrupted(store: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    assert run("browse", store, "-o", site, "-q").exit_code == 0
    # Programs that a shell starts in the background ignore Ctrl-C, and so do theirs.
    listen = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code = f"{listen}from sae_runtime.cli import main\nmain()"
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, "browse", site, "--open"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "BROWSER": str(browser)},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = line.split(" at ")[1].split(" ")[0]
        with urllib.request.urlopen(f"{address}site.json") as answer:
            assert answer.read() == (site / "site.json").read_bytes()
        while not opened.exists() or not opened.read_text():
            assert process.poll() is None
            time.sleep(0.01)
        assert opened.read_text().strip() == address
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out.strip(), err) == (0, "", "")
    finally:
        process.kill()
        process.wait()


def test_the_help_says_how_to_look_at_a_site() -> None:
    assert command.help is not None and "--open" in command.help and "serve" in command.help


def _bundle(folder: Path) -> Path:
    from conftest import make_manifest, make_weights

    from sae_runtime.bundle import folder as bundle

    bundle.write(folder / "sae", make_weights(64, "mutual"), make_manifest(64, "mutual"))
    return folder / "sae"
