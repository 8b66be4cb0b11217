"""The host: a transformers model whose activations at one module are wanted."""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sae_runtime.train.device import first_line

_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def load_host(name: str, device: str | None = None) -> tuple[Any, Any]:
    """Tokenizer and base model, the model in evaluation mode on its device.

    Args:
        name: a transformers folder or a model of the hub.
        device: torch device; None: cuda where there is one, else cpu.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the model cannot be loaded, or does not go on the device.
    """
    from transformers import AutoModel, AutoTokenizer  # seconds: not for those who only want a config

    local = Path(name).is_dir()
    if not local and not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"the model folder {name} does not exist; check its path")
    try:
        with _no_bar():
            model = AutoModel.from_pretrained(name, local_files_only=local, torch_dtype="auto").eval()
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
    except Exception as error:  # the loaders raise whatever their formats do
        raise ValueError(
            f"{name} could not be loaded ({first_line(error)}); name a transformers folder with model and tokenizer, "
            "or a model of the hub"
        ) from error
    model.config.use_cache = False  # keys and values of a pass are not used again
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{name} does not go on {device} ({first_line(error)}); use another --device") from error
    return tokenizer, model


def find_module(model: Any, hook: str) -> torch.nn.Module:
    """The module of a model that a hook names.

    Raises:
        ValueError: there is none; the message lists close names.
    """
    modules: dict[str, torch.nn.Module] = dict(model.named_modules())
    # A model with a head calls its base by this prefix; here the base is loaded alone.
    for name in (hook, hook.removeprefix(f"{model.base_model_prefix}.")):
        if name in modules:
            return modules[name]
    close = difflib.get_close_matches(hook, filter(None, modules), n=5, cutoff=0)
    raise ValueError(f"{model.name_or_path} has no module {hook!r}; close names are {', '.join(close)}")


class _Reached(Exception):
    """Ends a forward pass at the hook, so that no later layer is computed."""

    def __init__(self, output: Any) -> None:
        self.output = output


def hidden_states(
    hook: str, model: Any, module: torch.nn.Module, ids: torch.Tensor, real: torch.Tensor
) -> torch.Tensor:
    """Output of the module for ids and mask [batch, time]: [batch, time, d_in]; later layers are not run.

    Raises:
        ValueError: the module is never called, or gives no activations.
    """

    def stop(_module: torch.nn.Module, _args: Any, output: Any) -> None:
        raise _Reached(output)

    handle = module.register_forward_hook(stop)
    try:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=real)
    except _Reached as reached:
        output = reached.output
    else:
        raise ValueError(f"the forward pass never calls {hook} ({type(module).__name__}); hook a module inside it")
    finally:
        handle.remove()
    if isinstance(output, dict):  # as a ModelOutput is
        output = tuple(output.values())
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor) or output.ndim != 3 or output.shape[:2] != ids.shape:
        shape = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"{hook} gives {shape}, expected [batch, time, d_in] with {list(ids.shape)}; hook a layer")
    return output


@contextmanager
def _no_bar() -> Iterator[None]:
    """Silence the bar that transformers shows while it loads weights, terminal or not."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
