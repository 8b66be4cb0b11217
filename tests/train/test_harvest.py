import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from tiny_model import SPECIALS, WORDS, save_bert
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

from sae_runtime.activations import Activations
from sae_runtime.tensors import read_header
from sae_runtime.train import harvest as harvesting
from sae_runtime.train.harvest import HarvestConfig, harvest

CONTEXT = 20
END = WORDS  # id of GPT-2's only special token
BERT_HOOK, GPT2_HOOK = "encoder.layer.1", "h.0"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """In models this small, threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers with a head on top, and a tokenizer that adds nothing to a text and knows no padding."""
    folder = tmp_path_factory.mktemp("gpt2")
    vocabulary = {f"w{i}": i for i in range(WORDS)} | {"<|end|>": END}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|end|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names: dict[str, Any] = {"unk_token": "<|end|>", "eos_token": "<|end|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)  # type: ignore[no-untyped-call]  # not typed
    fast.save_pretrained(folder)
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    config = GPT2Config(vocab_size=len(vocabulary), bos_token_id=END, eos_token_id=END, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seventy paragraphs of 1 to 40 words: more than are tokenized at once."""
    rng = np.random.default_rng(0)
    paragraphs = [" ".join(f"w{i}" for i in rng.integers(WORDS, size=rng.integers(1, 41))) for _ in range(70)]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n\n".join(paragraphs))
    return path


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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def altered(model: Path, to: Path, word: int, value: float) -> Path:
    """A copy of a GPT-2 whose embedding of one word is a constant."""
    shutil.copytree(model, to)
    net = GPT2LMHeadModel.from_pretrained(to)
    with torch.no_grad():
        net.transformer.wte.weight[word] = value
    net.save_pretrained(to)
    return to


@pytest.fixture
def interrupted(config: HarvestConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a harvest that was killed while it wrote its second shard."""
    save = safetensors.torch.save_file

    def once(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "shard-00001" in path.name:
            raise KeyboardInterrupt
        save(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(harvesting, "save_file", once)
        with pytest.raises(KeyboardInterrupt):
            harvest(config, tmp_path / "interrupted")
    assert sorted(contents(tmp_path / "interrupted")) == ["harvest.json", "shard-00000.safetensors"]
    return tmp_path / "interrupted"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("batch_tokens", [20, 10_000])
def test_bert_rows_match_the_unpadded_model(
    config: HarvestConfig, witness: Witnesses, tmp_path: Path, dtype: str, batch_tokens: int
) -> None:
    got = harvest(replace(config, dtype=dtype, batch_tokens=batch_tokens), tmp_path / "out")
    expected = witness("bert", 1)
    check_origin(got, expected.origin)
    close(everything(got), expected.x, dtype)
    assert (got.model, got.hook, got.d_in) == (config.model, BERT_HOOK, 16)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_gpt2_rows_match_the_unpadded_model(
    config: HarvestConfig, gpt2: Path, witness: Witnesses, tmp_path: Path, dtype: str
) -> None:
    got = harvest(replace(config, model=str(gpt2), hook=GPT2_HOOK, dtype=dtype), tmp_path / "out")
    expected = witness("gpt2", 0)
    check_origin(got, expected.origin)
    close(everything(got), expected.x, dtype)


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
def test_shards_are_of_the_size_and_type_asked_for(
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


def test_the_frame_is_left_out_even_where_its_tokens_are_not_called_special(
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


def test_no_layer_after_the_hook_runs(config: HarvestConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 0
    forward = BertLayer.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal runs
        runs += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(BertLayer, "forward", counted)
    harvest(replace(config, tokens=10, batch_tokens=1000), tmp_path / "out")
    assert runs == 2  # layers 0 and 1 in one pass


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
    assert sum(passes) < 1.1 * len(got)  # in the order of the text it would be 1.3


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
def test_a_hook_may_be_named_as_the_model_with_a_head_names_it(
    request: pytest.FixtureRequest, config: HarvestConfig, tmp_path: Path, prefix: str, hook: str
) -> None:
    model = request.getfixturevalue("bert" if prefix == "bert." else "gpt2")
    config = replace(config, model=str(model), tokens=50)
    short = harvest(replace(config, hook=hook), tmp_path / "short")
    long = harvest(replace(config, hook=prefix + hook), tmp_path / "long")
    assert np.array_equal(everything(short), everything(long))
    assert long.hook == prefix + hook


def test_the_model_computes_in_the_type_of_its_checkpoint(gpt2: Path, text: Path, tmp_path: Path) -> None:
    shutil.copytree(gpt2, tmp_path / "half")
    GPT2LMHeadModel.from_pretrained(gpt2, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    config = HarvestConfig(model=str(tmp_path / "half"), hook=GPT2_HOOK, text=(text,), context=CONTEXT, tokens=50)
    x = everything(harvest(config, tmp_path / "out"))
    assert x.any() and not (x.view(np.uint32) & 0xFFFF).any()  # bfloat16 leaves the lower half of float32 empty


@pytest.mark.parametrize("tokens", [1, 299, 301, 700, 10**6])
def test_tokens_gives_exactly_so_many_rows_or_the_whole_text(
    config: HarvestConfig, witness: Witnesses, tmp_path: Path, tokens: int
) -> None:
    expected = witness("bert", 1)
    assert 700 < len(expected.x) < 10**6
    got = harvest(replace(config, tokens=tokens), tmp_path / "out")
    check_origin(got, expected.origin[:tokens])
    close(everything(got), expected.x[:tokens])


def test_an_interrupted_harvest_goes_on_and_gives_the_same_bytes(
    config: HarvestConfig, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (interrupted / ".shard-00001.safetensors.0123abcd.partial.safetensors").write_bytes(b"of a killed writer")
    first = (interrupted / "shard-00000.safetensors").stat().st_ino
    written: list[str] = []
    save = safetensors.torch.save_file

    def listed(tensors: dict[str, torch.Tensor], path: Path) -> None:
        written.append(re.findall(r"shard-\d+", path.name)[0])
        save(tensors, path)

    monkeypatch.setattr(harvesting, "save_file", listed)
    harvest(config, interrupted)
    assert written and written == [f"shard-{n:05d}" for n in range(1, len(written) + 1)]
    assert (interrupted / "shard-00000.safetensors").stat().st_ino == first
    harvest(config, tmp_path / "at once")
    assert contents(interrupted) == contents(tmp_path / "at once")


@pytest.mark.parametrize("damage", ["truncated", "rows", "dtype", "tensors"])
def test_a_shard_that_is_not_whole_is_computed_again(
    config: HarvestConfig, interrupted: Path, tmp_path: Path, damage: str
) -> None:
    shard = interrupted / "shard-00000.safetensors"
    whole = shard.read_bytes()
    rows = read_header(shard)["activations"].shape[0]
    if damage == "truncated":
        shard.write_bytes(whole[:-1])
    else:
        n = 100 if damage == "rows" else rows
        ids = {name: torch.zeros(n, dtype=torch.int32) for name in ("tokens", "documents", "positions")}
        x = torch.zeros(n, 16, dtype=torch.float16 if damage == "dtype" else torch.float32)
        safetensors.torch.save_file({"activations": x} | ({} if damage == "tensors" else ids), shard)
    harvest(config, interrupted)
    assert shard.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 21}, "with context 20, now it is 21"),
        ({"dtype": "float16"}, "with dtype 'float32', now it is 'float16'"),
        ({"hook": "encoder.layer.0"}, "with hook 'encoder.layer.1', now it is 'encoder.layer.0'"),
        ({"split": "file"}, "with split 'paragraph', now it is 'file'"),
        ({"special": True}, "with special False, now it is True"),
        ({"tokens": 7}, "with tokens None, now it is 7"),
        ({"shard_tokens": 700}, "with shard_tokens 300, now it is 700"),
    ],
)
def test_another_config_does_not_go_on(
    config: HarvestConfig, interrupted: Path, change: dict[str, Any], message: str
) -> None:
    before = contents(interrupted)
    end = "; use another folder or --force$"
    with pytest.raises(ValueError, match=f"^{re.escape(str(interrupted))} was begun {re.escape(message)}{end}"):
        harvest(replace(config, **change), interrupted)
    assert contents(interrupted) == before
    got = harvest(replace(config, **change), interrupted, force=True)
    assert len(got) > 0 and not (interrupted / "harvest.json").read_bytes() == before["harvest.json"]


def test_changed_files_do_not_go_on(config: HarvestConfig, interrupted: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("w1 w2")
    with pytest.raises(ValueError, match=r"was begun with text None, now it is '.*more\.txt \(5 bytes, changed at"):
        harvest(replace(config, text=(*config.text, more)), interrupted)
    shutil.copytree(config.model, tmp_path / "model")
    with pytest.raises(ValueError, match="was begun with model '.*', now it is '.*model'; use another folder"):
        harvest(replace(config, model=str(tmp_path / "model")), interrupted)
    for path, name in ((config.text[0], "text"), (Path(config.model) / "config.json", "model_files")):
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
        with pytest.raises(
            ValueError, match=f"was begun with {name} '.*{path.name} .*', now it is '.*{path.name} .*'; use"
        ):
            harvest(config, interrupted)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(harvest(config, interrupted)) > config.shard_tokens


def test_the_same_files_named_from_elsewhere_go_on(
    config: HarvestConfig, interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = Path(config.model), config.text[0]
    monkeypatch.chdir(model.parent)
    config = replace(config, model=model.name, text=(Path(os.path.relpath(path)),))
    assert len(harvest(config, interrupted)) > config.shard_tokens


def test_batch_size_and_device_may_change_on_the_way(config: HarvestConfig, interrupted: Path) -> None:
    got = harvest(replace(config, batch_tokens=100, device="cpu"), interrupted)
    assert len(got) > config.shard_tokens


def test_a_begun_folder_without_shards_takes_another_config(config: HarvestConfig, interrupted: Path) -> None:
    (interrupted / "shard-00000.safetensors").unlink()
    assert len(harvest(replace(config, tokens=9), interrupted)) == 9


@pytest.mark.parametrize("plan", [None, "{", "[]"])
def test_shards_without_a_readable_plan_are_refused(config: HarvestConfig, interrupted: Path, plan: str | None) -> None:
    (interrupted / "harvest.json").unlink()
    if plan is not None:
        (interrupted / "harvest.json").write_text(plan)
    with pytest.raises(ValueError, match=r"holds shards but no readable harvest\.json; use another folder or --force$"):
        harvest(config, interrupted)
    assert len(harvest(replace(config, tokens=9), interrupted, force=True)) == 9


def test_a_whole_folder_is_replaced_only_by_force(config: HarvestConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    harvest(config, out)
    before = contents(out)
    for other in (config, replace(config, tokens=9)):
        with pytest.raises(FileExistsError, match=r"out already exists; pass --force \(force=True\) to replace it$"):
            harvest(other, out)
    with pytest.raises(ValueError, match="has no module"):
        harvest(replace(config, hook="nothing"), out, force=True)
    assert contents(out) == before
    (out / ".shard-00007.safetensors.0123abcd.partial.safetensors").write_bytes(b"of a killed writer")
    assert len(harvest(replace(config, tokens=9), out, force=True)) == 9
    assert sorted(contents(out)) == ["activations.json", "harvest.json", "shard-00000.safetensors"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_other_things_is_left_alone(config: HarvestConfig, tmp_path: Path, force: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("dear")
    (out / "shard-00000.safetensors").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex, which harvest did not write; name another folder$"):
        harvest(config, out, force=force)
    with pytest.raises(FileExistsError, match=r"thesis\.tex is a file; name a folder$"):
        harvest(config, out / "thesis.tex", force=force)
    assert contents(out) == {"thesis.tex": b"dear", "shard-00000.safetensors": b"mine"}


def test_force_does_not_clear_a_harvest_with_other_things_beside_it(config: HarvestConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    harvest(config, out)
    (out / "thesis.tex").write_text("dear")
    before = contents(out)
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex, which harvest did not write; name another folder$"):
        harvest(config, out, force=True)
    assert contents(out) == before


def test_an_empty_folder_is_filled_and_its_files_can_be_read_by_others(config: HarvestConfig, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    harvest(config, tmp_path / "out")
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("encoder.layer.7", r"has no module 'encoder\.layer\.7'; close names are .*encoder\.layer\.[012]\b"),
        ("layers.1", r"has no module 'layers\.1'; close names are (\S+, ){4}\S+$"),
        ("encoder.layer", r"the forward pass never calls encoder\.layer \(ModuleList\); hook a module inside it$"),
        (
            "embeddings.position_embeddings",
            r"gives \[1, 20, 16\], expected \[batch, time, d_in\] with \[10, 20\]; hook",
        ),
        ("pooler", r"pooler gives \[\d+, 16\], expected \[batch, time, d_in\] with \[\d+, 20\]; hook a layer$"),
    ],
)
def test_a_hook_that_gives_no_rows_is_refused(config: HarvestConfig, tmp_path: Path, hook: str, message: str) -> None:
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


def test_what_overflows_float16_is_refused_by_document_and_position(gpt2: Path, tmp_path: Path) -> None:
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
def test_a_context_that_does_not_fit_is_refused(
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
    with pytest.raises(ValueError, match=r"does not go on abacus \(.+\); use another --device$"):
        harvest(replace(config, device="abacus"), out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "^model is empty; name at least one$"),
        ({"hook": ""}, "^hook is empty; name at least one$"),
        ({"text": ()}, "^text is empty; name at least one$"),
        ({"split": "line"}, "^split must be one of paragraph, file, got 'line'$"),
        ({"dtype": "float64"}, "^dtype must be one of float32, float16, bfloat16, got 'float64'$"),
        ({"context": 0}, "^context must be >= 1, got 0$"),
        ({"tokens": 0}, "^tokens must be >= 1, got 0$"),
        ({"shard_tokens": -1}, "^shard_tokens must be >= 1, got -1$"),
        ({"batch_tokens": 19}, "^batch_tokens must be >= context, got 19 for windows of 20$"),
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
    assert ("9.00/9.00" in written.getvalue()) == shown
    assert ("token/s" in written.getvalue()) == shown
