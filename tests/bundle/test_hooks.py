import pytest

from sae_runtime.bundle.hooks import Hook, parse_hook


@pytest.mark.parametrize(
    ("text", "hook"),
    [
        ("encoder.layer.3", Hook("encoder.layer.3")),
        ("input:encoder.layer.3", Hook("encoder.layer.3", "input")),
        ("embeddings.norm@1", Hook("embeddings.norm", call=1)),
        ("input:embeddings.norm@12", Hook("embeddings.norm", "input", call=12)),
        ("h.6.resid_pre", Hook("h.6", "resid_pre")),
        ("model.blocks.6.resid_mid", Hook("model.blocks.6", "resid_mid")),
        ("h.6.resid_post", Hook("h.6", "resid_post")),
        ("blocks.6.hook_resid_post", Hook("blocks.6.hook_resid_post", "lens")),
        ("blocks.6.hook_mlp_out", Hook("blocks.6.hook_mlp_out", "lens")),
        ("blocks.0.attn.hook_z", Hook("blocks.0.attn.hook_z", "lens")),
        ("blocks.10.ln2.hook_normalized", Hook("blocks.10.ln2.hook_normalized", "lens")),
        ("hook_embed", Hook("hook_embed", "lens")),
        ("ln_final.hook_normalized", Hook("ln_final.hook_normalized", "lens")),
        ("blocks.6.mlp", Hook("blocks.6.mlp")),
        ("h.6.hook_z", Hook("h.6.hook_z")),  # TransformerLens calls its blocks `blocks`
        ("h.3@0", Hook("h.3", call=0)),
        ("resid_pre", Hook("resid_pre")),
        ("tensor:/model/layers.3/Add@1:0", Hook("/model/layers.3/Add@1:0", "tensor")),
        ("tensor:h.6.resid_pre", Hook("h.6.resid_pre", "tensor")),
    ],
)
def test_a_hook_is_read_from_its_text_and_written_as_the_same_text(text: str, hook: Hook) -> None:
    assert parse_hook(text) == hook
    assert str(hook) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("h.3@00", "h.3@0"), ("h.3@007", "h.3@7"), ("blocks.03.attn.hook_z", "blocks.3.attn.hook_z")],
)
def test_a_hook_has_one_canonical_text(text: str, canonical: str) -> None:
    assert str(parse_hook(text)) == canonical
    assert parse_hook(canonical) == parse_hook(text)


@pytest.mark.parametrize("text", ["", "tensor:", "input:", "@1", "input:@1", "h.3@", "h.3@-1", "h.3@first", "h@1@2"])
def test_parse_hook_names_the_forms_if_a_text_has_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"a hook is \[input:\]MODULE\[@CALL\], .*tensor:NAME, got"):
        parse_hook(text)


@pytest.mark.parametrize(
    "text", ["input:h.3.resid_pre", "h.3.resid_pre@1", "input:blocks.3.hook_resid_pre", "blocks.3.hook_mlp_out@1"]
)
def test_a_residual_stream_has_no_input_side_and_no_calls(text: str) -> None:
    with pytest.raises(ValueError, match=r"input: and @CALL belong to a module, .*; write (h|blocks)\.3\.\w+$"):
        parse_hook(text)
