import errno
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from command_line import misused, refused, run, start
from conftest import make_x

from sae_runtime.cli import main
from sae_runtime.engine import doctor

BundleOf = Callable[..., Path]


def caused_by_an_interrupt() -> Exception:
    """What Python 3.11 makes of Ctrl-C while it makes a class."""
    error = RuntimeError("Error calling __set_name__ on 'Field' instance 'type' in 'LeafSpec'")
    error.__cause__ = KeyboardInterrupt()
    return error


def test_version() -> None:
    result = run("--version")
    assert result.stdout == f"sae-runtime {importlib.metadata.version('sae-runtime')}\n" == run("-V").stdout
    assert run("doctor", "--help", env={"SAE_RUNTIME_VERSION": "3"}).exit_code == 0


def test_wrong_usage() -> None:
    assert misused("inspect") == "Missing argument 'BUNDLE'."
    assert misused("inspect", "b", "--fast").startswith("No such option")
    assert misused("extract", "b", "--activations", "x", "-o", "y", "--rule", "none") == (
        "Invalid value for '--rule': 'none' is not one of 'served', 'batch'."
    )
    assert misused("extract", "b", "-o", "y") == (
        "Give --text or --activations: a deployed model reads texts, a bundle activations."
    )


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
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "error: a/b does not exist"),
    ],
)
def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, error: BaseException, line: str) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(doctor, "report", fails)
    assert refused("doctor") == line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyboardInterrupt(), "interrupted; nothing was left half written"),
        (KeyboardInterrupt("a is kept"), "interrupted; a is kept"),
        (click.Abort(), "interrupted; nothing was left half written"),
        (caused_by_an_interrupt(), "interrupted; nothing was left half written"),
    ],
)
def test_an_interrupt_exits_130_with_one_line(monkeypatch: pytest.MonkeyPatch, error: BaseException, line: str) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(doctor, "report", fails)
    result = run("doctor")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", f"{line}\n")


def test_an_interrupt_while_options_are_read_exits_130_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(main), "parse_args", fails)
    result = run("doctor")
    assert (result.exit_code, result.stderr) == (130, "interrupted; nothing was left half written\n")


def test_errors_of_importing_a_command_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sae_runtime.cli.train", None)
    assert refused("train", "--help").startswith("error: ")


def test_a_bug_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(doctor, "report", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        run("doctor")


def test_a_reader_that_left_ends_the_program_in_silence(bundle_of: BundleOf) -> None:
    process = start("inspect", bundle_of("token"))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141
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
    monkeypatch.setattr(doctor, "report", lambda: found)
    assert [line.split(maxsplit=1) for line in run("doctor").stdout.splitlines()] == [
        ["python", "3.11.7 on Linux, 2 CPUs"],
        ["providers", "none, onnxruntime does not load"],
        ["torch", "does not load"],
        ["[train]", "lacks torch, transformers"],
        ["numpy", "2.0"],
        ["torch", "not installed"],
        ["warning", "beware of this"],
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("harvest", "m", "--hook", "h", "--text", "t"),
        ("train", "--activations", "x.npy", "--tokens", "4000"),
        ("calibrate", "b", "--activations", "x.npy"),
        ("evaluate", "b", "--activations", "x.npy"),
        ("report", "e.json"),
        ("convert", "c"),
        ("export-model", "m"),
        ("splice", "h.onnx", "--sae", "b"),
        ("extract", "b", "--activations", "x.npy"),
        ("steer", "b", "--activations", "x.npy", "--ablate", "1"),
        ("demo",),
    ],
)
def test_standard_output_is_refused_as_the_output(arguments: tuple[str, ...]) -> None:
    assert misused(*arguments, "-o", "-") == (
        "Invalid value for '-o' / '--output': - would be standard output, which is not written to; name a path."
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "{no}"),
        ("export", "{no}"),
        ("calibrate", "{no}", "--activations", "{x}"),
        ("evaluate", "{no}", "--activations", "{x}"),
        ("extract", "{no}", "--activations", "{x}", "-o", "{out}"),
        ("extract", "{b}", "--activations", "{no}", "-o", "{out}"),
        ("steer", "{no}", "--activations", "{x}", "--ablate", "1", "-o", "{out}.npy"),
        ("steer", "{b}", "--activations", "{no}", "--ablate", "1", "-o", "{out}.npy"),
        ("calibrate", "{b}", "--activations", "{no}", "-o", "{out}"),
        ("evaluate", "{b}", "--activations", "{no}"),
        ("export", "{b}", "--activations", "{no}"),
        ("train", "--activations", "{no}", "--tokens", "4000", "-o", "{out}"),
        ("splice", "{no}", "--sae", "{b}", "-o", "{out}"),
        ("splice", "{x}", "--sae", "{no}", "-o", "{out}"),
        ("convert", "{no}", "-o", "{out}"),
        ("report", "{no}", "-o", "{out}.html"),
    ],
)
def test_a_missing_path_does_not_exist(bundle_of: BundleOf, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    np.save(tmp_path / "x.npy", make_x(100))
    paths = {"no": tmp_path / "no", "x": tmp_path / "x.npy", "b": bundle_of("mutual"), "out": tmp_path / "out"}
    assert f"{tmp_path / 'no'} does not exist" in refused(*(word.format(**paths) for word in arguments))
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_main_is_the_console_script() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="sae-runtime")
    assert script.load() is main
