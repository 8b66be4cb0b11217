"""What a run writes beside its bundles, and what may stand in its way."""

from pathlib import Path
from typing import TypedDict

from sae_runtime import files


class Options(TypedDict, total=False):
    """What a run writes beside its bundles, and what it shows; nothing unless it is asked for.

    | option               | what it is                                                                              |
    |----------------------|-----------------------------------------------------------------------------------------|
    | `metrics`            | a file for one JSON line every ten steps (for each SAE of several, named by its "sae")  |
    | `tensorboard`        | a folder for the same as TensorBoard's events (of several, a folder for each)           |
    | `checkpoint`         | a folder for the state of the run, removed when the bundle stands                       |
    | `checkpoint_seconds` | how often that is written [300]                                                         |
    | `resume`             | go on from the checkpoint, or start where there is none                                 |
    | `progress`           | show a progress bar on stderr, where that is a terminal (of several, it shows the worst) |

    None of the paths lies inside the bundle. From the checkpoint a run goes on after a crash, bit for bit on the same
    machine with the same threads and versions.
    """

    metrics: Path | None
    tensorboard: Path | None
    checkpoint: Path | None
    checkpoint_seconds: float
    resume: bool
    progress: bool


def check_outputs(out: Path, options: Options, *, force: bool) -> None:
    """Raise before any work where something stands in the way of what will be written.

    Raises:
        FileExistsError: `out` or what is written beside it exists, and is not to be replaced or gone on with.
        ValueError: what is written beside `out` would lie in it, the metrics are a folder, or TensorBoard's a file.
    """
    files.check_free(out, force=force)
    metrics = options.get("metrics")
    if metrics is not None and metrics.is_dir():
        raise ValueError(f"the metrics {metrics} are a folder; name a file in it")
    events = options.get("tensorboard")
    if events is not None and (events.is_file() or (metrics is not None and events.resolve() == metrics.resolve())):
        raise ValueError(f"TensorBoard's events need a folder of their own, {events} is a file; name another place")
    for path in filter(None, (metrics, options.get("tensorboard"), options.get("checkpoint"))):
        if out.resolve() in (path.resolve(), *path.resolve().parents):
            raise ValueError(f"{path} would lie inside the bundle {out}; name another place")
        if path.exists() and not (force or options.get("resume")):
            raise FileExistsError(f"{path} already exists; go on with --resume, or start over with --force")
        files.check_free(path, force=True)
