"""The README tells the truth: its blocks run, and its tables are complete."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from sae_runtime.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def first_column(heading: str) -> set[str]:
    """The names in the first column of the table with this heading."""
    _, _, rest = README.partition(f"| {heading} |")
    return set(re.findall(r"^\| `([\w.-]+)` \|", rest.partition("\n\n")[0], flags=re.MULTILINE))


def test_python_blocks_print_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code, expected in zip(blocks("python"), blocks("text"), strict=True):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert printed.getvalue() == expected


def test_commands_run(tmp_path: Path) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    (script,) = blocks("bash")
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {"acts", "sae", "features", "steered.npy"} <= {path.name for path in tmp_path.iterdir()}


def test_settings_of_the_toml_file_are_settings_of_its_commands() -> None:
    (settings,) = blocks("toml")
    tables = tomllib.loads(settings)
    assert tables
    for name, table in tables.items():
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert set(table) <= {param.name for param in command.params if isinstance(param, click.Option)}


def test_the_table_of_commands_is_complete() -> None:
    assert first_column("command") == set(COMMANDS)


def test_the_table_of_extras_is_complete() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert first_column("extra") == set(project["optional-dependencies"])
