"""Reports of a run in progress: a progress bar, lines of JSON, and TensorBoard events."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sae_runtime.bundle.disk_errors import naming
from sae_runtime.bundle.files import new_file
from sae_runtime.bundle.typed_json import read_json, to_text
from sae_runtime.core.progress import progress_bar
from sae_runtime.train.run_options import Options
from sae_runtime.train.trainer import StepStats, Trainer

_EVERY = 10  # steps

Stats = Mapping[str, StepStats]
Report = Callable[[Stats], None]


@contextmanager
def reported(trainers: Mapping[str, Trainer], options: Options) -> Iterator[Report]:
    """A function that takes the stats of each step, by SAE, and reports every tenth step and the last one.

    The bar shows tokens a second. For several SAEs it shows the worst FVU and the largest share of dead features.
    A resumed run keeps the metrics up to the trainers' step and replaces those of later steps.

    Args:
        trainers: those of the run, by the names of the SAEs; all are at the same step.
        options: the `metrics` and `tensorboard` to write, and whether to show the bar (`progress`).
    """
    first = next(iter(trainers.values()))
    size, steps = first.config.batch, first.recipe.steps
    metrics, tensorboard = options.get("metrics"), options.get("tensorboard")
    with ExitStack() as stack:
        writers: list[Report] = []
        if metrics is not None:
            writers.append(_lines(first, metrics, stack))
        if tensorboard is not None:
            writers.append(_events(trainers, tensorboard, stack))
        shown = bool(options.get("progress"))
        bar = stack.enter_context(progress_bar(steps * size, "tokens", shown=shown, initial=first.step_number * size))
        what = f"{first.config.allocation} choice" if len(trainers) == 1 else f"worst of {len(trainers)}"
        bar.set_description(what, refresh=False)

        def report(stats: Stats) -> None:
            if first.step_number % _EVERY == 0 or first.step_number == steps:
                bar.set_postfix(_shown(stats), refresh=False)
                for write in writers:
                    write(stats)
            bar.update(size)

        yield report


def _shown(stats: Stats) -> dict[str, str]:
    shown = {"FVU": f"{max(s.fvu for s in stats.values()):.4f}"}
    if len(stats) == 1:
        shown["L0"] = f"{next(iter(stats.values())).l0:.1f}"
    return shown | {"dead": f"{max(s.dead for s in stats.values()):.2%}"}


def _lines(first: Trainer, path: Path, stack: ExitStack) -> Report:
    """Writes a line for each SAE."""
    kept = _lines_until(path, first.step_number) if first.step_number else []
    with new_file(path, force=True) as partial:  # a new file, since another name of the old one may be kept
        partial.write_text("".join(kept))
    file = stack.enter_context(path.open("a", buffering=1))

    def write(stats: Stats) -> None:
        now = {"step": first.step_number, "tokens": first.step_number * first.config.batch}
        for name, values in stats.items():
            sae = {"sae": name} if len(stats) > 1 else {}
            with naming(path):
                file.write(to_text(sae | now | asdict(values)) + "\n")

    return write


def _lines_until(metrics: Path, step: int) -> list[str]:
    kept = []
    for line in metrics.read_text().splitlines(keepends=True) if metrics.exists() else []:
        try:
            if read_json(dict[str, Any], line, "line")["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # a killed run left a part of a line
            continue
    return kept


def _events(trainers: Mapping[str, Trainer], folder: Path, stack: ExitStack) -> Report:
    """Writes a curve for each field of StepStats and for tokens a second. Several SAEs have a folder each."""
    from torch.utils.tensorboard import SummaryWriter

    first = next(iter(trainers.values()))
    last_time, last_step = time.monotonic(), first.step_number
    curves = {}
    for name in trainers:
        # `purge_step` hides the events of later steps, which a killed run wrote after its last run state.
        path = folder / name if len(trainers) > 1 else folder
        curves[name] = SummaryWriter(str(path), purge_step=first.step_number + 1)
        stack.callback(curves[name].close)

    def write(stats: Stats) -> None:
        nonlocal last_time, last_step
        now, step = time.monotonic(), first.step_number
        speed = (step - last_step) * first.config.batch / max(now - last_time, 1e-9)
        last_time, last_step = now, step
        for name, values in stats.items():
            for field, value in {**asdict(values), "tokens_per_second": speed}.items():
                curves[name].add_scalar(field, value, step)

    return write
