"""The host: a transformers model whose activations at one module are wanted."""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sae_runtime.bundle.hooks import Hook, parse_hook
from sae_runtime.train.device import first_line

_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def load_host_model(name: str, device: str | None = None, *, head: bool = False) -> tuple[Any, Any]:
    """Tokenizer and base model, the model in evaluation mode on its device.

    Args:
        name: a transformers folder or a model of the hub.
        device: torch device; None: cuda where there is one, else cpu.
        head: load a causal language model with its head, if the checkpoint is one.

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
            auto = _causal_or_base(name, local) if head else AutoModel
            model = auto.from_pretrained(name, local_files_only=local, torch_dtype="auto").eval()
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


def _causal_or_base(name: str, local: bool) -> Any:
    """The class to load a checkpoint with: with a head only where the checkpoint says that it has one."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    config = AutoConfig.from_pretrained(name, local_files_only=local)
    return AutoModelForCausalLM if CAUSAL.get(config.model_type) in (config.architectures or ()) else AutoModel


def find_module(model: Any, hook: str) -> torch.nn.Module:
    """The module of a model whose output a hook names.

    Raises:
        ValueError: there is none, and the message lists close names; or the hook is another form of `parse_hook`.
    """
    modules: dict[str, torch.nn.Module] = dict(model.named_modules())
    parsed = Hook(hook) if hook in modules else parse_hook(hook)  # a module may have a name such as h.0.resid_pre
    if parsed.place != "output" or parsed.call:
        raise ValueError(
            f"a torch model is hooked at the output of a module's first call, got {hook}; name the module, such as "
            "encoder.layer.3"
        )
    name = str(parsed.name)
    # A model with a head calls its base by this prefix; here the base is loaded alone.
    for known in (name, name.removeprefix(f"{model.base_model_prefix}.")):
        if known in modules:
            return modules[known]
    close = difflib.get_close_matches(name, filter(None, modules), n=5, cutoff=0)
    raise ValueError(f"{model.name_or_path} has no module {name!r}; close names are {', '.join(close)}")


def longest_window(tokenizer: Any, model: Any) -> int | None:
    """Tokens that a model reads at most; None where nothing bounds them."""
    # Where positions have no bound, a config says None or -1, or nothing.
    limits = getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length
    return min((limit for limit in limits if limit and limit > 0), default=None)


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
def replaced(module: torch.nn.Module, y: torch.Tensor) -> Iterator[None]:
    """Let the module give y [batch, time, d_in] for its activations, the first time it is called in the block.

    That is the call which `hidden_states` reads; what else the module gives stays.
    """
    left = [y]

    def put(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
        if not left:
            return output
        if isinstance(output, torch.Tensor):
            return left.pop()
        if isinstance(output, dict):
            output[next(iter(output))] = left.pop()
            return output
        return type(output)([left.pop(), *output[1:]])

    handle = module.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


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
