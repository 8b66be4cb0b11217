"""Hooks of many architectures: `harvest`, in padded batches, against one pass without padding for each window."""

from pathlib import Path

import pytest
from architectures import FEW, REFUSED, SETTINGS, assert_torchs_or_refused

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", [kind for kind in SETTINGS if kind not in FEW])
def test_harvest_reads_what_torch_gives_or_refuses(kind: str, tmp_path: Path) -> None:
    assert_torchs_or_refused(kind, tmp_path)


def test_forty_architectures_or_more_are_read() -> None:
    assert len(set(SETTINGS) - {kind for kind, _ in REFUSED}) >= 40
