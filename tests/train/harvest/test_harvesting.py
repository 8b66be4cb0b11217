import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_model import END, SPECIALS, save_bert, save_gpt2, write_words
from transformers import AutoModel, GPT2LMHeadModel
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

from sae_runtime.activations.stored import Activations
from sae_runtime.bundle.tensors import read_header
from sae_runtime.train.harvest.config import HarvestConfig, as_harvested
from sae_runtime.train.harvest.harvesting import harvest

CONTEXT = 20
LOOKS = 5  # short passes before the text, which find out how rows belong to tokens
BERT_HOOK, GPT2_HOOK = "encoder.layer.1", "h.0"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More paragraphs than are tokenized at once."""
    return write_words(tmp_path_factory.mktemp("text") / "words.txt", 70)


@pytest.fixture
def config(bert: Path, text: Path) -> HarvestConfig:
    """A harvest of several shards and batches."""
    sizes: dict[str, Any] = {"context": CONTEXT, "batch_tokens": 200, "shard_tokens": 300}
    return HarvestConfig(model=str(bert), hook=BERT_HOOK, text=(text,), **sizes)


@dataclass(frozen=True)
class Witness:
    """What a model gives for the words of a text: x [n, d_in], and the token, document and position of each."""

    x: NDArray[np.float32]
    origin: list[tuple[int, int, int]]


Witnesses = Callable[[str, int], Witness]


@pytest.fixture(scope="module")
def witness(bert: Path, gpt2: Path, text: Path) -> Witnesses:
    """Give the output of a layer for windows of 20, one at a time, without padding and through the whole model."""
    made: dict[tuple[str, int], Witness] = {}

    def give(name: str, layer: int) -> Witness:
        if (name, layer) not in made:
            made[name, layer] = read_text(bert if name == "bert" else gpt2, layer, text, framed=name == "bert")
        return made[name, layer]

    return give


def read_text(model: Path, layer: int, text: Path, *, framed: bool) -> Witness:
    net = AutoModel.from_pretrained(model).eval()
    x: list[NDArray[np.float32]] = []
    origin: list[tuple[int, int, int]] = []
    for document, paragraph in enumerate(text.read_text().split("\n\n")):
        ids = [int(word[1:]) + (len(SPECIALS) if framed else 0) for word in paragraph.split()]
        room = CONTEXT - 2 if framed else CONTEXT
        for start in range(0, len(ids), room):
            body = ids[start : start + room]
            window = [SPECIALS["[CLS]"], *body, SPECIALS["[SEP]"]] if framed else body
            with torch.no_grad():
                states = net(input_ids=torch.tensor([window]), output_hidden_states=True).hidden_states
            x.append(states[layer + 1][0].numpy()[1 if framed else 0 :][: len(body)])
            origin += [(token, document, start + i) for i, token in enumerate(body)]
    return Witness(np.concatenate(x), origin)


def check_origin(activations: Activations, expected: list[tuple[int, int, int]]) -> None:
    """Tokens, documents and positions are exactly these."""
    assert activations.tokens is not None and activations.documents is not None and activations.positions is not None
    found = activations.tokens.tolist(), activations.documents.tolist(), activations.positions.tolist()
    assert list(zip(*found, strict=True)) == expected


def everything(activations: Activations) -> NDArray[np.float32]:
    return activations.slice(0, len(activations))


def close(got: NDArray[np.float32], expected: NDArray[np.float32], dtype: str = "float32") -> None:
    # 1e-5: another order of summation in a batch; then half a unit in the last stored place.
    relative = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    np.testing.assert_allclose(got, expected, rtol=relative, atol=1e-5)


def altered(model: Path, to: Path, word: int, value: float) -> Path:
    """A copy of a GPT-2 whose embedding of one word is a constant."""
    shutil.copytree(model, to)
    net = GPT2LMHeadModel.from_pretrained(to)
    with torch.no_grad():
        net.transformer.wte.weight[word] = value
    net.save_pretrained(to)
    return to


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("batch_tokens", [20, 10_000])
def test_bert_rows_match_the_unpadded_model(
    config: HarvestConfig, witness: Witnesses, tmp_path: Path, dtype: str, batch_tokens: int
) -> None:
    got = harvest(replace(config, dtype=dtype, batch_tokens=batch_tokens), tmp_path / "out")
    expected = witness("bert", 1)
    check_origin(got, expected.origin)
    close(everything(got), expected.x, dtype)
    assert (got.model, got.hook, got.d_in) == (Path(config.model).name, BERT_HOOK, 16)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_gpt2_rows_match_the_unpadded_model(
    config: HarvestConfig, gpt2: Path, witness: Witnesses, tmp_path: Path, dtype: str
) -> None:
    got = harvest(replace(config, model=str(gpt2), hook=GPT2_HOOK, dtype=dtype), tmp_path / "out")
    expected = witness("gpt2", 0)
    check_origin(got, expected.origin)
    close(everything(got), expected.x, dtype)


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
def test_shards_have_the_size_and_type_of_the_config(
    config: HarvestConfig, tmp_path: Path, dtype: str, stored: str
) -> None:
    got = harvest(replace(config, dtype=dtype), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "activations.json").read_text())
    rows = [shard["rows"] for shard in index["shards"]]
    assert sum(rows) == len(got) and len(rows) > 2
    assert all(config.shard_tokens - config.context < n <= config.shard_tokens for n in rows[:-1])
    for number, shard in enumerate(index["shards"]):
        assert shard["file"] == f"shard-{number:05d}.safetensors"
        specs = read_header(tmp_path / "out" / shard["file"])
        found = {name: (spec.dtype, spec.shape) for name, spec in specs.items()}
        ids = {name: ("I32", (shard["rows"],)) for name in ("tokens", "documents", "positions")}
        assert found == {"activations": (stored, (shard["rows"], 16)), **ids}
    settings = {name: index[name] for name in ("format_version", "d_in", "dtype", "context", "tokens", "special")}
    expected = {"format_version": 1, "d_in": 16, "dtype": dtype, "context": 20, "tokens": None, "special": False}
    assert settings == expected


def test_a_model_is_recorded_by_its_folder_or_its_hub_name(
    config: HarvestConfig, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config.called == replace(config, model=f"{bert}/").called == bert.name
    assert replace(config, name="mine").called == "mine"
    assert replace(config, model="someone/model").called == "someone/model"
    (bert / "below").mkdir(exist_ok=True)
    monkeypatch.chdir(bert / "below")
    assert replace(config, model="..").called == bert.name


def test_windows_frames_and_positions_of_one_document(bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("[SEP]\n\nw0 w1 [SEP] what w2")
    # The document is 5 tokens, two of them per window of 4; the first document keeps no row but has its number.
    config = HarvestConfig(model=str(bert), hook=BERT_HOOK, text=(path,), context=4, batch_tokens=8)
    got = harvest(config, tmp_path / "words")
    unknown, first = SPECIALS["[UNK]"], len(SPECIALS)
    check_origin(got, [(first, 1, 0), (first + 1, 1, 1), (unknown, 1, 3), (first + 2, 1, 4)])

    kept = harvest(replace(config, special=True), tmp_path / "special")
    cls, sep = SPECIALS["[CLS]"], SPECIALS["[SEP]"]
    expected = [(cls, 0, 0), (sep, 0, 0), (sep, 0, 0)]
    expected += [(cls, 1, 0), (first, 1, 0), (first + 1, 1, 1), (sep, 1, 1)]
    expected += [(cls, 1, 2), (sep, 1, 2), (unknown, 1, 3), (sep, 1, 3), (cls, 1, 4), (first + 2, 1, 4), (sep, 1, 4)]
    check_origin(kept, expected)
    close(kept.rows(np.array([4, 5, 9, 12])), everything(got))


def test_the_frame_is_left_out_even_if_its_tokens_are_not_marked_special(
    config: HarvestConfig, witness: Witnesses, tmp_path: Path
) -> None:
    shutil.copytree(config.model, tmp_path / "model")
    named = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    for name in ("cls_token", "sep_token"):
        del named[name]
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(named))
    check_origin(harvest(replace(config, model=str(tmp_path / "model")), tmp_path / "out"), witness("bert", 1).origin)


def test_special_tokens_written_in_the_text_are_left_out(gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("w3 <|end|> w4")
    config = HarvestConfig(model=str(gpt2), hook=GPT2_HOOK, text=(path,), context=64)
    check_origin(harvest(config, tmp_path / "words"), [(3, 0, 0), (4, 0, 2)])
    check_origin(harvest(replace(config, special=True), tmp_path / "special"), [(3, 0, 0), (END, 0, 1), (4, 0, 2)])


def test_first_positions_of_each_window_are_left_out_special_tokens_counted(
    config: HarvestConfig, bert: Path, tmp_path: Path
) -> None:
    every = harvest(replace(config, special=True), tmp_path / "all")
    few = harvest(replace(config, special=True, skip_first=3), tmp_path / "few")
    windows = np.cumsum(np.asarray(every.tokens) == SPECIALS["[CLS]"])  # each window begins with this token
    place = np.arange(len(every)) - np.searchsorted(windows, windows)
    assert np.array_equal(np.asarray(few.tokens), np.asarray(every.tokens)[place >= 3])
    assert np.array_equal(np.asarray(few.positions), np.asarray(every.positions)[place >= 3])
    close(everything(few), everything(every)[place >= 3])
    words = harvest(replace(config, skip_first=3), tmp_path / "words")  # the frame counts, though it is not kept
    inner = (place >= 3) & ~np.isin(np.asarray(every.tokens), [SPECIALS["[CLS]"], SPECIALS["[SEP]"]])
    assert np.array_equal(np.asarray(words.tokens), np.asarray(every.tokens)[inner])
    assert json.loads((tmp_path / "few" / "activations.json").read_text())["skip_first"] == 3
    assert as_harvested(tmp_path / "few")["skip_first"] == 3


@pytest.mark.parametrize("skip_token", [("4", "w7"), ("w7", "w4"), ("w4", "4", "7")])
def test_tokens_are_left_out_by_id_or_by_text(gpt2: Path, text: Path, skip_token: Any, tmp_path: Path) -> None:
    config = HarvestConfig(model=str(gpt2), hook=GPT2_HOOK, text=(text,), context=CONTEXT, special=True)
    every = harvest(config, tmp_path / "all")
    few = harvest(replace(config, skip_token=skip_token), tmp_path / "few")
    kept = ~np.isin(np.asarray(every.tokens), [4, 7])
    assert 0 < kept.sum() < len(every) and np.array_equal(np.asarray(few.tokens), np.asarray(every.tokens)[kept])
    close(everything(few), everything(every)[kept])
    assert set(json.loads((tmp_path / "few" / "activations.json").read_text())["skip_ids"]) == {4, 7}
    again = replace(config, **{name: value for name, value in as_harvested(tmp_path / "few").items()})
    assert np.array_equal(np.asarray(harvest(again, tmp_path / "again").tokens), np.asarray(few.tokens))


def test_unknown_tokens_and_too_many_first_positions_are_refused(config: HarvestConfig, tmp_path: Path) -> None:
    said = r"'nothing' is not one token of this tokenizer; give the text of one token, or its id"
    with pytest.raises(ValueError, match=said):
        harvest(replace(config, skip_token=("w1", "nothing")), tmp_path / "out")
    with pytest.raises(ValueError, match="'w1 w2' is not one token"):
        harvest(replace(config, skip_token=("w1 w2",)), tmp_path / "out")
    with pytest.raises(ValueError, match=r"has ids 0 to \d+, got the token 99999"):
        harvest(replace(config, skip_token=("99999",)), tmp_path / "out")
    with pytest.raises(ValueError, match="skip_first must be below the context 20, got 20"):
        replace(config, skip_first=20)
    with pytest.raises(ValueError, match="skip_first must be at least 0, got -1"):
        replace(config, skip_first=-1)
    assert not list(tmp_path.iterdir())


def test_a_harvest_that_was_begun_refuses_other_tokens_to_leave_out(config: HarvestConfig, tmp_path: Path) -> None:
    harvest(replace(config, skip_token=("w1",)), tmp_path / "out")
    (tmp_path / "out" / "activations.json").unlink()
    with pytest.raises(ValueError, match=r"was begun with skip_token 'w1', now it is 'w2'"):
        harvest(replace(config, skip_token=("w2",)), tmp_path / "out")
    with pytest.raises(ValueError, match=r"was begun with skip_first 0, now it is 1"):
        harvest(replace(config, skip_token=("w1",), skip_first=1), tmp_path / "out")


def test_no_layer_after_the_hook_runs_but_in_the_passes_that_look_at_the_model(
    config: HarvestConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    forward = BertLayer.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        runs.append(id(self))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(BertLayer, "forward", counted)
    harvest(config, tmp_path / "out")
    layers = runs[:3]
    passes = runs.count(layers[0])
    assert passes > LOOKS + 2
    assert runs == layers * LOOKS + layers[:2] * (passes - LOOKS)


def test_passes_hold_at_most_batch_tokens_and_little_padding(
    config: HarvestConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    forward = BertEmbeddings.forward

    def counted(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(input_ids.numel())
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(BertEmbeddings, "forward", counted)
    got = harvest(replace(config, special=True, shard_tokens=10_000), tmp_path / "out")
    assert max(passes) <= config.batch_tokens
    assert sum(passes[LOOKS:]) < 1.1 * len(got)  # in the order of the text it would be 1.3


def test_tuples_and_model_outputs_are_read_by_their_first_tensor(
    config: HarvestConfig, gpt2: Path, text: Path, witness: Witnesses, tmp_path: Path
) -> None:
    whole = harvest(replace(config, hook="encoder"), tmp_path / "encoder")  # a ModelOutput
    close(everything(whole), witness("bert", 2).x)

    attention = harvest(replace(config, model=str(gpt2), hook="h.0.attn", tokens=5), tmp_path / "attn")  # a tuple
    seen: list[torch.Tensor] = []
    net = AutoModel.from_pretrained(gpt2).eval()
    net.h[0].attn.register_forward_hook(lambda _module, _args, output: seen.append(output[0]))
    words = [int(word[1:]) for word in text.read_text().split("\n\n")[0].split()[:20]]
    with torch.no_grad():
        net(input_ids=torch.tensor([words]))
    close(everything(attention), seen[0][0, :5].numpy())


@pytest.mark.parametrize(("prefix", "hook"), [("bert.", BERT_HOOK), ("transformer.", GPT2_HOOK)])
def test_a_hook_may_have_the_name_of_the_model_with_a_head(
    request: pytest.FixtureRequest, config: HarvestConfig, tmp_path: Path, prefix: str, hook: str
) -> None:
    model = request.getfixturevalue("bert" if prefix == "bert." else "gpt2")
    config = replace(config, model=str(model), tokens=50)
    short = harvest(replace(config, hook=hook), tmp_path / "short")
    long = harvest(replace(config, hook=prefix + hook), tmp_path / "long")
    assert np.array_equal(everything(short), everything(long))
    assert long.hook == short.hook == hook


def test_the_model_computes_in_the_type_of_its_checkpoint(gpt2: Path, text: Path, tmp_path: Path) -> None:
    shutil.copytree(gpt2, tmp_path / "half")
    GPT2LMHeadModel.from_pretrained(gpt2, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    config = HarvestConfig(model=str(tmp_path / "half"), hook=GPT2_HOOK, text=(text,), context=CONTEXT, tokens=50)
    x = everything(harvest(config, tmp_path / "out"))
    assert x.any() and not (x.view(np.uint32) & 0xFFFF).any()  # bfloat16 leaves the lower half of float32 empty


@pytest.mark.parametrize("tokens", [1, 299, 301, 700, 10**6])
def test_tokens_limits_the_rows_exactly_or_takes_the_whole_text(
    config: HarvestConfig, witness: Witnesses, tmp_path: Path, tokens: int
) -> None:
    expected = witness("bert", 1)
    assert 700 < len(expected.x) < 10**6
    got = harvest(replace(config, tokens=tokens), tmp_path / "out")
    check_origin(got, expected.origin[:tokens])
    close(everything(got), expected.x[:tokens])


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("encoder.layer.7", r"has no module 'encoder\.layer\.7'; close names are .*encoder\.layer\.[012]\b"),
        ("layers.1", r"has no module 'layers\.1'; close names are (\S+, ){4}\S+$"),
        ("encoder.layer", r"the forward pass never calls encoder\.layer \(ModuleList\); hook a module inside it$"),
        (
            "embeddings.position_embeddings",
            r"gives \[1, 6, 16\], expected \[8, 6, d_in\], a row for each token; hook a layer$",
        ),
        ("pooler", r"pooler gives \[\d+, 16\], expected \[batch, time, d_in\]; hook a layer"),
    ],
)
def test_a_hook_without_rows_is_refused(config: HarvestConfig, tmp_path: Path, hook: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        harvest(replace(config, hook=hook), tmp_path / "out")


def test_nan_is_refused_by_document_and_position(gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("w1 w2 w3 w1\n\nw1 w2 w1 w7 w2")
    model = altered(gpt2, tmp_path / "nan", 7, float("nan"))
    config = HarvestConfig(model=str(model), hook="wte", text=(path,), context=2)
    with pytest.raises(ValueError, match="^wte gives NaN or Inf at document 1, position 3; leave that document out or"):
        harvest(config, tmp_path / "out")
    assert not (tmp_path / "out" / "activations.json").exists()


def test_an_overflow_of_float16_is_refused_by_document_and_position(gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("w1 w2 w3 w1\n\nw1 w7 w1 w1 w2")
    model = altered(gpt2, tmp_path / "large", 7, 1e5)
    config = HarvestConfig(model=str(model), hook="wte", text=(path,), context=2, dtype="float16")
    message = "^an activation at document 1, position 1 is too large for float16; store bfloat16 or float32$"
    with pytest.raises(ValueError, match=message):
        harvest(config, tmp_path / "half")
    x = everything(harvest(replace(config, dtype="bfloat16"), tmp_path / "brain"))
    close(x[5], np.full(16, 1e5, np.float32), "bfloat16")


@pytest.mark.parametrize("content", ["", " \n\n", "[SEP] [CLS]\n\n[PAD]"])
def test_text_without_rows_is_refused(config: HarvestConfig, tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"^no token of the text is kept \(.*empty\.txt hold none\); give more text$"):
        harvest(replace(config, text=(path,)), tmp_path / "out")
    assert not (tmp_path / "out" / "activations.json").exists()


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (2, "^context is 2 tokens, of which special tokens take 2; give at least 3$"),
        (65, "^context is 65 tokens, .* reads at most 64; lower --context$"),
    ],
)
def test_a_context_longer_than_the_model_reads_is_refused(
    config: HarvestConfig, tmp_path: Path, context: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        harvest(replace(config, context=context), tmp_path / "out")


def test_models_and_text_that_cannot_be_read_are_refused(config: HarvestConfig, bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="^the model folder .*/none does not exist; check its path$"):
        harvest(replace(config, model=str(tmp_path / "none")), out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty could not be loaded \(.+\); name a transformers folder"):
        harvest(replace(config, model=str(tmp_path / "empty")), out)
    shutil.copytree(bert, tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"torn could not be loaded \(.+\); name a transformers folder"):
        harvest(replace(config, model=str(tmp_path / "torn")), out)
    with pytest.raises(FileNotFoundError, match=r"the text file .*none\.txt does not exist; check its path$"):
        harvest(replace(config, text=(tmp_path / "none.txt",)), out)
    with pytest.raises(ValueError, match=r"torch cannot compute on abacus \(.+\); use another --device$"):
        harvest(replace(config, device="abacus"), out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "^model is empty; name at least one$"),
        ({"hook": ""}, "^hook is empty; name at least one$"),
        ({"text": ()}, "^text is empty; name at least one$"),
        ({"document": "page"}, "^document must be one of paragraph, file, line, got 'page'$"),
        ({"dtype": "float64"}, "^dtype must be one of float32, float16, bfloat16, got 'float64'$"),
        ({"context": 0}, "^context must be at least 1, got 0$"),
        ({"tokens": 0}, "^tokens must be at least 1, got 0$"),
        ({"shard_tokens": -1}, "^shard_tokens must be at least 1, got -1$"),
        ({"batch_tokens": 19}, "^batch_tokens must be at least the context 20, got 19$"),
    ],
)
def test_a_config_out_of_range_is_refused(config: HarvestConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **change)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "progress", "shown"), [(_Terminal, True, True), (_Terminal, False, False), (io.StringIO, True, False)]
)
def test_progress_is_shown_on_a_terminal_only(
    config: HarvestConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stream: Callable[[], io.StringIO],
    progress: bool,
    shown: bool,
) -> None:
    harvest(replace(config, tokens=9), tmp_path / "first")  # imports are done
    written = stream()
    monkeypatch.setattr(sys, "stderr", written)
    harvest(replace(config, tokens=9), tmp_path / "out", progress=progress)
    assert ("9/9" in written.getvalue()) == shown
    assert ("tokens/s" in written.getvalue()) == shown
