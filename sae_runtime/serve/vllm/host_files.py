"""The files of the model that vLLM runs: its folder on this machine, its weights, its tokenizer."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_runtime.extraction.document_source import facts_of_tokenizer
from sae_runtime.text.tokenizer import Tokenizer, open_tokenizer

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")  # as vLLM prefers them


def folder_of(model: str, revision: str | None, cache: str | None) -> Path:
    """The folder of a model that vLLM has loaded, or its file where it is one.

    Args:
        model: a path, or a name on the Hugging Face Hub.
        revision: of the Hub's repository.
        cache: the folder of the Hub's cache; None: the one of this machine.

    Raises:
        ValueError: it is not on this machine.

    >>> str(folder_of(".", None, None))
    '.'
    """
    if Path(model).exists():
        return Path(model)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, revision=revision, cache_dir=cache, local_files_only=True))
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the files of {model} are not on this machine ({reason}), and features name their hashes; download it, "
            "and give vLLM the folder"
        ) from error


def weights_of(home: Path) -> Sequence[Path]:
    """The files with a model's weights: of the first kind that the folder has.

    >>> _ = Path("model.safetensors").write_bytes(b""), Path("pytorch_model.bin").write_bytes(b"")
    >>> [path.name for path in weights_of(Path("."))]
    ['model.safetensors']
    """
    if home.is_file():
        return [home]
    kinds = (sorted(home.glob(kind)) for kind in _WEIGHTS)
    return next((found for found in kinds if found), [])


def tokenizer_of(llm: Any) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of vLLM's LLM, and the sha256 of its files.

    It is that of the model's folder. Where this has no tokenizer.json, it is what vLLM made of other files.

    Raises:
        ValueError: it cannot be read, or it has ids that the model does not know.
    """
    config = llm.llm_engine.vllm_config
    model = config.model_config
    home = folder_of(model.tokenizer, model.tokenizer_revision, config.load_config.download_dir)
    save = None if (home / "tokenizer.json").exists() else getattr(llm.get_tokenizer(), "save_pretrained", None)
    with tempfile.TemporaryDirectory() as made:
        if save is not None:
            save(made)
            home = Path(made)
        return open_tokenizer(home, vocabulary=model.get_vocab_size()), facts_of_tokenizer(home)
