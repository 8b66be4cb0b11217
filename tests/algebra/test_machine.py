"""A few short games of the machine of commands and calls; `make campaign` plays it for long."""

from pathlib import Path

from campaign import machine


def test_commands_and_calls_in_any_order(tmp_path: Path) -> None:
    machine.play(tmp_path, examples=3, steps=6)
    assert machine.DONE["answers by decode"] and machine.DONE["make"]
