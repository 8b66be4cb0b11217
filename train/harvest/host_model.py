"""Load the host model, a transformers model."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sae_runtime.train.device import first_line, usable_device
from sae_runtime.train.harvest.forward import arguments, refuse_other_input
from sae_runtime.train.harvest.gaps import refuse_gaps
from sae_runtime.train.harvest.hook_point import find_hook, hidden_states

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
    from transformers import AutoTokenizer  # here, because the import takes seconds

    usable = usable_device(device)
    model, info, source = _loaded(name, _causal_or_base if head else _base)
    with _quiet():
        refuse_other_input(name, model)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **source)
        except Exception as error:
            raise _unloadable(name, error, "its tokenizer") from error
    model = model.to(usable)
    refuse_gaps(name, model, info, None if hooks is None else partial(_first_activations, model, hooks))
    return tokenizer, model


def load_whole_model(name: str) -> Any:
    """Load a model of the class that its config names, with whatever head it has, on the CPU; it may read anything.

    Args:
        name: a transformers folder or a model of the hub.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the model cannot be loaded, or lacks weights.

    >>> type(load_whole_model("cross-encoder/ms-marco-MiniLM-L6-v2")).__name__  # doctest: +SKIP
    'BertForSequenceClassification'
    """
    model, info, _ = _loaded(name, _named_class)
    refuse_gaps(name, model, info, None)
    return model


def _loaded(name: str, choose: Callable[[str, Mapping[str, Any]], Any]) -> tuple[Any, Any, dict[str, Any]]:
    """A model in evaluation mode, what its loader says about its weights, and how its folder is read."""
    local = Path(name).is_dir()
    if not local and not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"the model folder {name} does not exist; check its path")
    if Path(name, "adapter_config.json").is_file():  # without peft, transformers would leave the adapter out
        raise ValueError(f"{name} holds an adapter, such as LoRA; merge it into its model, and name the merged one")
    source: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    with _quiet():
        try:
            # Tensors of another shape come back as random ones, and `refuse_gaps` finds those that matter.
            filled = {"output_loading_info": True, "ignore_mismatched_sizes": True, "torch_dtype": "auto"}
            model, info = choose(name, source).from_pretrained(name, **source, **filled)
        except Exception as error:  # each format's loader raises errors of its own
            raise _unloadable(name, error, "model and tokenizer") from error
        if getattr(model.config, "quantization_config", None) and getattr(model, "hf_quantizer", None) is None:
            raise ValueError(f"{name} is quantized in a way that transformers does not know; name the whole model")
    model.eval()
    model.config.use_cache = False  # no later pass uses the keys and values
    return model, info, source


def _first_activations(model: Any, hooks: Sequence[str]) -> list[torch.Tensor]:
    """The activations at hooks for a few tokens."""
    ids = torch.zeros(1, 8, dtype=torch.long, device=model.device)
    points = [find_hook(model, hook) for hook in hooks]
    return hidden_states(points, model, arguments(model, ids, ids == 0), ("batch", "time"))


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


def _base(*_: Any) -> Any:
    from transformers import AutoModel

    return AutoModel


def _named_class(name: str, source: Mapping[str, Any]) -> Any:
    """The class that a checkpoint names; the base model alone of one that names none."""
    import transformers

    named = (transformers.AutoConfig.from_pretrained(name, **source).architectures or [""])[0]
    found = getattr(transformers, named or "AutoModel", None)
    if not hasattr(found, "from_pretrained") or not named.endswith("Model") and not hasattr(found, "forward"):
        raise ValueError(f"its config names the class {named}, which is no model of transformers")
    return found


def _causal_or_base(name: str, source: Mapping[str, Any]) -> Any:
    """The class that loads a checkpoint: with a head only if the checkpoint names the class with a head."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    config = AutoConfig.from_pretrained(name, **source)
    return AutoModelForCausalLM if CAUSAL.get(config.model_type) in (config.architectures or ()) else AutoModel


def longest_window(tokenizer: Any, model: Any) -> int | None:
    """The most tokens that a model reads at once; None if there is no limit."""
    # A config without a limit has None, -1 or no such field.
    limits = getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length
    return min((limit for limit in limits if limit and limit > 0), default=None)
