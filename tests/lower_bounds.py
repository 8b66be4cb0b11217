"""The oldest version of every package that pyproject.toml declares, as pip's constraints.

    python tests/lower_bounds.py [--torch VERSION]

Print them, for `make test-oldest`. `--torch` names another torch: PyPI has the oldest one for Linux with CUDA alone.
"""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
TOOLS = {"dev", "docs"}  # they test and build; their versions are those of constraints.txt
FOR_GPUS = {"onnxruntime-gpu"}


def lower_bounds() -> dict[str, str]:
    """The oldest version of each package, by its name."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + [line for name in extras if name not in TOOLS for line in extras[name]]
    bounds = {}
    for line in lines:
        declared = re.fullmatch(r"([\w-]+)(?:\[[\w,-]+\])?(?:[>=]=([\d.]+))?(?:;.*)?", line.replace(" ", ""))
        assert declared, line
        if declared[1] not in {"sae-runtime", *FOR_GPUS}:
            assert declared[2], f"{line} has no oldest version"
            bounds[declared[1]] = declared[2]
    return bounds


def main(arguments: list[str]) -> None:
    bounds = lower_bounds()
    if arguments:
        option, bounds["torch"] = arguments
        assert option == "--torch", option
    sys.stdout.writelines(f"{name}=={bound}\n" for name, bound in sorted(bounds.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
