"""What a configuration tells of the activations that an SAE was fitted on: honoured, recorded, or refused.

SAELens keeps these settings beside those of the SAE, and nothing but the data that a user feeds can follow most of
them. They become `left_out` of the manifest where they say which rows training left out, and else
`provenance["fitted_on"]`, which `inspect` shows.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_runtime.bundle.manifest import LeftOut
from sae_runtime.bundle.typed_json import shown
from sae_runtime.checkpoints.folder import Config
from sae_runtime.checkpoints.processed_model import is_centred, may_be_centred

_CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
# Settings that SAELens's directory of releases adds to published configurations, by repository.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "jbloom/GPT2-Small-SAEs-Reformatted": _CENTRED,
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8": _CENTRED,
    "tommmcgrath/gpt2-small-mlp-out-saes": _CENTRED,
    "JoshEngels/Mistral-7B-Residual-Stream-SAEs": {"normalize_activations": "constant_norm_rescale"},
}
_RECORDED = (
    *("model_class_name", "model_from_pretrained_kwargs", "hook_head_index", "hook_head_index_out", "prepend_bos"),
    *("context_size", "seqpos_slice", "exclude_special_tokens", "dataset_path", "disable_concat_sequences"),
    *("sequence_separator_token", "use_chat_formatting", "autocast_lm"),
)
_SNAPSHOTS = ("revision", "checkpoint_index", "checkpoint_value", "checkpoint_label")
_MOST_IDS, _LARGEST_ID, _MOST_TEXT = 1 << 16, 1 << 31, 200


@dataclass(frozen=True, kw_only=True)
class FittedOn:
    """The activations that an SAE was fitted on.

    Attributes:
        model: name of the host model; None if unknown.
        hook: hook of the activations that the SAE reads; None if unknown.
        hook_out: hook of the activations that a transcoder reconstructs; None if unknown.
        centred: whether they are the model's own less their mean over d_in, which the SAE's norm does not take away.
        left_out: rows that training left out; None if none are known.
        recorded: further settings, as values of JSON.
        warnings: sentences for the user.
    """

    model: str | None
    hook: str | None
    hook_out: str | None
    centred: bool
    left_out: LeftOut | None
    recorded: dict[str, Any]
    warnings: tuple[str, ...]


def published(path: Path, cfg: Config) -> Config:
    """A configuration with the settings that SAELens adds to it, if the path has the name of a published repository.

    >>> repository = Path("JoshEngels/Mistral-7B-Residual-Stream-SAEs/layer_8")
    >>> published(repository, Config(Path("cfg.json"), {"d_in": 24})).fields
    {'d_in': 24, 'normalize_activations': 'constant_norm_rescale'}
    """
    folders = {folder.removeprefix("models--") for folder in path.absolute().parts}
    for repository, settings in _PUBLISHED.items():
        if folders & {repository.replace("/", "--"), repository.split("/")[1]}:
            return Config(cfg.file, {**cfg.fields, **settings})
    return cfg


def fitted_on(cfg: Config, norm: str, *, transcoder: bool) -> FittedOn:
    """The activations that a configuration names.

    Args:
        cfg: with `metadata` (SAELens 6), or flat as before; what `published` adds overrules the metadata.
        norm: as in `Architecture`; "layer" takes the mean of an activation away itself.
        transcoder: whether the SAE reconstructs other activations than it reads.

    Raises:
        ValueError: they are no activations of the model itself, and cannot be made of them, or a setting is wrong.
    """
    facts = Config(cfg.file, {**cfg.fields, **{k: v for k, v in cfg.inner("metadata").fields.items() if v is not None}})
    if "model_from_pretrained_kwargs" in cfg:
        facts.fields["model_from_pretrained_kwargs"] = cfg.fields["model_from_pretrained_kwargs"]
    model, hook_out = facts.maybe_text("model_name"), facts.maybe_text("hook_name_out")
    hook = facts.maybe_text("hook_name") or facts.maybe_text("hook_point")
    if hook is not None and "{layer}" in hook:  # the first releases kept the layer apart
        hook = hook.replace("{layer}", str(facts.integer("hook_layer", facts.integer("hook_point_layer", 0))))
    if "hook_point_head_index" in facts:
        facts.fields.setdefault("hook_head_index", facts.fields["hook_point_head_index"])
    kwargs, warnings = facts.inner("model_from_pretrained_kwargs"), []
    lens = facts.text("model_class_name", "HookedTransformer") == "HookedTransformer"
    centred = lens and norm != "layer" and is_centred(hook, model, kwargs)
    if centred and norm == "length":
        raise ValueError(
            f"{cfg.file}: it reads activations of one length of a model with center_writing_weights, and the length "
            "changes with the mean; such an SAE cannot be served for the model as it is"
        )
    if lens and transcoder and hook_out is not None and is_centred(hook_out, model, kwargs):
        warnings.append(
            "It reconstructs its output less the mean over d_out, since TransformerLens centred the model "
            "(center_writing_weights); the model's LayerNorm ignores that mean."
        )
    if centred:
        warnings.append(
            "It was fitted on activations less their mean over d_in (TransformerLens's center_writing_weights). "
            "The bundle takes the model's own: the mean is folded into W_enc"
            f"{'' if transcoder else ', and W_skip adds it to x_hat, so that FVU counts it as explained'}."
        )
    silent = "model_from_pretrained_kwargs" not in facts and "metadata" not in cfg
    if lens and silent and norm != "layer" and may_be_centred(hook, model):
        warnings.append(
            f"{cfg.file.name} does not say whether TransformerLens centred the model, as it did for SAELens before "
            '3.17 and for BatchTopK; if so, add "model_from_pretrained_kwargs": {"center_writing_weights": true} to '
            "that file and convert again."
        )
    if snapshot := [name for name in _SNAPSHOTS if kwargs.fields.get(name) is not None]:
        warnings.append(
            f"It was fitted on a snapshot of the model ({snapshot[0]} {shown(kwargs.fields[snapshot[0]])}); "
            "harvest that one."
        )
    if "hook_head_index" in facts:
        head = facts.integer("hook_head_index")
        warnings.append(
            f"It reads attention head {head} alone: give it columns {head} * d_in to {head + 1} * d_in of {hook}."
        )
    left_out, more = _left_out(facts)
    return FittedOn(
        model=model,
        hook=hook,
        hook_out=hook_out,
        centred=centred,
        left_out=left_out,
        recorded={
            name: plain(facts.fields[name]) for name in _RECORDED if facts.fields.get(name) not in (None, {}, [])
        },
        warnings=(*warnings, *more),
    )


def _left_out(facts: Config) -> tuple[LeftOut | None, list[str]]:
    """Rows that training left out, and warnings about those that `LeftOut` cannot name."""
    warnings: list[str] = []
    first, ids = 0, ()
    if "seqpos_slice" in facts:
        bounds = facts.fields["seqpos_slice"]
        if not isinstance(bounds, list) or not 1 <= len(bounds) <= 3 or not all(map(_bound, bounds)):
            raise ValueError(f"{facts.file}: seqpos_slice is {shown(bounds)}, expected one to three whole numbers")
        kept = slice(*bounds)
        first = max(kept.start or 0, 0)
        if (kept.start or 0) < 0 or kept.stop is not None or kept.step not in (None, 1):
            shape = ":".join("" if bound is None else str(bound) for bound in (kept.start, kept.stop, kept.step))
            warnings.append(
                f"It was fitted on positions [{shape}] of each context alone; harvest cannot leave out all others."
            )
    special = facts.fields.get("exclude_special_tokens")
    if isinstance(special, list):
        if len(special) > _MOST_IDS or any(type(i) is not int or not 0 <= i < _LARGEST_ID for i in special):
            raise ValueError(f"{facts.file}: exclude_special_tokens is {shown(special)}, expected ids of tokens")
        ids = tuple(special)
    elif facts.flag("exclude_special_tokens", False):
        warnings.append(
            "It was fitted without the tokenizer's special tokens, whose ids its files do not tell; harvest leaves "
            "them out unless told otherwise."
        )
    return (LeftOut(first_positions=first, token_ids=ids) if first or ids else None), warnings


def _bound(value: object) -> bool:
    return value is None or (type(value) is int and abs(value) < _LARGEST_ID)


def plain(value: Any, depth: int = 0) -> Any:
    """A value of JSON for the manifest; text and lists that are too long are cut."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value if abs(value) < _LARGEST_ID**2 and math.isfinite(value) else shown(value)
    if isinstance(value, str):
        return value if value.isprintable() and len(value) <= _MOST_TEXT else shown(value)
    if isinstance(value, dict) and depth < 3:
        return {shown(key)[1:-1]: plain(inner, depth + 1) for key, inner in list(value.items())[:64]}
    if isinstance(value, list) and depth < 3:
        return [plain(inner, depth + 1) for inner in value[:64]]
    return shown(value)
