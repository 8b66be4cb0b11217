"""A site appears whole or not at all: a full disk, kill -9 at any moment, two writers of one folder, few packages."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bare import in_bare, link
from command_line import refused, run, start
from conftest import no_file_beyond
from made_store import context, feature, token, write_store

ROOT = Path(__file__).parents[2]
RUNTIME = ("numpy", "click", "safetensors", "tqdm")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [context("some words of a text", "words", 3.0), context("other words", "other", 1.0, band=1)]
    features = [feature(rows, top_tokens=[token("words"), token("other")]) for _ in range(400)]
    return write_store(tmp_path_factory.mktemp("stores") / "store", features)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [100, 3_000, 30_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(store: Path, tmp_path: Path, size: int) -> None:
    with no_file_beyond(size):
        said = refused("browse", store, "-o", tmp_path / "site", "-q")
    assert said.startswith(f"error: {tmp_path / 'site'}") and ".partial" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_older_site(store: Path, tmp_path: Path) -> None:
    assert run("browse", store, "-o", tmp_path / "site", "-q").exit_code == 0
    before = files(tmp_path / "site")
    with no_file_beyond(30_000):
        refused("browse", store, "-o", tmp_path / "site", "-q", "--force", "--title", "Other")
    assert files(tmp_path / "site") == before and [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_killed_writer_leaves_the_old_or_the_new_site(store: Path, tmp_path: Path) -> None:
    site, rng = tmp_path / "site", random.Random(0)
    assert run("browse", store, "-o", site, "-q", "--title", "Old").exit_code == 0
    old = files(site)
    assert run("browse", store, "-o", tmp_path / "other", "-q", "--title", "New").exit_code == 0
    new = files(tmp_path / "other")
    code = f"""
import os, signal, sys, threading
import sae_runtime.browser.site.write_site as writing
threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGKILL)).start()
writing.write_site([{str(store)!r}], {str(site)!r}, title="New", force=True)
os._exit(0)
"""
    ends = []
    for _ in range(6):
        done = subprocess.run([sys.executable, "-c", code, f"{rng.uniform(0.001, 0.4):.4f}"], capture_output=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        ends.append(done.returncode)
        assert files(site) in (old, new)
    assert -signal.SIGKILL in ends
    assert run("browse", store, "-o", site, "-q", "--force", "--title", "New").exit_code == 0
    assert files(site) == new
    assert {path.name for path in tmp_path.iterdir()} == {"site", "other"}, "the next run removes what was half made"


def test_two_writers_of_one_folder_leave_one_whole_site(store: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    arguments = ("browse", store, "-o", site, "-q", "--force")
    running = [start(*arguments, "--title", title) for title in ("One", "Two")]
    said = [one.communicate(timeout=60)[1] for one in running]
    assert [one.returncode for one in running] == [0, 0], said
    made = files(site)
    for title in ("One", "Two"):
        assert run("browse", store, "-o", tmp_path / title, "-q", "--title", title).exit_code == 0
    assert made in (files(tmp_path / "One"), files(tmp_path / "Two"))


def test_packages_that_are_not_there_are_one_line(store: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    link(bare, *RUNTIME)
    for name in ("sae_runtime", "train", "exports"):
        (bare / name).symlink_to(ROOT / name)
    code = f"from sae_runtime.cli import main; main(['browse', {str(store)!r}, '-o', 'site'])"
    done = in_bare(bare, code)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install" in done.stderr and "sae-runtime[extract]" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "site").exists()


def test_a_store_that_is_removed_while_it_is_read_is_one_line(store: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(store, tmp_path / "store")
    running = start("browse", copy, "-o", tmp_path / "site", "-q")
    time.sleep(0.3)
    shutil.rmtree(copy)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 0 or (said.startswith("error: ") and said.count("\n") == 1), said
    assert running.returncode == 0 or not (tmp_path / "site").exists()
