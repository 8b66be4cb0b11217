"""The state of a run on disk, from which it continues bit for bit: tensors as safetensors, all else as JSON."""

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from sae_runtime.bundle import files
from sae_runtime.bundle.quota import Quota
from sae_runtime.bundle.siblings import lock, repaired
from sae_runtime.bundle.tensors import save_tensors
from sae_runtime.bundle.typed_json import from_dict, read_file
from sae_runtime.train.batches import Batches, Place
from sae_runtime.train.trainer import Trainer

_VERSION = 4
_TENSORS, _STATE = "state.safetensors", "state.json"


class RunStateLeft(UserWarning):
    """The state of a finished run could not be removed."""


@dataclass(frozen=True)
class _Numbers:
    """Everything but tensors that a trainer's step reads and writes."""

    config: Mapping[str, Any]
    quota: Quota | None
    quota_r_squared: float | None
    density_weight: float
    random: Mapping[str, Any]
    nearly_equal: float | None


@dataclass(frozen=True)
class _State:
    """The contents of state.json."""

    version: int
    source: Mapping[str, Any]
    processes: int
    step: int
    place: Place
    runs: Mapping[str, _Numbers]


@dataclass
class Keeper:
    """Keeps the state of a run in a folder. Without a folder it keeps nothing.

    Attributes:
        path: the folder, or None.
        seconds: the time between two writes.
        trainers: those of the run, by the names of the SAEs.
        batches: the batches that all trainers share.
        processes: the number of processes that share every batch.
    """

    path: Path | None
    seconds: float
    trainers: Mapping[str, Trainer]
    batches: Batches
    processes: int = 1
    _saved_at: float = field(default_factory=time.monotonic, init=False)
    _saved_step: int | None = field(default=None, init=False)

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Add to the error of a step in the block which run state is left.

        Raises:
            ValueError: the step raised it.
        """
        try:
            yield
        except ValueError as error:
            if self.path is None or self._saved_step is None:
                raise
            raise ValueError(f"{error}; the run state of step {self._saved_step} is kept in {self.path}") from error

    def begin(self) -> None:
        """Write the state of a run that has not begun, unless there is one: the other files of the run belong to it."""
        if self._saved_step is None:
            self.save()

    def save_if_due(self) -> None:
        """Write the run state if the last write is long enough ago."""
        if time.monotonic() - self._saved_at >= self.seconds:
            self.save()

    def save(self) -> None:
        """Replace the run state. A crash leaves either the old or the new one, whole."""
        if self.path is None:
            return
        state = self._state()
        with files.new_folder(self.path, force=True, foreign=foreign) as folder:
            if state.step:  # the state of a run that has not begun is told by its settings
                arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
                save_tensors(folder / _TENSORS, arrays)
            (folder / _STATE).write_text(json.dumps(asdict(state), indent=2) + "\n")
        self._saved_at, self._saved_step = time.monotonic(), state.step

    def restore(self) -> None:
        """Continue from the run state; without one the run stays at its start.

        Raises:
            ValueError: the run state is damaged, of another version, or of another run; the message names the
                difference.
        """
        if self.path is None:
            raise ValueError("there is no run state to resume from; name its folder")
        if not repaired(self.path).exists():
            return
        old, new = _read(self.path), self._state()
        _refuse_other(self.path, "", _shape(old), _shape(new))
        _refuse_other(self.path, "activations ", old.source, new.source)
        for name, numbers in old.runs.items():
            _refuse_other(self.path, "config ", numbers.config, new.runs[name].config)
        self._saved_step = old.step
        if not old.step:  # the state of `begin`
            return
        for name, trainer in self.trainers.items():
            trainer.step_number = old.step
            _resume(trainer, old.runs[name])
        self._fill_tensors(self.path)
        self.batches.place = old.place

    def remove(self) -> None:
        """Delete the run state, if there is one.

        Raises:
            FileExistsError: the folder holds other files.
        """
        if self.path is None or not os.path.lexists(self.path):
            return
        if not self.path.is_dir() or foreign(self.path) is not None:
            raise FileExistsError(f"{self.path} is no run state, so it is not replaced; name another --run-state")
        files.remove_folder(self.path)

    def remove_finished(self) -> None:
        """Delete the run state of a finished run; what hinders that is a warning, since the bundle is written."""
        try:
            self.remove()
        except OSError as error:
            warnings.warn(
                f"the run is finished, and its run state {self.path} could not be removed ({error}); remove it by hand",
                RunStateLeft,
                stacklevel=2,
            )

    def _state(self) -> _State:
        return _State(
            version=_VERSION,
            source=self.batches.source.identity,
            processes=self.processes,
            step=next(iter(self.trainers.values())).step_number,
            place=self.batches.place,
            runs={name: _numbers(trainer) for name, trainer in self.trainers.items()},
        )

    @torch.no_grad()
    def _fill_tensors(self, path: Path) -> None:
        """Copy the tensors one by one, so that memory holds no second copy of the run."""
        try:
            with safetensors.safe_open(path / _TENSORS, "pt") as loaded:
                for name, tensor in self._tensors().items():
                    tensor.copy_(loaded.get_tensor(name))
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            raise ValueError(f"the run state {path} is damaged ({error}); start over with --force") from error

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors that a step reads and writes, by the names of SAE and tensor."""
        return {f"{sae}/{name}": t for sae, trainer in self.trainers.items() for name, t in _tensors(trainer).items()}


@contextmanager
def only_run(path: Path | None) -> Iterator[None]:
    """Keep other runs from the run state at `path` while the block runs; the kernel frees the lock if this one dies.

    Raises:
        ValueError: another run uses it now.
    """
    if path is None:
        yield
        return
    file = path.with_name(f".{path.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with lock(file) as locked:
        if locked is False:
            raise ValueError(f"another run uses the run state {path} now; wait for it, or name another --run-state")
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def foreign(folder: Path) -> str | None:
    """The name of an entry of a folder that is not of a run state, or None.

    >>> Path("run").mkdir()
    >>> foreign(Path("run"))
    """
    return next((path.name for path in sorted(folder.iterdir()) if path.name not in (_TENSORS, _STATE)), None)


def _read(path: Path) -> _State:
    try:
        values = read_file(dict[str, Any], path / _STATE, _STATE)
        version = values.get("version")
        if version == _VERSION:
            state: _State = from_dict(_State, values, _STATE)
            return state
    except (OSError, ValueError) as error:
        raise ValueError(f"the run state {path} is damaged ({error}); start over with --force") from error
    raise ValueError(f"the run state {path} has version {version}, expected {_VERSION}; start over with --force")


def _shape(state: _State) -> dict[str, Any]:
    """How many processes work on which SAEs."""
    return {"processes": state.processes, "SAEs": list(state.runs)}


def _refuse_other(path: Path, kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ValueError at the first setting of the run state that this run has otherwise."""
    new = json.loads(json.dumps(new))
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            raise ValueError(
                f"the run state {path} is of a run with {kind}{name} {old.get(name)!r}, this one has "
                f"{new.get(name)!r}; repeat that run's settings, or start over with --force"
            )


def _numbers(trainer: Trainer) -> _Numbers:
    return _Numbers(
        config=asdict(trainer.config),
        quota=trainer.quota,
        quota_r_squared=trainer.quota_r_squared,
        density_weight=trainer.tracker.weight,
        random=trainer.rng.bit_generator.state,
        nearly_equal=trainer.nearly_equal,
    )


def _resume(trainer: Trainer, numbers: _Numbers) -> None:
    """Give a trainer the numbers of a run state, and room for its tensors."""
    trainer.quota, trainer.quota_r_squared = numbers.quota, numbers.quota_r_squared
    trainer.tracker.weight = numbers.density_weight
    trainer.rng.bit_generator.state = dict(numbers.random)
    trainer.nearly_equal = numbers.nearly_equal
    trainer.start_moments()


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    for name, parameter in trainer.model.named_parameters():
        for moment, tensor in trainer.optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{moment}"] = tensor
    tracker = trainer.tracker
    return tensors | {"density": tracker.average, "silent_tokens": tracker.silent_tokens, "expected": trainer.expected}
