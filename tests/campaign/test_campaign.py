"""The judgements of the campaign. test_long_campaign.py runs each part for some seconds, `make campaign` for long."""

import errno
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import make_x

from campaign import bundles
from campaign.__main__ import parts, row
from campaign.commands import COMMANDS, Bench
from campaign.server import shim
from sae_runtime import load
from sae_runtime.cli import COMMANDS as ALL_COMMANDS

NOT_WRITING = {"inspect", "doctor", "completion", "help", "serve", "push"}
TOO_LONG = {"demo"}  # it calls the others


def test_every_command_that_writes_is_in_the_table() -> None:
    tried = {command.arguments.split()[0] for command in COMMANDS.values()}
    assert tried == set(ALL_COMMANDS) - NOT_WRITING - TOO_LONG


def test_a_command_survives_faults_and_kills_and_what_is_half_written_is_seen(tmp_path: Path) -> None:
    library = shim()
    if library is None:
        pytest.skip("no compiler here")
    with Bench(tmp_path, library, ["steer"]) as bench:
        calls = bench.usual("steer").calls
        assert calls >= 5, "the library counts the calls that change files"
        trials = [bench.attempt("steer", again=False, at=at, signal=int(signal.SIGKILL)) for at in (1, calls)]
        trials += [bench.attempt("steer", again=False, at=2, error=errno.EIO)]
        trials += [bench.attempt("steer", at=2, error=errno.ENOSPC, full=True)]
        trials += [bench.attempt("steer", again=False, at=calls, signal=int(signal.SIGINT))]
        (bench.ready("steer") / "steered.npy").write_bytes(b"half")
        broken = bench.attempt("steer", again=False, at=1, signal=int(signal.SIGKILL))
    assert [trial.complaint for trial in trials if trial.complaint] == []
    assert [trial.ended.code for trial in trials[:4]] == [-signal.SIGKILL, -signal.SIGKILL, 1, 1]
    assert trials[3].outcome == "absent"
    assert broken.outcome == "broken" and broken.complaint


def test_changed_weights_are_judged_by_numpy_and_a_wrong_answer_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "KINDS", {"mutual": 64})
    bundles.prepare(tmp_path)
    changes = [{"file": "sae_weights.safetensors", "do": "number", "tensor": "b_enc", "at": 0.1, "value": "3"}]
    assert bundles.judge({"kind": "mutual", "changes": changes}, tmp_path) == "right"
    changes = [{"file": "stats.safetensors", "do": "number", "tensor": "density", "at": 0.1, "value": "0.5"}]
    assert bundles.judge({"kind": "mutual", "changes": changes}, tmp_path) == "same"
    x = make_x(9)
    sae = load(tmp_path / "mutual")
    answer = bundles._answer(sae, x)
    assert bundles._wrong(tmp_path / "mutual", sae, x, answer) is None
    for name, part in (("features", "encode"), ("decoded", "decode"), ("steered", "steer"), ("batch", "encode_batch")):
        wrong = answer | {name: answer[name] + np.float32(0.01)}
        assert bundles._wrong(tmp_path / "mutual", sae, x, wrong) == part


def test_the_table_has_every_part() -> None:
    assert set(parts()) >= {"bundles", "checkpoints", "faults", "full_disks", "hosts", "kills", "long_runs", "rows"}
    counts = {"tried": 1200, "faults": 0, "same": 1199, "refused": 1}
    assert row("full_disks", counts, 3.2) == "| full disks | 1,200 | 1 refused, 1,199 same | 0 | 3 |"
