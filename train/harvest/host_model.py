"""Load the host model, a transformers model."""

import re
from pathlib import Path
from typing import Any

from sae_runtime.train.device import first_line, usable_device

_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def load_host_model(name: str, device: str | None = None, *, head: bool = False) -> tuple[Any, Any]:
    """Load a tokenizer and a model, in evaluation mode.

    Args:
        name: a transformers folder or a model of the hub.
        device: torch device; None: cuda if there is one, else cpu.
        head: load a causal language model with its head; otherwise load the base model alone.

    Returns:
        The tokenizer, and the model on its device.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the model cannot be loaded, or torch cannot compute on the device.

    >>> tokenizer, model = load_host_model("gpt2")  # doctest: +SKIP
    """
    from transformers import AutoModel, AutoTokenizer  # here, because the import takes seconds
    from transformers.utils import logging

    local = Path(name).is_dir()
    if not local and not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"the model folder {name} does not exist; check its path")
    usable = usable_device(device)
    shows_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # else it shows even without a terminal
    try:
        auto = _causal_or_base(name, local) if head else AutoModel
        model = auto.from_pretrained(name, local_files_only=local, torch_dtype="auto").eval()
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
    except Exception as error:  # each format's loader raises errors of its own
        raise ValueError(
            f"{name} could not be loaded ({first_line(error)}); name a transformers folder with model and tokenizer, "
            "or a model of the hub"
        ) from error
    finally:
        if shows_bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    model.config.use_cache = False  # no later pass uses the keys and values
    return tokenizer, model.to(usable)


def _causal_or_base(name: str, local: bool) -> Any:
    """The class that loads a checkpoint: with a head only if the checkpoint names the class with a head."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    config = AutoConfig.from_pretrained(name, local_files_only=local)
    return AutoModelForCausalLM if CAUSAL.get(config.model_type) in (config.architectures or ()) else AutoModel


def longest_window(tokenizer: Any, model: Any) -> int | None:
    """The most tokens that a model reads at once; None if there is no limit."""
    # A config without a limit has None, -1 or no such field.
    limits = getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length
    return min((limit for limit in limits if limit and limit > 0), default=None)
