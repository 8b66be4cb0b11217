"""`--force` replaces what the command writes, and nothing else: every command that writes a folder or a file."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run
from conftest import D_IN, make_x

from sae_runtime import load
from sae_runtime.bundle import folder as bundles

BundleOf = Callable[..., Path]
Command = Callable[[Path], tuple[str | Path, ...]]


def shown(*arguments: str | Path) -> None:
    result = run(*arguments)
    assert result.exit_code == 0, result.output


@pytest.fixture
def x(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", make_x(400))
    return tmp_path / "x.npy"


@pytest.fixture
def commands(bundle_of: BundleOf, x: Path, tmp_path: Path) -> dict[str, Command]:
    """The commands that make a bundle, without their output."""
    lens = tmp_path / "lens"
    lens.mkdir()
    for name in ("cfg.json", bundles.WEIGHTS):
        shutil.copy(bundle_of("mutual") / name, lens)
    sae, some = bundle_of("mutual"), ("--k", "3", "--d-sae", "32", "--tokens", "640", "--batch", "64", "-q")
    return {
        "convert": lambda out: ("convert", lens, "-o", out),
        "calibrate": lambda out: ("calibrate", sae, "--activations", x, "--k", "4", "-q", "-o", out),
        "train": lambda out: ("train", "--activations", x, *some, "-o", out),
    }


@pytest.mark.parametrize("name", ["convert", "calibrate", "train"])
def test_a_folder_is_replaced_only_where_it_is_a_bundle_and_nothing_else(
    commands: dict[str, Command], bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = tmp_path / "out"
    arguments = (*commands[name](out), "--force")
    shutil.copytree(bundle_of("token"), out)
    assert run(*arguments).exit_code == 0
    assert bundles.read(out).manifest.architecture.selection == "threshold"
    mine: list[Callable[[], object]] = [
        lambda: (out / "README.md").write_text("mine"),
        lambda: (out / "deep" / "er").mkdir(parents=True),
        lambda: (out / "encode_gpu.onnx").mkdir(),
        lambda: (out / ".hidden").write_text("mine"),
        lambda: (out / "link").symlink_to(tmp_path),
        lambda: (out / bundles.MANIFEST).rename(out / "manifest.json"),
        lambda: os.mkfifo(out / "encode_gpu.onnx"),
    ]
    for put in mine:
        put()
        before = sorted(out.rglob("*"))
        said = refused(*arguments)
        assert said.startswith(f"error: {out} holds ") and said.endswith(", which would be lost; name another output")
        assert sorted(out.rglob("*")) == before
        shutil.rmtree(out)
        shutil.copytree(bundle_of("token"), out)
    shutil.rmtree(out)
    out.write_text("mine")
    assert refused(*arguments) == f"error: {out} is a file; name a folder"
    assert out.read_text() == "mine"
    out.unlink()
    os.mkfifo(tmp_path / "pipe")
    out.symlink_to("pipe")
    assert refused(*arguments) == f"error: {out} is neither a file nor a folder; name another output"
    out.unlink()
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "thesis").write_text("mine")
    out.symlink_to("real")
    assert run(*arguments).exit_code == 0  # the link is replaced
    assert not out.is_symlink() and (tmp_path / "real" / "thesis").read_text() == "mine"
    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    monkeypatch.chdir(home / "work")
    for where in (".", "..", "../work", "/", str(home)):
        said = refused(*commands[name](Path(where)), "--force")
        assert any(text in said for text in ("by its place", "current folder", "is or holds the")), said
    assert list(home.rglob("*")) == [home / "work"]


def test_calibrate_of_the_current_folder_is_one_line(
    commands: dict[str, Command], copy_of: BundleOf, x: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy_of("mutual"))
    before = sorted(Path().iterdir())
    said = refused("calibrate", ".", "--activations", x)
    assert said == "error: . is a folder by its place, not by its name; name it from outside of it"
    assert sorted(Path().iterdir()) == before


def test_train_of_many_replaces_a_folder_of_bundles_alone(commands: dict[str, Command], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (*commands["train"](out), "--k", "4", "--force")
    assert run(*arguments).exit_code == run(*arguments).exit_code == 0
    (out / "mutual-k3" / "notes").write_text("mine")
    assert refused(*arguments) == f"error: {out} holds mutual-k3/notes, which would be lost; name another output"
    assert (out / "mutual-k3" / "notes").read_text() == "mine"


def test_a_file_takes_the_place_of_a_file_alone(bundle_of: BundleOf, x: Path, tmp_path: Path) -> None:
    sae = bundle_of("mutual")
    commands: dict[str, Command] = {
        ".npy": lambda out: ("steer", sae, "--activations", x, "--ablate", "1", "-q", "-o", out),
        ".json": lambda out: ("evaluate", sae, "--activations", x, "-q", "-o", out),
    }
    for suffix, command in commands.items():
        out = tmp_path / f"out{suffix}"
        arguments = (*command(out), "--force")
        out.mkdir()
        assert refused(*arguments) == f"error: {out} is a folder; name a file in it"
        out.rmdir()
        os.mkfifo(out)
        assert refused(*arguments) == f"error: {out} is neither a file nor a folder; name another output"
        out.unlink()
        (tmp_path / "mine").write_text("mine")
        out.hardlink_to(tmp_path / "mine")
        assert run(*arguments).exit_code == 0
        assert (tmp_path / "mine").read_text() == "mine" and out.stat().st_nlink == 1


def test_what_a_crash_moved_aside_is_read_and_not_asked_for_on_the_hub(
    copy_of: BundleOf, x: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reads: list[Callable[[], object]] = [
        lambda: load("runs/sae").encode(make_x(3)),
        lambda: bundles.read("runs/sae"),
        lambda: shown("inspect", "runs/sae"),
        lambda: shown("extract", "runs/sae", "--activations", x, "-o", "features", "--force"),
    ]
    shutil.copytree(copy_of("mutual"), tmp_path / "runs" / "sae")
    for read in reads:
        Path("runs/sae").rename("runs/.sae.0123abcd.old")
        read()
        assert [path.name for path in Path("runs").iterdir()] == ["sae"]
        Path("runs").rename(".runs.0123abcd.old")  # as a run of several SAEs leaves it
        read()
        assert Path("runs/sae").is_dir() and not Path(".runs.0123abcd.old").exists()
    assert load("runs/sae").d_in == D_IN
