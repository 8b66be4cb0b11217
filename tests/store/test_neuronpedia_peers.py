"""Neuronpedia's own client sends a store, and SAEDashboard's own classes read its files."""

import contextlib
import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command_line import misused, refused, run
from made_store import context, feature, never_active, token, write_store

from sae_runtime import open_store
from sae_runtime.store import neuronpedia_upload
from sae_runtime.store.neuronpedia_files import Place, write_neuronpedia

KEY = {"NEURONPEDIA_API_KEY": "sk-test"}
PLACE = Place(model="gpt2-small", layer=6, source_set="res-x")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    one = [context("Open the file", "file", 4.0), context("a cake", "cake", 1.0, band=1)]
    logits = {"promoted": [{"token": 1, "text": " file", "logit": 0.1}], "suppressed": []}
    features = [feature(one, top_tokens=[token("file")], **logits), never_active(), *(feature() for _ in range(200))]
    folder = write_store(tmp_path_factory.mktemp("stores") / "store", features)
    (folder / "labels.jsonl").write_text('{"feature": 0, "label": "files"}\n')
    return folder


class Neuronpedia:
    """A server of the API's two paths, on this machine, that keeps what it is sent."""

    def __init__(self) -> None:
        self.received: list[tuple[str, str | None, dict[str, Any]]] = []
        self.answer: Callable[[int], tuple[int, bytes]] = lambda number: (200, b"{}")
        kept = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                kept.received.append((self.path, self.headers["X-Api-Key"], body))
                status, content = kept.answer(len(kept.received))
                if self.path.endswith("source-set/new") and content == b"{}":
                    content = json.dumps(body | {"urls": [], "sources": []}).encode()
                self.send_response(status)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A client that left must not write into what the command says."""

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/api"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Neuronpedia]:
    pytest.importorskip("neuronpedia", reason="neuronpedia is not installed")
    made = Neuronpedia()
    yield made
    made.server.shutdown()
    made.server.server_close()


def upload(store: Path, server: Neuronpedia, *more: str) -> tuple[str | Path, ...]:
    options = ("--model", "gpt2-small", "--source-set", "res-x", "--url", server.url, "-q")
    return ("features", "export", store, "--format", "neuronpedia", "--upload", *options, *more)


def test_the_client_sends_every_active_feature(store: Path, server: Neuronpedia) -> None:
    result = run(*upload(store, server, "--create"), env=KEY)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "sent      201 features to gpt2-small/6-res-x"
    paths, keys, bodies = zip(*server.received, strict=True)
    assert paths == ("/api/source-set/new", *2 * ["/api/feature/upload-batch"])
    assert set(keys) == {"sk-test"}
    assert (bodies[0]["name"], bodies[0]["modelId"]) == ("res-x", "gpt2-small")
    assert [len(body["features"]) for body in bodies[1:]] == [128, 73]
    assert all((body["modelId"], body["source"]) == ("gpt2-small", "6-res-x") for body in bodies[1:])
    sent = [one for body in bodies[1:] for one in body["features"]]
    assert [one["index"] for one in sent] == [0, *range(2, 202)]
    first = sent[0]
    assert (first["density"], first["topLogits"]) == (0.01, [{"token": " file", "value": 0.1}])
    assert [each["text"] for each in first["explanations"]] == ["files"]
    assert (sent[1]["explanations"], sent[1]["topLogits"]) == ([], None)
    assert first["activations"][0] == {
        **{"tokens": ["Open", " the", " file"], "values": [0.0, 0.0, 4.0]},
        **{"quantileMin": 2.0, "quantileMax": 4.0, "quantileFraction": 0.5},
    }


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (429, b"{}", "limit of requests was reached"),
        (401, b"{}", "does not know the key"),
        (404, b"{}", "Resource not found"),
        (400, b'{"message": "no such\\nsource \\u001b[2J"}', "no such"),
        (403, b"<html>", "not JSON"),
        (500, b"", "Server error occurred: 500"),
        (200, b"<html>", "not JSON"),
    ],
)
def test_a_refusal_is_one_sentence_that_says_how_to_go_on(
    status: int, content: bytes, said: str, store: Path, server: Neuronpedia
) -> None:
    server.answer = lambda number: (200, b"{}") if number == 1 else (status, content)
    line = refused(*upload(store, server), env=KEY)
    assert said in line and "\x1b" not in line
    assert line.startswith("error: the upload to gpt2-small/6-res-x ended before feature 129: ")
    assert line.endswith("go on by --start 129")
    server.answer = lambda number: (200, b"{}")
    assert run(*upload(store, server, "--start", "129"), env=KEY).exit_code == 0
    assert server.received[-1][2]["features"][0]["index"] == 129


def silent(_: int) -> tuple[int, bytes]:
    time.sleep(1)
    return 200, b"{}"


def test_a_server_that_is_not_there_or_silent_is_one_sentence(
    store: Path, server: Neuronpedia, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuronpedia_upload, "_SECONDS", 0.2)
    server.answer = silent
    assert "timed out" in refused(*upload(store, server), env=KEY)
    server.server.shutdown()
    server.server.server_close()
    assert "go on by --start 0" in refused(*upload(store, server), env=KEY)
    assert "was not made" in refused(*upload(store, server, "--create"), env=KEY)


def test_a_key_a_place_and_an_output_are_needed(store: Path) -> None:
    command = ("features", "export", store, "--format", "neuronpedia")
    assert "NEURONPEDIA_API_KEY" in refused(*command, "--upload", env={"NEURONPEDIA_API_KEY": ""})
    assert "begins with http" in refused(*command, "--upload", "--url", "ftp://a", env=KEY)
    assert "from 0 to 201" in refused(*command, "--upload", "--start", "202", env=KEY)
    assert "-o FOLDER" in misused(*command)
    assert "belong to --upload" in misused(*command, "-o", "out", "--create")


@contextlib.contextmanager
def _sae_dashboard() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The two modules of sae-dashboard that need numpy alone; the package itself imports what cannot be installed here.

    Its folder is named by the import system, which finds an installed package without running it.
    """
    spec = importlib.util.find_spec("sae_dashboard")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("sae-dashboard is not installed")
    folder = Path(next(iter(spec.submodule_search_locations))) / "neuronpedia"
    sys.path.insert(0, str(folder))
    try:
        yield tuple(map(importlib.import_module, ("neuronpedia_dashboard", "neuronpedia_runner_config")))  # type: ignore[misc]
    finally:
        sys.path.remove(str(folder))


def test_sae_dashboards_classes_read_the_files(store: Path, tmp_path: Path) -> None:
    opened = open_store(store)
    write_neuronpedia(opened, tmp_path / "out", PLACE)
    with _sae_dashboard() as (dashboard, runner):
        written = json.loads((tmp_path / "out/batch-0.json").read_text())
        batch = dashboard.NeuronpediaDashboardBatch(**written)
        assert batch.to_dict() == written
        assert batch.features[0].activations[0].tokens == ["Open", " the", " file"]
        settings = json.loads((tmp_path / "out/run_settings.json").read_text())
        config = runner.NeuronpediaRunnerConfig(**settings)
        assert config.n_quantiles == opened.description.bands - 1
