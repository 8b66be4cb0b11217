"""`load_whole_model` gives the class that a checkpoint names, whatever the model reads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from sae_runtime.train.harvest.host_model import load_whole_model

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SPEECH: dict[str, Any] = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
HEADS: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
MADE: dict[str, Any] = {
    "classifier": lambda: BertForSequenceClassification(BertConfig(**SIZES, vocab_size=32)),
    "pictures": lambda: ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=8)),
    "speech": lambda: WhisperForConditionalGeneration(WhisperConfig(**SPEECH, **HEADS, vocab_size=32, pad_token_id=0)),
}


@pytest.mark.parametrize("kind", MADE)
def test_the_class_and_all_weights_are_the_checkpoints_without_a_tokenizer(kind: str, tmp_path: Path) -> None:
    model: Any = MADE[kind]()
    model.save_pretrained(tmp_path)
    loaded = load_whole_model(str(tmp_path))
    assert type(loaded) is type(model) and not loaded.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("named", ["MyOwnBert", "BertConfig", "BertTokenizer"])
def test_a_class_that_is_no_model_of_transformers_is_refused_rather_than_its_head_lost(
    named: str, tmp_path: Path
) -> None:
    MADE["classifier"]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": [named]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"names the class {named}, which is no model of transformers"):
        load_whole_model(str(tmp_path))


def test_a_head_without_weights_is_refused(tmp_path: Path) -> None:
    BertModel(BertConfig(**SIZES, vocab_size=32)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["BertForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"lacks weights that are computed with \(classifier.bias, classifier.weight\)"
    ):
        load_whole_model(str(tmp_path))
