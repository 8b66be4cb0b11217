import ast
from pathlib import Path

import sae_runtime


def test_all_is_what_the_front_door_names() -> None:
    """Every public name that `__init__.py` binds is in `__all__`, and nothing else."""
    bound = set()
    for node in ast.parse(Path(sae_runtime.__file__).read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
    assert {name for name in bound if not name.startswith("_")} == set(sae_runtime.__all__)
    assert len(sae_runtime.__all__) == len(set(sae_runtime.__all__)) <= 8


def test_every_name_is_there_and_says_what_it_is() -> None:
    for name in sae_runtime.__all__:
        assert getattr(sae_runtime, name).__doc__, name
