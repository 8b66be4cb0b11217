import errno
import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from processes import command_line, started

from sae_runtime.activations.stored import Activations, Shard
from sae_runtime.bundle import files
from sae_runtime.bundle import folder as bundle
from sae_runtime.train import TrainConfig, fit, fit_many
from sae_runtime.train.held_out import split
from sae_runtime.train.run import Data
from sae_runtime.train.run_state import RunStateLeft
from sae_runtime.train.stored_rows import StoredRows
from sae_runtime.train.trainer import StepStats, Trainer


def activations() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((3000, 12)) * rng.uniform(0.5, 2, 12)).astype(np.float32)


def config(**changes: Any) -> TrainConfig:
    settings = {"allocation": "feature", "k": 3.0, "d_sae": 40, "tokens": 128 * 60, "batch": 128}
    return TrainConfig(**{**settings, **changes})


class Stopped(Exception):
    pass


def stop_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """Make the run die before its step number `steps`."""
    step = Trainer.step

    def dying(self: Trainer, x: Any) -> StepStats:
        if self.step_number == steps:
            raise Stopped
        return step(self, x)

    patch.setattr(Trainer, "step", dying)


# A pool holds 5 of the 43 blocks of rows, so that a run of 60 batches goes through 26 pools in three passes.
SMALL_POOL = 5 * 64


def pooled(rows: int) -> StoredRows:
    """The source that `fit` makes of the activations, with a pool of `rows` rows."""
    array = Activations(Path("array"), [Shard(activations())])
    return StoredRows(array, split(array, 0.1, 0), rows)


def begun(tmp_path: Path, steps: int, data: Data | None = None) -> Path:
    data = activations() if data is None else data
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_after(steps, patch)
        fit(data, tmp_path / "sae", config(), run_state=tmp_path / "run", run_state_seconds=0)
    return tmp_path / "run"


# Before, at and after the step (24 of 60) at which feature choice ranks and renumbers the features.
# Step 25 with all rows in one pool.
@pytest.mark.parametrize(
    ("steps", "pool"), [(1, SMALL_POOL), (23, SMALL_POOL), (24, SMALL_POOL), (25, 10**6), (59, SMALL_POOL)]
)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, steps: int, pool: int) -> None:
    fit(pooled(pool), tmp_path / "whole", config(), metrics=tmp_path / "whole.jsonl")
    run = begun(tmp_path, steps, pooled(pool))
    again = tmp_path / "sae"
    assert not again.exists()
    fit(pooled(pool), again, config(), run_state=run, resume=True)
    assert (again / bundle.WEIGHTS).read_bytes() == (tmp_path / "whole" / bundle.WEIGHTS).read_bytes()
    assert bundle.read(again).manifest.measured == bundle.read(tmp_path / "whole").manifest.measured
    assert not run.exists(), "the run state is removed when the bundle is written"


def test_a_killed_run_that_is_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    # Rows so wide that a pool of one MiB holds 5 of their 43 blocks.
    np.save(tmp_path / "x.npy", np.tile(activations(), 64))
    command = ["train", "--activations", "x.npy", "--allocation", "feature", "--pool", "1", "-o", "sae"]
    command += ["--k", "3", "--d-sae", "40", "--tokens", "12800", "--batch", "128", "--run-state-seconds", "0"]
    command += ["--metrics", "m.jsonl", "--resume"]

    def saved_step() -> int:
        try:
            return int(json.loads((tmp_path / "sae.run-state" / "state.json").read_text())["step"])
        except FileNotFoundError:  # before the first, or between the two renames of a replacement
            return 0

    process = started(tmp_path, command_line, *command)
    deadline = time.monotonic() + 60
    while process.is_alive() and saved_step() < 30 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    last = started(tmp_path, command_line, *command)
    last.join(120)
    assert last.exitcode == 0 and tmp_path.with_name(f"{tmp_path.name}.stderr").read_text() == ""
    run = config(allocation="feature", k=3.0, d_sae=40, tokens=12800, batch=128, pool=1)
    fit(tmp_path / "x.npy", tmp_path / "whole", run)
    assert (tmp_path / "sae" / bundle.WEIGHTS).read_bytes() == (tmp_path / "whole" / bundle.WEIGHTS).read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 100
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"x.npy", "sae", "whole", "m.jsonl"}


def test_resume_refuses_the_run_state_of_another_run(tmp_path: Path) -> None:
    run = begun(tmp_path, 5)
    with pytest.raises(ValueError, match=r"is of a run with config k 3\.0, this one has 2\.0; repeat"):
        fit(activations(), tmp_path / "sae", config(k=2.0), run_state=run, resume=True)
    with pytest.raises(ValueError, match=r"is of a run with activations rows 3000, this one has 2900; repeat"):
        fit(activations()[:2900], tmp_path / "sae", config(), run_state=run, resume=True)
    others = {"fingerprint": np.roll(activations(), 1, axis=0), "model": activations(), "hook": activations()}
    for name, x in others.items():
        names: dict[str, Any] = {} if name == "fingerprint" else {name: "another"}
        source = Activations(Path("array"), [Shard(x)], **names)
        with pytest.raises(ValueError, match=rf"is of a run with activations {name} \S+, this one has '\w+'; repeat"):
            fit(source, tmp_path / "sae", config(), run_state=run, resume=True)
    with pytest.raises(ValueError, match=r"is of a run with SAEs \['sae'\], this one has \['a', 'b'\]; repeat"):
        both = {"a": config(), "b": config(k=2.0)}
        fit_many(activations(), tmp_path / "saes", both, run_state=run, resume=True)
    assert run.exists()


def test_resume_refuses_a_run_state_of_another_version(tmp_path: Path) -> None:
    run = begun(tmp_path, 5)
    state = json.loads((run / "state.json").read_text())
    (run / "state.json").write_text(json.dumps({**state, "version": 1}))
    with pytest.raises(ValueError, match="run has version 1, expected 4; start over"):
        fit(activations(), tmp_path / "sae", config(), run_state=run, resume=True)


def test_a_resumed_run_of_several_saes_ends_with_the_same_bits(tmp_path: Path) -> None:
    configs = {kind: config(allocation=kind) for kind in ("token", "mutual", "feature")}
    fit_many(pooled(SMALL_POOL), tmp_path / "whole", configs, metrics=tmp_path / "whole.jsonl")
    run, metrics = tmp_path / "run", tmp_path / "m.jsonl"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_after(37, patch)
        fit_many(pooled(SMALL_POOL), tmp_path / "saes", configs, run_state=run, run_state_seconds=0, metrics=metrics)
    fit_many(pooled(SMALL_POOL), tmp_path / "saes", configs, run_state=run, resume=True, metrics=metrics)
    for kind in configs:
        whole, again = (tmp_path / name / kind / bundle.WEIGHTS for name in ("whole", "saes"))
        assert whole.read_bytes() == again.read_bytes(), kind
    assert metrics.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_an_existing_run_state_is_replaced_only_by_force(tmp_path: Path) -> None:
    run = begun(tmp_path, 5)
    with pytest.raises(FileExistsError, match="run already exists; go on with --resume, or start over with --force"):
        fit(activations(), tmp_path / "sae", config(), run_state=run)
    fit(activations(), tmp_path / "sae", config(), run_state=run, force=True)
    assert (tmp_path / "sae").exists() and not run.exists()


def test_a_run_state_never_replaces_a_folder_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="run is no run state, so it is not replaced; name another"):
        fit(activations(), tmp_path / "sae", config(), run_state=tmp_path / "run", force=True)
    with pytest.raises(ValueError, match="the run state .*run is damaged"):
        fit(activations(), tmp_path / "sae", config(), run_state=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_resume_without_a_run_state_starts_a_new_run(tmp_path: Path) -> None:
    fit(activations(), tmp_path / "sae", config(tokens=1280), run_state=tmp_path / "run", resume=True)
    assert bundle.read(tmp_path / "sae").manifest.provenance["recipe"]["steps"] == 10
    with pytest.raises(ValueError, match="there is no run state to resume from; name its folder"):
        fit(activations(), tmp_path / "other", config(), resume=True)


@pytest.mark.parametrize("damage", ["state.json", "state.safetensors"])
def test_a_damaged_run_state_is_refused_in_one_sentence(tmp_path: Path, damage: str) -> None:
    run = begun(tmp_path, 5)
    (run / damage).write_bytes((run / damage).read_bytes()[:-9])
    with pytest.raises(ValueError, match="is damaged .*; start over with --force"):
        fit(activations(), tmp_path / "sae", config(), run_state=run, resume=True)


def test_a_loss_that_is_not_finite_keeps_the_last_good_run_state(tmp_path: Path) -> None:
    step = Trainer.step

    def poisoned(self: Trainer, x: Any) -> StepStats:
        return step(self, x * float("nan") if self.step_number == 7 else x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", poisoned)
        message = r"not finite at step 7; .*; the run state of step 7 is kept in .*run"
        with pytest.raises(ValueError, match=message):
            fit(activations(), tmp_path / "sae", config(), run_state=tmp_path / "run", run_state_seconds=0)
    assert json.loads((tmp_path / "run" / "state.json").read_text())["step"] == 7
    fit(activations(), tmp_path / "sae", config(), run_state=tmp_path / "run", resume=True)
    fit(activations(), tmp_path / "whole", config())
    assert (tmp_path / "sae" / bundle.WEIGHTS).read_bytes() == (tmp_path / "whole" / bundle.WEIGHTS).read_bytes()


def test_a_second_run_of_one_run_state_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    state, told = tmp_path / "sae.run-state", list[str]()
    step = Trainer.step

    def meanwhile(self: Trainer, x: Any) -> StepStats:
        if self.step_number == 3 and not told:
            for resume in (True, False):
                with pytest.raises(ValueError) as caught:
                    fit(activations(), tmp_path / "other", config(), run_state=state, resume=resume)
                told.append(str(caught.value))
        return step(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", meanwhile)
        fit(activations(), tmp_path / "sae", config(), run_state=state)
    assert told == [f"another run uses the run state {state} now; wait for it, or name another --run-state"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]
    (tmp_path / f".{state.name}.lock").touch()  # as a killed run leaves it
    fit(activations(), tmp_path / "sae", config(), run_state=state, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_a_run_that_dies_before_its_first_state_owns_its_metrics_still(tmp_path: Path) -> None:
    run, metrics = tmp_path / "run", tmp_path / "m.jsonl"
    beside: dict[str, Any] = {"run_state": run, "metrics": metrics, "resume": True}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_after(17, patch)
        fit(activations(), tmp_path / "sae", config(), **beside)
    assert metrics.read_text() and json.loads((run / "state.json").read_text())["step"] == 0
    fit(activations(), tmp_path / "sae", config(), **beside)
    fit(activations(), tmp_path / "whole", config(), metrics=tmp_path / "whole.jsonl")
    assert metrics.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert (tmp_path / "sae" / bundle.WEIGHTS).read_bytes() == (tmp_path / "whole" / bundle.WEIGHTS).read_bytes()
    before = metrics.read_bytes()
    with pytest.raises(
        FileExistsError, match=r"no run state .*run, so .*m\.jsonl is of another run; name another path"
    ):
        fit(activations(), tmp_path / "other", config(), **beside)
    assert metrics.read_bytes() == before


def test_metrics_leave_other_names_of_their_file_alone(tmp_path: Path) -> None:
    mine, metrics = tmp_path / "mine", tmp_path / "m.jsonl"
    mine.write_text("mine")
    metrics.hardlink_to(mine)
    fit(activations(), tmp_path / "sae", config(tokens=1280), metrics=metrics, force=True)
    assert mine.read_text() == "mine" and len(metrics.read_text().splitlines()) == 1
    metrics.unlink()
    metrics.symlink_to(mine)
    fit(activations(), tmp_path / "sae", config(tokens=1280), metrics=metrics, force=True)
    assert mine.read_text() == "mine" and len(metrics.read_text().splitlines()) == 1


def test_a_run_state_that_cannot_be_removed_does_not_fail_the_finished_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def refuse(path: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied", str(path))

    with (
        monkeypatch.context() as patch,
        pytest.warns(RunStateLeft, match="the run is finished, and its run state .*run"),
    ):
        patch.setattr(files, "remove_folder", refuse)
        fit(activations(), tmp_path / "sae", config(tokens=1280), run_state=run)
    bundle.read(tmp_path / "sae")
    fit(activations(), tmp_path / "again", config(tokens=1280), run_state=run, resume=True)  # it is whole
    assert not run.exists()
    names = (tmp_path / "sae" / bundle.WEIGHTS, tmp_path / "again" / bundle.WEIGHTS)
    assert names[0].read_bytes() == names[1].read_bytes()
