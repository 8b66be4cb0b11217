"""Activations straight from a model: rows of the Source that are computed when they are needed and never stored."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.train.data import MAX_HELD_OUT, SCALE_SAMPLE, Source, Tick, generator
from sae_runtime.train.harvest import HarvestConfig, Reader, plan
from sae_runtime.train.text import documents
from sae_runtime.train.windows import Window


class StreamedRows(Source):
    """The Source of a model's activations on text, whose units are documents.

    The texts are held in memory, and of the activations the held-out parts and what a pool holds. A pool ends before
    the document that would overfill it; one that alone is longer makes a larger pool.
    """

    def __init__(self, config: HarvestConfig, holdout: float, seed: int, pool_bytes: float) -> None:
        """Load the model and read the held-out documents.

        Args:
            config: what harvest would read; all of the text, so without `tokens`.
            holdout: share of the text, in characters, that is held out.
            seed: of the choice of documents.
            pool_bytes: size of a pool of float32 rows.

        Raises:
            FileNotFoundError: a text file or the folder of the model is missing.
            ValueError: as `harvest`, or the text has too few documents to hold some out.
        """
        if config.tokens is not None:
            raise ValueError(
                f"streaming reads all of the text, so the harvest's tokens must be None, got {config.tokens}; "
                "say in the training's tokens how long to train"
            )
        self._texts = list(documents(config.text, config.split))
        self.path = config.text[0]
        self.model, self.hook = config.called, config.hook
        self._reader = Reader(config)
        calibration, validation, self._train = self._split(holdout, seed)
        self._held_out = self._rows(calibration, _ignore), self._rows(validation, _ignore)
        self.units = len(self._train)
        self.d_in = self._held_out[0].shape[1]
        self._pool_rows = max(int(pool_bytes / (4 * self.d_in)), 1)
        self.identity = _flat({key: v for key, v in plan(config).items() if key not in ("name", "shard_tokens")})
        self.identity["batch_tokens"] = config.batch_tokens  # which windows go together decides the last bits
        settings = {name: getattr(config, name) for name in ("split", "context", "dtype", "special")}
        self.provenance = {
            "text": [path.name for path in config.text],
            **settings,
            "documents": {"train": self.units, "held_out": len(self._texts) - self.units},
            "rows": {"calibration": len(self._held_out[0]), "validation": len(self._held_out[1])},
        }

    def take(self, order: NDArray[np.int64], tick: Tick) -> tuple[NDArray[np.float32], int]:
        """As Source.

        Raises:
            ValueError: an activation is NaN or Inf.
        """
        windows, count = self._cut(self._train[order], self._pool_rows, tick)
        return self._rows(windows, tick), count

    def sample(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """As Source.

        Raises:
            ValueError: an activation is NaN or Inf, or there is none.
        """
        windows, _ = self._cut(rng.permutation(self._train), SCALE_SAMPLE, _ignore)
        if not windows:
            raise ValueError(f"{self.path}: no token outside the held-out documents is kept; give more text")
        return self._rows(windows, _ignore)

    def held_out(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As Source."""
        return self._held_out

    def _split(self, holdout: float, seed: int) -> tuple[list[Window], list[Window], NDArray[np.int64]]:
        """Windows of the two held-out parts, and the numbers of the documents that remain, ascending."""
        order = generator(seed, "split").permutation(len(self._texts))
        characters = np.cumsum([len(self._texts[number]) for number in order])
        parts: list[list[Window]] = []
        begin = 0
        for _ in range(2):
            wanted = (characters[begin - 1] if begin else 0) + holdout / 2 * (characters[-1] if len(order) else 0)
            end = int(np.searchsorted(characters, wanted)) + 1
            windows, count = self._cut(order[begin:end], MAX_HELD_OUT, _ignore)
            parts.append(windows)
            begin += count
        if begin >= len(order) or min(sum(window.rows for window in part) for part in parts) < 2:
            raise ValueError(
                f"{self.path}: the text has {len(order)} documents, too few to hold out {holdout:.0%} in two parts; "
                "give more text or another --holdout, or split it into paragraphs"
            )
        return parts[0], parts[1], np.sort(order[begin:])

    def _cut(self, order: NDArray[np.int64], limit: int, tick: Tick) -> tuple[list[Window], int]:
        """Windows of the first documents of an order that hold `limit` rows at most, or of one that holds more.

        They come in the order of the text, and with the number of documents that they are of.
        """
        taken: list[Window] = []
        rows, count = 0, len(order)
        texts = (self._texts[number] for number in order)
        for at, group in groupby(self._reader.windows(texts), key=lambda window: window.document):
            windows = [replace(window, document=int(order[at])) for window in group]
            more = sum(window.rows for window in windows)
            if taken and rows + more > limit:
                count = at
                break
            taken += windows
            rows += more
            tick(0)
        return sorted(taken, key=lambda window: window.document), count

    def _rows(self, windows: list[Window], tick: Tick) -> NDArray[np.float32]:
        if not windows:
            return np.empty((0, self.d_in), np.float32)
        x: NDArray[np.float32] = self._reader.activations(windows, tick).float().numpy()
        return x


def _ignore(_rows: int) -> None:
    pass


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The same with an entry for each item of a list, so that a message may name the one that differs."""
    lists = {name: value for name, value in plan.items() if isinstance(value, list)}
    items = {f"{name} {at}": item for name, value in lists.items() for at, item in enumerate(value, start=1)}
    return {name: value for name, value in plan.items() if name not in lists} | items
