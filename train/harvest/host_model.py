"""The host model, a transformers model: load it, find a module, read and replace the activations in its output."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sae_runtime.bundle.hooks import Hook, parse_hook
from sae_runtime.train.device import first_line, usable_device
from sae_runtime.train.harvest.forward import arguments, foreign_errors, refuse_other_input
from sae_runtime.train.harvest.gaps import refuse_gaps

_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def load_host_model(
    name: str, device: str | None = None, *, head: bool = False, hooks: Sequence[str] | None = None
) -> tuple[Any, Any]:
    """Load a tokenizer and a model, in evaluation mode.

    Args:
        name: a transformers folder or a model of the hub.
        device: torch device; None: cuda if there is one, else cpu.
        head: load a causal language model with its head; otherwise load the base model alone.
        hooks: where activations are read; the checkpoint may lack weights that they do not depend on. None: the whole
            model runs.

    Returns:
        The tokenizer, and the model on its device.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the model cannot be loaded, lacks weights or does not read text, or torch cannot compute on the
            device.

    >>> tokenizer, model = load_host_model("gpt2")  # doctest: +SKIP
    """
    from transformers import AutoModel, AutoTokenizer  # here, because the import takes seconds

    local = Path(name).is_dir()
    if not local and not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"the model folder {name} does not exist; check its path")
    usable = usable_device(device)
    source: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    with _quiet():
        try:
            auto = _causal_or_base(name, source) if head else AutoModel
            # Tensors of another shape come back as random ones, and `refuse_gaps` finds those that matter.
            filled = {"output_loading_info": True, "ignore_mismatched_sizes": True, "torch_dtype": "auto"}
            model, info = auto.from_pretrained(name, **source, **filled)
        except Exception as error:  # each format's loader raises errors of its own
            raise _unloadable(name, error, "model and tokenizer") from error
        if getattr(model.config, "quantization_config", None) and getattr(model, "hf_quantizer", None) is None:
            raise ValueError(f"{name} is quantized in a way that transformers does not know; name the whole model")
        refuse_other_input(name, model)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **source)
        except Exception as error:
            raise _unloadable(name, error, "its tokenizer") from error
    model.eval()
    model.config.use_cache = False  # no later pass uses the keys and values
    model = model.to(usable)
    refuse_gaps(name, model, info, None if hooks is None else partial(_first_activations, model, hooks))
    return tokenizer, model


def _first_activations(model: Any, hooks: Sequence[str]) -> list[torch.Tensor]:
    """The activations at hooks for a few tokens."""
    ids = torch.zeros(1, 8, dtype=torch.long, device=model.device)
    return [hidden_states(hook, model, find_module(model.base_model, hook), ids, ids == 0) for hook in hooks]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what transformers prints about a model off stderr: its errors and `refuse_gaps` say what matters."""
    from transformers.utils import logging

    shows_bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # else it shows even without a terminal
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _unloadable(name: str, error: Exception, lacking: str) -> ValueError:
    return ValueError(
        f"{name} could not be loaded ({first_line(error)}); name a transformers folder with {lacking}, or a model of "
        "the hub"
    )


def _causal_or_base(name: str, source: Mapping[str, Any]) -> Any:
    """The class that loads a checkpoint: with a head only if the checkpoint names the class with a head."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    config = AutoConfig.from_pretrained(name, **source)
    return AutoModelForCausalLM if CAUSAL.get(config.model_type) in (config.architectures or ()) else AutoModel


def find_module(model: Any, hook: str) -> torch.nn.Module:
    """The module of a model whose output a hook names.

    Raises:
        ValueError: there is no such module, and the message lists close names; or the hook names an input, a later call
            or a tensor.

    >>> find_module(model, "encoder.layer.3")  # doctest: +SKIP
    """
    modules: dict[str, torch.nn.Module] = dict(model.named_modules())
    parsed = Hook(hook) if hook in modules else parse_hook(hook)  # a module may have a name such as h.0.resid_pre
    if parsed.place != "output" or parsed.call:
        raise ValueError(
            f"a torch model is hooked at the output of a module's first call, got {hook}; name the module, such as "
            "encoder.layer.3"
        )
    name = str(parsed.name)
    # A hook may begin with the name that a model with a head gives its base model; here the base is loaded alone.
    for known in (name, name.removeprefix(f"{model.base_model_prefix}.")):
        if known in modules:
            return modules[known]
    close = difflib.get_close_matches(name, filter(None, modules), n=5, cutoff=0)
    raise ValueError(f"{model.name_or_path} has no module {name!r}; close names are {', '.join(close)}")


def longest_window(tokenizer: Any, model: Any) -> int | None:
    """The most tokens that a model reads at once; None if there is no limit."""
    # A config without a limit has None, -1 or no such field.
    limits = getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length
    return min((limit for limit in limits if limit and limit > 0), default=None)


class _Reached(BaseException):  # no Exception, because those are the model's own
    """Ends a forward pass at the hook, so that no later layer is computed."""

    def __init__(self, output: Any) -> None:
        self.output = output


def hidden_states(
    hook: str,
    model: Any,
    module: torch.nn.Module,
    ids: torch.Tensor,
    real: torch.Tensor,
    shape: Sequence[int | str] | None = None,
) -> torch.Tensor:
    """The activations at a hook for tokens ids and their mask, [batch, time]: [batch, time, d_in].

    No later layer is computed. If the module is called several times, the first call counts.

    Raises:
        ValueError: the forward pass never calls the module, or its output holds no activations.
    """

    def stop(_module: torch.nn.Module, _args: Any, output: Any) -> None:
        raise _Reached(output)

    handle = module.register_forward_hook(stop)
    try:
        with torch.inference_mode(), foreign_errors(model):
            model(**arguments(model, ids, real))
    except _Reached as reached:
        return activations_in(reached.output, hook, (*(shape or ids.shape), "d_in"))
    else:
        raise ValueError(f"the forward pass never calls {hook} ({type(module).__name__}); hook a module inside it")
    finally:
        handle.remove()


@contextmanager
def replaced(module: torch.nn.Module, y: torch.Tensor) -> Iterator[None]:
    """Replace the activations in the module's output by y [batch, time, d_in], at its first call in the block.

    `hidden_states` reads the same call. The other parts of the output stay.

    >>> layer = torch.nn.Identity()
    >>> with replaced(layer, torch.ones(1)):
    ...     layer(torch.zeros(1)), layer(torch.zeros(1))
    (tensor([1.]), tensor([0.]))
    """
    left = [y]

    def put(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
        return with_activations(output, left.pop()) if left else output

    handle = module.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def activations_in(output: Any, hook: str, expected: Sequence[int | str]) -> torch.Tensor:
    """The activations in a module's output, which is a tensor, or a tuple, list or ModelOutput that begins with one.

    Args:
        output: of the module.
        hook: names the module in messages.
        expected: the size of each dimension; a name stands for any size.

    Raises:
        ValueError: the output holds no tensor of the expected sizes.

    >>> activations_in((torch.zeros(1, 2, 3), "more"), "h.0", ("batch", "time", 3)).shape
    torch.Size([1, 2, 3])
    >>> activations_in(torch.zeros(1, 2, 3), "h.0", ("batch", "time", 5))
    Traceback (most recent call last):
    ValueError: h.0 gives [1, 2, 3], expected [batch, time, 5]; hook a layer, for an SAE the one of its training
    """
    if isinstance(output, dict):  # a ModelOutput is a dict
        output = tuple(output.values())
    x: Any = next(iter(output), None) if isinstance(output, tuple | list) else output
    is_tensor = isinstance(x, torch.Tensor) and x.ndim == len(expected)
    if not is_tensor or any(isinstance(n, int) and n != size for n, size in zip(expected, x.shape, strict=True)):
        shape = list(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        sizes = ", ".join(map(str, expected))
        raise ValueError(f"{hook} gives {shape}, expected [{sizes}]; hook a layer, for an SAE the one of its training")
    return torch.as_tensor(x)


def with_activations(output: Any, y: torch.Tensor) -> Any:
    """A module's output with y for its activations; the other parts stay.

    >>> with_activations((torch.zeros(1), "more"), torch.ones(1))
    (tensor([1.]), 'more')
    """
    if isinstance(output, torch.Tensor):
        return y
    if isinstance(output, dict):
        output[next(iter(output))] = y
        return output
    if hasattr(output, "_replace"):  # a named tuple
        return output._replace(**{output._fields[0]: y})
    return type(output)([y, *output[1:]])
