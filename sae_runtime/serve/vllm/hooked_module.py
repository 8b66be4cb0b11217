"""The module of vLLM's model that a hook names; a bundle's hook names a module of the base model in transformers."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sae_runtime.bundle.hooks import Hook, parse_hook
from sae_runtime.bundle.transformer_lens import as_module, second_norm


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
    hook = as_module(parse_hook(text), list(modules), kind)
    name = _only(modules, hook, text)
    if hook.place == "resid_mid":
        norm = second_norm(Hook(name, "resid_mid"), list(modules), kind)
        return HookedModule(norm, modules[norm], is_input=True, in_place=True)
    return HookedModule(name, modules[name], hook.place in ("input", "resid_pre"))


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
