"""The server's application under the real Ray Serve: answers of the library alone, and a worker that is killed.

Ray listens on every address and writes into the home folder. So it runs in a network of its own that has only the
loopback, with a home of its own. `make ray` installs it; without it, or where no network may be made, this skips.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from word_model import deploy_words

RAY = Path(sys.prefix) / "ray"
APART = ["unshare", "-n", "bash", "-c", 'ip link set lo up && exec "$@"', "-"]
SCRIPT = Path(__file__).with_name("ray_serve_runs.py")


def _is_possible() -> bool:
    if not (RAY / "fastapi").is_dir() or shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*APART, "true"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(not _is_possible(), reason="make ray installs it; a network apart needs root"),
]


def test_ray_serve_answers_and_survives_a_killed_worker(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    bundle = bundle_of("mutual")
    model = deploy_words(tmp_path / "words", bundle)
    (tmp_path / "home").mkdir()
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # the paths of Ray's sockets must be short
        settings = {"HOME": str(tmp_path / "home"), "RAY_TMPDIR": short, "PYTHONPATH": str(RAY)}
        done = subprocess.run(
            [*APART, sys.executable, str(SCRIPT), str(bundle), str(model)],
            env=os.environ | settings | {"RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            timeout=300,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    assert lines, done.stdout[-3000:] + done.stderr[-6000:]
    seen = json.loads(lines[0].removeprefix("SEEN "))
    assert seen["ready"] == 200 and seen["right"]
    code, features = seen["features"]
    assert code == 200, features
    assert seen["edits"] == [200, 400, 400] and len(seen["refused"]) == 4, seen
    assert seen["wrong"] == [400, 413, 404]
    assert seen["replaced"] == 1 and seen["wrong_bits"] == 0 and seen["failed_afterwards"] == 0, seen
    # A request that the killed worker held may fail; callers see nothing else of it.
    assert seen["failed"] <= 8 < seen["asked"], seen
