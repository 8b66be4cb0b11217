"""Run the numpy code that a docstring writes down, so that tests can compare it with the graph."""

import inspect
from typing import Any

import numpy as np


def run_numpy(documented: Any, **names: Any) -> dict[str, Any]:
    """All names after the numpy code in the docstring of a module or function has run with these names.

    The code is what is indented after the paragraph that holds "In numpy" and ends in a colon.
    """
    lines = (inspect.getdoc(documented) or "").splitlines()
    start = next(i for i, line in enumerate(lines) if "In numpy" in line)
    start = next(i for i in range(start, len(lines)) if lines[i].endswith(":")) + 1
    end = next((i for i in range(start, len(lines)) if lines[i] and not lines[i].startswith("    ")), len(lines))
    names["np"] = np
    exec("\n".join(line[4:] for line in lines[start:end]), names)
    return names
