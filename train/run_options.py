"""The files that a run writes beside its bundles, and the checks before it writes them."""

import os
from pathlib import Path
from typing import TypedDict

from sae_runtime.bundle import files
from sae_runtime.bundle.extras import require
from sae_runtime.bundle.licences import check_licence
from sae_runtime.bundle.siblings import repaired


class Options(TypedDict, total=False):
    """The files that a run writes beside its bundles, and its progress bar. All are optional.

    | option              | meaning                                                                                    |
    |---------------------|--------------------------------------------------------------------------------------------|
    | `metrics`           | a file for a JSON line every ten steps; several SAEs have a line each, named by its "sae"  |
    | `tensorboard`       | a folder for the same numbers as TensorBoard events; several SAEs have a folder each       |
    | `run_state`         | a folder for the run state, which is removed when the bundle is written                    |
    | `run_state_seconds` | the time between two writes of the run state [300]                                         |
    | `resume`            | continue from the run state, or start if there is none                                     |
    | `progress`          | show the progress on stderr; for several SAEs it shows the worst                           |
    | `licence`           | the licence of the SAEs, for their model cards                                             |

    No path may be inside the bundle. A run continues from its state after a crash, bit for bit on the same machine with
    the same threads and versions.
    """

    metrics: Path | None
    tensorboard: Path | None
    run_state: Path | None
    run_state_seconds: float
    resume: bool
    progress: bool
    licence: str | None


def check_outputs(out: Path, options: Options, *, force: bool, foreign: files.Foreign = files.anything) -> None:
    """Check before any work that a run may write its outputs.

    Args:
        out: the folder of the bundle or bundles.
        options: the other outputs.
        force: whether outputs that exist may be replaced.
        foreign: what of an existing `out` must not be lost.

    >>> check_outputs(Path("sae"), {"metrics": Path("sae/metrics.jsonl")}, force=False)
    Traceback (most recent call last):
    ValueError: sae/metrics.jsonl would be inside the bundle sae; name another path

    Raises:
        FileExistsError: an output exists, and neither `force` nor `resume` allows to replace or continue it; `resume`
            allows nothing where there is no run state.
        ValueError: the licence is no name of one, an output would be inside `out`, the metrics are a folder, or
            TensorBoard's folder is a file.
        ImportError: `tensorboard` is given and not installed.
    """
    if (licence := options.get("licence")) is not None:
        check_licence(licence)
    files.check_free(out, force=force, kind="folder", foreign=foreign)
    metrics, events = options.get("metrics"), options.get("tensorboard")
    if metrics is not None and metrics.is_dir():
        raise ValueError(f"the metrics {metrics} are a folder; name a file in it")
    if events is not None:
        require("tensorboard")
        if events.is_file() or (metrics is not None and events.resolve() == metrics.resolve()):
            raise ValueError(f"TensorBoard's events need a folder of their own, {events} is a file; name another path")
    state, resume = options.get("run_state"), bool(options.get("resume"))
    goes_on = resume and state is not None and os.path.lexists(repaired(state))
    for path in filter(None, (metrics, events, state)):
        if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(out)):
            raise ValueError(f"{path} would be inside the bundle {out}; name another path")
        if os.path.lexists(path) and not (force or goes_on):
            if resume:
                missing = "no run state" if state is None else f"no run state {state}"
                raise FileExistsError(
                    f"there is {missing}, so {path} is of another run; name another path, or start over with --force"
                )
            raise FileExistsError(f"{path} already exists; go on with --resume, or start over with --force")
        kind: files.Kind = "file" if path == metrics else "folder"
        files.check_free(path, force=True, kind=kind, foreign=lambda _: None)  # nothing in a folder is replaced
