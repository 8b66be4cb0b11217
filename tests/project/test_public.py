import ast
from pathlib import Path

import sae_runtime


def test_all_is_what_the_front_door_names() -> None:
    """Type checkers see the names of `__all__` and no others; Python imports them when they are asked for."""
    bound = set()
    for node in ast.parse(Path(sae_runtime.__file__).read_text()).body:
        if isinstance(node, ast.If):  # if TYPE_CHECKING
            for inner in node.body:
                assert isinstance(inner, ast.ImportFrom)
                bound |= {alias.asname or alias.name for alias in inner.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            bound.add(node.name)
    assert bound == set(sae_runtime.__all__)
    assert len(sae_runtime.__all__) == len(set(sae_runtime.__all__)) <= 15


def test_every_public_name_has_a_docstring() -> None:
    for name in sae_runtime.__all__:
        assert getattr(sae_runtime, name).__doc__, name
