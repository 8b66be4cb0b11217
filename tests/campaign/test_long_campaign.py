"""Each part of the campaign for some seconds, a minute in all."""

import signal
from pathlib import Path
from typing import Any

import pytest

from campaign import fuzzing
from campaign.__main__ import OF_COMMANDS, parts
from campaign.kept import told

SECONDS = 4.0
FEW: dict[str, Any] = {"names": ("extract", "export", "evaluate", "splice", "train")}  # making all ready takes longer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one campaign: its parts share the commands that were made ready."""
    return tmp_path_factory.mktemp("campaign")


@pytest.mark.parametrize("part", sorted(parts()))
def test_a_part_finds_no_fault(part: str, folder: Path) -> None:
    few = FEW if part in OF_COMMANDS else {}
    counts = parts()[part](SECONDS, folder / part, **few)
    assert counts["tried"] or counts.get("skipped")
    assert counts["faults"] == 0, told(counts, folder / part)


@pytest.mark.parametrize("kind", ["bundles", "checkpoints", "hosts", "rows"])
def test_inputs_that_were_found_show_no_fault_any_more(kind: str) -> None:
    assert fuzzing.replay(kind) == []


def test_a_worker_that_dies_or_hangs_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "TIME_LIMIT", 0.2)
    with fuzzing.Worker("rows") as worker:
        assert worker._process is not None
        worker._process.send_signal(signal.SIGSTOP)
        assert "more than 0.2 seconds" in worker.judge({"kind": "array", "changes": []})
        worker._start()
        assert worker._process is not None
        worker._process.kill()
        worker._process.wait()
        assert "ended with -9" in worker.judge({"kind": "array", "changes": []})
