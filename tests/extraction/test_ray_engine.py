"""Parts made by actors of Ray: the same bytes as by the local loop, deaths, errors, Ctrl-C.

Ray listens on every address and writes into the home folder. So each run is a process in a network of its own that has
only the loopback, with a home of its own. `make ray` installs Ray; without it, or where no network may be made, these
tests skip.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_x
from feature_folders import bytes_of
from word_model import deploy_words, long_words, some_words

from sae_runtime.extraction.feature_index import INDEX

RAY = Path(sys.prefix) / "ray"
APART = ["unshare", "-n", "bash", "-c", 'ip link set lo up && exec "$@"', "-"]
RUNS = Path(__file__).with_name("ray_runs.py")
COMMAND = Path(sys.prefix) / "bin" / "sae-runtime"
BundleOf = Callable[..., Path]


def _is_possible() -> bool:
    if not (RAY / "ray").is_dir() or shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*APART, "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not _is_possible(), reason="make ray installs it; a network apart needs root")


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in a network of its own, with a home and a folder of Ray's of its own."""
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # the paths of Ray's sockets must be short
        settings = {"HOME": str(tmp_path / "home"), "RAY_TMPDIR": short, "PYTHONPATH": str(RAY)}
        (tmp_path / "home").mkdir()

        def start(*words: object) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [*APART, *map(str, words)],
                env=os.environ | settings,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

        yield start
        end = time.monotonic() + 30  # actors end a moment after Ray's own processes
        while processes_of(short) and time.monotonic() < end:
            time.sleep(0.1)
        assert processes_of(short) == []


def processes_of(folder: str) -> list[str]:
    """The commands of the processes that were started with this folder of Ray's."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if folder.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended
            continue
    return found


@pytest.fixture
def given(bundle_of: BundleOf, tmp_path: Path) -> tuple[Path, Path]:
    """A deployed model and a text of some parts."""
    (tmp_path / "text.txt").write_text("\n\n".join(some_words(100, 30)))
    return deploy_words(tmp_path / "model", bundle_of("mutual")), tmp_path / "text.txt"


@pytest.mark.parametrize("case", ["works", "dies"])
def test_two_actors_make_the_same_bytes_even_if_one_dies(
    apart: Any, given: tuple[Path, Path], tmp_path: Path, case: str
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    subprocess.run([sys.executable, RUNS, "local", *given, tmp_path / "local", notes], check=True)
    assert not list(notes.iterdir())
    with apart(sys.executable, RUNS, case, *given, tmp_path / "ray", notes) as child:
        _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "local")
    made = [path.name.split("-") for path in notes.glob("*-*")]
    assert len({number for number, _ in made}) >= 8
    actors = {process for _, process in made}
    assert len(actors) == 2 if case == "works" else len(actors) > 2 and (notes / "died").exists()


def test_actors_make_the_same_bytes_by_the_batch_rule(apart: Any, given: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    subprocess.run([sys.executable, RUNS, "local", *given, tmp_path / "local", tmp_path / "notes", "batch"], check=True)
    with apart(sys.executable, RUNS, "works", *given, tmp_path / "ray", tmp_path / "notes", "batch") as child:
        _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "local")


def test_an_error_in_an_actor_is_the_same_line(apart: Any, bundle_of: BundleOf, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", 1e6 * make_x(20))
    asked = [COMMAND, "extract", bundle_of("mutual"), "--activations", tmp_path / "x.npy", "--values", "float16"]
    here = subprocess.run([*map(str, asked), "-o", tmp_path / "a"], capture_output=True, text=True)
    with apart(*asked, "-o", tmp_path / "b", "--engine", "ray", "--workers", 1) as child:
        output, said = child.communicate(timeout=300)
    assert (here.returncode, child.returncode, output) == (1, 1, "")
    assert said.splitlines()[-1] == here.stderr.splitlines()[-1] and "too large for float16" in said
    assert "Traceback" not in said


def test_a_cluster_that_is_not_there_is_refused(apart: Any, bundle_of: BundleOf, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", make_x(20))
    asked = [COMMAND, "extract", bundle_of("mutual"), "--activations", tmp_path / "x.npy", "-o", tmp_path / "f"]
    with apart(*asked, "--engine", "ray", "--address", "127.0.0.1:6399") as child:
        _, said = child.communicate(timeout=120)
    assert child.returncode == 1 and said.startswith("error: there is no Ray cluster at 127.0.0.1:6399")


def test_ctrl_c_ends_all_processes_and_the_run_goes_on_later(
    apart: Any, given: tuple[Path, Path], tmp_path: Path
) -> None:
    model, text = given
    text.write_text("\n\n".join(long_words(2_000)))  # some parts by the command's own size
    out = tmp_path / "f"
    asked = [COMMAND, "extract", model, "--text", text, "-o", out, "--quiet"]
    with apart(*asked, "--engine", "ray", "--workers", 2) as child:
        end = time.monotonic() + 240
        while not list(out.glob("tokens/part-*")) and child.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
        _, said = child.communicate(timeout=120)
    assert child.returncode not in (0, 1) and "Traceback" not in said and f"{out} is kept" in said
    assert not (out / INDEX).exists()
    subprocess.run(list(map(str, asked)), check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*map(str, asked[:-2]), tmp_path / "alone", "--quiet"], check=True, stdout=subprocess.DEVNULL)
    assert bytes_of(out) == bytes_of(tmp_path / "alone")
