"""The machine of commands and calls for a minute."""

from pathlib import Path

from campaign import machine


def test_commands_and_calls_in_any_order_for_a_minute(tmp_path: Path) -> None:
    done = machine.run(60, tmp_path)
    faults = [path.read_text() for path in (tmp_path / "faults").glob("*")]
    assert done["faults"] == 0 and not faults, faults[0]
    assert done["tried"] > 9 and done["answers by decode"] > 50
