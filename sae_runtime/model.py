"""The front door for text: features, steered outputs, vectors and answers of a deployed model, without torch."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.extras import require
from sae_runtime.bundle.graph_reader import read_operators
from sae_runtime.bundle.vocabulary import read_vocabulary
from sae_runtime.core.edits import Edit
from sae_runtime.core.features import Features
from sae_runtime.core.gates import Gate
from sae_runtime.deployed.batching import ROUNDS_BY_BATCH, TOKENS, TOKENS_OF_DEVICE, of_tokens
from sae_runtime.deployed.embedding import chosen_prompt, sentence_of, tokens_of_prompt, vectors_of
from sae_runtime.deployed.host_sessions import HostSessions
from sae_runtime.deployed.layout import Layout, read_layout
from sae_runtime.deployed.notices import tell_left_out
from sae_runtime.deployed.pooling import POOLED, VECTORS
from sae_runtime.deployed.reading_features import Lowered, read_features
from sae_runtime.deployed.requests import as_gates, as_requests, as_texts
from sae_runtime.deployed.running_texts import Run, run_texts
from sae_runtime.deployed.spliced_sae import SplicedSAE, spliced_saes
from sae_runtime.deployed.text_features import TextFeatures
from sae_runtime.engine.sessions import CPU, Provider
from sae_runtime.generation.answer import Answer, Messages, read_request
from sae_runtime.generation.decoder import Decoder, open_decoder, writes_text
from sae_runtime.generation.loop import Loop
from sae_runtime.generation.request import Request
from sae_runtime.generation.sampling import Sampling
from sae_runtime.text.tokenizer import Tokenizer, open_tokenizer
from sae_runtime.text.tokens import Tokens, window_size, windows_of

Edits = Edit | Sequence[Edit] | Mapping[str, Edit | Sequence[Edit]] | Sequence[Any]
Gates = Gate | Iterable[Any]


def load_model(path: str | Path, *, providers: Sequence[Provider] = CPU, threads: int | None = None) -> "Model":
    """Open a deployed model: what `sae-runtime splice` left, or a folder of optimum or sentence-transformers.

    Args:
        path: the folder, a graph `.onnx` in it, or `hf://owner/name[/folder][@revision]` of the Hub.
        providers: onnxruntime execution providers, the preferred one first. A provider with options is a pair of its
            name and its options.
        threads: number of threads; None means all cores.

    Raises:
        BundleError: the weights of an SAE are not those that were put in.
        FileNotFoundError: the graph, or a file that it reads, is missing.
        ImportError: onnxruntime or `tokenizers` is not installed (the extras `cpu,text` or `gpu,text`).
        ValueError: the folder has no tokenizer or one that does not fit the graph, or a file is damaged.

    >>> load_model(model_path).saes
    {'sae': SplicedSAE(sae, 24 -> 150, encoder.layer.0)}
    """
    require("cpu", "text")
    layout = read_layout(path)
    sessions = HostSessions(layout, providers, threads)
    sessions.check()
    known = read_vocabulary(layout.graph)
    if known is None and type(size := layout.config.get("vocab_size")) is int:
        known = size
    return Model(sessions, open_tokenizer(layout.home, vocabulary=known))


class Model:
    """A deployed model: a host with SAEs in it, or without, and its tokenizer.

    Threads may share a model. It can be pickled and copied, and used in processes that are forked: the path and the
    options of `load_model` travel, and the graphs are opened at their first use.

    Attributes:
        layout: the model's files.
        tokenizer: of the host.
        saes: the SAEs in the graph, by name.

    >>> model = load_model(model_path)
    >>> model.features("w1 w2").tokens
    ['[CLS]', 'w1', 'w2', '[SEP]']
    """

    def __init__(self, sessions: HostSessions, tokenizer: Tokenizer) -> None:
        self.layout: Layout = sessions.layout
        self.tokenizer, self._sessions = tokenizer, sessions
        lowers = self.layout.sentence is not None and self.layout.sentence.lower_case
        self._embeds = tokenizer.lowering() if lowers else tokenizer  # sentence-transformers alone lowers
        self.saes: Mapping[str, SplicedSAE] = spliced_saes(self.layout)
        self._read = {name: sae for name, sae in self.saes.items() if sae.reads}
        self._tokens_at_once = TOKENS if sessions.on_cpu else TOKENS_OF_DEVICE
        if ROUNDS_BY_BATCH in read_operators(self.layout.graph):
            self._tokens_at_once = 1
        self._pad = tokenizer.pad_id or 0
        self._decoder: Decoder | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        graph = self.layout.graph.absolute()
        return functools.partial(load_model, **self._sessions.options), (graph,)

    def __repr__(self) -> str:
        saes = ", ".join(f"{sae.name}: {sae.hook}, {sae.d_sae:,} features" for sae in self.saes.values())
        return f"Model({self.layout.graph}{', ' * bool(saes)}{saes})"

    @property
    def kind(self) -> Literal["vectors", "text", "other"]:
        """What the model gives: vectors, which `embed` pools, text, which `generate` writes, or other outputs."""
        outputs = self._sessions.open().outputs
        if any(name in outputs for name in (*VECTORS, POOLED)):
            return "vectors"
        return "text" if writes_text(self.layout, outputs) else "other"

    @property
    def outputs(self) -> dict[str, tuple[str, tuple[int, ...], bool]]:
        """What `run` gives, by name: onnxruntime's type, the shape for all texts, and whether each token has a row.

        In the shape -1 is any size; all tokens of all texts are one dimension.

        >>> load_model(model_path).outputs
        {'last_hidden_state': ('tensor(float)', (-1, 24), True)}
        """
        graph, found = self._sessions.open(), {}
        types = {value.name: value.type for value in graph.session.get_outputs()}
        for name, shape in graph.outputs.items():
            by_token = of_tokens(shape, graph.inputs.ids.shape)
            rest = shape[2:] if by_token else shape[1:]
            found[name] = types[name], (-1, *(s if isinstance(s, int) and s > 0 else -1 for s in rest)), by_token
        return found

    def open(self) -> None:
        """Open the graphs now and keep them, as a server does; otherwise each call opens the one that it needs.

        A model with a graph of the features alone then holds the weights of both.

        >>> load_model(model_path).open()
        """
        self._sessions.open_both()

    def close(self) -> None:
        """Close the graphs. A later call opens them again."""
        self._sessions.close()

    @overload  # a str is an Iterable[str] too, and the first overload takes it
    def features(  # type: ignore[overload-overlap]
        self, texts: str, *, context: int | None = None
    ) -> TextFeatures: ...
    @overload
    def features(self, texts: Iterable[str], *, context: int | None = None) -> list[TextFeatures]: ...
    def features(self, texts: str | Iterable[str], *, context: int | None = None) -> TextFeatures | list[TextFeatures]:
        """The features of each token of texts. Only the graph up to the last hook runs, where splice wrote that part.

        A text that is longer than the model reads is cut into windows, as `harvest` cuts it. Texts are run in batches
        of about one length, which changes no answer but its last bits.

        Args:
            texts: one text, or several.
            context: largest number of tokens of a window with its special tokens; None: as many as the model reads.

        Returns:
            For one text its features, for several a list of these.

        Raises:
            ValueError: the model has no SAE that is read, `context` leaves no room for a token, something else than
                texts was given, or the features of a text are NaN or Inf.

        >>> model = load_model(model_path)
        >>> seen = model.features(["w1 w2", "w3 w4 w5"])
        >>> seen[1].offsets[2].tolist(), seen[1].features.shape, seen[1].pooled("max").shape
        ([3, 5], (5,), (150,))
        """
        listed, single = as_texts(texts)
        cut = self.windows(listed, context)
        numbers = [number for number, windows in enumerate(cut) for _ in windows]
        found = iter(self.read([window.ids for windows in cut for window in windows], texts=numbers))
        seen = [
            self.features_of(text, windows, [next(found) for _ in windows])
            for text, windows in zip(listed, cut, strict=True)
        ]
        return seen[0] if single else seen

    def windows(self, texts: Sequence[str], context: int | None = None) -> list[list[Tokens]]:
        """The windows of each text, as `features` cuts them; its arguments and errors are those of `features`.

        >>> [[len(window) for window in windows] for windows in load_model(model_path).windows(["w1 w2"], context=3)]
        [[3, 3]]
        """
        limit = self.window(context)
        return [_windows(tokens, limit) for tokens in self.tokenizer.encode(texts)]

    def features_of(
        self, text: str, windows: Sequence[Tokens], found: Sequence[Mapping[str, Features]]
    ) -> TextFeatures:
        """The features of a text from those that `read` gave for each of its `windows`.

        >>> model = load_model(model_path)
        >>> (windows,) = model.windows(["w1 w2"])
        >>> model.features_of("w1 w2", windows, model.read([window.ids for window in windows], texts=[0]))
        TextFeatures('w1 w2', 4 tokens, sae)
        """
        saes = {name: [features[name] for features in found] for name in self._read}
        return TextFeatures(text, windows, saes, self.tokenizer)

    @property
    def tokens_at_once(self) -> int:
        """The most tokens of a batch of texts; 1: each text is run alone."""
        return self._tokens_at_once

    def read(
        self,
        windows: Sequence[NDArray[np.int64]],
        *,
        texts: Sequence[object],
        sae: str | None = None,
        lowered: Lowered | None = None,
    ) -> list[dict[str, Features]]:
        """The features of windows of token ids as they are, special tokens too, by SAE.

        Args:
            windows: ids of each, int64 [t].
            texts: the number or the name of each window's text, for messages.
            sae: the SAE that is read; None: all.
            lowered: how features below its threshold are read; None: they are not.

        Raises:
            BundleError: the graph of the SAE has no threshold that can be lowered.
            ValueError: the model has no such SAE that is read, or features are NaN or Inf.

        >>> load_model(model_path).read([np.array([2, 5, 6, 3])], texts=[0])[0]["sae"].shape
        (4,)
        """
        saes = self._read if sae is None else {sae: self.reads(sae)}
        if not saes:
            self.reads()
        return read_features(
            self._sessions,
            saes,
            windows,
            texts=texts,
            pad=self._pad,
            tokens_at_once=self._tokens_at_once,
            lowered=lowered,
        )

    def reads(self, sae: str | None = None) -> SplicedSAE:
        """The SAE of a name that gives features; None: the only one.

        Raises:
            ValueError: there is none of this name, or not one alone.

        >>> load_model(model_path).reads().name
        'sae'
        """
        graph, names = self.layout.graph, ", ".join(self._read)
        if not self._read:
            raise ValueError(
                f"{graph} has no SAE that gives features; put one in: sae-runtime splice {graph} --sae BUNDLE"
            )
        if sae is None and len(self._read) > 1:
            raise ValueError(f"{graph} has the SAEs {names}; name one of them")
        if sae is not None and sae not in self._read:
            raise ValueError(f"{graph} has no SAE {sae!r} that gives features; it has {names}")
        return next(iter(self._read.values())) if sae is None else self._read[sae]

    @overload
    def run(  # type: ignore[overload-overlap]
        self, texts: str, edits: Edits = (), *, gate: Gates = "all", outputs: str | Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]: ...
    @overload
    def run(
        self,
        texts: Iterable[str],
        edits: Edits = (),
        *,
        gate: Gates = "all",
        outputs: str | Sequence[str] | None = None,
    ) -> list[dict[str, NDArray[Any]]]: ...
    def run(
        self,
        texts: str | Iterable[str],
        edits: Edits = (),
        *,
        gate: Gates = "all",
        outputs: str | Sequence[str] | None = None,
    ) -> dict[str, NDArray[Any]] | list[dict[str, NDArray[Any]]]:
        """The host's outputs for texts, with features edited.

        Args:
            texts: one text, or several.
            edits: an Edit or a list of them for all texts; for a model with several SAEs a mapping of these by name; or
                a list with one of these for each text.
            gate: the tokens that the edits reach: "all", "text" (no special ones), "prompt" (all), "last_prompt" (the
                last one), `core.gates.positions` and `spans`, a set of positions, or a list with one for each text.
            outputs: name of an output, or several; None: all but keys and values.

        Returns:
            For one text its outputs by name, for several a list of these. An output with a row for each token is
            [t, ...], without padding.

        Raises:
            ValueError: an edit or a gate does not fit, an output is unknown, a text has no tokens, or an output of a
                text is NaN or Inf by its edits; the message names the text.

        Warns:
            LeftOutWarning: a text is longer than the model reads, and the rest was left out.

        >>> model = load_model(model_path)
        >>> model.run("w1 w2 w3", Edit.set(12, 8.0), gate="text")["last_hidden_state"].shape
        (5, 24)
        """
        listed, single = as_texts(texts)
        requests, gates = self._asked(edits, gate, len(listed))
        graph = self._sessions.open()
        names = list(graph.outputs) if outputs is None else [outputs] if isinstance(outputs, str) else list(outputs)
        if not names or (unknown := [name for name in names if name not in graph.outputs]):
            what = repr(unknown[0]) if names else "without a name"
            raise ValueError(f"{graph.path} has no output {what}, it has {', '.join(graph.outputs)}; name these")
        tokens = self.tokenizer.encode(listed, limit=_least(self.tokenizer.max_length, graph.inputs.time))
        tell_left_out(tokens)
        found: list[dict[str, NDArray[Any]]] = [{} for _ in listed]
        for batch, arrays, by_token in self._runs(tokens, names, requests, gates):
            for row, (number, length) in enumerate(zip(batch.texts, batch.lengths, strict=True)):
                found[number] = {
                    name: array[row, :length] if of_tokens else array[row]
                    for name, array, of_tokens in zip(names, arrays, by_token, strict=True)
                }
        return found[0] if single else found

    def embed(
        self,
        texts: str | Iterable[str],
        edits: Edits = (),
        *,
        gate: Gates = "all",
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> NDArray[np.float32]:
        """A vector for each text, as sentence-transformers gives it by the folder's files, with features edited.

        Args:
            texts: one text, or several.
            edits: as in `run`.
            gate: as in `run`. Positions count the prompt's tokens too, spans are characters of the text.
            prompt: what stands before each text; None: what `prompt_name` names, else the folder's default.
            prompt_name: one of the folder's prompts.

        Returns:
            float32 [n, d]; for one text [d].

        Raises:
            ValueError: as `run`, or the folder says something that is not known here, the graph gives no vectors of
                tokens, or the folder has no such prompt.

        Warns:
            LeftOutWarning: a text is longer than the folder allows, and the rest was left out.
            AssumedPoolingWarning: the folder does not say how to pool; the mean is taken, not normalised.

        >>> model = load_model(model_path)
        >>> import warnings
        >>> warnings.simplefilter("ignore")  # the folder has no modules.json
        >>> model.embed(["w1 w2", "w3 w4 w5"]).shape
        (2, 24)
        """
        listed, single = as_texts(texts)
        requests, gates = self._asked(edits, gate, len(listed))
        graph = self._sessions.open()
        output = next((name for name in VECTORS if name in graph.outputs), POOLED)
        if output not in graph.outputs:
            raise ValueError(
                f"{graph.path} gives {', '.join(graph.outputs)} and no vectors of tokens, last_hidden_state; export "
                "the model without its head"
            )
        sentence = sentence_of(self.layout, is_pooled=output == POOLED)
        prefix = chosen_prompt(sentence, prompt, prompt_name, self.layout.home)
        length = self.tokenizer.max_length if sentence.max_length is None else sentence.max_length
        limit = _least(length, self.tokenizer.positions, graph.inputs.time)
        tokens = self._embeds.encode(listed, limit=limit, prefix=prefix)
        tell_left_out(tokens)
        skipped = 0 if sentence.include_prompt else tokens_of_prompt(self._embeds, prefix, limit)
        if skipped and output == POOLED:
            raise ValueError(
                f"{graph.path} pools all tokens, and {self.layout.home} leaves those of a prompt out; give prompt='', "
                "or export a graph with last_hidden_state"
            )
        runs = self._runs(tokens, [output], requests, gates)
        vectors = vectors_of(runs, sentence, prompt=skipped, width=graph.outputs[output][-1])
        return vectors[0] if single else vectors

    def generate(
        self,
        prompt: str | Messages,
        edits: Edits = (),
        *,
        gate: Gate | Iterable[int] = "all",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        features: bool = False,
        chat: Mapping[str, Any] | None = None,
    ) -> Answer:
        """The answer of a causal language model to a prompt, piece by piece.

        Args:
            prompt: a text, or messages with role and content for the folder's chat template.
            edits: an Edit or a list of them; for a model with several SAEs a mapping of these by name. `edits` of the
                answer may be set while it goes on.
            gate: the tokens that the edits reach, as in `run`, and "generated" and "answer".
            max_new_tokens: the most tokens of the answer.
            temperature: divides the logits before a token is drawn; 0 takes the most likely token.
            top_p: draw from the fewest of the most likely tokens that have this probability together.
            top_k: draw from so many of the most likely tokens; None: from all.
            seed: of the random numbers; None: others each time.
            stop: strings that end the answer and are not shown.
            features: give the features of the tokens that each step reads.
            chat: settings of the chat template.

        Returns:
            An iterator of pieces, whose `str` is the text that is new. It raises ValueError where the edits make the
            model's numbers overflow.

        Raises:
            ValueError: the model writes no text, or a prompt, an edit or a setting cannot be used.

        >>> for piece in model.generate("Open the", Edit.set(12, times=2), max_new_tokens=8):  # doctest: +SKIP
        ...     print(piece, end="")
        """
        loop = self.loop()
        request = self.request(
            prompt,
            edits,
            gate=gate,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature, top_p, top_k, seed),
            stop=stop,
            features=features,
            chat=chat,
        )
        return Answer(loop, request, edits, self._plain)

    def loop(self) -> Loop:
        """A loop of the model's graph, which runs requests of several callers together.

        Raises:
            ValueError: the model writes no text.

        >>> loop = model.loop()  # doctest: +SKIP
        """
        graph, decoder = self._sessions.open(), self._decoder
        if decoder is None or decoder.session is not graph.session:
            decoder = self._decoder = open_decoder(graph.session, self.layout, graph.inputs)
        return Loop(decoder, end_ids=self.tokenizer.end_ids, special_ids=self.tokenizer.special_ids)

    def request(self, prompt: str | Messages, edits: Edits = (), **settings: Any) -> Request:
        """A request of a prompt, which may join a loop of this model.

        Args:
            prompt: a text, or messages with role and content for the folder's chat template.
            edits: as in `generate`.
            settings: gate, max_new_tokens, stop, features and chat as in `generate`; sampling: a `Sampling`.

        Raises:
            ValueError: a prompt, an edit or a setting cannot be used.

        >>> loop.add(model.request("Open the", Edit.set(12, times=2)))  # doctest: +SKIP
        """
        return read_request(self.tokenizer, prompt, edits=self._plain(edits), **settings)

    def _plain(self, edits: Edits) -> dict[str, Sequence[Edit]]:
        return {name: each[0] for name, each in as_requests(edits, 1, self.saes, self.layout.graph).items()}

    def _asked(self, edits: Edits, gate: Gates, texts: int) -> tuple[dict[str, Any], list[Gate]]:
        return as_requests(edits, texts, self.saes, self.layout.graph), as_gates(gate, texts)

    def _runs(
        self, tokens: Sequence[Tokens], outputs: Sequence[str], requests: Mapping[str, Any], gates: Sequence[Gate]
    ) -> Iterator[Run]:
        return run_texts(
            self._sessions,
            tokens,
            outputs,
            edits=requests,
            gates=gates,
            pad=self._pad,
            tokens_at_once=self._tokens_at_once,
        )

    def window(self, context: int | None = None) -> int:
        """The largest number of tokens of a window, special ones included: `context`, or as many as the model reads.

        Raises:
            ValueError: `context` is no number of tokens, or more than the model reads.

        >>> load_model(model_path).window()
        64
        """
        return window_size(context, _least(self.tokenizer.max_length, self._sessions.open(cut=True).inputs.time))


def _windows(tokens: Tokens, limit: int) -> list[Tokens]:
    return [tokens] if len(tokens) <= limit else list(windows_of(tokens, limit))


def _least(*limits: int | None) -> int | None:
    """The smallest of some limits; None: there is none."""
    return min((limit for limit in limits if limit is not None), default=None)
