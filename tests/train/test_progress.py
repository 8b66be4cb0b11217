import io
import json
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_runtime.train import TrainConfig
from sae_runtime.train.progress import reported
from sae_runtime.train.recipe import derive
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.trainer import StepStats, Trainer


def trainer(k: float = 2.0, done: int = 0) -> Trainer:
    """A run of 30 steps of 8 tokens."""
    config = TrainConfig(k=k, d_sae=16, tokens=240, batch=8)
    model = SparseAutoencoder(16, torch.zeros(4), generator=torch.Generator().manual_seed(0))
    made = Trainer(model, config, derive(config, 4), rng=np.random.default_rng(0))
    made.step_number = done
    return made


def stats(fvu: float) -> StepStats:
    values = dict.fromkeys((field.name for field in fields(StepStats)), 0.25)
    return StepStats(**{**values, "fvu": fvu})


def play(
    trainers: dict[str, Trainer], upto: int, *, metrics: Path | None = None, tensorboard: Path | None = None
) -> None:
    """Report the steps up to one; the FVU is the step's number over a hundred, and 1 more for each further SAE."""
    with reported(trainers, {"metrics": metrics, "tensorboard": tensorboard, "progress": True}) as report:
        for step in range(next(iter(trainers.values())).step_number + 1, upto + 1):
            for one in trainers.values():
                one.step_number = step
            report({name: stats(step / 100 + number) for number, name in enumerate(trainers)})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_tokens_a_second_fvu_l0_and_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.delenv("COLUMNS", raising=False)  # where it is set, tqdm cuts its line
    play({"sae": trainer()}, 30)
    last = stderr.getvalue().split("\r")[-1]
    assert last.startswith("mutual choice: 100%") and "tokens/s" in last
    assert "FVU=0.3000, L0=0.2, dead=25.00%" in last


def test_the_bar_of_several_saes_shows_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.delenv("COLUMNS", raising=False)  # where it is set, tqdm cuts its line
    play({"a": trainer(), "b": trainer(3.0)}, 30)
    last = stderr.getvalue().split("\r")[-1]
    assert last.startswith("worst of 2: 100%") and "FVU=1.3000, dead=25.00%" in last


def test_metrics_hold_every_field_and_continue_at_the_step_of_a_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "m.jsonl"
    play({"sae": trainer()}, 25, metrics=path)
    with path.open("a") as file:
        file.write('{"step": 2')  # killed while it wrote
    play({"sae": trainer(done=17)}, 30, metrics=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert set(lines[0]) == {"step", "tokens"} | {field.name for field in fields(StepStats)}


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = events.EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_shows_every_field_and_no_step_twice(tmp_path: Path) -> None:
    play({"sae": trainer()}, 25, tensorboard=tmp_path)
    play({"sae": trainer(done=17)}, 30, tensorboard=tmp_path)
    shown = curves(tmp_path)
    assert set(shown) == {field.name for field in fields(StepStats)} | {"tokens_per_second"}
    assert [step for step, _ in shown["fvu"]] == [10, 20, 30]
    assert [value for _, value in shown["fvu"]] == pytest.approx([0.1, 0.2, 0.3])
    assert all(value > 0 for _, value in shown["tokens_per_second"])


def test_tensorboard_has_a_folder_for_each_of_several_saes(tmp_path: Path) -> None:
    play({"a": trainer(), "b": trainer()}, 10, tensorboard=tmp_path)
    ((_, first),) = curves(tmp_path / "a")["fvu"]
    ((_, second),) = curves(tmp_path / "b")["fvu"]
    assert [first, second] == pytest.approx([0.1, 1.1])
