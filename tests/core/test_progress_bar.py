import io
import sys
import time

import pytest

from sae_runtime.core.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(2_000_000, "tokens", shown=True, seconds=0.02) as bar:
        bar.set_description("mutual choice", refresh=False)
        for _ in range(5):
            time.sleep(0.03)
            bar.update(100_000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3 and "\r" not in "".join(lines)
    assert lines[0].startswith("mutual choice: 100k of 2.00M tokens, ") and "tokens/s, " in lines[0]
    assert lines[0].endswith(" left")


def test_a_few_long_pieces_are_counted_as_whole_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(2, "parts", shown=True, seconds=0.02) as bar:
        time.sleep(0.03)
        bar.update(1)
        bar.status_printer(sys.stderr)("1 of 2 parts, 83.3s/ parts, 01:23 left")
    first, slow = capsys.readouterr().err.splitlines()
    assert first.startswith("1 of 2 parts, ") and slow == "1 of 2 parts, 83.3 s/part, 01:23 left"


def test_work_of_unknown_size_has_lines_without_a_total(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(None, "tokens", shown=True, seconds=0.02) as bar:
        time.sleep(0.03)
        bar.update(500)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("500 tokens, ") and line.endswith(" tokens/s")


def test_short_work_without_a_terminal_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(10, "tokens", shown=True) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar_unless_progress_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    for shown in (True, False):
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        with progress_bar(10, "tokens", shown=shown) as bar:
            bar.update(10)
        assert ("100%|" in terminal.getvalue()) == shown
