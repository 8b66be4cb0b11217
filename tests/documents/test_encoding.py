"""docs/reference/encoding.md runs, with a small SAE that has all graphs of a CPU."""

import shutil
from collections.abc import Callable
from pathlib import Path

from walked_pages import walk

from sae_runtime.engine.tiling import Tiling


def test_the_page_runs(tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    shutil.copytree(bundle_of("mutual", 512), tmp_path / "my-sae")
    walk("docs/reference/encoding.md", tmp_path)


def test_the_page_tells_the_sizes_of_the_rule() -> None:
    text = (Path(__file__).parents[2] / "docs/reference/encoding.md").read_text()
    sizes = Tiling()
    assert f"from {sizes.smallest:,} features on | from {sizes.smallest:,} k / {sizes.base_k} features on" in text
    assert f"from {sizes.smallest * sizes.topk_factor:,} features on" in text
