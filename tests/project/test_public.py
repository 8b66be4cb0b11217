import ast
from pathlib import Path

import sae_runtime


def test_all_lists_exactly_the_imported_public_names() -> None:
    """Every public name that `__init__.py` binds is in `__all__`, and nothing else."""
    bound = set()
    for node in ast.parse(Path(sae_runtime.__file__).read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
    assert {name for name in bound if not name.startswith("_")} == set(sae_runtime.__all__)
    assert len(sae_runtime.__all__) == len(set(sae_runtime.__all__)) <= 8


def test_every_public_name_has_a_docstring() -> None:
    for name in sae_runtime.__all__:
        assert getattr(sae_runtime, name).__doc__, name
