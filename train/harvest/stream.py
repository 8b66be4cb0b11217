"""Training rows straight from a model, which are computed when they are needed and never stored."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.text import documents
from sae_runtime.activations.windows import Window
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.harvesting import Reader
from sae_runtime.train.source import MAX_HELD_OUT, SCALE_SAMPLE, Source, Tick, generator


class StreamedRows(Source):
    """The Source of a model's activations on text. Its units are documents.

    All texts are in memory, and the activations of the pools. A pool ends before the document that would overfill it.
    A document that is longer than a pool makes a larger pool.
    """

    def __init__(self, config: HarvestConfig, holdout: float, seed: int, pool_bytes: float) -> None:
        """Load the texts and the model, and choose the held-out documents. The model runs on one window only.

        Args:
            config: the settings of a harvest with the same rows; `tokens` must be None, since all of the text is read.
            holdout: share of the text, in characters, that is held out.
            seed: decides which documents are held out.
            pool_bytes: size of a pool of float32 rows.

        Raises:
            FileNotFoundError: a text file or the folder of the model is missing.
            ValueError: as `harvest`, or the text has too few documents to hold some out.
        """
        if config.tokens is not None:
            raise ValueError(
                f"streaming reads all of the text, so the harvest's tokens must be None, got {config.tokens}; "
                "set the tokens of the training instead"
            )
        self._texts = list(documents(config.text, config.document))
        self.path = config.text[0]
        self.model, self.hook = config.called, config.hook
        self._reader = Reader(config)
        self._held_out, self._train = self._split(holdout, seed)
        self.units = len(self._train)
        self.d_in = self._reader.activations(self._held_out[0][:1], _ignore).shape[1]
        self._pool_rows = max(int(pool_bytes / (4 * self.d_in)), 1)
        self.identity = _flat({key: v for key, v in self._reader.plan().items() if key not in ("name", "shard_tokens")})
        self.identity["batch_tokens"] = config.batch_tokens  # decides which windows share a pass, and so the last bits
        settings = {name: getattr(config, name) for name in ("document", "context", "dtype", "special")}
        self.provenance = {
            "text": [path.name for path in config.text],
            **settings,
            "documents": {"train": self.units, "held_out": len(self._texts) - self.units},
            "rows": {"calibration": _row_count(self._held_out[0]), "validation": _row_count(self._held_out[1])},
        }

    def take(self, order: NDArray[np.int64], tick: Tick) -> tuple[NDArray[np.float32], int]:
        """As Source."""
        windows, count = self._cut(self._train[order], self._pool_rows, tick)
        return self._rows(windows, tick), count

    def sample(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """As Source.

        Raises:
            ValueError: as Source, or there is no activation.
        """
        windows, _ = self._cut(rng.permutation(self._train), SCALE_SAMPLE, _ignore)
        if not windows:
            raise ValueError(f"{self.path}: no token outside the held-out documents is kept; give more text")
        return self._rows(windows, _ignore)

    def held_out(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As Source."""
        calibration, validation = (self._rows(windows, _ignore) for windows in self._held_out)
        return calibration, validation

    def _split(self, holdout: float, seed: int) -> tuple[tuple[list[Window], list[Window]], NDArray[np.int64]]:
        """The windows of the two held-out parts, and the ascending numbers of all other documents."""
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
        if begin >= len(order) or min(map(_row_count, parts)) < 2:
            raise ValueError(
                f"{self.path}: the text has {len(order)} documents, too few to hold out {holdout:.0%} in two parts; "
                "give more text or another --holdout, or split it into paragraphs"
            )
        return (parts[0], parts[1]), np.sort(order[begin:])

    def _cut(self, order: NDArray[np.int64], limit: int, tick: Tick) -> tuple[list[Window], int]:
        """The windows of the first documents of an order, and the number of these documents.

        The windows hold at most `limit` rows, or those of the first document alone. They are sorted by document.
        """
        cut: list[Window] = []
        rows, count = 0, len(order)
        texts = (self._texts[number] for number in order)
        for position, group in groupby(self._reader.windows(texts), key=lambda window: window.document):
            windows = [replace(window, document=int(order[position])) for window in group]
            more = _row_count(windows)
            if cut and rows + more > limit:
                count = position
                break
            cut += windows
            rows += more
            tick(0)
        return sorted(cut, key=lambda window: window.document), count

    def _rows(self, windows: list[Window], tick: Tick) -> NDArray[np.float32]:
        if not windows:
            return np.empty((0, self.d_in), np.float32)
        x: NDArray[np.float32] = self._reader.activations(windows, tick).float().numpy()
        return x


def _ignore(_rows: int) -> None:
    pass


def _row_count(windows: Iterable[Window]) -> int:
    return sum(window.rows for window in windows)


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with an entry for each item of its lists, so that a message can name the item that differs."""
    lists = {name: value for name, value in plan.items() if isinstance(value, list)}
    items = {f"{name} {number}": item for name, value in lists.items() for number, item in enumerate(value, start=1)}
    return {name: value for name, value in plan.items() if name not in lists} | items
