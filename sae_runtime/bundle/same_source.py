"""Whether two records name the same activations: the same model, and the same place in it.

A place may be recorded by its module, by TransformerLens's name, or by both. Where only one record has the name of
TransformerLens, the output of a numbered block counts as its `hook_resid_post`, and the input as its `hook_resid_pre`.
"""

import re

from sae_runtime.bundle.hooks import parse_hook
from sae_runtime.bundle.transformer_lens import block_number

# TransformerLens's short names, and older names of Pythia, by which published SAEs name their models.
_ALIASES = {
    "gpt2-small": "gpt2",
    "gpt2-xs": "distilgpt2",
    "distillgpt2": "distilgpt2",
    "gpt-neo-small": "gpt-neo-125m",
    "gpt-j": "gpt-j-6b",
    "pythia-19m": "pythia-70m",
    "pythia-125m": "pythia-160m",
    "pythia-350m": "pythia-410m",
    "pythia-800m": "pythia-1b",
    "pythia-1.3b": "pythia-1.4b",
    "pythia-2.7b": "pythia-2.8b",
    "pythia-6.7b": "pythia-6.9b",
    "pythia-13b": "pythia-12b",
}


def same_model(a: str, b: str) -> bool:
    """Whether two names are of one model. One of them may lack the owner or be TransformerLens's short name.

    >>> same_model("openai-community/gpt2", "gpt2-small"), same_model("gpt2", "gpt2-medium")
    (True, False)
    """
    (owner, name), (other_owner, other) = _parts(a), _parts(b)
    return name == other and (not owner or not other_owner or owner == other_owner)


def public_name(model: str) -> str:
    """The name by which SAELens and TransformerLens know a model, if they have another one.

    >>> public_name("openai-community/gpt2"), public_name("google/gemma-2-2b")
    ('gpt2', 'google/gemma-2-2b')
    """
    return model.removeprefix("openai-community/").replace("distilbert/distilgpt2", "distilgpt2")


def same_hook(a: str, b: str, *, lens_a: str | None = None, lens_b: str | None = None) -> bool:
    """Whether two hooks of one model are one place.

    Args:
        a: a hook.
        b: another.
        lens_a: TransformerLens's name of the first place, where it is known.
        lens_b: that of the second place.

    >>> same_hook("h.1", "blocks.1.hook_resid_post"), same_hook("transformer.h.1", "blocks.2.hook_resid_pre")
    (True, True)
    >>> same_hook("h.1", "input:h.1"), same_hook("h.1", "blocks.1.hook_mlp_out")
    (False, False)
    """
    (text_a, lens_a), (text_b, lens_b) = _names(a, lens_a), _names(b, lens_b)
    if _same_module(text_a, text_b):
        return True
    if lens_a is None and lens_b is None:
        return False
    return (lens_a or _as_stream(text_a)) == (lens_b or _as_stream(text_b))


def _parts(model: str) -> tuple[str, str]:
    """The owner of a model, if its name has one, and the rest of the name."""
    owner, _, name = model.strip("/").lower().rpartition("/")
    owner = owner.rpartition("/")[2]
    suffix = "-deduped" if name.endswith("-deduped") else ""
    short = name.removesuffix(suffix)
    return owner, _ALIASES.get(short, short) + suffix


def _names(text: str, lens: str | None) -> tuple[str, str | None]:
    """The canonical text of a hook, and TransformerLens's name where it is known."""
    try:
        hook = parse_hook(text)
    except ValueError:
        return text, None
    side = {"resid_pre": "input:", "resid_post": ""}.get(hook.place)
    canonical = str(hook).removesuffix("@0") if side is None else f"{side}{hook.name}"
    known = hook.name if hook.place == "lens" else lens
    return canonical, None if known is None else _one_of_equals(known)


def _as_stream(canonical: str) -> str | None:
    """TransformerLens's name of the output or the input of a numbered block."""
    block = canonical.removeprefix("input:")
    number, place = block_number(block), "post" if block == canonical else "pre"
    return None if number is None else _one_of_equals(f"blocks.{number}.hook_resid_{place}")


def _one_of_equals(lens: str) -> str:
    """What enters a block left the one before, and the MLP's branch begins with the stream behind attention."""
    entering = re.fullmatch(r"blocks\.(\d+)\.hook_resid_pre", lens)
    if entering and int(entering[1]):
        return f"blocks.{int(entering[1]) - 1}.hook_resid_post"
    return lens.replace("hook_mlp_in", "hook_resid_mid")


def _same_module(a: str, b: str) -> bool:
    """Whether two hooks are of one module, one of them perhaps without the front of its name."""
    (side_a, name_a), (side_b, name_b) = (text.rpartition(":")[::2] for text in (a, b))
    return side_a == side_b and (f".{name_a}".endswith(f".{name_b}") or f".{name_b}".endswith(f".{name_a}"))
