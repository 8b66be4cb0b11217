"""Names of TransformerLens in transformers models: the real library gives the activations that belong to them."""

import functools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from sae_runtime.bundle.hooks import parse_hook
from sae_runtime.train.harvest.hook_point import find_hook, hidden_states, replaced

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.* deprecated:DeprecationWarning"),
]
IDS = torch.arange(3, 19).reshape(2, 8)
WIDTH, HEADS, LAYERS, VOCABULARY = 32, 4, 2, 64
LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
NEOX_LIKE = {name: LLAMA_LIKE[name] for name in LLAMA_LIKE if name not in ("num_key_value_heads", "head_dim")}
GPT2_LIKE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_inner": 48,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
RMS: dict[str, Any] = {"normalization_type": "RMS", "positional_embedding_type": "rotary", "gated_mlp": True}
GEMMA = RMS | {"act_fn": "gelu_pytorch_tanh", "eps": 1e-6}
# By kind of model: transformers's name and settings, TransformerLens's settings and conversion of weights.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "gpt2": ("GPT2", GPT2_LIKE, {"normalization_type": "LN", "act_fn": "gelu_new"}, "convert_gpt2_weights"),
    "pythia": (
        "GPTNeoX",
        NEOX_LIKE | {"rotary_pct": 0.5},
        {
            "normalization_type": "LN",
            "act_fn": "gelu",
            "positional_embedding_type": "rotary",
            "rotary_dim": 4,
            "rotary_adjacent_pairs": False,
            "parallel_attn_mlp": True,
        },
        "convert_neox_weights",
    ),
    "sequential neox": (
        "GPTNeoX",
        NEOX_LIKE | {"rotary_pct": 0.5, "use_parallel_residual": False},
        {
            "normalization_type": "LN",
            "act_fn": "gelu",
            "positional_embedding_type": "rotary",
            "rotary_dim": 4,
            "rotary_adjacent_pairs": False,
        },
        "convert_neox_weights",
    ),
    "llama": ("Llama", LLAMA_LIKE, RMS | {"act_fn": "silu", "eps": 1e-6}, "convert_llama_weights"),
    "mistral": ("Mistral", LLAMA_LIKE, RMS | {"act_fn": "silu", "eps": 1e-6}, "convert_mistral_weights"),
    "qwen2": ("Qwen2", LLAMA_LIKE, RMS | {"act_fn": "silu", "eps": 1e-6}, "convert_qwen2_weights"),
    "gemma": ("Gemma", LLAMA_LIKE, GEMMA, "convert_gemma_weights"),
    "gemma2": (
        "Gemma2",
        LLAMA_LIKE | {"query_pre_attn_scalar": 8, "attn_implementation": "eager"},
        GEMMA
        | {"use_normalization_before_and_after": True, "attn_scores_soft_cap": 50.0, "output_logits_soft_cap": 30.0},
        "convert_gemma_weights",
    ),
}
HEADED = {"GPT2": "GPT2LMHeadModel"}
# What has a place, by kind, of all that the library names in a block.
COMMON = {"hook_resid_pre", "hook_resid_post", "hook_mlp_in", "hook_attn_out", "hook_mlp_out", "attn.hook_z"}
COMMON |= {"mlp.hook_in", "mlp.hook_pre", "mlp.hook_post"}
GATED = COMMON | {"hook_resid_mid", "mlp.hook_pre_linear", "attn.hook_q", "attn.hook_k", "attn.hook_v"}
PLACES = {"gpt2": COMMON | {"hook_resid_mid"}, "pythia": COMMON, "sequential neox": COMMON | {"hook_resid_mid"}}


@functools.cache
def torch_model(kind: str) -> Any:
    name, settings, _, _ = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**settings)
        model = getattr(transformers, HEADED.get(name, f"{name}ForCausalLM"))(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 0.2))
    return model


@functools.cache
def lens_model(kind: str) -> Any:
    """The same model in the real library, as SAELens extends it; its weights are neither folded nor centred."""
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions

    name, settings, lens, conversion = KINDS[kind]
    model = torch_model(kind)
    sizes: dict[str, Any] = {"n_layers": LAYERS, "d_model": WIDTH, "n_heads": HEADS, "d_head": 8, "d_mlp": 48}
    if "num_key_value_heads" in settings:
        sizes["n_key_value_heads"] = 2
    if "rotary_dim" not in lens and "positional_embedding_type" in lens:
        sizes |= {"rotary_dim": 8, "rotary_adjacent_pairs": False}
    if "eps" not in lens:
        sizes["eps"] = 1e-5
    config = HookedTransformerConfig(
        n_ctx=64,
        d_vocab=VOCABULARY,
        original_architecture=HEADED.get(name, f"{name}ForCausalLM"),
        device="cpu",
        **sizes,
        **lens,
    )
    config.use_hook_mlp_in = True
    hooked = HookedSAETransformer(config)
    with torch.no_grad():
        state = getattr(weight_conversions, conversion)(model, config)
    missing = hooked.load_state_dict({key: value.clone() for key, value in state.items()}, strict=False).missing_keys
    assert not [key for key in missing if not re.search(r"mask|IGNORE|rotary|unembed.b_U", key)]
    return hooked.eval()


@functools.cache
def lens_cache(kind: str) -> dict[str, Tensor]:
    with torch.no_grad():
        cache = lens_model(kind).run_with_cache(IDS, prepend_bos=False)[1]
    return {name: cache[name] for name in cache}


def names() -> Iterator[tuple[str, str]]:
    for kind in KINDS:
        for name in sorted(PLACES.get(kind, GATED)):
            yield kind, f"blocks.{1 if 'pre' in name else 0}.{name}"
        yield kind, "blocks.0.hook_resid_pre"
        yield kind, "hook_embed"


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_models_give_the_same_logits(kind: str) -> None:
    with torch.no_grad():
        ours, theirs = torch_model(kind)(IDS).logits, lens_model(kind)(IDS, prepend_bos=False)
    torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "name"), list(names()))
def test_a_name_reads_what_the_library_caches(kind: str, name: str) -> None:
    model, expected = torch_model(kind), lens_cache(kind)[name].flatten(2)
    point = find_hook(model, name)
    [found] = hidden_states([point], model, {"input_ids": IDS}, IDS.shape)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert point.transformer_lens == name
    assert find_hook(model, point.hook).hook == point.hook == str(parse_hook(point.hook))


@pytest.mark.parametrize(("kind", "name"), list(names()))
def test_an_edit_at_a_name_reaches_what_it_reaches_in_the_library(kind: str, name: str) -> None:
    model, lens, y = torch_model(kind), lens_model(kind), lens_cache(kind)[name].roll(1, -1) * 0.5 + 0.3

    with torch.no_grad():
        with replaced(find_hook(model, name), y.flatten(2)):
            ours = model(IDS).logits
        theirs = lens.run_with_hooks(IDS, prepend_bos=False, fwd_hooks=[(name, lambda value, hook: y)])
        untouched = model(IDS).logits
    torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1), atol=1e-3, rtol=1e-3)
    assert (ours - untouched).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_every_other_name_of_the_library_is_refused(kind: str) -> None:
    model, known = torch_model(kind), PLACES.get(kind, GATED)
    others = 0
    for name in lens_model(kind).hook_dict:
        if name == "hook_embed" or name.removeprefix("blocks.1.") in known or name.removeprefix("blocks.0.") in known:
            continue
        others += 1
        with pytest.raises(ValueError, match=f"^{re.escape(name)} has no equal place in this model .*hook a module"):
            find_hook(model, name)
    assert others > 20


BERT = ["hook_resid_pre", "hook_resid_mid", "hook_normalized_resid_post", "hook_attn_out", "hook_mlp_out"]
BERT += ["attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "mlp.hook_pre", "mlp.hook_post"]


@functools.cache
def bert() -> tuple[Any, dict[str, Tensor]]:
    """A BERT, and what the real library caches of it."""
    from transformer_lens import HookedEncoder, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import bert as bert_weights

    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {name: LLAMA_LIKE[name] for name in LLAMA_LIKE if name not in ("num_key_value_heads", "head_dim")}
        model: Any = transformers.BertForPreTraining(transformers.BertConfig(**settings, layer_norm_eps=1e-5))
        model.eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    sizes: dict[str, Any] = {"n_layers": LAYERS, "d_model": WIDTH, "n_heads": HEADS, "d_head": 8, "d_mlp": 48}
    kind: dict[str, Any] = {"act_fn": "gelu", "attention_dir": "bidirectional", "device": "cpu", "eps": 1e-5}
    config = HookedTransformerConfig(n_ctx=64, d_vocab=VOCABULARY, **sizes, **kind)
    encoder: Any = HookedEncoder(config)
    with torch.no_grad():
        state = bert_weights.convert_bert_weights(model, config)
        encoder.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, strict=False)
        _, cache = encoder.eval().run_with_cache(IDS)
    return model.bert, {name: cache[name] for name in cache}


@pytest.mark.parametrize("name", ["hook_full_embed", *(f"blocks.{i % 2}.{name}" for i, name in enumerate(BERT))])
def test_a_name_of_a_bert_reads_what_the_library_caches(name: str) -> None:
    model, cache = bert()
    point = find_hook(model, name)
    [found] = hidden_states([point], model, {"input_ids": IDS}, IDS.shape)
    torch.testing.assert_close(found, cache[name].flatten(2), atol=1e-4, rtol=1e-4)
    assert point.transformer_lens == name


@pytest.mark.parametrize("name", ["hook_resid_post", "hook_mlp_in", "ln1.hook_normalized", "attn.hook_pattern"])
def test_a_name_that_a_bert_lacks_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"blocks.0.{name} has no equal place in this model"):
        find_hook(bert()[0], f"blocks.0.{name}")


@pytest.mark.parametrize("family", ["Qwen3", "OPT", "Phi", "Olmo2"])
def test_a_model_of_no_family_has_the_streams_around_its_blocks_and_no_other_name(family: str) -> None:
    settings = {name: LLAMA_LIKE[name] for name in LLAMA_LIKE if name not in ("num_key_value_heads", "head_dim")}
    settings |= {"OPT": {"ffn_dim": 48, "word_embed_proj_dim": WIDTH}, "Qwen3": LLAMA_LIKE}.get(family, {})
    model: Any = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**settings)).eval()
    states: list[Tensor] = model(IDS, output_hidden_states=True).hidden_states
    hooks = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]
    points = [find_hook(model, hook) for hook in hooks]
    expected = (states[0], states[1], states[1])
    for found, truth in zip(hidden_states(points, model, {"input_ids": IDS}, IDS.shape), expected, strict=True):
        torch.testing.assert_close(found, truth)
    for name in ("hook_resid_mid", "hook_mlp_out", "attn.hook_z"):
        with pytest.raises(ValueError, match="has no equal place in this model"):
            find_hook(model, f"blocks.0.{name}")
