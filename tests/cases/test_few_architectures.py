"""Ten architectures of different kinds; `test_architectures` has all others."""

from pathlib import Path

import pytest
from architectures import FEW, assert_torchs_or_refused

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", FEW)
def test_harvest_reads_what_torch_gives(kind: str, tmp_path: Path) -> None:
    assert_torchs_or_refused(kind, tmp_path)
