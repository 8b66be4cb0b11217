"""A repository in a real tritonserver: the answers of the library, by tritonclient over HTTP and gRPC.

`make triton` installs the server, which has the Python backend alone; without it these tests skip.
"""

import dataclasses
import json
import os
import queue
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from click.testing import CliRunner
from conftest import make_x
from deployed_model import deploy
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException
from tritonserver import Running, is_possible, tritonserver
from word_model import some_words

from sae_runtime import SAE, Edit, Model, load, load_model
from sae_runtime.cli import main

pytestmark = [pytest.mark.servers, pytest.mark.skipif(not is_possible(), reason="make triton installs it")]
TEXTS = ["w1 w2 w3", "", "w5 naïve 🍰 w7", *some_words(5, 9)]


POOLING = {"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def export(repository: Path, *words: object) -> None:
    """Write a repository of the Python backend."""
    words = ("export-triton", *words, "--backend", "python", "--delay", "20000", "-o", repository)
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output


@dataclasses.dataclass(frozen=True)
class Served:
    """A server, and the library's own objects of what it serves."""

    running: Running
    sae: SAE
    token: SAE
    model: Model
    writer: Model


@pytest.fixture(scope="module")
def served(bundle_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Bundles and deployed models in a server whose repository was moved after it was written."""
    home = tmp_path_factory.mktemp("triton")
    model = deploy(home / "bert", "bert", {"bundle": bundle_of("mutual")})
    pool_first_token(model)
    writer = deploy(home / "gpt2", "gpt2", {"bundle": bundle_of("mutual")})
    paths = (f"sae={bundle_of('mutual')}", f"token={bundle_of('token')}", f"words={model}", f"writer={writer}")
    export(home / "made", *paths)
    moved = shutil.move(home / "made", home / "elsewhere")
    bounds = ("--largest-edit", 5, "--refuse-feature", "bounded:4", "--instances", 2)
    export(home / "more", f"bounded={bundle_of('mutual')}", *bounds, "--operation", "steer")
    shutil.move(home / "more" / "bounded.steer", moved)
    explicit = ("--model-control-mode=explicit", "--load-model=*")
    with tritonserver(Path(moved), home / "log", more=explicit) as running:
        opened = load(bundle_of("mutual")), load(bundle_of("token")), load_model(model), load_model(writer)
        yield Served(running, *opened)


def pool_first_token(model: Path) -> None:
    """Make a model's vectors those of its first tokens, as sentence-transformers writes that."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    listed = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, (path, kind) in enumerate(modules)
    ]
    (model / "modules.json").write_text(json.dumps(listed))
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text(json.dumps(POOLING))


def call(
    running: Running, by: Any, name: str, arrays: dict[str, tuple[str, NDArray[Any]]], **options: Any
) -> dict[str, Any]:
    """The outputs of a model; `by` is tritonclient.http or tritonclient.grpc."""
    port = running.http if by is tritonclient.http else running.grpc
    with by.InferenceServerClient(f"127.0.0.1:{port}") as client:
        inputs = []
        for key, (kind, array) in arrays.items():
            inputs.append(by.InferInput(key, list(array.shape), kind))
            inputs[-1].set_data_from_numpy(array)
        answer = client.infer(name, inputs, **options)
        response = answer.get_response() if by is tritonclient.http else answer.get_response(as_json=True)
        return {output["name"]: answer.as_numpy(output["name"]) for output in response["outputs"]}


def texts_of(*texts: str) -> tuple[str, NDArray[Any]]:
    return "BYTES", np.array([text.encode() for text in texts], object)


both = pytest.mark.parametrize("by", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])


@both
def test_every_model_is_ready_and_says_what_it_takes(served: Served, by: Any) -> None:
    port = served.running.http if by is tritonclient.http else served.running.grpc
    with by.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_server_ready()
        for name in ("sae.encode", "sae.steer", "token.encode_batch", "words.features", "words.run", "writer.features"):
            assert client.is_model_ready(name)
            assert client.get_model_metadata(name)


@both
@pytest.mark.parametrize("rows", [1, 2, 17, 300])
def test_bundles_answer_with_the_librarys_bits(served: Served, by: Any, rows: int) -> None:
    x = make_x(rows, seed=rows)
    for name, sae in (("sae", served.sae), ("token", served.token)):
        indices, values = sae.encode_slots(x)
        found = call(served.running, by, f"{name}.encode", {"x": ("FP32", x)})
        np.testing.assert_array_equal(found["indices"], indices)
        np.testing.assert_array_equal(found["values"], values)
        arrays: dict[str, tuple[str, NDArray[Any]]] = {"indices": ("INT64", indices), "values": ("FP32", values)}
        decoded = call(served.running, by, f"{name}.decode", arrays)["x_hat"]
        np.testing.assert_array_equal(decoded, sae.decode(sae.encode(x)))
        batch = call(served.running, by, f"{name}.encode_batch", {"x": ("FP32", x), "k": ("FP64", np.array([2.0]))})
        assert (batch["values"] > 0).sum() == sae.encode_batch(x, k=2).l0().sum()
    asked = json.dumps({"edits": [{"feature": 3, "set": 4.0}]}).encode()
    arrays = {"x": ("FP32", x[None]), "edits": ("BYTES", np.array([asked], object))}
    steered = call(served.running, by, "sae.steer", arrays)["y"]
    np.testing.assert_array_equal(steered[0], served.sae.steer(x, Edit.set(3, 4.0)))
    numbers = {"features": ("INT64", np.array([[3]])), "scale": ("FP32", np.zeros((1, 1), np.float32))}
    numbers |= {"shift": ("FP32", np.full((1, 1), 4, np.float32))}
    again = call(served.running, by, "sae.steer", {"x": ("FP32", x[None]), **numbers})["y"]
    np.testing.assert_array_equal(again[0], served.sae.steer(x, Edit(3, 0.0, 4.0)))


@both
def test_texts_come_and_go_whole(served: Served, by: Any) -> None:
    found = call(served.running, by, "words.features", {"text": texts_of(*TEXTS)})
    ends = found["row_splits"]
    for number, seen in enumerate(served.model.features(TEXTS)):
        begin, end = ends[number : number + 2]
        assert [token.decode() for token in found["tokens"][begin:end]] == seen.tokens
        np.testing.assert_array_equal(found["offsets"][begin:end], seen.offsets)
        for row, token in enumerate(range(begin, end)):
            numbers, values = seen.features.row(row)
            kept = found["values"][token] > 0
            np.testing.assert_array_equal(found["indices"][token][kept], numbers)
            np.testing.assert_allclose(found["values"][token][kept], values, rtol=1e-4, atol=1e-5)


@both
def test_edits_of_texts_reach_their_own_text(served: Served, by: Any) -> None:
    texts, edit = TEXTS[:2], Edit.set(3, 8.0)
    asked = [json.dumps({"edits": one}) for one in ([{"feature": 3, "set": 8.0}], [])]
    found = call(served.running, by, "words.run", {"text": texts_of(*texts), "edits": texts_of(*asked)})
    expected = served.model.run(texts, [[edit], []])
    plain = served.model.run(texts)
    ends = found["row_splits"]
    for number in range(2):
        hidden = found["last_hidden_state"][ends[number] : ends[number + 1]]
        np.testing.assert_allclose(hidden, expected[number]["last_hidden_state"], atol=1e-4)
        moved = np.abs(hidden - plain[number]["last_hidden_state"]).max() > 1e-3
        assert moved == (number == 0)


@both
def test_vectors_are_pooled_as_the_folder_says(served: Served, by: Any) -> None:
    texts = TEXTS[:3]
    found = call(served.running, by, "words.embed", {"text": texts_of(*texts)})["embedding"]
    first = [run["last_hidden_state"][0] for run in served.model.run(texts)]
    np.testing.assert_allclose(found, first, atol=1e-5)
    edits = texts_of(json.dumps([{"feature": 3, "set": 8.0}]))
    edited = call(served.running, by, "words.embed", {"text": texts_of(*texts), "edits": edits})["embedding"]
    np.testing.assert_allclose(edited, served.model.embed(texts, [Edit.set(3, 8.0)]), atol=1e-5)
    assert np.abs(edited - found).max() > 1e-3


@both
def test_bounds_for_edits_hold(served: Served, by: Any) -> None:
    x = make_x(2)

    def steer(edit: dict[str, Any]) -> Any:
        arrays = {"x": ("FP32", x[None]), "edits": texts_of(json.dumps([edit]))}
        return call(served.running, by, "bounded.steer", arrays)["y"][0]

    np.testing.assert_array_equal(steer({"feature": 3, "set": 5.0}), served.sae.steer(x, Edit.set(3, 5.0)))
    for edit, said in (({"feature": 3, "set": 5.1}, "at most 5"), ({"feature": 4, "set": 1.0}, "may not be edited")):
        with pytest.raises(InferenceServerException, match=said):
            steer(edit)


@both
def test_answers_of_a_language_model_are_the_librarys(served: Served, by: Any) -> None:
    asked = {"edits": texts_of(json.dumps([{"feature": 3, "set": 60.0}])), "gate": texts_of("generated")}
    for edits, more in (([], {}), ([Edit.set(3, 60.0)], asked)):
        answer = served.writer.generate("w1 w2 w3", edits, gate="generated" if edits else "all", max_new_tokens=9)
        expected = "".join(piece.text for piece in answer)
        arrays = {"text": texts_of("w1 w2 w3"), **more}
        found = call(served.running, by, "writer.generate", arrays, parameters={"max_new_tokens": 9})
        assert found["text"][0].decode() == expected
        assert found["finished"][0].decode() == answer.finished


NAN = make_x(3).copy()
NAN[1, 2] = np.nan


@pytest.mark.parametrize(
    "name, arrays, said",
    [
        ("sae.encode", {"x": ("FP32", NAN)}, "row 1 of x holds NaN"),
        ("sae.encode", {"x": ("FP32", make_x(2)[:, :5])}, "unexpected shape"),
        ("sae.encode", {}, "expected 1 inputs"),
        ("sae.encode", {"x": ("FP64", make_x(2).astype(np.float64))}, "data-type"),
        ("sae.encode", {"x": ("FP32", make_x(4097))}, "batch-size must be <="),
        ("sae.fly", {"x": ("FP32", make_x(2))}, "unknown model"),
        ("sae.steer", {"x": ("FP32", make_x(2)[None]), "edits": texts_of("{")}, "edits"),
        ("sae.steer", {"x": ("FP32", make_x(2)[None]), "edits": texts_of('{"edit": []}')}, "has no key 'edit'"),
        ("words.run", {"text": texts_of("w1"), "edits": texts_of('{"edits": [], "gate": "text"}')}, "no key 'gate'"),
        (
            "sae.steer",
            {"x": ("FP32", make_x(2)[None]), "edits": texts_of('{"edits": [{"feature": 999, "set": 1}]}')},
            "999",
        ),
        ("words.features", {"text": ("BYTES", np.array([b"\xff\xfe"], object))}, "is not UTF-8"),
        ("words.features", {"text": texts_of(*["w1"] * 1000)}, "texts"),
        ("writer.generate", {"text": texts_of("w1"), "gate": texts_of("never")}, "gate"),
    ],
)
@both
def test_bad_requests_are_told_so_and_harm_nobody(
    served: Served, by: Any, name: str, arrays: dict[str, Any], said: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        call(served.running, by, name, arrays)
    assert said in str(caught.value.message())
    assert caught.value.status() in ("400", "404", "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND")
    assert call(served.running, by, "sae.encode", {"x": ("FP32", make_x(1))})


def test_merged_requests_have_the_bits_of_each_alone(served: Served) -> None:
    """Requests that are on their way at once; by Triton's statistics some of them ran together."""
    rng = np.random.default_rng(0)
    x = [make_x(int(rows), seed=seed) for seed, rows in enumerate(rng.integers(1, 6, size=400))]
    answers: list[Any] = [None] * len(x)
    arrived: queue.Queue[None] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{served.running.grpc}") as client:

        def ask(number: int, rows: NDArray[np.float32]) -> None:
            def came(result: Any, error: Any) -> None:
                answers[number] = error or (result.as_numpy("indices"), result.as_numpy("values"))
                arrived.put(None)

            given = tritonclient.grpc.InferInput("x", list(rows.shape), "FP32")
            given.set_data_from_numpy(rows)
            client.async_infer("sae.encode", [given], came)

        def executions() -> int:
            stats = client.get_inference_statistics("sae.encode", as_json=True)["model_stats"][0]
            return int(stats["execution_count"])

        before = executions()
        for number, rows in enumerate(x):
            ask(number, rows)
        for _ in x:
            arrived.get(timeout=60)
        assert executions() - before < len(x), "no two requests ran together, so nothing was shown"
    for rows, answer in zip(x, answers, strict=True):
        indices, values = served.sae.encode_slots(rows)
        np.testing.assert_array_equal(answer[0], indices)
        np.testing.assert_array_equal(answer[1], values)


def test_killed_program_of_a_model_is_survived(served: Served) -> None:
    """Triton does not start it again by itself, but loads the model again when it is asked to; others go on."""
    x, running = {"x": ("FP32", make_x(3))}, served.running
    os.kill(running.stub("token.encode"), signal.SIGKILL)
    with pytest.raises(InferenceServerException, match="not healthy"):
        call(running, tritonclient.http, "token.encode", x)
    assert call(running, tritonclient.http, "sae.encode", x)
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{running.http}") as client:
        client.unload_model("token.encode")
        client.load_model("token.encode")
    found = call(running, tritonclient.http, "token.encode", x)
    np.testing.assert_array_equal(found["values"], served.token.encode_slots(make_x(3))[1])


def test_one_of_two_killed_programs_of_a_model(served: Served) -> None:
    """Of a model with two instances, the other one goes on to answer the requests that it gets."""
    x, running = {"x": ("FP32", make_x(3)[None])}, served.running
    os.kill(running.stub("bounded.steer"), signal.SIGKILL)
    codes = []
    for _ in range(20):
        try:
            found = call(running, tritonclient.http, "bounded.steer", x)
            codes.append(200 if np.array_equal(found["y"][0], make_x(3)) else 0)
        except InferenceServerException as error:
            codes.append(int(error.status()))
    assert 0 not in codes and 200 in codes, codes


def test_with_numpy_2_numbers_are_right_and_texts_are_refused(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    """The stub of this server is older than numpy 2, by which its own conversion gives wrong numbers in silence."""
    assert np.lib.NumpyVersion(np.__version__) >= "2.0.0"
    model = deploy(tmp_path / "bert", "bert", {"bundle": bundle_of("mutual")})
    export(tmp_path / "repository", f"sae={bundle_of('mutual')}", f"words={model}")
    sae = load(bundle_of("mutual"))
    environment = Path(sys.prefix)
    with tritonserver(tmp_path / "repository", tmp_path / "log", environment=environment) as running:
        for rows in (1, 7):
            found = call(running, tritonclient.http, "sae.encode", {"x": ("FP32", make_x(rows))})
            for array, expected in zip(
                (found["indices"], found["values"]), sae.encode_slots(make_x(rows)), strict=True
            ):
                np.testing.assert_array_equal(array, expected)
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{running.http}") as client:
            models = {model["name"]: model for model in client.get_model_repository_index()}
    assert models["words.features"]["state"] == "UNAVAILABLE"
    assert "install numpy<2" in models["words.features"]["reason"]
