"""stats.safetensors with the tokens that features promote and suppress, with measured stats and without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resealed import reseal

from sae_runtime.bundle.folder import put_stats, read
from sae_runtime.bundle.stats import counted, read_stats, save_stats
from sae_runtime.bundle.tensors import save_tensors
from sae_runtime.bundle.token_logits import TokenLogits, read_logits

LOGITS = TokenLogits(
    np.array([[4, 2], [0, 1]], np.int32),
    np.array([[2.5, 1], [3, 2]], np.float32),
    np.array([[3, 0], [4, 2]], np.int32),
    np.array([[-2, -1], [-3, 0]], np.float32),
)


def test_logits_stand_alone_or_beside_measured_stats(tmp_path: Path) -> None:
    path = tmp_path / "stats.safetensors"
    stats = counted(np.array([1, 2]), np.array([0.5, 2.0]), 4)
    for given in (None, stats):
        save_stats(path, given, LOGITS)
        found, back = read_stats(path, 2), read_logits(path, 2)
        assert (found is None) == (given is None) and back is not None
        assert found is None or found.tokens == 4
        for name, array in LOGITS.tensors().items():
            np.testing.assert_array_equal(getattr(back, name), array)
    save_stats(path, stats)
    assert read_logits(path, 2) is None


@pytest.mark.parametrize(
    ("name", "array", "found"),
    [
        ("suppressed_logits", None, "nothing"),
        ("promoted_tokens", np.ones((2, 2), np.int64), "I64"),
        ("promoted_logits", np.ones((2, 3), np.float32), r"F32 \[2, 3\]"),
        ("promoted_logits", np.full((2, 2), np.nan, np.float32), "finite"),
        ("suppressed_tokens", np.full((2, 2), -1, np.int32), "0 or more"),
    ],
)
def test_logits_of_another_form_are_refused(tmp_path: Path, name: str, array: Any, found: str) -> None:
    tensors = LOGITS.tensors() | ({} if array is None else {name: array})
    save_tensors(tmp_path / "stats", {key: t for key, t in tensors.items() if key != name or array is not None})
    with pytest.raises(ValueError, match=found + ".*; splice the SAE again"):
        read_logits(tmp_path / "stats", 2)


def test_stats_that_are_measured_again_leave_the_logits(copy_of: Callable[..., Path]) -> None:
    path = copy_of("token")
    bundle = read(path)
    assert bundle.logits() is None
    put_stats(bundle, counted(np.ones(150, np.int64), np.ones(150), 10))
    logits = TokenLogits(*np.ones((4, 150, 3), np.float32))
    save_stats(path / "stats.safetensors", None, logits)
    bundle = read(reseal(path))
    assert bundle.stats() is None and bundle.logits() is not None
    put_stats(bundle, counted(np.ones(150, np.int64), np.ones(150), 10))
    again = read(path)
    assert again.stats() is not None and again.logits() is not None
