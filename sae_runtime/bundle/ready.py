"""Ready SAEs: bundles that the package brings, opened by their names, which have the form MODEL/HOOK."""

import shlex
from pathlib import Path

from sae_runtime.bundle import manifest

FOLDER = Path(__file__).parents[1] / "ready"


def ready_names() -> list[str]:
    """The names of the ready SAEs, sorted.

    >>> ready_names()
    ['all-MiniLM-L6-v2/encoder.layer.3']
    """
    return sorted(path.parent.relative_to(FOLDER).as_posix() for path in FOLDER.glob(f"*/*/{manifest.FILE}"))


def ready_path(name: str) -> Path | None:
    """The folder of a ready SAE in the installed package, or None where no ready SAE has this name.

    >>> ready_path("all-MiniLM-L6-v2/encoder.layer.3").name
    'encoder.layer.3'
    >>> ready_path("all-MiniLM-L6-v2/encoder.layer.4")
    """
    return FOLDER / name if name in ready_names() else None


def is_ready(path: str | Path) -> bool:
    """Whether a path is in the folder of the ready SAEs.

    >>> is_ready(ready_path("all-MiniLM-L6-v2/encoder.layer.3")), is_ready("my-sae")
    (True, False)
    """
    return Path(path).resolve().is_relative_to(FOLDER.resolve())


def refuse_ready(path: str | Path) -> None:
    """Raise ValueError if a path is in the folder of the ready SAEs, which nothing writes to.

    >>> refuse_ready("my-sae")
    """
    if is_ready(path):
        copy = shlex.join(["cp", "-r", str(path), "my-sae"])
        raise ValueError(f"{path} is a ready SAE of the installed package, which stays as it is; copy it first: {copy}")
