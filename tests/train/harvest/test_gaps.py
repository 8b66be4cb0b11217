"""Checkpoints that disagree with their model: refused where rows depend on it, and harvested right where not."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_common import all_rows, harvested, hooked, random_texts, relative_error, word_tokenizer, write_paragraphs
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

from sae_runtime.train.harvest.host_model import load_host_model

pytestmark = pytest.mark.usefixtures("one_thread")

Tensors = dict[str, torch.Tensor]
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}
TEXT = random_texts([5, 9, 1])


def saved(kind: str, folder: Path, *, head: bool = False, **settings: Any) -> Any:
    """A model of random weights, on disk with a tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto: Any = AutoModelForCausalLM if head else AutoModel
        model = auto.from_config(CONFIG_MAPPING[kind](**SIZES | settings)).eval()
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return model


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(str(path))), str(path), metadata={"format": "pt"})


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    """Leave out the tensors whose names have one of these parts."""
    return lambda tensors: {key: t for key, t in tensors.items() if not any(part in key for part in parts)}


def reconfigure(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def harvest_of(folder: Path, hook: str) -> Any:
    text = write_paragraphs(folder / "text.txt", TEXT)
    return all_rows(harvested(folder, hook, text, folder / f"activations-{hook}", context=16))


def assert_right(model: Any, folder: Path, hook: str) -> None:
    """The rows are those of the whole model by a torch hook."""
    ids = [torch.tensor([word_tokenizer()(text)["input_ids"]]) for text in TEXT]
    expected = [hooked(model.base_model, hook, partial(model, one))[0][0] for one in ids]
    assert relative_error(harvest_of(folder, hook), np.concatenate(expected)) < 1e-5


BEHIND: dict[str, tuple[str, bool, Callable[[Tensors], Tensors]]] = {
    "a pooler": ("bert", False, without("pooler")),
    "later layers": ("bert", False, without("layer.2.", "pooler")),
    "the last norm": ("llama", True, without("model.norm", "lm_head")),
    "a buffer": ("bert", False, lambda t: t | {"embeddings.position_ids": torch.arange(512)[None]}),
    "another head": ("bert", False, lambda t: t | {"classifier.weight": torch.ones(2, 32)}),
    "another shape": ("bert", False, lambda t: t | {"pooler.dense.weight": torch.ones(3, 3)}),
}


@pytest.mark.parametrize("what", BEHIND)
def test_what_the_rows_do_not_depend_on_may_be_missing(what: str, tmp_path: Path, capfd: Any) -> None:
    kind, head, change = BEHIND[what]
    model = saved(kind, tmp_path, head=head)
    capfd.readouterr()
    rewrite(tmp_path, change)
    assert_right(model, tmp_path, "layers.1" if kind == "llama" else "encoder.layer.1")
    assert capfd.readouterr().err == ""


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    saved("llama", tmp_path, head=True, tie_word_embeddings=True)
    assert not any("lm_head" in key for key in load_file(str(tmp_path / "model.safetensors")))
    load_host_model(str(tmp_path), "cpu", head=True)


BEFORE: dict[str, tuple[str, str, Callable[[Tensors], Tensors], str]] = {
    "one bias": (
        "bert",
        "encoder.layer.1",
        without("layer.1.attention.self.query.bias"),
        r"lacks weights that are computed with \(encoder\.layer\.1\.attention\.self\.query\.bias\); save",
    ),
    "the embedding": ("llama", "layers.0.mlp", without("embed_tokens"), r"\(embed_tokens\.weight\)"),
    "many": ("bert", "encoder.layer.1", without("attention"), r"\((\S+, ){2}\S+ and 17 more\)"),
    "a shape": (
        "bert",
        "encoder.layer.1",
        lambda t: t | {"encoder.layer.0.output.dense.weight": torch.ones(3, 3)},
        r"\(encoder\.layer\.0\.output\.dense\.weight \[3, 3\] instead of \[32, 64\]\)",
    ),
    "a table that no module of its own reads": (
        "deberta-v2",
        "encoder.layer.1",
        without("rel_embeddings"),
        r"\(encoder\.rel_embeddings\.weight\)",
    ),
    "names of another wrapper": (
        "bert",
        "encoder.layer.1",
        lambda t: {f"module.{key}": tensor for key, tensor in t.items()},
        r"and the checkpoint's module\.embeddings\.LayerNorm\.bias has no place in BertModel; save the whole model",
    ),
}


@pytest.mark.parametrize("what", BEFORE)
def test_a_tensor_that_the_rows_depend_on_is_not_made_up(what: str, tmp_path: Path) -> None:
    kind, hook, change, message = BEFORE[what]
    saved(kind, tmp_path, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        harvest_of(tmp_path, hook)
    assert not list(tmp_path.glob("activations-*"))


def test_weights_that_the_config_leaves_out_are_not_dropped(tmp_path: Path) -> None:
    model = saved("llama", tmp_path, head=True, attention_bias=True)
    assert_right(model, tmp_path, "layers.0")
    reconfigure(tmp_path, attention_bias=False)
    with pytest.raises(ValueError, match=r"its config leaves no place \(model\.layers\.0\.self_attn\.k_proj\.bias, "):
        harvest_of(tmp_path, "layers.1")


def test_fewer_layers_than_the_checkpoint_has_are_right_and_more_are_refused(tmp_path: Path) -> None:
    model = saved("llama", tmp_path)
    reconfigure(tmp_path, num_hidden_layers=2)
    assert_right(model, tmp_path, "layers.1")
    reconfigure(tmp_path, num_hidden_layers=4)
    with pytest.raises(ValueError, match="lacks weights"):
        load_host_model(str(tmp_path), "cpu", hooks=["layers.3"])
    load_host_model(str(tmp_path), "cpu", hooks=["layers.2"])


def test_where_the_whole_model_runs_only_a_pooler_may_be_missing(tmp_path: Path) -> None:
    saved("bert", tmp_path / "bert")
    rewrite(tmp_path / "bert", without("pooler"))
    load_host_model(str(tmp_path / "bert"), "cpu", head=True)
    rewrite(tmp_path / "bert", without("layer.2.output.LayerNorm.weight"))
    with pytest.raises(ValueError, match=r"computed with \(encoder\.layer\.2\.output\.LayerNorm\.weight\)"):
        load_host_model(str(tmp_path / "bert"), "cpu", head=True)


def test_an_expert_that_the_first_pass_does_not_choose_counts(tmp_path: Path) -> None:
    saved("mixtral", tmp_path, num_key_value_heads=2, num_local_experts=8)
    rewrite(tmp_path, without("layers.0.block_sparse_moe.experts.5."))
    with pytest.raises(ValueError, match="weight"):
        harvest_of(tmp_path, "layers.1")


def test_files_that_are_torn_or_missing_are_refused(tmp_path: Path) -> None:
    model = saved("bert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert_right(model, tmp_path, "encoder.layer.1")
    shards[0].rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"could not be loaded \(.+\); name a transformers folder with"):
        load_host_model(str(tmp_path), "cpu", hooks=["encoder.layer.1"])
    shards[0].write_bytes((tmp_path / "away").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"could not be loaded \(.+\); name a transformers folder with"):
        load_host_model(str(tmp_path), "cpu", hooks=["encoder.layer.1"])


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "someones"])
def test_a_quantization_that_is_not_installed_is_refused(method: str, tmp_path: Path) -> None:
    saved("llama", tmp_path)
    reconfigure(tmp_path, quantization_config={"quant_method": method, "bits": 4, "load_in_8bit": True})
    with pytest.raises(ValueError, match="quantized|quantization"):
        harvest_of(tmp_path, "layers.1")
