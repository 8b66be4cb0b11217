"""TransformerLens's names of activations, and the modules of transformers models that have the same activations.

A family of models has one table, by TransformerLens's name in a block. `{}` is the block, an entry without it is of the
whole model, and `input:` is the input of a module. TransformerLens 3.9.0 is the witness for each entry. A name that a
table lacks has no equal place in the family. A residual stream in a model of no family is the input or the output of a
block, as TransformerLens's bridge defines it.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from sae_runtime.bundle.hooks import Hook, parse_hook

_BLOCK = re.compile(r"(?:.*\.)?(?:blocks?|h|layers?)\.(?P<number>\d+)")
_LISTED = 12  # at most this many names in a message
_STREAM = {"hook_resid_pre": "input:{}", "hook_resid_post": "{}"}


@dataclass(frozen=True)
class Family:
    """Models whose blocks have the same modules and compute the same.

    Attributes:
        models: their `model_type` in transformers.
        block: names of modules by which a block of the family is known.
        places: hooks of modules, by TransformerLens's name.
        lacks: names of modules that no block of the family has.
    """

    models: Collection[str]
    block: Collection[str]
    places: Mapping[str, str]
    lacks: Collection[str] = ()


_GATED = {
    "hook_mlp_in": "input:{}.post_attention_layernorm",
    "hook_attn_out": "{}.self_attn",
    "hook_mlp_out": "{}.mlp",
    "attn.hook_q": "{}.self_attn.q_proj",
    "attn.hook_k": "{}.self_attn.k_proj",
    "attn.hook_v": "{}.self_attn.v_proj",
    "attn.hook_z": "input:{}.self_attn.o_proj",
    "mlp.hook_in": "input:{}.mlp",
    "mlp.hook_pre": "{}.mlp.gate_proj",
    "mlp.hook_pre_linear": "{}.mlp.up_proj",
    "mlp.hook_post": "input:{}.mlp.down_proj",
    "hook_embed": "embed_tokens",
}
_SEQUENTIAL = {**_STREAM, "hook_resid_mid": "{}.resid_mid"}
_GPT_NEOX = {
    **_STREAM,
    "hook_mlp_in": "input:{}.post_attention_layernorm",
    "hook_attn_out": "{}.attention",
    "hook_mlp_out": "{}.mlp",
    "attn.hook_z": "input:{}.attention.dense",
    "mlp.hook_in": "input:{}.mlp",
    "mlp.hook_pre": "{}.mlp.dense_h_to_4h",
    "mlp.hook_post": "input:{}.mlp.dense_4h_to_h",
    "hook_embed": "embed_in",
}

FAMILIES = (
    Family(
        models=("gpt2",),
        block=("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"),
        places={
            **_SEQUENTIAL,
            "hook_mlp_in": "input:{}.ln_2",
            "hook_attn_out": "{}.attn",
            "hook_mlp_out": "{}.mlp",
            "attn.hook_z": "input:{}.attn.c_proj",
            "mlp.hook_in": "input:{}.mlp",
            "mlp.hook_pre": "{}.mlp.c_fc",
            "mlp.hook_post": "input:{}.mlp.c_proj",
            "hook_embed": "wte",
        },
        lacks=("crossattention",),
    ),
    Family(
        models=("gpt_neox", "gpt_neox parallel"),
        block=("input_layernorm", "post_attention_layernorm", "attention.query_key_value", "mlp.dense_h_to_4h"),
        places=_GPT_NEOX,
    ),
    Family(
        models=("gemma2", "gemma3_text"),
        block=("self_attn.o_proj", "post_attention_layernorm", "pre_feedforward_layernorm", "mlp.gate_proj"),
        places={
            **_SEQUENTIAL,
            **_GATED,
            "hook_mlp_in": "input:{}.pre_feedforward_layernorm",
            "hook_attn_out": "{}.post_attention_layernorm",
            "hook_mlp_out": "{}.post_feedforward_layernorm",
        },
    ),
    Family(
        models=("llama", "mistral", "qwen2", "qwen3", "gemma"),
        block=("input_layernorm", "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_proj"),
        places={**_SEQUENTIAL, **_GATED},
        lacks=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
    Family(
        models=("bert",),
        block=("attention.output.LayerNorm", "intermediate.dense", "output.LayerNorm"),
        places={
            "hook_resid_pre": "input:{}",
            "hook_resid_mid": "input:{}.attention.output.LayerNorm",
            "hook_normalized_resid_post": "{}",
            "hook_attn_out": "{}.attention.output.dense",
            "hook_mlp_out": "{}.output.dense",
            "attn.hook_q": "{}.attention.self.query",
            "attn.hook_k": "{}.attention.self.key",
            "attn.hook_v": "{}.attention.self.value",
            "attn.hook_z": "input:{}.attention.output.dense",
            "mlp.hook_pre": "{}.intermediate.dense",
            "mlp.hook_post": "input:{}.output.dense",
            "hook_full_embed": "embeddings",
        },
        lacks=("crossattention",),
    ),
)

_WHY = {
    r"hook_resid_mid": "its attention and MLP read the same stream, or are not known",
    r"hook_resid_post": "the block ends in a norm, before or behind which it may be; hook the block for its output",
    r".*hook_normalized": "no module gives a norm's output before its weight",
    r".*hook_scale": "it is one number a token",
    r".*hook_(attn_scores|pattern)": "it belongs to pairs of tokens",
    r"hook_pos_embed": "it is the same for every text",
    r"hook_(attn|q|k|v)_in(put)?": "TransformerLens repeats it for each head; hook resid_pre for the stream itself",
}


def family_of(modules: Collection[str], block: str, model_type: str | None) -> Family | None:
    """The family of a model with these modules; a graph does not tell its `model_type`.

    >>> family_of(["h.0", "h.0.ln_1"], "h.0", "gpt2") is None
    True
    """
    for family in FAMILIES:
        has = all(f"{block}.{name}" in modules for name in family.block)
        lacks = not any(f"{block}.{name}" in modules for name in family.lacks)
        if has and lacks and (model_type is None or model_type in family.models):
            return family
    return None


def as_module(hook: Hook, modules: Sequence[str], model_type: str | None) -> Hook:
    """The module's hook that has the activations of a TransformerLens name; a hook of a module is given back.

    Args:
        hook: from `parse_hook`.
        modules: names of all modules of the model.
        model_type: as in transformers; "gpt_neox parallel" where attention and MLP of a block read the same stream.

    Raises:
        ValueError: the model has no equal place.

    >>> as_module(parse_hook("blocks.1.hook_resid_post"), ["h.0", "h.1"], "gpt2")
    Hook(name='h.1', place='output', call=None)
    """
    if hook.place != "lens":
        return hook
    number, name = _parts(hook.name)
    block = numbered_block(modules, 0 if number is None else number)
    places = _places(modules, block, model_type)
    if name in places and ("{}" in places[name]) != (number is not None):
        raise ValueError(f"there is no {hook}; write {f'blocks.0.{name}' if number is None else name}")
    if name in places:
        equal = parse_hook(places[name].format(block))
        of_module = [module for module in modules if f".{module}".endswith(f".{equal.name}")]
        if len(of_module) == 1 or equal.name in modules:
            return replace(equal, name=equal.name if equal.name in modules else of_module[0])
    why = next((why for pattern, why in _WHY.items() if re.fullmatch(pattern, name)), "no table has it")
    raise ValueError(
        f"{hook} has no equal place in this model ({model_type or 'as its modules tell'}): {why}; hook a module, or in "
        f"a block {', '.join(places)}"
    )


def second_norm(hook: Hook, modules: Sequence[str], model_type: str | None) -> str:
    """The norm whose input is BLOCK.resid_mid.

    Raises:
        ValueError: the blocks are not known to have a stream between attention and MLP.

    >>> names = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    >>> second_norm(parse_hook("h.1.resid_mid"), [f"h.1.{name}" for name in names], "gpt2")
    'h.1.ln_2'
    """
    places = _places(modules, hook.name, model_type)
    if places.get("hook_resid_mid") != "{}.resid_mid":
        raise ValueError(f"{hook} has no place in this model ({model_type}); hook the input or the output of a module")
    return parse_hook(places["hook_mlp_in"].format(hook.name)).name


def lens_name(hook: Hook, modules: Sequence[str], model_type: str | None) -> str | None:
    """TransformerLens's name of the activations at a module's hook, or None.

    >>> lens_name(parse_hook("h.1"), ["h.0", "h.1"], "gpt2")
    'blocks.1.hook_resid_post'
    """
    number = next((n for n in map(block_number, _prefixes(hook.name)) if n is not None), None)
    try:
        block = numbered_block(modules, number or 0)
    except ValueError:
        return None
    for name, place in _places(modules, block, model_type).items():
        if parse_hook(place.format(block)) == parse_hook(str(hook).removesuffix("@0")):
            return name if "{}" not in place else f"blocks.{number}.{name}"
    return None


def _places(modules: Collection[str], block: str, model_type: str | None) -> Mapping[str, str]:
    family = family_of(modules, block, model_type)
    if family is None:
        return _STREAM
    if "gpt_neox" in family.models and model_type == "gpt_neox":
        return {**_SEQUENTIAL, **family.places}
    return family.places


def _parts(lens: str) -> tuple[int | None, str]:
    """The number of the block, if the name has one, and the name in it."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", lens)
    return (int(match[1]), match[2]) if match else (None, lens)


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def numbered_block(modules: Sequence[str], number: int) -> str:
    """The block of a number, as TransformerLens counts blocks.

    >>> numbered_block(["transformer.h.0", "transformer.h.0.mlp", "transformer.h.1"], 0)
    'transformer.h.0'

    Raises:
        ValueError: no block has the number, or several blocks have it.
    """
    blocks = {match[0]: int(match["number"]) for match in map(_BLOCK.fullmatch, modules) if match}
    matching = [name for name in blocks if blocks[name] == number]
    outermost = [name for name in matching if not any(name.startswith(f"{other}.") for other in matching)]
    if len(outermost) != 1:
        raise ValueError(
            f"blocks.{number} names no block of this model for certain; name the module, one of "
            f"{listed(outermost or list(blocks))}"
        )
    return outermost[0]


def block_number(module: str) -> int | None:
    """The number of a block, such as transformer.h.3; None for another module.

    >>> block_number("transformer.h.3"), block_number("transformer.h.3.mlp")
    (3, None)
    """
    match = _BLOCK.fullmatch(module)
    return None if match is None else int(match["number"])


def listed(names: Sequence[str]) -> str:
    """The first names for a message, and how many more there are.

    >>> listed(["a", "b"])
    'a, b'
    """
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none") + more
