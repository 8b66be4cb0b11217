"""A language model's graph as the loop runs it: tokens and a cache in, logits and features out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.graph_reader import read_operators
from sae_runtime.bundle.splices import Spliced
from sae_runtime.core.edits import Edit
from sae_runtime.core.features import Features, from_slots
from sae_runtime.deployed.batching import ROUNDS_BY_BATCH
from sae_runtime.deployed.host_inputs import HostInputs
from sae_runtime.deployed.interventions import intervention_feed
from sae_runtime.deployed.layout import Layout
from sae_runtime.generation.binding import Binding
from sae_runtime.generation.caches import Columns, Rows

Cache = Rows | Columns

_LOGITS = "logits"
_BY_ROWS = "GroupQueryAttention"
_OTHER_CACHES = {"SparseAttention", "PagedAttention", "DecoderMaskedMultiHeadAttention", "LinearAttention"}
_MOST_LOGITS = 2**26  # of one run, so that a long prompt takes 256 MB at most
_CHUNKS = 128, 1024  # tokens of a prompt that are read in one run, at least and at most
_SLOTS = 16  # where an older graph does not say how many
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length")
_WRITERS = ("CausalLM", "LMHeadModel", "ConditionalGeneration")


@dataclass(frozen=True, eq=False, kw_only=True)
class Decoder:
    """The graph of a language model.

    Attributes:
        session: an onnxruntime InferenceSession. Threads may share it.
        graph: its file, for messages.
        inputs: what it takes beside its SAEs' inputs.
        splices: its SAEs.
        required: the inputs of its SAEs that have no default.
        by_rows: whether the graph takes the length of each row from the mask (GroupQueryAttention).
        shares: whether requests may run in one batch without a change of their numbers.
        pads: whether prompts of different lengths may, since the graph gives logits of all tokens.
        limit: the most tokens of a prompt and its answer; None: the model's files do not say.
        chunk: the most tokens of a prompt that are read in one run.
    """

    session: Any
    graph: Path
    inputs: HostInputs
    splices: Mapping[str, Spliced]
    required: frozenset[str]
    by_rows: bool
    shares: bool
    pads: bool
    limit: int | None
    chunk: int

    def cache(self, requests: int = 1) -> Cache | None:
        """An empty cache for some requests; None where the graph takes no keys and values and reads all each time."""
        if not self.inputs.past:
            return None
        return Rows(self.inputs.past, requests) if self.by_rows else Columns(self.inputs.past, requests)

    def run(
        self,
        ids: NDArray[np.int64],
        cache: Cache | None,
        *,
        edits: Mapping[str, Sequence[Sequence[Edit]]],
        gates: NDArray[np.float32] | None = None,
        features: bool = False,
        counts: NDArray[np.int64] | None = None,
    ) -> tuple[list[NDArray[np.float32]], list[dict[str, Features]]]:
        """Read tokens: for each request the logits behind the last one [vocabulary], and the features of all of them.

        Args:
            ids: of the new tokens of each request of the cache, [b, t]; a shorter one is padded behind.
            cache: of the tokens before them; it gets those of the new ones.
            edits: of each request, by SAE, in plain numbers.
            gates: how much of the edits each new token gets, [b, t]; None: all.
            features: whether features are read; without it the dictionaries are empty.
            counts: how many tokens of each request are not padding, [b]; None: all. Others take an empty cache.

        Raises:
            MemoryError: there is too little memory.
            ValueError: onnxruntime fails, or an edit cannot be made.
        """
        counts = np.full(len(ids), ids.shape[1]) if counts is None else counts
        slots = {name: min((s.slots or _SLOTS) + 1, s.d_sae) for name, s in self.readable.items()} if features else {}
        while True:
            binding = self._run(ids, counts, cache, edits, gates, slots)
            read = {name: binding.arrays(*self.splices[name].outputs) for name in slots}
            # A token that uses its last slot may lack features. Another run writes the same keys and values again.
            full = [name for name, (_, values) in read.items() if values.shape[-1] and (values[..., -1] > 0).any()]
            short = [name for name in full if slots[name] < self.splices[name].d_sae and self._takes_slots(name)]
            if not short:
                break
            slots |= {name: min(4 * slots[name], self.splices[name].d_sae) for name in short}
        logits = binding.arrays(_LOGITS)[0]
        all_given = logits.shape[1] == ids.shape[1]  # others give those of the last column alone
        if not all_given and (counts < ids.shape[1]).any():
            raise ValueError(f"{self.graph} gives logits of the last token alone, so it reads no prompts with padding")
        last = counts - 1 if all_given else counts * 0
        behind = [row[place].astype(np.float32, copy=False) for row, place in zip(logits, last.tolist(), strict=True)]
        if cache is not None:
            cache.keep(counts)
        found = [
            {
                name: from_slots([(indices[row, :count], values[row, :count])], self.splices[name].d_sae, (count,))
                for name, (indices, values) in read.items()
            }
            for row, count in enumerate(counts.tolist())
        ]
        return behind, found

    def check_edits(self, edits: Mapping[str, Sequence[Edit]]) -> None:
        """Raise ValueError if the graph cannot make these edits of one request, by SAE, in plain numbers."""
        if unknown := set(edits) - set(self.splices):
            known = ", ".join(self.splices) or "none"
            raise ValueError(f"{self.graph} has no SAE named {min(unknown)!r}; its SAEs are: {known}")
        intervention_feed(self.splices, edits={name: [asked] for name, asked in edits.items()})

    @property
    def readable(self) -> dict[str, Spliced]:
        """The SAEs that give features."""
        return {name: spliced for name, spliced in self.splices.items() if len(spliced.outputs) == 2}

    def _takes_slots(self, name: str) -> bool:
        return f"{name}_slots" in self.splices[name].inputs

    def _run(
        self,
        ids: NDArray[np.int64],
        counts: NDArray[np.int64],
        cache: Cache | None,
        edits: Mapping[str, Sequence[Sequence[Edit]]],
        gates: NDArray[np.float32] | None,
        slots: Mapping[str, int],
    ) -> Binding:
        mask = np.ones(ids.shape, np.int64) if cache is None else cache.mask(counts)
        feed = self.inputs.feed(ids, mask, past={})
        if self.inputs.keep is not None and (counts == ids.shape[1]).all():
            feed[self.inputs.keep.name] = np.ones([1] * len(self.inputs.keep.shape), self.inputs.keep.dtype)
        asked = {name: number for name, number in slots.items() if self._takes_slots(name)}
        key = edits, None if gates is None else (gates.shape, gates.tobytes()), asked
        known = None if cache is None else cache.interventions
        if known is None or known[0] != key:  # in most steps they are those of the last one, and stay bound
            known = key, intervention_feed(self.splices, edits=edits, gates=gates, slots=asked, required=self.required)
        if cache is not None:
            cache.interventions = known
        feed |= known[1]
        wanted = [_LOGITS, *(output for name in slots for output in self.splices[name].outputs)]
        names = [*feed, *wanted]
        binding = Binding(self.session) if cache is None else cache.bind(self.session, counts, names)
        for name, array in feed.items():
            binding.feed(name, array)
        for output in wanted:
            binding.ask(output)
        binding.run(self.graph)
        return binding


def open_decoder(session: Any, layout: Layout, inputs: HostInputs) -> Decoder:
    """A graph that writes text.

    Args:
        session: of the layout's graph.
        layout: of the model.
        inputs: what the graph takes.

    Raises:
        ValueError: the graph writes no text, or keeps what was read in a way that is not known here.
    """
    graph = layout.graph
    outputs = {output.name: output for output in session.get_outputs()}
    if not writes_text(layout, {name: output.shape for name, output in outputs.items()}):
        names = ", ".join(name for name in list(outputs)[:3])
        raise ValueError(
            f"{graph} gives {names} and writes no text; generate needs a causal language model with logits [b, t, v], "
            "and features, run and embed read texts with any model"
        )
    odd = [past for past in inputs.past if (len(past.empty), past.batch, past.time) != (4, 0, 2)]
    operators = read_operators(graph)
    if odd or (inputs.past and operators & _OTHER_CACHES):
        what = odd[0].port.name if odd else ", ".join(sorted(operators & _OTHER_CACHES))
        raise ValueError(
            f"{graph} keeps what it read in {what}, and generate knows keys and values [b, heads, t, width] alone; "
            "export the model with: sae-runtime export-model MODEL --no-cache"
        )
    if inputs.time is not None:
        raise ValueError(
            f"{graph} reads {inputs.time} tokens at a time, so it cannot read a prompt; take a graph whose number of "
            "tokens varies, such as export-model's"
        )
    if any("encoder" in port.name for port in (inputs.mask, *(past.port for past in inputs.past)) if port):
        raise ValueError(f"{graph} is the decoder of a model with an encoder; generate needs a decoder alone")
    by_rows = _BY_ROWS in operators
    if by_rows and inputs.mask is None:
        raise ValueError(f"{graph} has {_BY_ROWS} without an attention_mask; build it with onnxruntime-genai's builder")
    own = {name for spliced in layout.splices.values() for name in spliced.inputs}
    vocabulary = outputs[_LOGITS].shape[-1]
    fits = _MOST_LOGITS // vocabulary if isinstance(vocabulary, int) and vocabulary > 0 else 0
    return Decoder(
        session=session,
        graph=graph,
        inputs=inputs,
        splices=layout.splices,
        required=frozenset(value.name for value in session.get_inputs() if value.name in own),
        by_rows=by_rows,
        shares=inputs.mask is not None and inputs.batch is None and ROUNDS_BY_BATCH not in operators,
        pads=outputs[_LOGITS].shape[1] != 1,
        limit=_context(layout),
        chunk=min(max(fits, _CHUNKS[0]), _CHUNKS[1]),
    )


def writes_text(layout: Layout, outputs: Mapping[str, Sequence[Any]]) -> bool:
    """Whether a model writes text from left to right, as far as its outputs and the class in its config say.

    Args:
        layout: of the model.
        outputs: the declared shape of each output.
    """
    classes = layout.config.get("architectures")
    if isinstance(classes, list) and classes and not any(str(name).endswith(_WRITERS) for name in classes):
        return False
    return len(outputs.get(_LOGITS, ())) == 3


def _context(layout: Layout) -> int | None:
    """The most tokens that the model reads, by genai_config.json or config.json."""
    model: Any = layout.genai.get("model")
    text: Any = layout.config.get("text_config")
    places: list[tuple[Any, str]] = [(model, "context_length")]
    places += [(config, name) for config in (layout.config, text) for name in _LENGTHS]
    for where, name in places:
        value = where.get(name) if isinstance(where, Mapping) else None
        if type(value) is int and value > 0:
            return value
    return None
