"""What TransformerLens's processing of a model's weights makes of the activations that an SAE reads.

`HookedTransformer.from_pretrained` and SAELens's `model_from_pretrained_kwargs` rewrite weights so that the model's
output stays. Activations inside the model do not stay, and a bundle reads those of the model as it is.

| setting | what changes |
|---|---|
| center_writing_weights | of a model with LayerNorm, what is written to the residual stream loses its mean over d_in |
| fold_ln | what a norm gives lacks its weight and bias (before transformer_lens 3, and in a SoLU MLP) |
| fold_value_biases | values, and what attention makes of them, lack the bias |
| refactor_factored_attn_matrices | queries, keys and values have another basis |

center_unembed changes logits alone. The formulas are those of transformer_lens 3.9 (`weight_processing.py`).
"""

import re

from sae_runtime.checkpoints.folder import Config

_STREAM = re.compile(r"hook_(pos_)?embed|blocks\.\d+\.hook_(resid_(pre|mid|post)|(attn|mlp)_out|mlp_in)")
_WRITES = re.compile(r"blocks\.\d+\.hook_(attn|mlp)_out")  # a part of the stream, not all of it
# Hooks whose activations no formula gives from the model's own, by the setting that changes them.
_LOST = {
    # One mean for each head, and a checkpoint does not tell how many heads there are.
    "center_writing_weights": re.compile(r"blocks\.\d+\.(attn\.hook_result|hook_(q_input|k_input|v_input|attn_in))"),
    "fold_ln": re.compile(r"(blocks\.\d+\.)?(ln\w*\.hook_normalized|(mlp|attn)\.hook_in)"),
    "fold_value_biases": re.compile(r"blocks\.\d+\.attn\.hook_(v|z|result)"),
    "refactor_factored_attn_matrices": re.compile(r"blocks\.\d+\.attn\.hook_(q|k|v|z|rot_q|rot_k|result)"),
}
_NORMED_MLP = re.compile(r"blocks\.\d+\.mlp\.hook_post")  # of a SoLU model, what a norm inside the MLP gives
_KNOWN = re.compile(r"(blocks\.\d+\.)?((attn|mlp|ln\w*)\.)?hook_\w+")
# Models with RMSNorm, which TransformerLens does not centre.
_RMS = re.compile(
    r"llama|mi[sx]tral|gemma|qwen|qwq|\bt5|flan|\byi-|phi-?[34]|olmo-?(2|e)|gpt-oss|apertus|deepseek|smollm|vicuna|zephyr"
)


def is_centred(hook: str | None, model: str | None, kwargs: Config) -> bool:
    """Whether the activation at a hook is the model's own less its mean over d_in.

    Args:
        hook: the hook's name in TransformerLens; None if unknown.
        model: the model's name; None if unknown.
        kwargs: the arguments with which TransformerLens loaded the model.

    Raises:
        ValueError: the activation is one that the model itself does not have, and no formula gives it.

    >>> from pathlib import Path
    >>> kwargs = Config(Path("cfg.json"), {"center_writing_weights": True})
    >>> is_centred("blocks.1.hook_resid_pre", "gpt2-small", kwargs), is_centred("blocks.1.attn.hook_z", "gpt2", kwargs)
    (True, False)
    >>> is_centred("blocks.1.hook_resid_pre", "gemma-2-2b", kwargs)
    False
    """
    name, family = hook or "", (model or "").lower()
    changed = [setting for setting in _LOST if kwargs.flag(setting, False)]
    if changed and not _KNOWN.fullmatch(name):
        raise ValueError(
            f"{kwargs.file}: TransformerLens processed the model ({', '.join(changed)}), and what that does to the "
            f"activation {hook} is not known; {_remedy(changed)}"
        )
    if _RMS.search(family) and "center_writing_weights" in changed:
        changed.remove("center_writing_weights")
    for setting in changed:
        normed_mlp = setting == "fold_ln" and "solu" in family and _NORMED_MLP.fullmatch(name)
        if _LOST[setting].fullmatch(name) or normed_mlp:
            raise ValueError(
                f"{kwargs.file}: with {setting}, {hook} is not an activation of the model itself, and what would give "
                f"it is not in the checkpoint; {_remedy([setting])}"
            )
    centred = "center_writing_weights" in changed and bool(_STREAM.fullmatch(name))
    if centred and "bloom" in family and not _WRITES.fullmatch(name):
        raise ValueError(
            f"{kwargs.file}: with center_writing_weights, {hook} of {model} is no function of the model's own "
            "activation, since a norm follows its embeddings; " + _remedy(["center_writing_weights"])
        )
    return centred


def may_be_centred(hook: str | None, model: str | None) -> bool:
    """Whether center_writing_weights changes the activation at a hook.

    >>> may_be_centred("blocks.1.hook_mlp_out", "gpt2"), may_be_centred("blocks.1.hook_mlp_out", "Qwen/Qwen3-8B")
    (True, False)
    """
    return bool(_STREAM.fullmatch(hook or "")) and not _RMS.search((model or "").lower())


def _remedy(settings: list[str]) -> str:
    return (
        f"take {' and '.join(settings)} out of its model_from_pretrained_kwargs if you feed activations of that model"
    )
