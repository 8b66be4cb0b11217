"""Where a checkpoint and its model disagree. A loader only warns: it fills in random numbers, or drops tensors.

A disagreement refuses the model where the activations depend on it. Heads behind a hook may be missing.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

_COMPUTED = ("inv_freq", "position_ids")  # made from the config, and left out of newer checkpoints


def refuse_gaps(name: str, model: Any, info: Mapping[str, Any], run: Callable[[], Any] | None) -> None:
    """Refuse a model that computes with tensors which its checkpoint does not give.

    Missing tensors become NaN. So where one is read after all, no pass gives a number that looks right.

    Args:
        name: of the model, for messages.
        model: a transformers model.
        info: its `loading_info`, as `from_pretrained` gives it.
        run: runs the model as far as the activations are wanted; None: the whole model counts but its poolers, which
            no figure depends on.

    Raises:
        ValueError: a tensor is missing, has another shape or has no place in the model, and activations depend on it.

    >>> info = {"missing_keys": ["weight"], "mismatched_keys": [], "unexpected_keys": ["module.weight"]}
    >>> refuse_gaps("mine", torch.nn.Linear(2, 2), info, None)
    Traceback (most recent call last):
    ValueError: mine lacks weights that are computed with (weight), and the checkpoint's module.weight has no place ...
    """
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    gaps = {key: "" for key in info["missing_keys"]}
    gaps |= {key: f" {list(found)} instead of {list(wanted)}" for key, found, wanted in info["mismatched_keys"]}
    gaps = {key if key in tensors else key.removeprefix(prefix): how for key, how in gaps.items()}
    present = {tensor.data_ptr() for key, tensor in tensors.items() if key not in gaps}
    for key in [key for key in gaps if key in tensors]:
        tensor = tensors[key]
        if tensor.data_ptr() in present or not tensor.is_floating_point() or key.endswith(_COMPUTED):
            del gaps[key]  # tied to a tensor that is there, or not a weight
        else:
            tensor.data.fill_(torch.nan)
    misfits = [key for key in info["unexpected_keys"] if _has_no_slot(model, key.removeprefix(prefix))]
    if getattr(model, "hf_quantizer", None) is not None:
        misfits = []  # a quantizer takes tensors for which a plain layer has no place
    if not gaps and not misfits:
        return
    if run is None:
        read = {key for key in gaps if "pooler" not in key.split(".")} | set(misfits)
    else:
        read = _read(model, [*gaps, *(key.removeprefix(prefix) for key in misfits)], run)
        read |= {key for key in misfits if key.removeprefix(prefix) in read}
    missing = [f"{key}{how}" for key, how in sorted(gaps.items()) if key in read]
    if missing:
        stray = next(iter(sorted(info["unexpected_keys"])), None)
        other = f", and the checkpoint's {stray} has no place in {type(model).__name__}" if stray else ""
        raise ValueError(
            f"{name} lacks weights that are computed with ({_few(missing)}){other}; save the whole model again, with "
            "the names and the config of its class"
        )
    if unread := [key for key in sorted(misfits) if key in read]:
        raise ValueError(
            f"{name} has weights for which its config leaves no place ({_few(unread)}); mend config.json, or save the "
            "model again"
        )


def _has_no_slot(model: Any, key: str) -> bool:
    """Whether a tensor belongs to a layer without parts, such as a bias or a scale that the config leaves out."""
    owner, _, leaf = key.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        return False
    return bool(owner) and not any(module.children()) and leaf not in _COMPUTED


def _read(model: Any, keys: Iterable[str], run: Callable[[], Any]) -> set[str]:
    """Those of the tensors, by name, that a run may read.

    They belong to a module that the run enters, or are inside a module that it leaves again: an expert that this run
    does not choose may serve another one. If the result is NaN and they do not say why, all of them count.
    """
    entered, left = set[str](), set[str]()
    handles = []
    for name, module in model.named_modules(remove_duplicate=False):
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: entered.add(name)))
        handles.append(module.register_forward_hook(lambda *_, name=name: left.add(name)))
    try:
        x = run()
    finally:
        for handle in handles:
            handle.remove()

    def may_read(key: str) -> bool:
        owners = [key[:end] for end, letter in enumerate(key) if letter == "."] or [""]
        return owners[-1] in entered or any(owner in left for owner in ["", *owners])

    read = {key for key in keys if may_read(key)}
    return read if read or all(bool(part.isfinite().all()) for part in x) else set(keys)


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
