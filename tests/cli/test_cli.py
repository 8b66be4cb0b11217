import errno
import importlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from command_line import misused, refused, run, start

from sae_runtime import cli
from sae_runtime.cli import COMMANDS, main, options
from sae_runtime.cli import doctor as doctor_command

BundleOf = Callable[..., Path]
HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "pyarrow", "matplotlib")


def caused_by_an_interrupt() -> Exception:
    """What Python 3.11 makes of Ctrl-C while it makes a class."""
    error = RuntimeError("Error calling __set_name__ on 'Field' instance 'type' in 'LeafSpec'")
    error.__cause__ = KeyboardInterrupt()
    return error


def test_help_names_every_command_and_loads_none() -> None:
    check = f"print([m for m in sys.modules if m in {HEAVY} or m.startswith('sae_runtime.cli.')])"
    process = start("--help", after=check)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    shown, _, loaded = out.rstrip("\n").rpartition("\n")
    assert loaded == "[]"
    assert re.findall(r"^  ([a-z][a-z-]+)  +[A-Z].*\.$", shown, re.MULTILINE) == list(COMMANDS)


def test_commands_that_need_no_torch_load_none() -> None:
    names = ("inspect", "export", "extract", "steer", "doctor", "demo")
    check = f"import {', '.join(f'sae_runtime.cli.{name}' for name in names)}\n"
    process = start("--version", after=f"{check}print([m for m in sys.modules if m in {HEAVY}])")
    out, err = process.communicate(timeout=60)
    assert (out.splitlines()[1:], err) == (["[]"], "")


def test_every_module_of_the_folder_is_a_command_or_shared() -> None:
    modules = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert modules == {*(name.replace("-", "_") for name in COMMANDS), "__init__", "options", "common"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name: str) -> None:
    result = run(name, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: sae-runtime {name} [OPTIONS]")
    assert result.stdout.splitlines()[2].strip() == COMMANDS[name]
    assert run(name, "-h").stdout == result.stdout
    command: click.Command = importlib.import_module(f"sae_runtime.cli.{name.replace('-', '_')}").command
    assert isinstance(command, options.Command)
    assert command.name == name
    flags = {flag for param in command.params for flag in param.opts}
    short = {"convert", "demo", "export-model", "splice"}
    writes = {"harvest", "train", "calibrate", "evaluate", "report", "extract", "steer", *short}
    assert ({"-o", "--output", "--force"} <= flags) == (name in writes)
    assert ("--json" in flags) == (name != "demo")
    assert ("--quiet" in flags) == (name in writes - {"report", *short})
    assert all(param.help for param in command.params if isinstance(param, click.Option))


def test_version() -> None:
    result = run("--version")
    assert result.stdout == f"sae-runtime {importlib.metadata.version('sae-runtime')}\n"
    assert run("doctor", "--help", env={"SAE_RUNTIME_VERSION": "3"}).exit_code == 0


def test_wrong_usage() -> None:
    assert misused("fly") == "No such command 'fly'."
    assert misused("inspect") == "Missing argument 'BUNDLE'."
    assert misused("inspect", "b", "--fast").startswith("No such option")
    assert misused("extract", "b", "--activations", "x", "-o", "y", "--rule", "none") == (
        "Invalid value for '--rule': 'none' is not one of 'served', 'batch'."
    )
    assert misused("extract", "b", "-o", "y") == "Missing option '--activations'."


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "error: two lines"),
        (ValueError(), "error: ValueError"),
        (OSError("no room"), "error: no room"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: [Errno 28] No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "error: a/b: Permission denied"),
        (ImportError("torch not installed; run: pip"), "error: torch not installed; run: pip"),
        (MemoryError(), "error: out of memory"),
        (MemoryError("Unable to allocate 3 GiB"), "error: out of memory (Unable to allocate 3 GiB)"),
        (EOFError("the file ends early"), "error: the file ends early"),
        (KeyboardInterrupt(), "interrupted; nothing was left half written"),
        (click.Abort(), "interrupted; nothing was left half written"),
        (caused_by_an_interrupt(), "interrupted; nothing was left half written"),
    ],
)
def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, error: BaseException, line: str) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(doctor_command, "report", fails)
    assert refused("doctor") == line


def test_errors_of_importing_a_command_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sae_runtime.cli.train", None)
    assert refused("train", "--help").startswith("error: ")


def test_a_bug_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(doctor_command, "report", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        run("doctor")


def test_a_reader_that_left_is_no_error(bundle_of: BundleOf) -> None:
    process = start("inspect", bundle_of("token"))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1
    process.stderr.close()


def test_doctor() -> None:
    found = json.loads(run("doctor", "--json").stdout)
    lines = run("doctor").stdout.splitlines()
    assert lines[0].split()[:2] == ["python", found["python"]]
    assert ["[extract]", "works"] in [line.split() for line in lines]
    assert ["numpy", found["versions"]["numpy"]] in [line.split() for line in lines]


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "python": "3.11.7",
        "platform": "Linux",
        "cpus": 2,
        "versions": {"numpy": "2.0", "torch": None},
        "extras": {"train": ["torch", "transformers"]},
        "providers": None,
        "cuda": None,
        "warnings": ["beware of this"],
    }
    monkeypatch.setattr(doctor_command, "report", lambda: found)
    assert [line.split(maxsplit=1) for line in run("doctor").stdout.splitlines()] == [
        ["python", "3.11.7 on Linux, 2 CPUs"],
        ["providers", "none, onnxruntime does not load"],
        ["torch", "does not load"],
        ["[train]", "lacks torch, transformers"],
        ["numpy", "2.0"],
        ["torch", "not installed"],
        ["warning", "beware of this"],
    ]


def test_main_is_the_console_script() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="sae-runtime")
    assert script.load() is main
