"""A language model that is built and trained here, steered while onnxruntime-genai generates."""

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from documents import blocks
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sae_runtime
from sae_runtime import Edit, load, load_model
from sae_runtime.core.edits import as_inputs
from sae_runtime.exports import export
from sae_runtime.exports.splice.splicing import Splice, splice
from sae_runtime.train import TrainConfig, attach, fit

og = pytest.importorskip("onnxruntime_genai")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]  # the builder's own

LETTERS, DIGITS, LENGTH = range(4), range(4, 8), 12  # a text has either, mostly one after the other, round and round
HOOK = "layers.0"


@dataclasses.dataclass(frozen=True)
class Writer:
    """A model of letters and digits, an SAE on its first layer, and edits of it."""

    model: Any
    sae: Path
    graph: Path
    edits: list[Edit]  # that turn letters into digits


def texts(count: int, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random((count, LENGTH)) < 0.9, 1, rng.integers(0, 4, (count, LENGTH)))
    return np.asarray(4 * rng.integers(0, 2, (count, 1)) + steps.cumsum(axis=1) % 4)


def trained() -> Any:
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    config = LlamaConfig(vocab_size=12, **sizes, **heads, bos_token_id=10, eos_token_id=11, pad_token_id=10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(80):
        ids = torch.from_numpy(texts(32, step))
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def digits_for_letters(sae: Path, x: NDArray[np.float32], ids: NDArray[np.int64]) -> list[Edit]:
    """Turn off the features that are stronger on letters; set the best feature of digits to twice its largest value."""
    f = load(sae).encode(x).to_dense()
    letters, digits = (f[np.isin(ids, kind)].mean(axis=0) for kind in (LETTERS, DIGITS))
    best = int(np.argmax(digits - letters))
    off = np.flatnonzero(letters > digits)
    return [Edit.set(best, 2 * float(f[..., best].max())), *(Edit.ablate(int(feature)) for feature in off)]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    folder, model, ids = tmp_path_factory.mktemp("writer"), trained(), texts(300, 99)
    model.save_pretrained(folder / "model")
    words = models.WordLevel({str(i): i for i in range(12)}, unk_token="0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words)).save_pretrained(folder / "model")  # type: ignore[no-untyped-call]
    with torch.no_grad():
        x = model(torch.from_numpy(ids), output_hidden_states=True).hidden_states[1].numpy()
    config = TrainConfig(allocation="mutual", k=4, d_sae=64, tokens=40_000, batch=500)
    fit(x.reshape(-1, 32), folder / "writer-sae", config)
    export(folder / "writer-sae")
    builder = importlib.import_module("onnxruntime_genai.models.builder")
    task = ("", str(folder / "model"), str(folder / "host"), "fp32", "cpu", str(folder / "cache"))
    builder.create_model(*task, **builder.parse_extra_options(*task, []))
    one = Splice(bundle=folder / "writer-sae", hook=f"model.{HOOK}", required=True)
    graph = splice(folder / "host" / "model.onnx", [one], folder / "genai-writer").path
    return Writer(model, folder / "writer-sae", graph, digits_for_letters(folder / "writer-sae", x, ids))


def generate(
    graph: Path, prompts: NDArray[np.int64], requests: Sequence[Sequence[Edit]], gates: Sequence[float] = (1,) * 6
) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:
    """Six new ids for each prompt, with the gate of each step, and the features that were read."""
    model = og.Model(str(graph.parent))
    settings = og.GeneratorParams(model)
    settings.set_search_options(batch_size=len(prompts), max_length=prompts.shape[1] + 6, do_sample=False)
    generator = og.Generator(model, settings)
    # Each input is set once and stays alive: the generator reads the array itself, so later writes to it count.
    gate = np.ones((1, 1, 1), np.float32)
    inputs = {**as_inputs(requests, 64), "gate": gate, "direction": np.zeros((1, 1, 1), np.float32)}
    inputs |= {"when": np.zeros((1, 0), np.int64), "above": np.zeros((1, 1), np.float32), "slots": np.array([8])}
    for name, array in inputs.items():
        generator.set_model_input(f"sae_{name}", array)
    ids, read = [], []
    for step, amount in enumerate(gates):
        gate[:] = amount
        if step == 0:
            generator.append_tokens(prompts.astype(np.int32))
        generator.generate_next_token()
        read.append(generator.get_output("sae_values"))
        ids.append(generator.get_next_tokens())
    return np.stack(ids, axis=1).astype(np.int64), read


def counted(prompts: NDArray[np.int64]) -> NDArray[np.int64]:
    last = prompts[:, -1:]
    return np.asarray(last // 4 * 4 + (last + np.arange(1, 7)) % 4)


def live(writer: Writer, prompts: NDArray[np.int64], requests: Any, gate: Any = "all") -> NDArray[np.int64]:
    """Six new ids for each prompt from the torch model."""
    with attach(writer.model, HOOK, writer.sae, requests, gate=gate):
        settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 10}
        ids = torch.from_numpy(prompts)
        answer = writer.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return np.asarray(answer[:, prompts.shape[1] :])


def test_each_request_is_steered_by_its_own_edits_while_it_generates(writer: Writer) -> None:
    prompts = np.array([[1, 2, 3, 0], [1, 2, 3, 0], [6, 7, 4, 5]])
    plain, read = generate(writer.graph, prompts, [[]])
    np.testing.assert_array_equal(plain, counted(prompts))
    assert [values.shape[:2] for values in read] == [(3, 4), *[(3, 1)] * 5]
    assert all((values > 0).any() for values in read)
    steered, _ = generate(writer.graph, prompts, [writer.edits, [], []])
    assert np.isin(steered[0], DIGITS).all(), "letters go on as digits"
    np.testing.assert_array_equal(steered[1:], plain[1:])
    again, _ = generate(writer.graph, prompts, [[], writer.edits, []])  # other edits, the same graph
    np.testing.assert_array_equal(again[[0, 2]], plain[[0, 2]])
    np.testing.assert_array_equal(again[1], steered[0])


def test_a_generating_graph_agrees_with_the_live_torch_model(writer: Writer) -> None:
    prompts = np.array([[1, 2, 3, 0], [6, 7, 4, 5]])
    requests = [writer.edits, []]
    np.testing.assert_array_equal(live(writer, prompts, requests), generate(writer.graph, prompts, requests)[0])


def test_the_gate_of_each_step_decides_whether_its_token_is_edited(writer: Writer) -> None:
    prompts = np.array([[1, 2, 3, 0]])
    for gates, gate in (((1, 0, 0, 0, 0, 0), "prompt"), ((0, 1, 1, 1, 1, 1), "generated")):
        ids, _ = generate(writer.graph, prompts, [writer.edits], gates)
        np.testing.assert_array_equal(live(writer, prompts, writer.edits, gate), ids)
        assert (ids[0, 0] in DIGITS) == (gate == "prompt")


def test_the_code_of_the_document_generates_steered_text(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code runs with our model in its folder: it edits the prompt of the first request only."""
    (code,) = (block for block in blocks("guides/steering.md") if "og.Model" in block)
    monkeypatch.chdir(writer.graph.parents[1])
    prompts = np.array([[1, 2, 3, 0], [1, 2, 3, 0]])
    names: dict[str, Any] = {"Edit": Edit, "as_inputs": as_inputs, "np": np, "sae_runtime": sae_runtime}
    exec(code, names)
    expected, read = generate(writer.graph, prompts, [[Edit.set(12, 8.0)], []], (1, 0, 0, 0, 0, 0))
    np.testing.assert_array_equal(names["values"][..., :8], read[0])
    ids = [names["generator"].get_next_tokens()]
    for _ in range(5):
        names["generator"].generate_next_token()
        ids.append(names["generator"].get_next_tokens())
    np.testing.assert_array_equal(np.stack(ids, axis=1), expected)
    assert (names["gate"] == 0).all()


def test_the_code_of_the_document_writes_steered_text(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is one unknown word, thus token 0."""
    (code,) = (block for block in blocks("guides/steering.md") if "writer.generate(" in block)
    monkeypatch.chdir(writer.graph.parents[1])
    names: dict[str, Any] = {"Edit": Edit, "load_model": lambda _: load_model(writer.graph.parent)}
    exec(code, names)
    expected = live(writer, np.array([[0]]), [Edit.set(12, 8.0)], "answer")[0].tolist()
    ids = names["answer"].ids
    assert ids[:6] == expected[: len(ids)] and names["answer"].edits == Edit.set(12, 8.0)
