"""The state of a run on disk, from which it continues bit for bit: tensors as safetensors, all else as JSON."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from sae_runtime.bundle import files
from sae_runtime.bundle.quota import Quota
from sae_runtime.bundle.tensors import save_tensors
from sae_runtime.train.batches import Batches, Place
from sae_runtime.train.trainer import Trainer

_VERSION = 4
_TENSORS, _STATE = "state.safetensors", "state.json"
_FIELDS = {"source", "processes", "step", "place", "runs"}
_OF_RUN = {"config", "quota", "quota_r_squared", "density_weight", "random", "nearly_equal"}


class Keeper:
    """Keeps the state of a run in a folder, or nowhere if there is no folder.

    A run fits one SAE or several, by name, on the same batches.
    """

    def __init__(
        self,
        path: Path | None,
        seconds: float,
        trainers: Mapping[str, Trainer],
        batches: Batches,
        *,
        processes: int = 1,
    ) -> None:
        self._path = path
        self._seconds = seconds
        self._trainers = trainers
        self._batches = batches
        self._processes = processes
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Add to the error of a step in the block which run state is left.

        Raises:
            ValueError: the step raised it.
        """
        try:
            yield
        except ValueError as error:
            if self._path is None or self._saved_step is None:
                raise
            raise ValueError(f"{error}; the run state of step {self._saved_step} is kept in {self._path}") from error

    def save_if_due(self) -> None:
        """Write the run state if the last write is long enough ago."""
        if time.monotonic() - self._saved_at >= self._seconds:
            self.save()

    def save(self) -> None:
        """Replace the run state. A crash leaves either the old or the new one, whole."""
        if self._path is None:
            return
        step = next(iter(self._trainers.values())).step_number
        state = {
            "version": _VERSION,
            "source": self._batches.source.identity,
            "processes": self._processes,
            "step": step,
            "place": asdict(self._batches.place),
            "runs": {name: _numbers(trainer) for name, trainer in self._trainers.items()},
        }
        with files.new_folder(self._path, force=True) as folder:
            arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
            save_tensors(folder / _TENSORS, arrays)
            (folder / _STATE).write_text(json.dumps(state, indent=2) + "\n")
        self._saved_at, self._saved_step = time.monotonic(), step

    def restore(self) -> None:
        """Continue from the run state; without one the run stays at its start.

        Raises:
            ValueError: the run state is damaged, of another version, or of another run; the message names what differs.
        """
        if self._path is None:
            raise ValueError("there is no run state to resume from; name its folder")
        files.repair(self._path)
        if not self._path.exists():
            return
        state = self._read()
        self._refuse_other("activations", state["source"], self._batches.source.identity)
        if state["processes"] != self._processes:
            raise ValueError(
                f"the run state {self._path} is of {state['processes']} processes, these are {self._processes}; start "
                "as many, or start over with --force"
            )
        if list(state["runs"]) != list(self._trainers):
            then, now = ", ".join(state["runs"]), ", ".join(self._trainers)
            raise ValueError(
                f"the run state {self._path} is of a run that fits {then}, this one fits {now}; repeat that run's "
                "settings, or start over with --force"
            )
        for name, trainer in self._trainers.items():
            self._refuse_other("config", state["runs"][name]["config"], asdict(trainer.config))
        for name, trainer in self._trainers.items():
            trainer.step_number = state["step"]
            _set_numbers(trainer, state["runs"][name])
            trainer.start_moments()
        self._fill_tensors()
        self._batches.place = Place(**state["place"])
        self._saved_step = state["step"]

    def remove(self) -> None:
        """Delete the run state, if there is one.

        Raises:
            FileExistsError: the path holds something else.
        """
        if self._path is None or not self._path.exists():
            return
        if not self._path.is_dir() or not {path.name for path in self._path.iterdir()} <= {_TENSORS, _STATE}:
            raise FileExistsError(f"{self._path} is no run state, so it is not replaced; name another --run-state")
        shutil.rmtree(self._path)

    def _read(self) -> dict[str, Any]:
        assert self._path is not None
        try:
            state: dict[str, Any] = json.loads((self._path / _STATE).read_text())
            version = state["version"]
            if version == _VERSION and not (
                _FIELDS <= set(state) and all(_OF_RUN <= set(r) for r in state["runs"].values())
            ):
                raise ValueError("fields are missing")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the run state {self._path} is damaged ({error}); start over with --force") from error
        if version != _VERSION:
            raise ValueError(f"the run state {self._path} has version {version}, expected {_VERSION}; start over")
        return state

    @torch.no_grad()
    def _fill_tensors(self) -> None:
        """Copy the tensors one by one, so that memory holds no second copy of the run."""
        assert self._path is not None
        try:
            with safetensors.safe_open(self._path / _TENSORS, "pt") as loaded:
                for name, tensor in self._tensors().items():
                    tensor.copy_(loaded.get_tensor(name))
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            raise ValueError(f"the run state {self._path} is damaged ({error}); start over with --force") from error

    def _refuse_other(self, what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(now))
        for name in {**then, **now}:
            if then.get(name) != now.get(name):
                raise ValueError(
                    f"the run state {self._path} is of a run with {what} {name} {then.get(name)!r}, this one has "
                    f"{now.get(name)!r}; repeat that run's settings, or start over with --force"
                )

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": tensor
            for name, trainer in self._trainers.items()
            for key, tensor in _tensors(trainer).items()
        }


def _numbers(trainer: Trainer) -> dict[str, Any]:
    """Everything but tensors that a step reads and writes, as JSON."""
    return {
        "config": asdict(trainer.config),
        "quota": None if trainer.quota is None else asdict(trainer.quota),
        "quota_r_squared": trainer.quota_r_squared,
        "density_weight": trainer.tracker.weight,
        "random": trainer.rng.bit_generator.state,
        "nearly_equal": trainer.nearly_equal,
    }


def _set_numbers(trainer: Trainer, numbers: Mapping[str, Any]) -> None:
    trainer.quota = None if numbers["quota"] is None else Quota(**numbers["quota"])
    trainer.quota_r_squared = numbers["quota_r_squared"]
    trainer.tracker.weight = numbers["density_weight"]
    trainer.rng.bit_generator.state = numbers["random"]
    trainer.nearly_equal = numbers["nearly_equal"]


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    """All tensors that a step reads and writes, by name."""
    tensors: dict[str, Tensor] = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    for name, parameter in trainer.model.named_parameters():
        for moment, tensor in trainer.optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{moment}"] = tensor
    tracker = trainer.tracker
    return tensors | {
        "density": tracker.average,
        "silent_tokens": tracker.silent_tokens,
        "expected": trainer.expected,
    }
