"""Reports of a run in progress: a progress bar, lines of JSON, and TensorBoard events."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sae_runtime.core.progress import progress_bar
from sae_runtime.train.trainer import StepStats, Trainer

_EVERY = 10  # steps

Stats = Mapping[str, StepStats]
Report = Callable[[Stats], None]


@contextmanager
def reported(
    trainers: Mapping[str, Trainer], metrics: Path | None, tensorboard: Path | None, progress: bool
) -> Iterator[Report]:
    """A function that passes the stats of each step, by SAE, to the bar, the metrics and TensorBoard.

    A resumed run keeps the metrics up to the trainers' step and replaces those of later steps.
    """
    with ExitStack() as stack:
        reports = [stack.enter_context(_bar(trainers, progress))]
        if metrics is not None:
            reports.append(stack.enter_context(_lines(trainers, metrics)))
        if tensorboard is not None:
            reports.append(stack.enter_context(_events(trainers, tensorboard)))

        def report(stats: Stats) -> None:
            for one in reports:
                one(stats)

        yield report


def _is_due(trainer: Trainer) -> bool:
    return trainer.step_number % _EVERY == 0 or trainer.step_number == trainer.recipe.steps


@contextmanager
def _bar(trainers: Mapping[str, Trainer], progress: bool) -> Iterator[Report]:
    """A bar with tokens a second. For several SAEs it shows the worst FVU and the largest share of dead features."""
    first = next(iter(trainers.values()))
    size = first.config.batch
    with progress_bar(first.recipe.steps * size, "tokens", shown=progress, initial=first.step_number * size) as bar:
        what = f"{first.config.allocation} choice" if len(trainers) == 1 else f"worst of {len(trainers)}"
        bar.set_description(what, refresh=False)

        def report(stats: Stats) -> None:
            if _is_due(first):
                shown = {"FVU": f"{max(s.fvu for s in stats.values()):.4f}"}
                if len(stats) == 1:
                    shown["L0"] = f"{next(iter(stats.values())).l0:.1f}"
                shown["dead"] = f"{max(s.dead for s in stats.values()):.2%}"
                bar.set_postfix(shown, refresh=False)
            bar.update(size)

        yield report


@contextmanager
def _lines(trainers: Mapping[str, Trainer], path: Path) -> Iterator[Report]:
    first = next(iter(trainers.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = _lines_until(path, first.step_number) if first.step_number else []
    with path.open("w", buffering=1) as file:
        file.writelines(kept)

        def report(stats: Stats) -> None:
            if _is_due(first):
                now = {"step": first.step_number, "tokens": first.step_number * first.config.batch}
                for name, values in stats.items():
                    of = {"sae": name} if len(stats) > 1 else {}
                    file.write(json.dumps(of | now | asdict(values)) + "\n")

        yield report


def _lines_until(metrics: Path, step: int) -> list[str]:
    kept = []
    for line in metrics.read_text().splitlines(keepends=True) if metrics.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # a killed run left a part of a line
            continue
    return kept


@contextmanager
def _events(trainers: Mapping[str, Trainer], folder: Path) -> Iterator[Report]:
    """A curve for each field of StepStats and for tokens a second. Several SAEs have a folder each."""
    from torch.utils.tensorboard import SummaryWriter

    first = next(iter(trainers.values()))
    with ExitStack() as stack:
        writers: dict[str, Any] = {}
        for name in trainers:
            # Hides the events of later steps, which an earlier run wrote, or a killed one after its last run state.
            writer = SummaryWriter(
                str(folder / name if len(trainers) > 1 else folder), purge_step=first.step_number + 1
            )
            stack.callback(writer.close)
            writers[name] = writer
        last_time, last_step = time.monotonic(), first.step_number

        def report(stats: Stats) -> None:
            nonlocal last_time, last_step
            if not _is_due(first):
                return
            now, step = time.monotonic(), first.step_number
            speed = (step - last_step) * first.config.batch / max(now - last_time, 1e-9)
            last_time, last_step = now, step
            for name, values in stats.items():
                for field, value in {**asdict(values), "tokens_per_second": speed}.items():
                    writers[name].add_scalar(field, value, step)

        yield report
