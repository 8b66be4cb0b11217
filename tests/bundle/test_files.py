import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from sae_runtime.bundle import files

WRITERS = ["folder", "file"]


def writer(what: str, path: Path, *, force: bool = False) -> AbstractContextManager[Path]:
    return files.new_folder(path, force=force) if what == "folder" else files.new_file(path, force=force)


def fill(partial: Path, text: str) -> None:
    (partial / "a" / "b.txt" if partial.is_dir() else partial).parent.mkdir(exist_ok=True)
    (partial / "a" / "b.txt" if partial.is_dir() else partial).write_text(text)


def content(path: Path) -> str:
    return (path / "a" / "b.txt" if path.is_dir() else path).read_text()


def write(what: str, path: Path, text: str, *, force: bool = False) -> None:
    with writer(what, path, force=force) as partial:
        fill(partial, text)


def siblings(path: Path) -> list[str]:
    return sorted(other.name for other in path.parent.iterdir() if other != path)


def run_python(code: str, path: Path) -> int:
    """Run code with the names `path` and `files` in a new process."""
    head = "import os, shutil, signal\nfrom pathlib import Path\nfrom sae_runtime.bundle import files\n"
    head += f"path = Path({str(path)!r})\n"
    return subprocess.run([sys.executable, "-c", head + code], timeout=60, check=False).returncode


@pytest.fixture(params=WRITERS)
def what(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A path for a file or folder; the test fails if siblings of the path are left."""
    (tmp_path / "home").mkdir()
    yield tmp_path / "home" / "new [1]*?.safetensors"  # characters that a glob interprets
    assert siblings(tmp_path / "home" / "new [1]*?.safetensors") == []


def test_a_path_appears_whole_when_the_block_ends(what: str, path: Path) -> None:
    with writer(what, path) as partial:
        fill(partial, "new")
        assert not path.exists()
        assert partial.parent == path.parent and partial.suffix == path.suffix and partial.name.startswith(".")
    assert content(path) == "new"


def test_new_paths_get_their_parents(what: str, tmp_path: Path) -> None:
    write(what, tmp_path / "x" / "y" / "z", "new")
    assert content(tmp_path / "x" / "y" / "z") == "new"


def test_an_existing_path_is_replaced_with_force_only(what: str, path: Path) -> None:
    write(what, path, "old")
    with pytest.raises(FileExistsError, match=r"already exists; pass --force to replace it"):
        write(what, path, "new")
    assert content(path) == "old"
    write(what, path, "new", force=True)
    assert content(path) == "new"


def test_a_folder_takes_the_place_of_a_file_and_of_a_link(path: Path, tmp_path: Path) -> None:
    path.write_text("a file")
    write("folder", path, "new", force=True)
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    write("folder", path, "newer", force=True)
    assert content(path) == "newer" and not path.is_symlink()
    assert content(tmp_path / "elsewhere") == "new"


def test_a_path_that_appears_during_the_block_is_not_overwritten(what: str, path: Path) -> None:
    with pytest.raises(FileExistsError, match="already exists"), writer(what, path) as partial:
        fill(partial, "new")
        path.write_text("of another")
    assert path.read_text() == "of another"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_keeps_the_old_content(what: str, path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), writer(what, path) as partial:
        fill(partial, "new")
        raise error
    assert not path.exists()
    write(what, path, "old")
    with pytest.raises(error), writer(what, path, force=True) as partial:
        fill(partial, "new")
        raise error
    assert content(path) == "old"


def test_a_full_disk_keeps_the_old_content(what: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(what, path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(what, path, "new", force=True)
    assert content(path) == "old"


def test_everything_is_synced_before_the_rename(what: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(what, path, "new")
    inodes = [path, *path.rglob("*")] if path.is_dir() else [path]
    assert {(file.stat().st_ino, False) for file in inodes} <= set(synced)
    assert synced[-1] == (path.parent.stat().st_ino, True)


@pytest.mark.parametrize("death", ["os._exit(7)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_killed_writer_leaves_nothing_at_the_path(what: str, path: Path, death: str) -> None:
    code = f"""
with files.new_{what}(path) as partial:
    (partial / 'a.txt' if partial.is_dir() else partial).write_text('half')
    {death}
"""
    assert run_python(code, path) != 0
    assert not path.exists() and len(siblings(path)) == 1
    write(what, path, "new")
    assert content(path) == "new"


def test_a_live_writer_is_left_alone(what: str, path: Path) -> None:
    with writer(what, path, force=True) as mine:
        fill(mine, "mine")
        write(what, path, "of another")
        files.repair(path)
        assert content(mine) == "mine"
        assert content(path) == "of another"
    assert content(path) == "mine"


def test_a_live_writer_in_another_process_is_left_alone(what: str, path: Path) -> None:
    with writer(what, path, force=True) as mine:
        fill(mine, "mine")
        assert run_python(f"with files.new_{what}(path) as partial:\n    pass", path) == 0
        assert content(mine) == "mine"
    assert content(path) == "mine"


def test_a_partial_taken_for_a_leftover_is_made_again(what: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer may look for dead partials after a partial is made and before it is locked."""
    real, calls = fcntl.flock, 0

    def flock(descriptor: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            files.repair(path)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    write(what, path, "new")
    assert content(path) == "new" and calls > 2


def test_a_writer_that_replaces_its_partial_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors replaces the file, and makes the new file private."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        files.repair(path)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with files.new_file(path) as partial:
        mode = partial.stat().st_mode
        safetensors.numpy.save_file({"x": np.ones(3)}, partial)
    assert path.stat().st_mode == mode
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["x"], np.ones(3))


def test_many_writers_of_one_file_all_succeed(path: Path) -> None:
    def replace(text: str) -> None:
        for _ in range(20):
            write("file", path, text * 1000, force=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(replace, "abcd"))
    assert content(path) in {text * 1000 for text in "abcd"}


def test_a_crash_between_the_renames_is_repaired(path: Path) -> None:
    write("folder", path, "old")
    code = """
real = Path.rename
def rename(self, target):
    real(self, target)
    os._exit(7)
Path.rename = rename
with files.new_folder(path, force=True) as partial:
    (partial / 'a').mkdir()
    (partial / 'a' / 'b.txt').write_text('new')
"""
    assert run_python(code, path) == 7
    assert not path.exists() and len(siblings(path)) == 2
    files.repair(path)
    assert content(path) == "old"


def test_a_crash_after_the_renames_keeps_the_new_content(path: Path) -> None:
    write("folder", path, "old")
    code = """
shutil.rmtree = lambda path, ignore_errors: os._exit(7)
with files.new_folder(path, force=True) as partial:
    (partial / 'a').mkdir()
    (partial / 'a' / 'b.txt').write_text('new')
"""
    assert run_python(code, path) == 7
    assert content(path) == "new" and len(siblings(path)) == 1
    with pytest.raises(FileExistsError):
        files.check_free(path)
    assert siblings(path) == []
    assert content(path) == "new"


def test_a_live_writer_between_its_renames_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("folder", path, "old")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        moved = real(self, target)
        if target.suffix == ".old":
            files.repair(path)
            assert not path.exists()
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    write("folder", path, "new", force=True)
    assert content(path) == "new"


def test_repair_changes_only_siblings_of_its_path(path: Path) -> None:
    strangers = [".new 1xy.safetensors.abcd.partial", ".new [1]*?.safetensors", "new [1]*?.safetensors.abcd.partial"]
    for name in strangers:
        (path.parent / name).write_text("of another")
    files.repair(path)
    files.repair(path.parent / "nowhere" / "x")
    assert siblings(path) == sorted(strangers)
    for name in strangers:
        (path.parent / name).unlink()


def test_check_free_refuses_a_path_whose_folder_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file is a file, so .+sub/new cannot be made in it; name another"):
        files.check_free(tmp_path / "file" / "sub" / "new")
    files.check_free(tmp_path / "sub" / "sub" / "new")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser has access to everything
    with pytest.raises(PermissionError, match=r"you may not write to .+, so .+new cannot be made in it; name another"):
        files.check_free(tmp_path / "sub" / "new")
    assert not (tmp_path / "sub").exists()


def test_siblings_of_a_longer_name_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "sae.checkpoint"
    other.mkdir()
    aside = tmp_path / ".sae.checkpoint.0123abcd.old"
    other.rename(aside)  # a writer of sae.checkpoint died between its two renames
    files.repair(tmp_path / "sae")
    assert aside.exists() and not (tmp_path / "sae").exists()
    files.repair(other)
    assert other.exists() and not aside.exists()
