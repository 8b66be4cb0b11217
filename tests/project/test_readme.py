"""The README tells the truth: its blocks run from top to bottom and print what it says."""

import shutil
import tomllib
from pathlib import Path

<<<<<<< HEAD
import click
import pytest

from sae_runtime.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
=======
from document_blocks import ROOT
from walked_pages import walk

>>>>>>> integ
README = (ROOT / "README.md").read_text()


def test_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """In a checkout, where docs/guides holds the text of its commands; what it prints is compared letter by letter."""
    shutil.copytree(ROOT / "docs/guides", tmp_path / "docs/guides")
    walk("README.md", tmp_path, exact=True)
    made = {"minilm", "model", "acts", "saes", "own", "features", "store", "site"}
    assert made <= {path.name for path in tmp_path.iterdir()}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


<<<<<<< HEAD
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
=======
def test_its_wheel_has_the_version_that_is_built() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"sae_runtime-{version}-py3-none-any.whl" in README
>>>>>>> integ
