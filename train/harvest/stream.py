"""Training rows straight from a model, which are computed when they are needed and never stored."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.documents import documents
from sae_runtime.activations.left_out import limit, norms
from sae_runtime.activations.parts import IN_GAP, divide
from sae_runtime.activations.windows import Window
from sae_runtime.bundle.manifest import LeftOut
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.reader import Reader
from sae_runtime.train.held_out import held_out_sizes, too_few
from sae_runtime.train.source import SCALE_SAMPLE, Source, Tick, generator

_POOL_UNITS = 16  # units of one long document in a pool, so that a pool has other documents or places too


class StreamedRows(Source):
    """The Source of a model's activations on text. Its units are runs of windows of one document.

    The tokens of all texts are in memory, and the activations of the pools. A pool ends before the unit that would
    overfill it. A document that is longer than a pool is several units. The sample for the scale also gives the limit
    of the norms; the rows above it are left out of what the model gives.
    """

    def __init__(
        self,
        config: HarvestConfig,
        holdout: float,
        seed: int,
        pool_bytes: float,
        max_norm: float | None = None,
        hooks: Sequence[str] = (),
    ) -> None:
        """Load the texts and the model, and choose the held-out windows.

        The model runs on a few short texts and on one window only.

        Args:
            config: the settings of a harvest with the same rows; `tokens` must be None, since all of the text is read.
            holdout: share of the rows that is held out.
            seed: decides which windows are held out.
            pool_bytes: size of a pool of float32 rows.
            max_norm: rows are left out if their norm exceeds this multiple of the median norm at one of the hooks; None
                for no limit.
            hooks: whose activations stand side by side in the rows, instead of those of the config's hook alone.

        Raises:
            FileNotFoundError: a text file or the folder of the model is missing.
            ValueError: as `harvest`, or the text is too short to hold some out.
        """
        if config.tokens is not None:
            raise ValueError(
                f"streaming reads all of the text, so the harvest's tokens must be None, got {config.tokens}; "
                "set the tokens of the training instead"
            )
        texts = documents(config.text, config.reading)
        self.path = config.text[0]
        self._reader = Reader(config, hooks)
        self.model, self.hook = config.called, ", ".join(point.hook for point in self._reader.points)
        self.transformer_lens_hook = None  # that of each hook is in `hooks`
        self._windows = list(self._reader.windows(texts))
        self._counts = np.array([window.rows for window in self._windows], np.float64)
        parts = self._split(holdout, seed)
        self._held_out = [[self._windows[window] for window in np.flatnonzero(parts == part)] for part in (1, 2)]
        widths = [x.shape[1] for x in self._reader.activations(self._held_out[0][:1], _ignore)]
        self.d_in = sum(widths)
        ends = np.cumsum(widths).tolist()
        self._columns = [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]
        self._pool_rows = max(int(pool_bytes / (4 * self.d_in)), 1)
        self._train = self._units(np.flatnonzero(parts == 0), self._pool_rows // _POOL_UNITS)
        self._unit_rows = np.array([self._counts[unit.start : unit.stop].sum() for unit in self._train])
        self.units = len(self._train)
        self.identity = _flat({key: v for key, v in self._reader.plan().items() if key not in ("name", "shard_tokens")})
        self.identity["hook"] = self.hook
        self.identity["batch_tokens"] = config.batch_tokens  # decides which windows share a pass, and so the last bits
        self.identity["max_norm"] = max_norm
        self._seed = seed
        self._limits: list[float] | None = None
        self.left_out: LeftOut = LeftOut(
            norm_multiple=max_norm, first_positions=config.skip_first, token_ids=self._reader.skip_ids
        )
        settings = {name: getattr(config, name) for name in ("document", "context", "dtype", "special")}
        names = {"train": 0, "calibration": 1, "validation": 2, "gaps": IN_GAP}
        self.provenance = {
            "text": [path.name for path in config.text],
            **settings,
            "rows": {name: int(self._counts[parts == part].sum()) for name, part in names.items()},
        }

    def hooks(self) -> list[tuple[Source, slice]]:
        """As Source."""
        alone: list[tuple[Source, slice]] = []
        for point, columns in zip(self._reader.points, self._columns, strict=True):
            view = copy(self)
            view.hook, view.d_in = point.hook, columns.stop - columns.start
            view.transformer_lens_hook = point.transformer_lens
            alone.append((view, columns))
        return alone

    def take(self, order: NDArray[np.int64], tick: Tick) -> tuple[NDArray[np.float32], int]:
        """As Source."""
        windows, count = self._first(order, self._pool_rows)
        x = self._rows(windows, tick)
        within = self._within(x)
        return x if within.all() else x[within], count

    def sample(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """As Source."""
        windows, _ = self._first(rng.permutation(self.units), SCALE_SAMPLE)
        x = self._rows(windows, _ignore)
        if self._limits is None:
            self._limits = [limit(norms(x[:, columns]), self.left_out.norm_multiple) for columns in self._columns]
        within = self._within(x)
        self._leave_out("sample", within)
        self.share_left_out = float((~within).mean())
        # Exact where the sample has all units. Nobody counts the others, since a run may end before it reads them.
        self._record("train", round(self._unit_rows.sum() * (1 - self.share_left_out)))
        return x if within.all() else x[within]

    def held_out(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As Source.

        Raises:
            ValueError: as Source, or a part has fewer than two rows that are not left out.
        """
        calibration, validation = map(self._held_out_part, ("calibration", "validation"), self._held_out)
        return calibration, validation

    def _held_out_part(self, name: str, windows: list[Window]) -> NDArray[np.float32]:
        """The rows of a part, at its end those that are left out, which are counted."""
        x = self._rows(windows, _ignore)
        within = self._within(x)
        self._leave_out(name, within)
        kept = int(np.count_nonzero(within))
        if kept < 2:
            raise ValueError(
                f"{self.path}: the {name} part has {len(x)} rows, of which {len(x) - kept} are left out for their "
                "norm; give more text, or another --max-norm"
            )
        self._record(name, kept)
        return x if within.all() else np.concatenate([x[within], x[~within]])

    def _within(self, x: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which rows are not left out."""
        if self.left_out.norm_multiple is None:
            return np.ones(len(x), np.bool_)
        if self._limits is None:
            self.sample(generator(self._seed, "scale"))
        assert self._limits is not None  # the sample has set them
        bounded = zip(self._columns, self._limits, strict=True)
        within: NDArray[np.bool_] = np.all([norms(x[:, columns]) <= bound for columns, bound in bounded], axis=0)
        return within

    def _leave_out(self, part: str, within: NDArray[np.bool_]) -> None:
        """Count the rows that a part leaves out."""
        rows = {**self.left_out.rows, part: int(np.count_nonzero(~within))}
        self.left_out = replace(self.left_out, rows=rows)

    def _record(self, part: str, rows: int) -> None:
        """Note for the manifest how many rows of a part are not left out."""
        self.provenance = {**self.provenance, "rows": {**self.provenance["rows"], part: rows}}

    def _split(self, holdout: float, seed: int) -> NDArray[np.int8]:
        """The part of each window, as `divide` numbers them."""
        number = np.array([window.document for window in self._windows])
        rows, parts = float(self._counts.sum()), None
        if rows:
            asked = held_out_sizes(rows, holdout)
            parts = divide(number, self._counts, asked, gap=1, rng=generator(seed, "split"))
        if parts is None or min(self._counts[parts == part].sum() for part in (1, 2)) < 2:
            few = too_few(int(rows), len(np.unique(number)), holdout, self._reader.config.context)
            raise ValueError(f"{self.path}: the text {few}")
        return parts

    def _units(self, windows: NDArray[np.int64], limit: int) -> list[range]:
        """Windows in runs of neighbours in one document. A run has at most `limit` rows, or one window."""
        runs: list[range] = []
        rows = 0
        for window in windows.tolist():
            rows += self._counts[window]
            last = runs[-1] if runs else range(0)
            same = window == last.stop and self._windows[window - 1].document == self._windows[window].document
            if last and same and rows <= limit:
                runs[-1] = range(last.start, window + 1)
            else:
                runs.append(range(window, window + 1))
                rows = self._counts[window]
        return runs

    def _first(self, order: NDArray[np.int64], limit: int) -> tuple[list[Window], int]:
        """The windows of the first units of an order, and the number of these units: at most `limit` rows, or one unit.

        The windows stand as in the text.
        """
        count = max(int(np.searchsorted(np.cumsum(self._unit_rows[order]), limit, side="right")), 1)
        return [self._windows[window] for unit in sorted(order[:count]) for window in self._train[unit]], count

    def _rows(self, windows: list[Window], tick: Tick) -> NDArray[np.float32]:
        return np.concatenate([x.float().numpy() for x in self._reader.activations(windows, tick)], axis=1)


def _ignore(_rows: int) -> None:
    pass


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with an entry for each item of its lists, so that a message can name the item that differs."""
    lists = {name: value for name, value in plan.items() if isinstance(value, list)}
    items = {f"{name} {number}": item for name, value in lists.items() for number, item in enumerate(value, start=1)}
    return {name: value for name, value in plan.items() if name not in lists} | items
