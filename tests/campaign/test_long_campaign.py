"""Each part of the campaign for some seconds, a minute in all."""

from pathlib import Path
from typing import Any

import pytest

from campaign.__main__ import parts
from campaign.kept import told

SECONDS = 4.0
FEW: dict[str, Any] = {"names": ("extract", "export", "evaluate", "splice", "train")}  # making all ready takes longer


@pytest.mark.parametrize("part", sorted(parts()))
def test_a_part_finds_no_fault(part: str, tmp_path: Path) -> None:
    few = FEW if part in ("faults", "kills", "full_disks") else {}
    counts = parts()[part](SECONDS, tmp_path / part, **few)
    assert counts["tried"] or counts.get("skipped")
    assert counts["faults"] == 0, told(counts, tmp_path / part)
