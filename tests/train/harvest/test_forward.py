"""Models that do not read text, tokenizers that do not fit, and errors of a foreign forward pass: one sentence each."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cases_common import harvested, word_tokenizer, write_paragraphs
from command_line import refused
from tiny_model import save_gpt2
from transformers import CONFIG_MAPPING, AutoModel, GPT2LMHeadModel

pytestmark = pytest.mark.usefixtures("one_thread")

TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 8,
    "patch_size": 4,
    "vocab_size": 64,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "vit": TINY,
    "clip": {"text_config": TINY, "vision_config": TINY, "projection_dim": 8},
    "siglip": {"text_config": TINY, "vision_config": TINY},
    "whisper": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "vocab_size": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    },
    "wav2vec2": {**TINY, "conv_dim": [16], "conv_kernel": [4], "conv_stride": [2], "num_feat_extract_layers": 1},
}
HOOKS = {
    "vit": ("layers.0", "encoder.layer.0"),
    "clip": ("text_model.encoder.layers.0",),
    "siglip": ("vision_model.encoder.layers.0",),
    "whisper": ("decoder.layers.0",),
    "wav2vec2": ("encoder.layers.0",),
}
WANTED = {
    "vit": "ViTModel, which takes pixel_values, not text",
    "clip": "CLIPModel, which takes pixel_values, not text|CLIPModel fails on text .* forward takes input_ids, pixel_",
    "siglip": "SiglipModel, which takes pixel_values|SiglipModel fails on text .* forward takes input_ids, pixel_v",
    "whisper": "WhisperModel, which takes input_features, not text",
    "wav2vec2": "Wav2Vec2Model, which takes input_values, not text",
}


@pytest.mark.parametrize("tokenizer", [True, False])
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_model_of_pictures_or_sound_is_refused_by_what_it_takes(kind: str, tokenizer: bool, tmp_path: Path) -> None:
    make: Any = AutoModel.from_config
    make(CONFIG_MAPPING[kind](**SETTINGS[kind])).save_pretrained(tmp_path)
    if tokenizer:
        word_tokenizer().save_pretrained(tmp_path)
    text = write_paragraphs(tmp_path / "text.txt", ["w1 w2"])
    with pytest.raises(ValueError, match=WANTED[kind] if tokenizer else f"{WANTED[kind]}|tokenizer") as refusal:
        harvested(tmp_path, HOOKS[kind][0], text, tmp_path / "activations", context=16)
    assert "\n" not in str(refusal.value)
    line = refused("harvest", tmp_path, "--hook", HOOKS[kind][0], "--text", text, "-o", tmp_path / "activations")
    assert line.startswith("error: ") and "\n" not in line


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    text = write_paragraphs(tmp_path / "text.txt", ["w1 w2"])
    with pytest.raises(ValueError, match=r"has no tokenizer that knows words; put the tokenizer's files, such as"):
        harvested(tmp_path, "h.0", text, tmp_path / "activations", context=16)


def test_a_token_without_an_embedding_is_refused_and_others_are_read(tmp_path: Path) -> None:
    """The tokenizer of other words is larger than the table, as one is to which tokens were added later."""
    model = save_gpt2(tmp_path)  # 41 embeddings
    word_tokenizer().save_pretrained(tmp_path)  # 64 ids, w36 has 40
    text = write_paragraphs(tmp_path / "text.txt", ["w1 w2 w36"])
    assert len(harvested(model, "h.0", text, tmp_path / "right", context=16)) == 3
    text = write_paragraphs(tmp_path / "text.txt", ["w1 w2 w36", "w1 w37"])
    message = "gives a token the id 41, .* has embeddings for ids below 41; give the model its own tokenizer"
    with pytest.raises(ValueError, match=message):
        harvested(model, "h.0", text, tmp_path / "wrong", context=16)


def test_a_padding_token_without_an_embedding_does_not_matter(tmp_path: Path) -> None:
    model = save_gpt2(tmp_path)
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<later>"})
    assert tokenizer.pad_token_id == 64
    tokenizer.save_pretrained(tmp_path)
    text = write_paragraphs(tmp_path / "text.txt", ["w1 w2 w3", "w1"])
    assert len(harvested(model, "h.0", text, tmp_path / "activations", context=16)) == 4


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError("a.\nb"), ValueError, r"^GPT2Model fails on text \(a\); its forward takes input_ids, .*alone$"),
        (KeyError("x"), ValueError, "^GPT2Model fails on text"),
        (AssertionError(), ValueError, r"^GPT2Model fails on text \(AssertionError\)"),
        (torch.OutOfMemoryError("full"), MemoryError, "^full; give smaller batches"),
        (MemoryError("full"), MemoryError, "^full$"),
    ],
)
def test_whatever_a_forward_pass_raises_is_one_sentence(
    error: Exception, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_gpt2(tmp_path)
    text = write_paragraphs(tmp_path / "text.txt", ["w1 w2"])

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch.nn.Embedding, "forward", fail)
    with pytest.raises(kind, match=message):
        harvested(model, "h.0", text, tmp_path / "activations", context=16)


def test_a_float16_model_that_overflows_names_its_type(tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    model: Any = GPT2LMHeadModel.from_pretrained(tmp_path)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.weight.fill_(6e4)
        model.transformer.h[0].mlp.c_fc.bias.fill_(1e4)
    model.half().save_pretrained(tmp_path)
    text = write_paragraphs(tmp_path / "text.txt", ["w1 w2"])
    with pytest.raises(ValueError, match="NaN or Inf at document 0, .* save the model in float32, for it computes in"):
        harvested(tmp_path, "h.0", text, tmp_path / "activations", context=16)
