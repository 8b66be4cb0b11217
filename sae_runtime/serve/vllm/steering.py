"""What is done in vLLM's worker at each pass: features of the requests that read are kept, and activations edited."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.serve.vllm.asking import ALL, LARGEST, PLAN
from sae_runtime.serve.vllm.edited_rows import EditTables, bounded, every_active, reached, strongest
from sae_runtime.serve.vllm.first_tokens import FirstTokens
from sae_runtime.serve.vllm.hooked_module import HookedModule, find_module
from sae_runtime.serve.vllm.kept_features import KeptFeatures, Reading
from sae_runtime.serve.vllm.packed_rows import Order, Rows, packed, positions_of
from sae_runtime.serve.vllm.settings import Place, Settings
from sae_runtime.serve.vllm.stream_form import Form, Pair, form_of, watched
from sae_runtime.train.measure.torch_sae import TorchSAE, open_sae


@dataclass(frozen=True)
class Request:
    """A request that asks something of the SAEs.

    Attributes:
        plan: of `Asked.plan`.
        prompt_tokens: number of tokens of its prompt.
    """

    plan: Mapping[str, Any]
    prompt_tokens: int


@dataclass(frozen=True)
class Pass:
    """A pass of the model over packed rows.

    Attributes:
        rows: those of the requests that ask something.
        total: number of rows that are no padding.
        ids: gives the token id of each row, a tensor [total].
        read: what the SAEs have read in it.
        sites: names of the SAEs whose hooks it has passed.
    """

    rows: Sequence[tuple[Request, Rows]]
    total: int
    ids: Callable[[], Tensor]
    read: list[Reading] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)


class Steering:
    """The SAEs in a worker's model.

    Args:
        runner: the worker's model runner, with its model.
        settings: which SAEs, and where.
        run: runs the model once on some tokens of its own.
        second: whether the runner is vLLM's second one.

    Raises:
        ValueError: a hook is none of the model's, its activations have another width, or their form is not known.
        BundleError: a bundle is damaged.
    """

    def __init__(self, runner: Any, settings: Settings, run: Callable[[], object], *, second: bool) -> None:
        model, config = runner.get_model(), runner.model_config.hf_text_config
        self._order, self.kept = Order(runner, second=second), KeptFeatures(settings.limits.kept_tokens)
        self._requests: dict[str, Request] = {}
        self._scheduled: Any = None
        self._now: Pass | None = None
        self.sites = [Site(place, find_module(model, place.hook, config), model, run) for place in settings.saes]
        for site in self.sites:
            site.watch(self)

    def begin(self, scheduled: Any) -> None:
        """Learn which requests the next pass has, out of vLLM's SchedulerOutput."""
        for request in scheduled.finished_req_ids:
            self._requests.pop(request, None)
        for new in scheduled.scheduled_new_reqs:
            plan = new.sampling_params and (new.sampling_params.extra_args or {}).get(PLAN)
            if plan:
                self._requests[new.req_id] = Request(plan, new.prompt_len)
                if plan["features"]:
                    self.kept.open(new.req_id, plan)
        self._scheduled, self._now = scheduled if scheduled.total_num_scheduled_tokens else None, None
        self._order.begin()

    def end(self) -> None:
        """Keep what the pass has read, and forget it. By now all work of the device is under way.

        Raises:
            RuntimeError: a request of the pass asks something, and the model ran past a hook.
        """
        scheduled, now, self._scheduled, self._now = self._scheduled, self._now, None, None
        asked = scheduled is not None and any(one in self._requests for one in scheduled.num_scheduled_tokens)
        if asked and (now is None or len(now.sites) != len(self.sites)):
            raise RuntimeError("vLLM's model ran past a hook, so nothing was read or edited there; use enforce_eager")
        for reading in now.read if now is not None else ():
            reading.keep(self.kept)

    @property
    def now(self) -> Pass | None:
        """The pass that runs; None if it is one of vLLM's own, as while it warms up."""
        if self._now is None and self._scheduled is not None:
            counts = self._scheduled.num_scheduled_tokens
            rows = packed(self._order.requests(), counts, positions_of(self._scheduled))
            asking = [(self._requests[one.request], one) for one in rows if one.request in self._requests]
            total = sum(counts.values())
            self._now = Pass(asking, total, lambda: self._order.ids(total))
        return self._now

    def status(self) -> dict[str, Any]:
        """Of each SAE its hook, and how its first tokens compare with the bundle's figures."""
        return {site.place.name: site.status() for site in self.sites}


class Site:
    """An SAE at its hook.

    Args:
        place: which, and where.
        hooked: the module there.
        model: of vLLM.
        run: runs the model once.
    """

    def __init__(self, place: Place, hooked: HookedModule, model: Any, run: Callable[[], object]) -> None:
        self.place, self.hooked = place, hooked
        try:
            self.form: Form
            self.form, x = form_of(model, hooked.module, is_input=hooked.is_input, run=run)
            if self.form == "sum" and hooked.is_input and not hooked.in_place and not list(hooked.module.children()):
                raise ValueError("an edit of what this norm gets would reach the stream too; hook BLOCK.resid_mid")
            self.sae: TorchSAE = open_sae(place.bundle, x.device)
            d_in = self.sae.manifest.architecture.d_in
            if x.shape[1] != d_in:
                raise ValueError(f"its activations have width {x.shape[1]}, and the SAE reads {d_in}; give another SAE")
        except ValueError as error:
            raise ValueError(f"SAE {place.name} at {place.hook}: {error}") from None
        self._first = FirstTokens(self.sae, place.name)
        self._tables: tuple[list[Mapping[str, Any]], EditTables | None] = [], None

    def watch(self, steering: Steering) -> None:
        """Act at each call of the module."""
        watched(self.hooked.module, lambda pair: self._act(pair, steering), is_input=self.hooked.is_input)

    def status(self) -> dict[str, Any]:
        """The hook, the form of its activations, and the figures of the first tokens."""
        return {"hook": self.place.hook, "module": self.hooked.name, "form": self.form, **self._first.figures()}

    def _act(self, pair: Pair | None, steering: Steering) -> Any:
        now = steering.now
        if pair is None or now is None or not now.rows and self._first.full:
            return None
        now.sites.append(self.place.name)
        first, second = pair.first[: now.total], pair.second
        x = first + second[: now.total] if self.form == "sum" and second is not None else first
        self._first.add(x)
        self._read(x, now)
        chosen, owners, requests = self._chosen(now)
        if not len(chosen):
            return None
        rows, owner = (torch.from_numpy(numbers).to(x.device) for numbers in (chosen, owners))
        before = x[rows].float()
        change = self._tables_of(requests, x.device).change(self.sae, before, owner)
        change = bounded(change, before, min(torch.finfo(x.dtype).max / 2, LARGEST))
        change = self._but_special(change, rows, owners, requests, now)
        y = pair.first if self.hooked.in_place and second is None else pair.first.clone()
        y[rows] = (first[rows].float() + change).to(y.dtype)
        return None if y is pair.first else pair.rebuilt(y, second)

    def _read(self, x: Tensor, now: Pass) -> None:
        """Read the features of the rows of requests that ask for them; every active one where a request wants all."""
        asking = [(rows, request.plan["features"]) for request, rows in now.rows if request.plan["features"]]
        for all_active in (False, True):
            parts = [(rows, None if most == ALL else most) for rows, most in asking if (most == ALL) == all_active]
            if parts:
                numbers = np.concatenate([np.arange(rows.start, rows.start + rows.count) for rows, _ in parts])
                chosen = x if len(numbers) == len(x) else x[torch.from_numpy(numbers).to(x.device)]
                if all_active:
                    counts, indices, values = every_active(self.sae, chosen.float())
                else:
                    counts = None
                    indices, values = strongest(self.sae, chosen.float(), max(most or 0 for _, most in parts))
                now.read.append(Reading(self.place.name, indices, values, parts, counts))

    def _chosen(self, now: Pass) -> tuple[NDArray[np.int64], NDArray[np.int64], list[Request]]:
        """The rows that are edited, [n], the number of the request of each, [n], and these requests."""
        requests, found = [], []
        for request, rows in now.rows:
            if self.place.name in request.plan["edits"]:
                chosen = reached(request.plan["gate"], rows, request.prompt_tokens)
                if len(chosen):
                    found.append(chosen)
                    requests.append(request)
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), []
        owners = np.repeat(np.arange(len(found)), [len(one) for one in found])
        return np.concatenate(found), owners, requests

    def _tables_of(self, requests: Sequence[Request], device: torch.device) -> EditTables:
        """The edits of these requests as tensors; while requests write, they stay together for many passes."""
        plans = [request.plan for request in requests]
        known, tables = self._tables
        if tables is None or len(known) != len(plans) or any(a is not b for a, b in zip(known, plans, strict=True)):
            tables = EditTables([plan["edits"][self.place.name] for plan in plans], device)
            self._tables = plans, tables
        return tables

    def _but_special(
        self, change: Tensor, rows: Tensor, owners: NDArray[np.int64], requests: Sequence[Request], now: Pass
    ) -> Tensor:
        """The change without that of special tokens, where the gate leaves them out."""
        skipping = np.array([bool(request.plan["skip"]) for request in requests])
        if not skipping.any():
            return change
        skip = next(request.plan["skip"] for request in requests if request.plan["skip"])
        special = torch.isin(now.ids()[rows], torch.tensor(skip, device=change.device))
        return change * ~(special & torch.from_numpy(skipping[owners]).to(change.device))[:, None]
