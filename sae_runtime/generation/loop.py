"""One loop over a graph: requests of different prompts, lengths and edits join it and leave it."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.features import Features, concatenate
from sae_runtime.deployed.batching import TOKENS, batches
from sae_runtime.generation.decoder import Cache, Decoder
from sae_runtime.generation.request import Edits, Finished, Piece, Request

Step = tuple[Request, Piece | Exception]


@dataclass
class _Group:
    """Requests whose keys and values are in one cache, in the order of its rows."""

    requests: list[Request]
    cache: Cache | None

    def join(self, other: "_Group") -> None:
        assert self.cache is not None
        self.cache.join(other.cache)  # type: ignore[arg-type]  # all caches of a graph are of one kind
        self.requests += other.requests

    def leave(self, gone: Collection[Request]) -> None:
        rows = [row for row, request in enumerate(self.requests) if request in gone]
        self.requests = [request for request in self.requests if request not in gone]
        if rows and self.requests and self.cache is not None:
            self.cache.leave(rows)


@dataclass
class _Reading:
    """A request whose prompt is read part by part."""

    request: Request
    cache: Cache | None
    parts: Iterator[Step | None]  # None: there is more to read


class Loop:
    """Runs requests together. What a request gets does not depend on the others.

    Prompts of about one length that wait are read in one run, and a longer one part by part, a part with each step, so
    that the others go on. Then each step reads one token of every request in one
    run of the graph. Where requests would move each other's numbers, as in a graph that rounds by the range of the
    whole batch, each has runs of its own. A loop belongs to one thread; several loops may run one decoder.

    Args:
        decoder: the graph.
        end_ids: tokens that end an answer.
        special_ids: special tokens, which the gate "text" leaves alone.
    """

    def __init__(self, decoder: Decoder, *, end_ids: Collection[int] = (), special_ids: Collection[int] = ()) -> None:
        self._decoder = decoder
        self._end, self._special = frozenset(end_ids), frozenset(special_ids)
        self._waiting: list[Request] = []
        self._reading: list[_Reading] = []
        self._groups: list[_Group] = []

    def __len__(self) -> int:
        """The number of requests that wait or run."""
        return len(self._waiting) + len(self._reading) + sum(len(group.requests) for group in self._groups)

    @property
    def limit(self) -> int | None:
        """The most tokens of a prompt and its answer; None: the model's files do not say."""
        return self._decoder.limit

    def add(self, request: Request) -> None:
        """Let a request join with the next step.

        Raises:
            ValueError: as `check`.
        """
        self.check(request)
        self._waiting.append(request)

    def check(self, request: Request) -> None:
        """See whether a request can join; any thread may ask.

        Raises:
            ValueError: its prompt has no tokens or does not fit the model's context, its edits cannot be made, or it
                wants features and there is no SAE that gives them.
        """
        length, limit = len(request), self._decoder.limit
        if length == 0:
            raise ValueError("the prompt has no tokens, and the tokenizer puts none before a text; give a prompt")
        if limit is not None and length >= limit:
            raise ValueError(
                f"the prompt has {length:,} tokens, and the model's context holds {limit:,} with the answer; shorten it"
            )
        if request.features and not self._decoder.readable:
            raise ValueError(f"{self._decoder.graph} holds no SAE that gives features; splice one into it")
        self._decoder.check_edits(request.edits)

    def edit(self, request: Request, edits: Edits) -> None:
        """Give a request other edits: the tokens that are read from now on get them.

        Raises:
            ValueError: the edits cannot be made, or the graph reads the whole text again in each step.
        """
        self._decoder.check_edits(edits)
        if request.ids and not self._decoder.inputs.past:
            raise ValueError(
                f"{self._decoder.graph} takes no keys and values and reads all tokens again in each step, so edits "
                "cannot change on the way; export the model without --no-cache"
            )
        request.edits = edits

    def remove(self, request: Request) -> None:
        """Let a request leave before its answer is complete; one that is not here is left alone."""
        self._drop({request})

    def step(self) -> list[Step]:
        """Choose the next token of every request: its piece, or the error that ended it.

        One whose prompt is still read has none yet. A request whose last piece this is, or that failed, has left. A run
        that fails ends all its requests.
        """
        steps = [step for group in self._groups for step in self._next(group)]
        self._drop({request for request, got in steps if _is_last(got)})
        waiting, self._waiting = self._waiting, []
        for together in self._prompts(waiting):
            steps += self._start(together)
        if self._reading:
            steps += self._read_on(self._reading.pop(0))
        return steps

    def _read_on(self, reading: _Reading) -> list[Step]:
        """Read a part of a prompt."""
        if (got := next(reading.parts)) is not None:
            return self._join([reading.request], reading.cache, [got])
        self._reading.insert(0, reading)
        return []

    def _prompts(self, waiting: list[Request]) -> list[list[Request]]:
        """Requests whose prompts are read in one run each."""
        decoder = self._decoder
        if not (decoder.shares and decoder.inputs.past):
            return [[request] for request in waiting]
        ids, most = [request.tokens.ids for request in waiting], min(TOKENS, decoder.chunk)
        found = batches(ids, decoder.inputs, pad=0, tokens=most, pads=decoder.pads)
        return [[waiting[number] for number in sorted(batch.texts)] for batch in found]

    def _next(self, group: _Group) -> list[Step]:
        """The next token of requests that run."""
        requests, cache = group.requests, group.cache
        if cache is None:
            return [got for got in self._read(requests[0], None) if got is not None]
        last = np.array([request.ids[-1:] for request in requests], np.int64)
        gates = np.array([request.gates(len(request) - 1, len(request)) for request in requests], np.float32)
        try:
            logits, features = self._run(requests, last, cache, gates)
        except (ValueError, MemoryError) as error:
            return [(request, error) for request in requests]
        return [self._choose(*one) for one in zip(requests, logits, features, strict=True)]

    def _start(self, requests: list[Request]) -> list[Step]:
        """Read prompts, or begin to read a long one."""
        cache = self._decoder.cache(len(requests))
        if len(requests) == 1:
            reading = _Reading(requests[0], cache, self._read(requests[0], cache))
            if cache is None or len(requests[0]) <= TOKENS:
                return self._read_on(reading)
            self._reading.append(reading)
            return []
        try:
            steps = self._read_together(requests, cache)
        except (ValueError, MemoryError):  # which of them it was is not known
            return [step for request in requests for step in self._start([request])]
        return self._join(requests, cache, steps)

    def _join(self, requests: list[Request], cache: Cache | None, steps: list[Step]) -> list[Step]:
        """Let requests whose prompts were read join those that run."""
        new = _Group(requests, cache)
        new.leave({request for request, got in steps if _is_last(got)})
        if not new.requests:
            return steps
        if self._groups and self._decoder.shares and cache is not None:
            try:
                self._groups[0].join(new)
            except MemoryError as error:
                return [(request, error if request in new.requests else got) for request, got in steps]
        else:
            self._groups.append(new)
        return steps

    def _read_together(self, requests: list[Request], cache: Cache | None) -> list[Step]:
        """Read prompts in one run, and choose the first token of each answer."""
        counts = np.array([len(request) for request in requests])
        ids = np.zeros((len(requests), int(counts.max())), np.int64)
        gates = np.zeros(ids.shape, np.float32)
        for row, (request, count) in enumerate(zip(requests, counts.tolist(), strict=True)):
            ids[row, :count], gates[row, :count] = request.tokens.ids, request.gates(0, count)
        logits, features = self._run(requests, ids, cache, gates, counts)
        return [self._choose(*one) for one in zip(requests, logits, features, strict=True)]

    def _read(self, request: Request, cache: Cache | None) -> Iterator[Step | None]:
        """Read all tokens of a request by itself, part by part, and choose the next one."""
        ids, size = request.all_ids()[None], len(request) if cache is None else min(TOKENS, self._decoder.chunk)
        parts = []
        try:
            for begin in range(0, ids.shape[1], size):
                part = ids[:, begin : begin + size]
                gates = request.gates(begin, begin + part.shape[1])[None].astype(np.float32)
                logits, features = self._run([request], part, cache, gates)
                parts.append(features[0])
                if begin + size < ids.shape[1]:
                    yield None
        except (ValueError, MemoryError) as error:
            yield request, error
            return
        known = len(request) - 1 if request.ids else 0  # where all is read again, the piece has the features of the new
        whole = {
            name: concatenate([part[name] for part in parts], parts[0][name].d_sae, (len(request),))[known:]
            for name in parts[0]
        }
        yield self._choose(request, logits[0], whole)

    def _run(
        self,
        requests: Sequence[Request],
        ids: NDArray[np.int64],
        cache: Cache | None,
        gates: NDArray[np.float32],
        counts: NDArray[np.int64] | None = None,
    ) -> tuple[list[NDArray[np.float32]], list[dict[str, Features]]]:
        """One run of the graph; who has no token here that the edits reach asks for none."""
        edits = {
            name: [
                request.edits.get(name, ()) if gate.any() else () for request, gate in zip(requests, gates, strict=True)
            ]
            for name in self._decoder.splices
        }
        wanted = any(request.features for request in requests)
        logits, features = self._decoder.run(
            ids, cache, edits=edits, gates=None if gates.all() else gates, features=wanted, counts=counts
        )
        return logits, [found if request.features else {} for request, found in zip(requests, features, strict=True)]

    def _choose(self, request: Request, logits: NDArray[np.float32], features: dict[str, Features]) -> Step:
        """The next token of a request."""
        # Products of rounded activations make 0 of NaN, and then all logits are equal.
        highest = logits.max()
        equal = len(logits) > 1 and logits[0] == highest and logits.min() == highest
        if not np.isfinite(highest) or equal:
            cause = "its edits make the model's numbers overflow" if any(request.edits.values()) else "the model is off"
            return request, ValueError(
                f"the logits behind token {len(request) - 1} of a request are NaN, infinite or all equal: {cause}; "
                "give smaller edits, or check the model with: sae-runtime doctor"
            )
        number = request.sampler.choose(logits)
        request.ids.append(number)
        request.special.append(number in self._special)
        full = len(request.ids) >= request.most or (self._decoder.limit or len(request) + 1) <= len(request)
        finished: Finished | None = "end" if number in self._end else "length" if full else None
        text, finished = request.text_of(number, finished)
        return request, Piece(number, text, features, finished)

    def _drop(self, gone: Collection[Request]) -> None:
        self._waiting = [request for request in self._waiting if request not in gone]
        self._reading = [reading for reading in self._reading if reading.request not in gone]
        for group in self._groups:
            group.leave(gone)
        self._groups = [group for group in self._groups if group.requests]


def _is_last(got: Piece | Exception) -> bool:
    return isinstance(got, Exception) or got.finished is not None
