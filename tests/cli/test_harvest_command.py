import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import misused, refused, run
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from sae_runtime import open_activations


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, and a tokenizer that knows three words."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "one": 2, "two": 3, "three": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names: dict[str, Any] = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)  # type: ignore[no-untyped-call]  # not typed
    fast.save_pretrained(folder)
    config = BertConfig(vocab_size=5, max_position_embeddings=16, hidden_size=8, num_hidden_layers=1)
    config.update({"num_attention_heads": 2, "intermediate_size": 16})
    with torch.random.fork_rng():
        BertModel(config).save_pretrained(folder)
    return folder


def test_harvests_every_text(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two\n\nthree")
    (tmp_path / "b.txt").write_text("two three one")
    out = tmp_path / "acts"
    texts = ("--text", tmp_path / "a.txt", "--text", tmp_path / "b.txt")
    arguments = ("harvest", model, "--hook", "encoder.layer.0", *texts, "--context", "8", "-o", out)
    result = run(*arguments, "--quiet")
    assert result.exit_code == 0
    assert [" ".join(line.split()) for line in result.stdout.splitlines()] == [
        f"activations {out}",
        "rows 6 tokens, 8 wide, in 1 shard",
        f"source {model.name}, encoder.layer.0",
    ]
    tokens, documents = open_activations(out).tokens, open_activations(out).documents
    assert tokens is not None and tokens.tolist() == [2, 3, 4, 3, 4, 2]
    assert documents is not None and documents.tolist() == [0, 0, 1, 2, 2, 2]
    assert refused(*arguments) == f"error: {out} already exists; pass --force to replace it, in Python force=True"
    result = run(*arguments, "--force", "--tokens", "2", "--json")
    assert json.loads(result.stdout) == {
        "activations": str(out),
        "tokens": 2,
        "d_in": 8,
        "model": model.name,
        "hook": "encoder.layer.0",
        "shards": 1,
    }


def test_errors(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "acts"
    needed = ("harvest", model, "--hook", "encoder.layer.0", "-o", out)
    assert misused(*needed) == "Missing option '--text'."
    said = refused(*needed, "--text", tmp_path / "no.txt")
    assert said == f"error: the text file {tmp_path / 'no.txt'} does not exist; check its path"
    said = refused(*needed, "--text", tmp_path / "no.txt", "--context", "0")
    assert said == "error: context must be at least 1, got 0"
    assert not out.exists()


def test_fields_are_named_by_options(model: Path, tmp_path: Path) -> None:
    rows = [{"body": "one two", "ids": [4], "key": "a"}, {"body": "three", "ids": [3, 2], "key": "b"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    needed = ("harvest", model, "--hook", "encoder.layer.0", "--text", tmp_path / "a.json", "--context", "8", "-q")
    said = refused(*needed, "-o", tmp_path / "none")
    fault = "row 0: it has no field 'text'; it has 'body', 'ids', 'key'; name one of these"
    assert said == f"error: {tmp_path / 'a.json'}, {fault}"
    fields = ("--text-field", "body", "--id-field", "key")
    for name, options, expected in (("texts", fields, [2, 3, 4]), ("ids", ("--ids-field", "ids"), [4, 3, 2])):
        assert run(*needed, *options, "-o", tmp_path / name).exit_code == 0
        tokens = open_activations(tmp_path / name).tokens
        assert tokens is not None and tokens.tolist() == expected
    assert [source.id for _, source in open_activations(tmp_path / "texts").sources()] == ["a", "b"]


def test_standard_input_is_text(model: Path, tmp_path: Path) -> None:
    command = ("harvest", str(model), "--hook", "encoder.layer.0", "--text", "-", "--context", "8")
    words = (
        sys.executable,
        "-c",
        "from sae_runtime.cli import main; main()",
        *command,
        "-o",
        str(tmp_path / "acts"),
        "-q",
    )
    subprocess.run(words, input='{"text": "one two"}\n{"text": "three"}', text=True, check=True, cwd=tmp_path)
    tokens = open_activations(tmp_path / "acts").tokens
    assert tokens is not None and tokens.tolist() == [2, 3, 4]
