"""Random SAEs of SAELens."""

from typing import Any

from foreign import randomise

SIZES = {"d_in": 16, "d_sae": 64}
THROUGH = {**SIZES, "d_out": 24, "apply_b_dec_to_input": False}
# name: architecture, class, settings
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "standard": ("standard", "StandardSAE", SIZES),
    "standard wide": ("standard", "StandardSAE", {"d_in": 24, "d_sae": 512}),
    "standard without pre-bias": ("standard", "StandardSAE", {**SIZES, "apply_b_dec_to_input": False}),
    "topk": ("topk", "TopKSAE", {**SIZES, "k": 5}),
    "topk by decoder lengths": ("topk", "TopKSAE", {**SIZES, "k": 5, "rescale_acts_by_decoder_norm": True}),
    "topk beyond the positives": ("topk", "TopKSAE", {**SIZES, "k": 60}),
    "jumprelu": ("jumprelu", "JumpReLUSAE", SIZES),  # half of its random thresholds are negative
    "gated": ("gated", "GatedSAE", SIZES),
    "layer norm": ("topk", "TopKSAE", {**SIZES, "k": 5, "normalize_activations": "layer_norm"}),
    "length": ("jumprelu", "JumpReLUSAE", {**SIZES, "normalize_activations": "constant_norm_rescale"}),
    "gated length": ("gated", "GatedSAE", {**SIZES, "normalize_activations": "constant_norm_rescale"}),
    "transcoder": ("transcoder", "Transcoder", THROUGH),
    "skip transcoder": ("skip_transcoder", "SkipTranscoder", THROUGH),
    "jumprelu transcoder": ("jumprelu_transcoder", "JumpReLUTranscoder", THROUGH),
    "jumprelu skip transcoder": ("jumprelu_skip_transcoder", "JumpReLUSkipTranscoder", THROUGH),
}


def make(kind: str, **settings: Any) -> Any:
    import sae_lens as lens
    from sae_lens.saes import sae, transcoder

    where: Any = transcoder if "Transcoder" in kind else lens
    config = getattr(where, f"{kind}Config")(**settings)
    config.metadata = sae.SAEMetadata(model_name="tiny", hook_name="blocks.1.hook_resid_post", hook_name_out="out")
    module = getattr(where, kind)(config)
    randomise(module)
    return module
