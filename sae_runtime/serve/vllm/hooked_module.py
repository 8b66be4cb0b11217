"""The module of vLLM's model that a hook names; a bundle's hook names a module of the base model in transformers."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sae_runtime.bundle.hooks import Hook, parse_hook
from sae_runtime.bundle.transformer_lens import as_module, second_norm

COMPARED: tuple[str, ...] = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2"),
    *("phi", "phi3", "falcon", "granite", "olmo2", "mixtral", "qwen2_moe", "cohere", "cohere2", "stablelm"),
    *("gpt_neox", "gptj", "opt", "smollm3", "starcoder2", "nemotron"),
)
"""Types of models in which modules inside blocks were compared with transformers, by `benchmarks/vllm_families.py`."""


@dataclass(frozen=True)
class HookedModule:
    """Where an SAE reads.

    Attributes:
        name: of the module in vLLM's model.
        module: the module.
        is_input: whether its input is meant.
        in_place: whether an edit must reach all that read its input, as an edit of the stream inside a block does.
    """

    name: str
    module: nn.Module
    is_input: bool
    in_place: bool = False


def find_module(model: nn.Module, text: str, config: Any) -> HookedModule:
    """The module that a hook names.

    Args:
        model: of vLLM.
        text: the hook.
        config: of the model in transformers; its type tells TransformerLens's names.

    Raises:
        ValueError: there is none, or there are several; the message lists close names.

    >>> find_module(nn.ModuleDict({"model": nn.ModuleList([nn.Identity()])}), "input:0", None).name
    'model.0'
    """
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    parallel = " parallel" if getattr(config, "use_parallel_residual", False) else ""
    kind = f"{getattr(config, 'model_type', None)}{parallel}"
    names = [*modules, *_parts_of_fused(model)]
    hook = as_module(parse_hook(text), names, kind)
    name = _only(modules, hook, text)
    if hook.place == "resid_mid":
        norm = second_norm(Hook(name, "resid_mid"), names, kind)
        return HookedModule(norm, modules[norm], is_input=True, in_place=True)
    found = HookedModule(name, modules[name], hook.place in ("input", "resid_pre"))
    _refuse_unequal(found, text, str(getattr(config, "model_type", None)))
    return found


def _parts_of_fused(model: nn.Module) -> list[str]:
    """Names that vLLM's model lacks since it computes several modules in one; a family is known by them."""
    parts: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
    names = [name.rpartition(".") for name, _ in model.named_modules()]
    return [f"{block}.{part}" for block, _, own in names for part in parts.get(own, ()) if part != own]


def _refuse_unequal(found: HookedModule, text: str, kind: str) -> None:
    """Raise ValueError at a module that is not known to compute what its namesake in transformers computes.

    The stream at blocks and what norms give are the same in both. A module inside a block is not in every family: in
    Bloom of transformers attention and MLP add the stream, and in vLLM the block does.
    """
    own, is_input = type(found.module).__name__, found.is_input
    if found.name.rpartition(".")[2].isdigit() or "norm" in own.lower():
        return
    if kind not in COMPARED:
        raise ValueError(
            f"{text} is inside a block, and no model of type {kind} was compared with transformers there; hook a block"
        )
    if not any(True for _ in found.module.parameters()):  # such as an activation function, which multiplies as well
        raise ValueError(f"{text} is a {own} without weights, which differs from transformers; hook one with weights")
    if "Embedding" in own:
        raise ValueError(
            f"{text} is an embedding, which is scaled elsewhere in vLLM; hook the input of the first block"
        )
    if not is_input and own in ("QKVParallelLinear", "MergedColumnParallelLinear"):
        raise ValueError(f"{text} is computed in another order in vLLM than in transformers; hook its input")


def _only(modules: Mapping[str, nn.Module], hook: Hook, text: str) -> str:
    """The name of the only module that a hook can mean; a model with a head has its base model under a name."""
    if hook.name in modules:
        return hook.name
    ends = [name for name in modules if name.endswith(f".{hook.name}")]
    if len(ends) > 1:  # such as those of an image encoder and a language model
        ends = [name for name in ends if "language_model" in name] or ends
    if len(ends) > 1:
        raise ValueError(f"{text} may be any of {', '.join(ends)}; give one of these names")
    if not ends:
        close = difflib.get_close_matches(hook.name, filter(None, modules), n=5, cutoff=0)
        raise ValueError(f"vLLM's model has no module {hook.name!r}; close names are {', '.join(close)}")
    return ends[0]
