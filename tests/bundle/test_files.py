import contextlib
import errno
import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from sae_runtime.bundle import exchange, files, replacing
from sae_runtime.bundle.siblings import lock, repair, repaired

WRITERS = ["folder", "file"]


def writer(what: str, path: Path, *, force: bool = False) -> AbstractContextManager[Path]:
    if what == "folder":
        return files.new_folder(path, force=force, foreign=lambda _: None)
    return files.new_file(path, force=force)


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
    head = "import os, shutil, signal\nfrom pathlib import Path\nfrom sae_runtime.bundle import exchange, files\n"
    head += f"path = Path({str(path)!r})\nnothing = lambda folder: None\n"
    return subprocess.run([sys.executable, "-c", head + code], timeout=60, check=False).returncode


NO_EXCHANGE = "exchange._system_call = lambda: None\n"  # as on a system that has none, for `run_python`


@pytest.fixture(params=WRITERS)
def what(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["in one step", "in two", "without hard links"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems that exchange two paths, that do not, and that have no second names of a file either."""
    if request.param != "in one step":
        monkeypatch.setattr(exchange, "_system_call", lambda: None)
    if request.param == "without hard links":

        def link(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
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


def test_an_existing_path_is_replaced_with_force_only(what: str, path: Path, steps: str) -> None:
    write(what, path, "old")
    with pytest.raises(FileExistsError, match=r"already exists; pass --force to replace it"):
        write(what, path, "new")
    assert content(path) == "old"
    write(what, path, "new", force=True)
    assert content(path) == "new"


def test_a_link_is_replaced_and_what_it_leads_to_stays(what: str, path: Path, tmp_path: Path, steps: str) -> None:
    write(what, tmp_path / "elsewhere", "old")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="already exists"):
        write(what, path, "new")
    write(what, path, "new", force=True)
    assert content(path) == "new" and not path.is_symlink()
    assert content(tmp_path / "elsewhere") == "old"
    path.unlink() if path.is_file() else shutil.rmtree(path)
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="already exists"):
        write(what, path, "new")
    write(what, path, "new", force=True)
    assert content(path) == "new" and not path.is_symlink() and not (tmp_path / "nowhere").exists()


def test_a_path_of_the_other_kind_a_pipe_and_a_socket_are_never_replaced(
    what: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("file" if what == "folder" else "folder", path, "old")
    with pytest.raises(FileExistsError, match="is a file; name a folder|is a folder; name a file in it"):
        write(what, path, "new", force=True)
    assert content(path) == "old"
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
    for special in (tmp_path / "pipe", tmp_path / "socket"):  # never a device of this machine: a fault would replace it
        path.symlink_to(special)
        for name in (special, path):
            with pytest.raises(FileExistsError, match="is neither a file nor a folder; name another output"):
                write(what, name, "new", force=True)
        path.unlink()


def test_a_folder_of_foreign_files_is_not_replaced(path: Path) -> None:
    write("folder", path, "old")
    with (
        pytest.raises(FileExistsError, match="holds a, which would be lost; name another output"),
        files.new_folder(path, force=True),
    ):
        pytest.fail("the block must not run")
    with (
        pytest.raises(FileExistsError, match="holds late, which would be lost"),
        files.new_folder(path, force=True, foreign=lambda folder: "late" if (folder / "late").exists() else None),
    ):
        (path / "late").write_text("mine")
    assert content(path) == "old" and (path / "late").read_text() == "mine"


def test_the_current_folder_is_never_replaced(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for name in (".", "..", "../b", "../../a", str(here), "/", "b/.."):
        with pytest.raises(FileExistsError, match=r"by its place|current folder|is a folder; name a file in it"):
            write(what, Path(name), "new", force=True)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", here]


def test_a_path_that_appears_during_the_block_is_not_overwritten(what: str, path: Path) -> None:
    with pytest.raises(FileExistsError, match="already exists"), writer(what, path) as partial:
        fill(partial, "new")
        write(what, path, "of another")
    assert content(path) == "of another"


def test_a_path_that_appears_after_the_last_check_is_not_overwritten(
    what: str, path: Path, monkeypatch: pytest.MonkeyPatch, steps: str
) -> None:
    if steps == "without hard links":
        pytest.skip("nothing but the check guards such a file system")
    real = replacing.put_all

    def put_all(*arguments: Any, **settings: Any) -> None:
        monkeypatch.setattr(files, "put_all", real)
        write(what, path, "of another")
        real(*arguments, **settings)

    monkeypatch.setattr(files, "put_all", put_all)
    with pytest.raises(FileExistsError, match="already exists; pass --force"), writer(what, path) as partial:
        fill(partial, "new")
    assert content(path) == "of another"


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


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("old", ["old", None])
def test_a_disk_that_fails_keeps_the_old_content(
    what: str, path: Path, monkeypatch: pytest.MonkeyPatch, steps: str, number: int, old: str | None
) -> None:
    """The first sync that fails may be that of a file, of its folder, or of the folder around it after the rename."""
    if old is not None:
        write(what, path, old)
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= number:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch, contextlib.suppress(OSError):
        patch.setattr(os, "fsync", full)
        write(what, path, "new", force=True)
    failed, lost = calls >= number, what == "file" and steps == "without hard links"
    kept = "new" if not failed or (lost and number == 2 and old is not None) else old
    assert (content(path) if path.exists() else None) == kept


@pytest.mark.parametrize("step", ["rename", "replace", "exchange"])
def test_a_rename_that_fails_keeps_the_old_content(
    what: str, path: Path, monkeypatch: pytest.MonkeyPatch, steps: str, step: str
) -> None:
    write(what, path, "old")

    def refuse(one: Path, *_: object) -> None:
        if ".partial" in Path(one).name:
            raise OSError(errno.EIO, "Input/output error")
        real(one, *_)

    home = {"rename": Path, "replace": os, "exchange": replacing}[step]
    real = getattr(home, step)
    with monkeypatch.context() as patch:
        patch.setattr(home, step, refuse)
        with contextlib.suppress(OSError):
            write(what, path, "new", force=True)
    assert content(path) in ("old", "new")


def test_what_cannot_be_put_back_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("folder", path, "old")
    monkeypatch.setattr(exchange, "_system_call", lambda: None)
    real = Path.rename

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda self, name: refuse() if "partial" in self.name else real(self, name))
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match=r"could not be put back \(Input/output error\); what it held is in .*\.old$"):
            write("folder", path, "new", force=True)
    assert not path.exists()
    repair(path)
    assert content(path) == "old"


def test_files_that_belong_together_are_replaced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: str
) -> None:
    weights, graph = tmp_path / "w.bin", tmp_path / "g.onnx"

    def write_both(text: str) -> None:
        with files.new_files([weights, graph], force=True) as partials:
            for partial in partials:
                partial.write_text(text)

    write_both("old")
    write_both("new")
    assert (weights.read_text(), graph.read_text()) == ("new", "new")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    real = replacing._put
    failing = {
        "sync": full,
        "_put": lambda partial, path, *rest, **how: (full if path == graph else real)(partial, path, *rest, **how),
    }
    for name, step in failing.items():
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(replacing, name, step)
            write_both("newer")
        assert (weights.read_text(), graph.read_text()) == ("new", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.onnx", "w.bin"]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE])
def test_an_error_of_the_disk_names_the_path_that_could_not_be_written(
    what: str, path: Path, named: bool, number: int
) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as caught, writer(what, path) as partial:
        error = OSError(number, os.strerror(number))
        if named:
            error.filename = str(partial / "a" if what == "folder" else partial)
        raise error
    assert caught.value.filename == str(path / "a" if named and what == "folder" else path)


def test_a_new_group_whose_names_cannot_be_taken_back_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(replacing, "sync", refuse)
        patch.setattr(os, "rename", refuse)
        with files.new_files([tmp_path / "out" / "w.bin", tmp_path / "out" / "g.onnx"]) as partials:
            for partial in partials:
                partial.write_text("new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", ["in two"], indirect=True)
def test_old_content_that_is_half_removed_never_comes_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, steps: str
) -> None:
    def refuse(folder: Path, ignore_errors: bool) -> None:
        (folder / "a" / "b.txt").unlink()  # and the folder itself stays

    write("folder", path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        write("folder", path, "new", force=True)
    shutil.rmtree(path)
    repair(path)
    assert not path.exists()


def test_a_scratch_file_of_a_dead_writer_goes_with_its_partial(path: Path) -> None:
    with files.new_file(path) as partial, files.scratch_file(partial) as scratch:
        left = scratch.name
        partial.write_text("whole")
    path.with_name(left).touch()  # as where the writer died, or its removal failed
    repair(path)


@pytest.mark.parametrize("death", ["os._exit(7)", "raise OSError(5, 'Input/output error')"])
def test_what_a_library_wrote_beside_a_partial_goes_with_it(path: Path, death: str) -> None:
    code = f"""
import tempfile
with files.new_file(path) as partial:
    Path(tempfile.mkdtemp(dir=path.parent, prefix='.' + partial.name + '.'), 'weights').touch()
    {death}
"""
    assert run_python(code, path) in (1, 7)
    repair(path)


def test_a_killed_writer_of_a_group_leaves_no_last_file_beside_those_of_another(tmp_path: Path) -> None:
    weights, graph = tmp_path / "w.bin", tmp_path / "g.onnx"
    weights.write_text("old")
    graph.write_text("old")
    code = """
from sae_runtime.bundle import replacing
real = replacing._put
def put(partial, path, *rest, **how):
    if path.suffix == '.onnx':
        os._exit(7)
    return real(partial, path, *rest, **how)
replacing._put = put
with files.new_files([path / 'w.bin', path / 'g.onnx'], force=True) as partials:
    for partial in partials:
        partial.write_text('new')
"""
    assert run_python(code, tmp_path) == 7
    assert weights.read_text() == "new" and not graph.exists()
    with files.new_files([weights, graph], force=True) as partials:
        for partial in partials:
            partial.write_text("newer")
    assert (weights.read_text(), graph.read_text()) == ("newer", "newer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.onnx", "w.bin"]


def test_new_parents_go_again_when_the_block_raises(what: str, tmp_path: Path) -> None:
    with pytest.raises(KeyError), writer(what, tmp_path / "a" / "b" / "new"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_removed_by_its_name_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("folder", path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        files.remove_folder(path)
    assert not path.exists() and len(siblings(path)) == 1
    repair(path)
    assert siblings(path) == []


def test_readers_find_what_a_dead_writer_moved_aside(path: Path, tmp_path: Path) -> None:
    write("folder", path, "old")
    path.rename(path.with_name(f".{path.name}.0123abcd.old"))
    assert (repaired(path / "a" / "b.txt")).read_text() == "old"
    path.parent.rename(tmp_path / ".home.0123abcd.old")
    path.parent.parent.joinpath(".home.0123abcd.old", path.name).rename(
        tmp_path / ".home.0123abcd.old" / f".{path.name}.0123abcd.old"
    )
    assert (repaired(path / "a" / "b.txt")).read_text() == "old"


def test_a_pipe_that_is_named_like_a_partial_does_not_hang(path: Path) -> None:
    pipe = path.with_name(f".{path.name}.0123abcd.partial{path.suffix}")
    os.mkfifo(pipe)
    repair(path)
    assert siblings(path) == []


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
        repair(path)
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
            repair(path)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    write(what, path, "new")
    assert content(path) == "new" and calls > 2


def test_a_disk_without_locks_takes_what_is_written(what: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS locks no folder, and a disk of another machine may lock nothing."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", flock)
    write(what, path, "old")
    write(what, path, "new", force=True)
    assert content(path) == "new" and not siblings(path)
    with lock(path) as locked:
        assert locked is None


def test_a_writer_that_replaces_its_partial_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors replaces the file, and makes the new file private."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        repair(path)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with files.new_file(path) as partial:
        mode = partial.stat().st_mode
        safetensors.numpy.save_file({"x": np.ones(3)}, partial)
    assert path.stat().st_mode == mode
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["x"], np.ones(3))


def test_many_writers_of_one_path_all_succeed(what: str, path: Path) -> None:
    def replace(text: str) -> None:
        for _ in range(20):
            write(what, path, text * 1000, force=True)

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
with files.new_folder(path, force=True, foreign=nothing) as partial:
    (partial / 'a').mkdir()
    (partial / 'a' / 'b.txt').write_text('new')
"""
    assert run_python(NO_EXCHANGE + code, path) == 7
    assert not path.exists() and len(siblings(path)) == 2
    repair(path)
    assert content(path) == "old"


@pytest.mark.parametrize("how", ["", NO_EXCHANGE])
def test_a_crash_after_the_renames_keeps_the_new_content(path: Path, how: str) -> None:
    write("folder", path, "old")
    code = """
shutil.rmtree = lambda path, ignore_errors: os._exit(7)
with files.new_folder(path, force=True, foreign=nothing) as partial:
    (partial / 'a').mkdir()
    (partial / 'a' / 'b.txt').write_text('new')
"""
    assert run_python(how + code, path) == 7
    assert content(path) == "new" and len(siblings(path)) == 1
    with pytest.raises(FileExistsError):
        files.check_free(path)
    assert siblings(path) == []
    assert content(path) == "new"


def test_a_live_writer_between_its_renames_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("folder", path, "old")
    monkeypatch.setattr(exchange, "_system_call", lambda: None)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        moved = real(self, target)
        if target.suffix == ".old":
            repair(path)
            assert not path.exists()
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    write("folder", path, "new", force=True)
    assert content(path) == "new"


def test_repair_changes_only_siblings_of_its_path(path: Path) -> None:
    strangers = [".new 1xy.safetensors.abcd.partial", ".new [1]*?.safetensors", "new [1]*?.safetensors.abcd.partial"]
    for name in strangers:
        (path.parent / name).write_text("of another")
    repair(path)
    repair(path.parent / "nowhere" / "x")
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
    repair(tmp_path / "sae")
    assert aside.exists() and not (tmp_path / "sae").exists()
    repair(other)
    assert other.exists() and not aside.exists()
