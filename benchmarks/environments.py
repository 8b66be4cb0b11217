"""Bare virtual environments with a built wheel in them, for tests and tables of what an installation is."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Only what an sdist has too: environments, caches and what commands left are no part of the source.
_LEFT = (".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "*-out")
# A file of the environment that is layered over one with torch; pip sees what is in it as installed.
_LAYER = "layer.pth"
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def build(folder: Path) -> tuple[Path, Path]:
    """Build the source distribution, and the wheel out of it: their paths."""
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*_LEFT), symlinks=True)
    out = folder / "dist"
    command: list[str | Path] = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def environment(folder: Path, below: Path | None = None) -> Path:
    """An environment without packages, or over those of another one: the path of its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    if below is not None:
        (packages(folder) / _LAYER).write_text(f"{packages(below)}\n")
    return folder / "bin" / "python"


def packages(folder: Path) -> Path:
    """The folder of an environment's packages."""
    return next((folder / "lib").glob("python*/site-packages"))


def install(python: Path, *what: str) -> None:
    """Install requirements by pip, in the versions of constraints.txt where it has them."""
    command: list[str | Path] = [
        *PIP,
        "--python",
        python,
        "install",
        "--no-compile",
        "--constraint",
        ROOT / "constraints.txt",
        *what,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip install {' '.join(what)} failed: {done.stderr}")


def lines(page: Path = ROOT / "docs" / "reference" / "install.md") -> dict[str, str]:
    """The extras of each line `pip install '.[EXTRAS]'  # promise` of the page, and the promise."""
    lines_of_pip = re.findall(
        r"^pip install (?:'\.\[([\w,-]+)\]'|\.).*?  # (.+)$", page.read_text(encoding="utf-8"), re.M
    )
    return dict(lines_of_pip)


def megabytes(folder: Path) -> float:
    """The size of the packages of an environment and of the one below it."""
    own = packages(folder)
    layer = own / _LAYER
    roots = [own, *([Path(layer.read_text().strip())] if layer.exists() else [])]
    return sum(file.stat().st_size for root in roots for file in root.rglob("*") if file.is_file()) / 1e6
