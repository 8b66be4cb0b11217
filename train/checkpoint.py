"""A run on disk, from which it goes on bit for bit: tensors as safetensors, the rest as JSON, nothing pickled."""

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from sae_runtime import files
from sae_runtime.quota import Quota
from sae_runtime.tensors import save_tensors
from sae_runtime.train.data import Batches
from sae_runtime.train.trainer import StepStats, Trainer

_VERSION = 1
_TENSORS, _STATE = "state.safetensors", "state.json"


class Keeper:
    """Keeps the checkpoint of a run in a folder, or nothing where there is no folder."""

    def __init__(self, path: Path | None, seconds: float, trainer: Trainer, stream: Batches) -> None:
        self._path = path
        self._seconds = seconds
        self._trainer = trainer
        self._stream = stream
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None

    def guarded(self, x: Tensor) -> StepStats:
        """Take a step; where it fails, say which checkpoint is left.

        Raises:
            ValueError: the loss is not finite.
        """
        try:
            return self._trainer.step(x)
        except ValueError as error:
            if self._path is None or self._saved_step is None:
                raise
            raise ValueError(f"{error}; the checkpoint of step {self._saved_step} is kept in {self._path}") from error

    def save_if_due(self) -> None:
        """Write the checkpoint if the last one is older than it should be."""
        if time.monotonic() - self._saved_at >= self._seconds:
            self.save()

    def save(self) -> None:
        """Write the checkpoint in place of the one before; a crash leaves one of the two."""
        if self._path is None:
            return
        trainer = self._trainer
        state = {
            "version": _VERSION,
            "source": self._stream.source,
            "config": asdict(trainer.config),
            "step": trainer.step_number,
            "quota": None if trainer.quota is None else asdict(trainer.quota),
            "quota_r_squared": trainer.quota_r_squared,
            "density_weight": trainer.tracker.weight,
            "random": trainer.rng.bit_generator.state,
        }
        with files.new_folder(self._path, force=True) as folder:
            arrays = {name: tensor.cpu().numpy() for name, tensor in _tensors(trainer).items()}
            save_tensors(folder / _TENSORS, {**arrays, "left": self._stream.left})
            (folder / _STATE).write_text(json.dumps(state, indent=2) + "\n")
        self._saved_at, self._saved_step = time.monotonic(), trainer.step_number

    def restore(self) -> None:
        """Bring the run to where the checkpoint was taken; leave it at its start where there is none.

        Raises:
            ValueError: the checkpoint is of another run (names what differs), of another version, or damaged.
        """
        if self._path is None:
            raise ValueError("there is no checkpoint to resume from; name its folder")
        files.repair(self._path)
        if not self._path.exists():
            return
        trainer = self._trainer
        state, loaded = self._read()
        if state["version"] != _VERSION:
            raise ValueError(
                f"the checkpoint {self._path} has version {state['version']}, expected {_VERSION}; start over"
            )
        self._refuse_other("config", state["config"], json.loads(json.dumps(asdict(trainer.config))))
        self._refuse_other("activations", state["source"], self._stream.source)
        trainer.step_number = self._saved_step = state["step"]
        trainer.quota = None if state["quota"] is None else Quota(**state["quota"])
        trainer.quota_r_squared = state["quota_r_squared"]
        trainer.tracker.weight = state["density_weight"]
        trainer.rng.bit_generator.state = state["random"]
        self._stream.left = loaded["left"].numpy()
        trainer.start_moments()
        with torch.no_grad():
            for name, tensor in _tensors(trainer).items():
                tensor.copy_(loaded[name])

    def remove(self) -> None:
        """Delete the checkpoint, if there is one.

        Raises:
            FileExistsError: something else stands there.
        """
        if self._path is None or not self._path.exists():
            return
        if not self._path.is_dir() or not {path.name for path in self._path.iterdir()} <= {_TENSORS, _STATE}:
            raise FileExistsError(f"{self._path} is no checkpoint, so it is not replaced; name another --checkpoint")
        shutil.rmtree(self._path)

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self._path is not None
        try:
            state = json.loads((self._path / _STATE).read_text())
            loaded = safetensors.torch.load_file(self._path / _TENSORS)
            if not {"version", "config", "source", "step"} <= set(state):
                raise ValueError("fields are missing")
        except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
            raise ValueError(f"the checkpoint {self._path} is damaged ({error}); start over with --force") from error
        return state, loaded

    def _refuse_other(self, what: str, then: dict[str, Any], now: dict[str, Any]) -> None:
        for name in {**then, **now}:
            if then.get(name) != now.get(name):
                raise ValueError(
                    f"the checkpoint {self._path} is of a run with {what} {name} {then.get(name)!r}, this one has "
                    f"{now.get(name)!r}; repeat that run's settings, or start over with --force"
                )


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
