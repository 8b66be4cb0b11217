import os
from pathlib import Path
from typing import Any

import pytest

from sae_runtime.bundle.files import Kind, new_file
from sae_runtime.bundle.outputs import Output, refuse_inputs


def refused(error: type[Exception], message: str, path: Path, *, kind: Kind = "folder", **settings: Any) -> None:
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(error, match=message):
        Output(path=path, kind=kind, **settings).check()
    assert sorted(path.parent.rglob("*")) == before


def test_a_path_that_does_not_exist_may_be_written(tmp_path: Path) -> None:
    kinds: tuple[Kind, ...] = ("file", "folder")
    for kind in kinds:
        Output(path=tmp_path / "new" / "out", kind=kind).check()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_path_needs_force(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    refused(
        FileExistsError,
        "out already exists; pass --force to replace it, in Python force=True$",
        tmp_path / "out",
        kind="file",
    )
    Output(path=tmp_path / "out", kind="file", force=True).check()


def test_a_path_of_the_other_kind_is_refused_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    refused(FileExistsError, "folder is a folder; name a file in it$", tmp_path / "folder", kind="file", force=True)
    refused(FileExistsError, "file is a file; name a folder$", tmp_path / "file", kind="folder", force=True)


def test_force_does_not_destroy_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    def foreign(folder: Path) -> str | None:
        return next((path.name for path in folder.iterdir() if path.suffix == ".tex"), None)

    Output(path=tmp_path / "out", kind="folder", force=True).check()  # an empty folder is nobody's
    (tmp_path / "out" / "ours.txt").touch()
    Output(path=tmp_path / "out", kind="folder", force=True, foreign=foreign).check()
    refused(FileExistsError, "out holds ours.txt, which would be lost; name another", tmp_path / "out", force=True)
    (tmp_path / "out" / "thesis.tex").touch()
    message = "out holds thesis.tex, which would be lost; name another output$"
    refused(FileExistsError, message, tmp_path / "out", force=True, foreign=foreign)
    refused(FileExistsError, "already exists", tmp_path / "out", foreign=foreign)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_name_that_leaves_no_room_for_the_partial_is_refused_before_the_work(tmp_path: Path, kind: Kind) -> None:
    for name, fits in (("\u00e9" * 118, True), ("\u00e9" * 119, False), ("n" * 300, False)):
        if fits:
            Output(path=tmp_path / name, kind=kind).check()
            with new_file(tmp_path / name):
                pass
        else:
            refused(OSError, "is too long to be written whole or not at all; name a shorter one$", tmp_path / name)


def test_a_folder_that_could_not_be_removed_or_moved_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "out")  # the superuser has access
        refused(PermissionError, "you may not write to .*out, so it cannot be repl", tmp_path / "out", force=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "out")
    for force in (False, True):
        refused(FileExistsError, "out is a mount point, which nothing can repl", tmp_path / "out", force=force)


def test_standard_output_is_refused() -> None:
    with pytest.raises(ValueError, match="^the output - would be standard output, which is not supported; name a"):
        Output(path=Path("-"), kind="file").check()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("acts", "acts is or holds the activations .*acts; name another output$"),
        (".", "is or holds the activations"),
        ("acts/out", "acts/out would be inside the activations .*acts; name another output$"),
        ("link/out", "would be inside the activations"),
    ],
)
def test_an_output_may_not_be_an_input_nor_hold_one_nor_be_inside_one(
    tmp_path: Path, output: str, message: str
) -> None:
    (tmp_path / "acts").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "acts")
    inputs = {"activations": tmp_path / "acts"}
    refused(ValueError, message, tmp_path / output, force=True, inputs=inputs)
    refuse_inputs(tmp_path / "other", inputs)


def test_an_input_that_is_named_otherwise_is_an_input_still(tmp_path: Path) -> None:
    """A disk may take ACTS for acts; a hard link shows here what such names lead to."""
    (tmp_path / "x.npy").touch()
    (tmp_path / "X.NPY").hardlink_to(tmp_path / "x.npy")
    inputs = {"activations": tmp_path / "x.npy"}
    refused(ValueError, "is or holds the activations", tmp_path / "X.NPY", kind="file", force=True, inputs=inputs)


def test_links_in_a_circle_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    refused(FileExistsError, "a already exists; pass --force", tmp_path / "a", inputs={"activations": tmp_path / "x"})
    with pytest.raises(NotADirectoryError, match="a is a link to nothing, so .*new cannot be made in it"):
        Output(path=tmp_path / "a" / "new", kind="file").check()
