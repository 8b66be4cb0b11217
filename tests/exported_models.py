"""Tiny models of many kinds for `export_model`: how each is made, which part is exported, and where an SAE goes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from architectures import BART, GROUPED, LATENT, SETTINGS, USUAL

Make = Callable[[], Any]
PICTURES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
SOUND: dict[str, Any] = {
    **{name: USUAL[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 32,
}
WHISPER: dict[str, Any] = {**BART, "max_source_positions": 50, "num_mel_bins": 16, "decoder_start_token_id": 2}
RECURRENT = {**GROUPED, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8}


@dataclass(frozen=True)
class Case:
    """A model with random weights, and what `export_model` is told."""

    make: Make
    options: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None  # how the sentence reads, where it is not exported
    remark: str = ""


def of(class_name: str, config: str, settings: dict[str, Any], **changes: Any) -> Make:
    """Makes a model of a class and settings of its config."""

    def make() -> Any:
        return getattr(transformers, class_name)(getattr(transformers, config)(**settings | changes))

    return make


def named(kind: str, **changes: Any) -> Make:
    """Makes a causal language model of the settings that `architectures` has."""

    def make() -> Any:
        config = transformers.CONFIG_MAPPING[kind](**SETTINGS[kind] | changes)
        load: Any = transformers.AutoModelForCausalLM.from_config
        return load(config)

    return make


def bert(head: str = "Model") -> Make:
    return of(f"Bert{head}", "BertConfig", USUAL)


def clip() -> Any:
    config = transformers.CLIPConfig(text_config=USUAL, vision_config=PICTURES, projection_dim=16)
    return transformers.CLIPModel(config)


ALONE: dict[str, Any] = {"cache": False}
DECODER: dict[str, Any] = {"part": "decoder"}
_NO_STATES = "keeps no keys and values"
CASES: dict[str, Case] = {
    **{kind: Case(named(kind)) for kind in ("gpt2", "gptj", "gpt_neo", "gpt_neox", "opt", "bloom", "mpt", "falcon")},
    **{kind: Case(named(kind)) for kind in ("llama", "mistral", "qwen3", "gemma2", "gemma3_text", "phi", "cohere")},
    **{kind: Case(named(kind)) for kind in ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3")},
    "mamba": Case(named("mamba"), refused=_NO_STATES),
    "mamba, no cache": Case(named("mamba"), ALONE),
    "mamba2, no cache": Case(named("mamba2"), ALONE),
    "deepseek_v2": Case(of("DeepseekV2ForCausalLM", "DeepseekV2Config", USUAL, **LATENT)),
    "jamba, no cache": Case(named("jamba"), ALONE),
    "recurrent_gemma, no cache": Case(
        of("RecurrentGemmaForCausalLM", "RecurrentGemmaConfig", RECURRENT),
        ALONE,
        refused="holds for one size of sequence alone",
    ),
    "bert": Case(bert()),
    "bert, classifier": Case(bert("ForSequenceClassification")),
    "bert, masked language model": Case(bert("ForMaskedLM")),
    "bert, question answering": Case(bert("ForQuestionAnswering")),
    "roberta, tagger": Case(of("RobertaForTokenClassification", "RobertaConfig", SETTINGS["roberta"])),
    "distilbert": Case(of("DistilBertModel", "DistilBertConfig", SETTINGS["distilbert"])),
    "deberta-v2, reranker": Case(
        of("DebertaV2ForSequenceClassification", "DebertaV2Config", SETTINGS["deberta-v2"], initializer_range=0.1)
    ),
    "modernbert": Case(of("ModernBertModel", "ModernBertConfig", SETTINGS["modernbert"])),
    "llama, reranker": Case(of("LlamaForSequenceClassification", "LlamaConfig", GROUPED)),
    "t5, encoder": Case(of("T5ForConditionalGeneration", "T5Config", SETTINGS["t5"], decoder_start_token_id=0)),
    "t5, decoder": Case(
        of("T5ForConditionalGeneration", "T5Config", SETTINGS["t5"], decoder_start_token_id=0), DECODER
    ),
    "bart, decoder": Case(of("BartForConditionalGeneration", "BartConfig", BART), DECODER),
    "bart, classifier": Case(of("BartForSequenceClassification", "BartConfig", BART)),
    "whisper, encoder": Case(of("WhisperForConditionalGeneration", "WhisperConfig", WHISPER)),
    "whisper, decoder": Case(of("WhisperForConditionalGeneration", "WhisperConfig", WHISPER), DECODER),
    "clip": Case(clip),
    "clip, text": Case(clip, {"part": "text"}),
    "clip, vision": Case(clip, {"part": "vision"}),
    "siglip, vision": Case(of("SiglipVisionModel", "SiglipVisionConfig", PICTURES)),
    "vit": Case(of("ViTModel", "ViTConfig", PICTURES)),
    "vit, classifier": Case(of("ViTForImageClassification", "ViTConfig", PICTURES)),
    "dinov2": Case(of("Dinov2Model", "Dinov2Config", PICTURES)),
    "beit": Case(of("BeitModel", "BeitConfig", PICTURES)),
    "wav2vec2": Case(of("Wav2Vec2Model", "Wav2Vec2Config", SOUND)),
    "hubert": Case(of("HubertModel", "HubertConfig", SOUND)),
}


def made(case: Case) -> Any:
    """The model in evaluation mode, with weights large enough that masks and positions matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = case.make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
    return model


def hook_of(model: Any, part: str | None) -> str:
    """The first layer of the model, or of its part; later layers carry on what is edited there."""
    lists = [name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    layers = [name for name in lists if len(model.get_submodule(name)) in (2, 3) and "conv" not in name]
    inside = [name for name in layers if part is None or part in name]
    return f"{inside[0]}.0"
