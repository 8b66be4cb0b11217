"""What a run says while it goes: a progress bar and lines of JSON."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from sae_runtime.train.trainer import StepStats, Trainer

_EVERY = 10  # steps


@contextmanager
def reported(trainer: Trainer, metrics: Path | None, progress: bool) -> Iterator[Callable[[StepStats], None]]:
    """Give a function that takes the stats of each step to the progress bar and to the metrics file.

    Of a metrics file that stands there, the lines up to the trainer's step stay: those of the run that goes on.
    """
    config, done = trainer.config, trainer.step_number
    file = None
    if metrics is not None:
        metrics.parent.mkdir(parents=True, exist_ok=True)
        kept = _lines_until(metrics, done) if done else []
        file = metrics.open("w", buffering=1)
        file.writelines(kept)
    bar = tqdm(
        total=trainer.recipe.steps * config.batch,
        initial=done * config.batch,
        unit="tok",
        unit_scale=True,
        disable=None if progress else True,  # None hides it where stderr is no terminal
    )
    bar.set_description(f"{config.allocation} choice")

    def report(stats: StepStats) -> None:
        bar.update(config.batch)
        last = trainer.step_number == trainer.recipe.steps
        if trainer.step_number % _EVERY and not last:
            return
        bar.set_postfix(FVU=f"{stats.fvu:.4f}", L0=f"{stats.l0:.1f}", dead=f"{stats.dead:.2%}")
        if file is not None:
            line = {"step": trainer.step_number, "tokens": trainer.step_number * config.batch}
            file.write(json.dumps(line | dataclasses.asdict(stats)) + "\n")

    try:
        yield report
    finally:
        bar.close()
        if file is not None:
            file.close()


def _lines_until(metrics: Path, step: int) -> list[str]:
    kept = []
    for line in metrics.read_text().splitlines(keepends=True) if metrics.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # the line that a killed run was writing
            continue
    return kept
