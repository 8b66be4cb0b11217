"""A deployed model from text to features and steered outputs, compared with torch hooks and numpy."""

import copy
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from deployed_model import D_SAE, by_torch, deploy, ids_of, some_texts
from numpy.typing import NDArray

import sae_runtime
from sae_runtime import Edit, Model, load_model
from sae_runtime.core.gates import positions, spans
from sae_runtime.deployed import host_sessions
from sae_runtime.deployed.notices import LeftOutWarning
from sae_runtime.engine.sessions import CUDA, open_session

pytestmark = pytest.mark.usefixtures("one_thread")

OUTPUT = {"bert": "last_hidden_state", "gpt2": "logits"}
TEXTS = ["w1 w2 w3", "", "w7", *some_texts(12, 20), " w4  w5 "]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Callable[..., Model]:
    """Give the model of a host and an SAE, opened once."""
    made: dict[Any, Model] = {}

    def give(kind: str = "bert", sae: str = "mutual", slots: int | None = None, **fields: Any) -> Model:
        key = (kind, sae, slots, *fields.items())
        if key not in made:
            folder = tmp_path_factory.mktemp("models") / "model"
            made[key] = load_model(deploy(folder, kind, {"bundle": bundle_of(sae, D_SAE, slots), **fields}), threads=1)
        return made[key]

    return give


def close(actual: NDArray[Any], expected: NDArray[Any], tolerance: float = 1e-5) -> bool:
    return actual.shape == expected.shape and bool(
        np.abs(actual - expected).max(initial=0) <= tolerance * np.abs(expected).max(initial=1e-30)
    )


@pytest.mark.parametrize(
    ("host", "sae"), [("bert", "mutual"), ("bert", "token"), ("gpt2", "feature"), ("gpt2", "token")]
)
def test_features_are_those_of_a_torch_hook(model_of: Callable[..., Model], host: str, sae: str) -> None:
    seen = model_of(host, sae).features(TEXTS)
    for text, one in zip(TEXTS, seen, strict=True):
        assert one.ids.tolist() == ids_of(text, host)
        if len(one):
            assert close(one.features.to_dense(), by_torch(host, text, sae)[0])
    assert seen[0].tokens[-3:-1] == (["w2", "w3"] if host == "bert" else ["w1", "w2"])


def test_a_token_with_more_features_than_slots_is_read_again(model_of: Callable[..., Model]) -> None:
    few = model_of("bert", "mutual", 1)
    assert few.saes["sae"].slots == 1
    for text, one in zip(TEXTS, few.features(TEXTS), strict=True):
        assert close(one.features.to_dense(), by_torch("bert", text, "mutual")[0])


@pytest.mark.parametrize("host", ["bert", "gpt2"])
def test_edits_of_each_text_are_those_of_a_torch_hook(model_of: Callable[..., Model], host: str) -> None:
    texts = [text for text in TEXTS if text]
    edits = [[], [Edit.set(3, 4.0)], [Edit.scale(5, -2.0), Edit.add(7, 1.5), Edit.cap(9, 0.1)]]
    each = [edits[number % 3] for number in range(len(texts))]
    ran = model_of(host).run(texts, each)
    for text, own, outputs in zip(texts, each, ran, strict=True):
        assert close(outputs[OUTPUT[host]], by_torch(host, text, "mutual", own)[1]), text
    plain = model_of(host).run(texts)
    assert all(np.array_equal(plain[n][OUTPUT[host]], ran[n][OUTPUT[host]]) for n in range(0, len(texts), 3))


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ("all", [1, 1, 1, 1, 1]),
        ("text", [0, 1, 1, 1, 0]),
        ("prompt", [1, 1, 1, 1, 1]),
        ("last_prompt", [0, 0, 0, 0, 1]),
        (positions(0, 2), [1, 0, 1, 0, 0]),
        ({0, 2}, [1, 0, 1, 0, 0]),
        (spans((4, 6)), [0, 0, 1, 0, 0]),
        (spans((1, 4)), [0, 1, 1, 0, 0]),
        (spans((2, 3), (8, 99)), [0, 0, 0, 1, 0]),
    ],
    ids=str,
)
def test_a_gate_chooses_the_tokens(model_of: Callable[..., Model], gate: Any, expected: list[int]) -> None:
    text = "w1  w22 w33" if gate == spans((2, 3), (8, 99)) else "w1 w22 w33"
    (edited, other) = model_of().run([text, "w5 w6 w7 w8 w9"], Edit.set(3, 4.0), gate=[gate, "all"])
    assert close(edited["last_hidden_state"], by_torch("bert", text, "mutual", [Edit.set(3, 4.0)], expected)[1])
    assert close(other["last_hidden_state"], by_torch("bert", "w5 w6 w7 w8 w9", "mutual", [Edit.set(3, 4.0)])[1])


def test_order_and_company_change_no_answer(model_of: Callable[..., Model]) -> None:
    model, texts = model_of(), [text for text in TEXTS if text] * 3
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled, straight = model.features([texts[n] for n in order]), model.features(texts)
    edit = [Edit.add(11, 2.0)]
    ran = model.run(texts, edit)
    for place, number in enumerate(order):
        alone = model.features(texts[number])
        for one in (shuffled[place], straight[number]):
            assert np.array_equal(one.ids, alone.ids)
            assert close(one.features.to_dense(), alone.features.to_dense())
        assert close(ran[number]["last_hidden_state"], model.run(texts[number], edit)["last_hidden_state"])


@pytest.mark.parametrize(("host", "context"), [("bert", 7), ("gpt2", 5), ("bert", None)])
def test_a_long_text_has_windows_with_each_token_once(
    model_of: Callable[..., Model], host: str, context: int | None
) -> None:
    words = [f"w{i % 40}" for i in range(150)]
    seen = model_of(host).features(" ".join(words), context=context)
    room = (context or 64) - (2 if host == "bert" else 0)
    assert [token for token, special in zip(seen.tokens, seen.special, strict=True) if not special] == words
    assert seen.windows.max() == -(-150 // room) - 1
    for number in range(seen.windows.max() + 1):
        part = " ".join(words[number * room : (number + 1) * room])
        inside = np.flatnonzero(seen.windows == number)
        assert seen.ids[inside].tolist() == ids_of(part, host)
        assert close(seen.features.take(inside).to_dense(), by_torch(host, part)[0])
    begin = [len(" ".join(words[:n])) + (n > 0) for n in range(150)]
    assert seen.offsets[~seen.special, 0].tolist() == begin


def test_pooled_and_top_leave_special_tokens_out(model_of: Callable[..., Model]) -> None:
    seen = model_of().features("w1 w2 w3")
    dense = by_torch("bert", "w1 w2 w3")[0][1:-1]
    assert close(seen.pooled("max"), dense.max(axis=0))
    assert close(seen.pooled("mean"), dense.mean(axis=0))
    assert close(seen.pooled("sum"), dense.sum(axis=0))
    assert seen.top(2).l0().max() == 2
    assert seen.top(2).row(1)[0].tolist() == np.argsort(-dense[0], kind="stable")[:2].tolist()
    assert not model_of().features("").pooled("mean").any()


def test_labels_and_multiples_of_the_largest_activation_come_from_the_bundle(
    tmp_path: Path, copy_of: Callable[..., Path]
) -> None:
    from sae_runtime.bundle.folder import put_stats, read
    from sae_runtime.bundle.labels import write_labels
    from sae_runtime.bundle.stats import counted

    folder = deploy(tmp_path / "model", "bert", {"bundle": copy_of("mutual")})
    model = load_model(folder, threads=1)
    home = model.saes["sae"].bundle
    assert home is not None
    write_labels(home, {3: "files"})
    put_stats(read(home), counted(np.full(D_SAE, 5), np.full(D_SAE, 2.0), tokens=10))
    model = load_model(folder, threads=1)
    same = [model.run("w1", edit) for edit in (Edit.set("files", times=2), Edit.set(3, 4.0))]
    assert np.array_equal(same[0]["last_hidden_state"], same[1]["last_hidden_state"])
    with pytest.raises(ValueError, match="'other'"):
        model.run("w1", Edit.ablate("other"))
    put_stats(read(home), counted(np.full(D_SAE, 5), np.full(D_SAE, 3.0), tokens=10))  # measured again
    again = model.run("w1", Edit.set(3, times=2))["last_hidden_state"]
    assert np.array_equal(again, model.run("w1", Edit.set(3, 6.0))["last_hidden_state"])


def test_without_its_bundle_an_sae_has_no_labels(tmp_path: Path, copy_of: Callable[..., Path]) -> None:
    folder = deploy(tmp_path / "model", "bert", {"bundle": copy_of("mutual")})
    (folder / "sae" / "sae_runtime.json").unlink()
    model = load_model(folder, threads=1)
    assert close(model.features("w1 w2").features.to_dense(), by_torch("bert", "w1 w2")[0])
    with pytest.raises(ValueError, match=r"the labels of sae are not known: .* splice the host again"):
        model.run("w1", Edit.ablate("files"))
    with pytest.raises(ValueError, match=r"the largest activations of sae are not known: .* splice the host again"):
        model.run("w1", Edit.set(3, times=2))


def test_an_edit_of_active_tokens_alone(model_of: Callable[..., Model]) -> None:
    text, model = "w1 w2 w3 w4 w5 w6", model_of()
    f = by_torch("bert", text)[0]
    feature = int(np.argmax((f > 0).sum(axis=0) % len(f)))
    active = (f[:, feature] > 0).astype(float)
    assert 0 < active.sum() < len(f)
    ran = model.run(["w9", text], Edit.add(feature, 3.0, only_active=True))
    assert close(
        ran[1]["last_hidden_state"], by_torch("bert", text, "mutual", [Edit.add(feature, 3.0)], active.tolist())[1]
    )
    mixed = model.run([text, "w9"], [[Edit.add(feature, 3.0, only_active=True)], [Edit.set(4, 2.0)]])
    assert close(mixed[1]["last_hidden_state"], by_torch("bert", "w9", "mutual", [Edit.set(4, 2.0)])[1])
    with pytest.raises(ValueError, match="only where it is active, which a graph cannot say beside other edits"):
        model.run(text, [Edit.add(feature, 3.0, only_active=True), Edit.set(feature + 1, 1.0)])


def test_several_saes_in_one_graph(tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    from sae_runtime.exports.splice.splicing import Splice

    hooks = {"first": ("encoder.layer.0", "mutual"), "second": ("encoder.layer.1", "token")}
    splices = [Splice(bundle=bundle_of(sae), hook=hook, name=name) for name, (hook, sae) in hooks.items()]
    model = load_model(deploy(tmp_path / "model", "bert", splices), threads=1)
    seen = model.features("w1 w2 w3")
    assert close(seen.saes["first"].to_dense(), by_torch("bert", "w1 w2 w3", "mutual")[0])
    assert seen.saes["second"].l0().tolist() == [6] * 5
    with pytest.raises(ValueError, match="the model has the SAEs first, second; name one of them"):
        _ = seen.features
    with pytest.raises(ValueError, match="give edits by name"):
        model.run("w1", Edit.ablate(3))
    with pytest.raises(ValueError, match="has no SAE 'third'"):
        model.run("w1", {"third": Edit.ablate(3)})
    edited = model.run("w1 w2 w3", {"first": [Edit.set(3, 4.0)]})["last_hidden_state"]
    assert close(edited, by_torch("bert", "w1 w2 w3", "mutual", [Edit.set(3, 4.0)])[1])


@pytest.mark.parametrize("host", ["bert", "gpt2"])
def test_a_graph_whose_inputs_are_required(model_of: Callable[..., Model], host: str) -> None:
    model = model_of(host, required=True)
    assert close(model.features("w1 w2 w3").features.to_dense(), by_torch(host, "w1 w2 w3")[0])
    for edits in ([], [Edit.set(3, 4.0)]):
        ran = model.run("w1 w2 w3", edits)[OUTPUT[host]]
        assert close(ran, by_torch(host, "w1 w2 w3", "mutual", edits)[1])


def test_copies_threads_and_closed_models_give_the_same(model_of: Callable[..., Model]) -> None:
    model = model_of()
    text = "w1 w2 w3"
    expected = model.features(text).features.to_dense()
    for other in (pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert np.array_equal(other.features(text).features.to_dense(), expected)
    assert pickle.loads(pickle.dumps(model.features(text))).tokens == model.features(text).tokens
    model.close()
    found: list[Any] = []

    def work() -> None:
        found.append(model.features(text).features.to_dense())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(np.array_equal(one, expected) for one in found)


def test_a_forked_process_opens_its_own(model_of: Callable[..., Model]) -> None:
    model = model_of()
    expected = model.features("w1 w2").features.to_dense()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            same = np.array_equal(model.features("w1 w2").features.to_dense(), expected)
            os.write(writer, b"same" if same else b"other")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 9) == b"same"
    os.close(reader)
    os.close(writer)


def test_an_sae_that_is_read_or_edited_alone(model_of: Callable[..., Model]) -> None:
    assert len(model_of(edit=False).features("w1")) == 3
    with pytest.raises(ValueError, match="sae takes no edits: it is a transcoder, or was spliced to be read alone"):
        model_of(edit=False).run("w1", Edit.ablate(3))
    edited = model_of(read=False).run("w1", Edit.set(3, 4.0))["last_hidden_state"]
    assert close(edited, by_torch("bert", "w1", "mutual", [Edit.set(3, 4.0)])[1])
    with pytest.raises(ValueError, match="has no SAE that gives features"):
        model_of(read=False).features("w1")


def test_no_texts_and_odd_texts(model_of: Callable[..., Model]) -> None:
    model = model_of()
    assert model.features([]) == []
    assert model.run([]) == []
    assert len(model.features("")) == 2
    assert model.run(["", "w1"])[0]["last_hidden_state"].shape == (2, 24)
    assert len(model_of("gpt2").features(["", "w1"])[0]) == 0
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        model_of("gpt2").run(["w1", ""])
    wrong: Any
    for wrong in (b"w1", 3, None):
        with pytest.raises(ValueError, match="expected a text or a list of texts"):
            model.features(wrong)
    wrong = ["w1", 3]
    with pytest.raises(ValueError, match="text 1 is int"):
        model.features(wrong)
    with pytest.raises(ValueError, match="lone surrogate"):
        model.features("w1 \ud800")


def test_a_text_that_is_too_long_is_cut_and_the_caller_is_told(model_of: Callable[..., Model]) -> None:
    text = " ".join(f"w{i % 40}" for i in range(100))
    with pytest.warns(LeftOutWarning, match=r"1 of 2 texts .* text 1 by 38 tokens") as told:
        ran = model_of().run(["w1", text])
    assert len(told) == 1
    assert close(ran[1]["last_hidden_state"], by_torch("bert", " ".join(text.split()[:62]))[1])


@pytest.mark.parametrize(
    ("edits", "gate", "message"),
    [
        ([Edit.set(D_SAE, 1.0)], "all", f"feature {D_SAE} does not exist"),
        ([Edit.set(3, 1.0), Edit.ablate(3)], "all", "feature 3 is edited twice"),
        ([[Edit.set(3, 1.0)]], "all", "1 lists of edits were given for 2 texts"),
        (3, "all", "edits are an Edit, a list of them"),
        (["set"], "all", "1 lists of edits were given|edits are an Edit"),
        ([Edit.set(3, 1.0)], "generated", "reaches no token here"),
        ([Edit.set(3, 1.0)], "everything", "a gate is 'all'"),
        ([Edit.set(3, 1.0)], positions(70), r"the gate positions\(70\) reaches no token of any text"),
        ([Edit.set(3, 1.0)], ["all"], "1 gates were given for 2 texts"),
        ([Edit.set(3, 3e38), Edit.set(4, -3e38)], "all", "text [01] gives NaN or Inf in last_hidden_state"),
    ],
)
def test_what_cannot_be_done_is_said(model_of: Callable[..., Model], edits: Any, gate: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of().run(["w1", "w2 w3"], edits, gate=gate)


def test_outputs_are_named(model_of: Callable[..., Model]) -> None:
    assert list(model_of().run("w1", outputs="last_hidden_state")) == ["last_hidden_state"]
    for names, what in (([], "without a name"), (["x"], "'x'")):
        with pytest.raises(ValueError, match=f"has no output {what}, it has last_hidden_state; name these"):
            model_of().run("w1", outputs=names)


def test_a_text_that_overflows_is_named_and_not_blamed_on_others(model_of: Callable[..., Model]) -> None:
    strong: Sequence[Edit] = [Edit.set(3, 3e38), Edit.set(4, -3e38)]
    with pytest.raises(ValueError, match="text 1 gives NaN or Inf"):
        model_of().run(["w1 w2", "w2 w3", "w4 w5"], [[], strong, []])


def test_a_host_without_saes_runs_and_refuses_the_rest(tmp_path: Path) -> None:
    model = load_model(deploy(tmp_path / "model", "bert", []), threads=1)
    assert close(model.run("w1 w2")["last_hidden_state"], by_torch("bert", "w1 w2")[1])
    with pytest.raises(ValueError, match="has no SAE that gives features; put one in: sae-runtime splice"):
        model.features("w1")
    with pytest.raises(ValueError, match="has no SAE, so it takes no edits; put one in: sae-runtime splice"):
        model.run("w1", Edit.ablate(3))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    folder = deploy(tmp_path / "model", "bert", {"bundle": bundle_of("mutual")})
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"w39": 43', '"w39": 1043'))
    with pytest.raises(ValueError, match=r"has ids up to 1043, the model knows 50"):
        load_model(folder)


def test_weights_that_changed_are_refused(tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    folder = deploy(tmp_path / "model", "bert", {"bundle": bundle_of("mutual")})
    model = load_model(folder, threads=1)
    weights = folder / str(model.saes["sae"].spliced.file)
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(sae_runtime.BundleError, match="changed since it was loaded"):
        model.features("w1")
    with pytest.raises(sae_runtime.BundleError, match="is not the file that"):
        load_model(folder)


@pytest.mark.gpu
@pytest.mark.skipif(CUDA not in onnxruntime.get_available_providers(), reason="needs the CUDA provider")
def test_the_cuda_provider_gives_the_same(model_of: Callable[..., Model]) -> None:
    model = model_of()
    other = load_model(model.layout.graph, providers=[CUDA])
    for text in ("w1 w2 w3", "w4"):
        assert close(other.features(text).features.to_dense(), by_torch("bert", text)[0], 1e-4)
        edited = other.run(text, Edit.set(3, 4.0))["last_hidden_state"]
        assert close(edited, by_torch("bert", text, "mutual", [Edit.set(3, 4.0)])[1], 1e-4)


def test_a_model_that_was_opened_keeps_both_graphs(
    model_of: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = list[str]()

    def counted(path: Path, **options: Any) -> Any:
        opened.append(path.name)
        return open_session(path, **options)

    monkeypatch.setattr(host_sessions, "open_session", counted)
    model = load_model(model_of().layout.graph.parent, threads=1)
    model.open()
    for _ in range(3):
        assert len(model.features("w1 w2")) == 4 and len(model.run("w1 w2")["last_hidden_state"]) == 4
    assert len(opened) == len(set(opened)) == 2
