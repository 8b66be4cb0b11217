"""The function that docs/results/where_it_runs.md names makes a graph without defaults."""

import shutil
from collections.abc import Callable
from pathlib import Path

import onnxruntime
from walked_pages import walk


def test_the_page_runs(tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    shutil.copytree(bundle_of("mutual", 512), tmp_path / "my-sae")
    walk("docs/results/where_it_runs.md", tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "my-sae" / "steer_required.onnx")
    assert session.get_overridable_initializers() == [] and len(session.get_inputs()) == 7
