import pytest

from sae_runtime.bundle.same_source import public_name, same_hook, same_model


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("h.1", "h.1@0"),
        ("h.1", "transformer.h.1"),
        ("h.1", "h.1.resid_post"),
        ("input:h.1", "transformer.h.1.resid_pre"),
        ("h.1", "blocks.1.hook_resid_post"),
        ("transformer.h.1", "blocks.2.hook_resid_pre"),
        ("gpt_neox.layers.1", "blocks.1.hook_resid_post"),
        ("model.layers.10", "blocks.10.hook_resid_post"),
        ("encoder.layer.1", "blocks.1.hook_resid_post"),
        ("input:model.layers.2", "blocks.1.hook_resid_post"),
        ("input:h.0", "blocks.0.hook_resid_pre"),
        ("blocks.1.hook_mlp_in", "blocks.1.hook_resid_mid"),
        ("input:layers.1.mlp", "input:model.layers.1.mlp"),
        ("tensor:a", "tensor:a"),
        ("a label of another tool", "a label of another tool"),
    ],
)
def test_names_of_one_place_are_the_same(a: str, b: str) -> None:
    assert same_hook(a, b) and same_hook(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("h.1", "h.2"),
        ("h.1", "h.11"),
        ("h.1", "h.1@1"),
        ("h.1", "input:h.1"),
        ("h.1", "h.1.mlp"),
        ("h.1", "blocks.1.hook_resid_pre"),
        ("h.1", "blocks.1.hook_mlp_out"),
        ("h.1", "blocks.11.hook_resid_post"),
        ("h.1.mlp", "blocks.1.hook_resid_post"),
        ("input:h.1.mlp", "blocks.1.hook_resid_pre"),
        ("input:h.1.mlp", "h.1.mlp"),
        ("blocks.1.hook_resid_post", "blocks.1.hook_resid_pre"),
        ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"),
        ("blocks.1.hook_mlp_in", "blocks.1.ln2.hook_normalized"),
        ("tensor:h.1", "h.1"),
        ("encoder.layers.1", "decoder.layers.1"),
    ],
)
def test_names_of_two_places_differ(a: str, b: str) -> None:
    assert not same_hook(a, b) and not same_hook(b, a)


def test_a_known_name_of_transformer_lens_decides() -> None:
    mlp = {"lens_a": "blocks.1.hook_mlp_out"}
    assert same_hook("h.1.mlp", "blocks.1.hook_mlp_out", **mlp)
    assert not same_hook("h.1.mlp", "blocks.1.hook_attn_out", **mlp)
    # The block of a BERT ends in a norm, so what it gives is not the sum of the stream.
    bert = {"lens_a": "blocks.1.hook_normalized_resid_post"}
    assert not same_hook("encoder.layer.1", "blocks.1.hook_resid_post", **bert)
    assert same_hook("h.1.attn", "anything", lens_a="blocks.1.hook_attn_out", lens_b="blocks.1.hook_attn_out")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("gpt2", "gpt2"),
        ("gpt2", "openai-community/gpt2"),
        ("gpt2-small", "openai-community/gpt2"),
        ("EleutherAI/pythia-125m", "pythia-160m"),
        ("pythia-1.3b-deduped", "EleutherAI/pythia-1.4b-deduped"),
        ("google/gemma-2-2b", "gemma-2-2b"),
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("/data/models/gpt2/", "gpt2"),
        ("distillgpt2", "distilgpt2"),
    ],
)
def test_names_of_one_model_are_the_same(a: str, b: str) -> None:
    assert same_model(a, b) and same_model(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("gpt2", "gpt2-medium"),
        ("gpt2", "distilgpt2"),
        ("EleutherAI/pythia-160m", "EleutherAI/pythia-160m-deduped"),
        ("google/gemma-2-2b", "google/gemma-2-2b-it"),
        ("one/model", "other/model"),
        ("tiny", ""),
    ],
)
def test_names_of_two_models_differ(a: str, b: str) -> None:
    assert not same_model(a, b) and not same_model(b, a)


def test_aliases_are_those_of_transformer_lens() -> None:
    from transformer_lens.loading_from_pretrained import get_official_model_name

    from sae_runtime.bundle import same_source

    for alias, name in same_source._ALIASES.items():
        assert get_official_model_name(alias).lower().rpartition("/")[2] == name
    assert get_official_model_name(public_name("openai-community/gpt2-xl")) == "gpt2-xl"
