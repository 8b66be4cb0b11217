"""The front door: features of activations, activations of features, and edits, through onnxruntime."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle import hub
from sae_runtime.bundle.folder import WEIGHTS, Bundle
from sae_runtime.bundle.graphs import ENCODE, GPU
from sae_runtime.bundle.labels import read_labels
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.stats import Stats
from sae_runtime.bundle.token_logits import TokenLogits
from sae_runtime.core.edits import Edit, by_label, in_numbers, resolved
from sae_runtime.core.features import Features, from_slots
from sae_runtime.core.slots import Slots, joined_slots
from sae_runtime.engine import decoding
from sae_runtime.engine.batch_encoding import BatchEncoder, batch_encoder, encode_by_batch
from sae_runtime.engine.device_tensors import T, encode_tensor
from sae_runtime.engine.options import served_feed
from sae_runtime.engine.rows import Read, batch_rows, rows_of
from sae_runtime.engine.sessions import CPU, Provider, Sessions
from sae_runtime.engine.tiler import Tiler, choose_graph
from sae_runtime.engine.tiling import DEFAULT, Tiling
from sae_runtime.rebuild import rebuilt, refuse_other, remove_with


def load(
    path: str | Path,
    *,
    graph: str | None = None,
    providers: Sequence[Provider] = CPU,
    threads: int | None = None,
    verify: bool = True,
    tiling: Tiling = DEFAULT,
    rebuild: bool = False,
) -> "SAE":
    """Open an exported bundle.

    Args:
        path: the bundle's folder, or `hf://owner/name[/folder][@revision]` of the Hub.
        graph: the encoder graph, such as "encode.onnx". None chooses encode.onnx or encode_exact.onnx by the SAE's
            size, and encode_gpu.onnx on CUDA. All give the same matches.
        providers: onnxruntime execution providers, the preferred one first. A provider with options is a pair of its
            name and its options.
        threads: number of threads; None means all cores.
        verify: compare every hash and look for numbers that are not finite; if False, check sizes and graphs alone.
        tiling: sizes of tiles; the defaults suit every machine that we measured.
        rebuild: write the graphs anew from the weights, and use neither the bundle's graphs nor its
            derived.safetensors. This takes as long as `sae-runtime export` and a copy of the weights, which lives in
            the folder of temporary files as long as the SAE.

    Raises:
        BundleError: the folder is not a sound bundle, is not exported, or lacks the graph. What opens a file later may
            raise `BundleChanged`, where that is not the file of the bundle that was loaded.
        ImportError: onnxruntime is not installed, or what `rebuild` needs is not (the extra `export`).
        ValueError: a provider is not available here.

    >>> load(bundle_path)
    SAE(mutual choice, k 6, 24 -> 150, encode.onnx)
    """
    folder = hub.local(path)
    options: dict[str, Any] = {"graph": graph, "providers": providers, "threads": threads, "tiling": tiling}

    def loaded() -> "SAE":
        bundle = bundles.read(folder, verify=verify)
        return (_rebuilt if rebuild else _opened)(bundle, verify=verify, **options)

    return bundles.settled(folder, loaded)


def _opened(
    bundle: Bundle,
    *,
    graph: str | None,
    providers: Sequence[Provider],
    threads: int | None,
    verify: bool,
    tiling: Tiling,
    owned: bool = False,
) -> "SAE":
    """The SAE of a bundle; a bundle that is `owned` is removed with it."""
    sessions = Sessions(bundle, providers=providers, threads=threads, verify=verify)
    if owned:
        remove_with(sessions, bundle.path)
    return SAE(sessions, choose_graph(bundle, sessions, graph, tiling), tiling)


def _rebuilt(bundle: Bundle, *, verify: bool, **options: Any) -> "SAE":
    """The SAE of a bundle with graphs that are written anew, also where the SAE arrives after it was pickled."""
    sae = _opened(rebuilt(bundle, verify=verify), verify=verify, owned=True, **options)
    sae._home = bundle.path
    sae._again = functools.partial(
        _arrived, bundle.path.absolute(), sae.manifest.files[WEIGHTS].sha256, verify=verify, options=options
    )
    return sae


def _arrived(path: Path, weights: str, *, verify: bool, options: dict[str, Any]) -> "SAE":
    bundle = bundles.read(path, verify=verify)
    refuse_other(bundle, weights)
    return _rebuilt(bundle, verify=verify, **options)


class SAE:
    """A sparse autoencoder ready to serve with one of its encoder graphs. Threads may share an SAE.

    An SAE can be pickled and copied, and used in processes that are forked. The path and the options of `load` travel;
    the graphs are opened at their first use in the new process. This fails where the bundle is missing or changed. An
    SAE that was loaded with `rebuild` is rebuilt where it arrives.

    >>> sae, sae.graph, sae.d_in, sae.d_sae
    (SAE(mutual choice, k 6, 24 -> 150, encode.onnx), 'encode.onnx', 24, 150)
    """

    def __init__(self, sessions: Sessions, graph: str = ENCODE.file, tiling: Tiling = DEFAULT) -> None:
        self._bundle, self._sessions = sessions.bundle, sessions
        self._home = self._bundle.path  # where people write labels, also for a bundle that is rebuilt elsewhere
        self._stats: tuple[Stats | None] | tuple[()] = ()  # empty until they are read
        self._again: Callable[[], SAE] | None = None  # how another process builds a rebuilt SAE
        self._tiler = Tiler(sessions.bundle.manifest, sessions, graph, tiling)
        self._tiler.open()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return super().__reduce_ex__(protocol) if self._again is None else (self._again, ())

    def __repr__(self) -> str:
        manifest, architecture = self.manifest, self.manifest.architecture
        allocation = manifest.allocation
        rule = architecture.selection if allocation is None else f"{allocation.kind} choice, k {allocation.k:g}"
        sizes = f"{self.d_in:,} -> {self.d_sae:,}" + ("" if architecture.d_out is None else f" -> {self.d_out:,}")
        model = manifest.model and manifest.model.rpartition("/")[2]
        source = " ".join(filter(None, (model, manifest.hook)))
        return f"SAE({', '.join(filter(None, (rule, sizes, source, self.graph)))})"

    @property
    def folder(self) -> Path:
        """The folder of the bundle."""
        return self._home

    @property
    def manifest(self) -> Manifest:
        """The SAE's architecture, its origin and its figures."""
        return self._bundle.manifest

    @property
    def graph(self) -> str:
        """The file name of the encoder graph, such as "encode.onnx"."""
        return self._tiler.graph

    @property
    def d_in(self) -> int:
        """Numbers in an activation."""
        return self.manifest.architecture.d_in

    @property
    def d_out(self) -> int:
        """Numbers in a reconstruction; differs from d_in for some transcoders."""
        return self.manifest.architecture.d_x_hat

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.manifest.architecture.d_sae

    @property
    def tile(self) -> int:
        """Rows that are encoded at once; an array of more rows is cut into tiles."""
        return self._tiler.tile

    @property
    def decoded_tile(self) -> int:
        """Tokens that are decoded at once; decode.onnx gathers a row of W_dec for every match."""
        return max(self._tiler.tile // 4, 1)

    @property
    def stats(self) -> Stats | None:
        """How often and how strongly each feature was active on measured tokens; None if the bundle has no stats."""
        # Not a cached_property: in Python 3.11 it has a lock, which a forked process may get locked.
        if not self._stats:
            self._stats = (self._bundle.stats(),)
        return self._stats[0]

    @property
    def logits(self) -> TokenLogits | None:
        """The tokens that each feature promotes and suppresses most; None if no splice has computed them."""
        return self._bundle.logits()

    @property
    def labels(self) -> Mapping[int, str]:
        """The labels of features, by feature, as the bundle's labels.jsonl has them now; none if there is no such file.

        The file is read again where it changed, also while the SAE is loaded.

        Raises:
            ValueError: the file is not sound; the message names the line.

        >>> dict(sae.labels)
        {}
        """
        return read_labels(self._home, self.d_sae)

    @property
    def redone(self) -> tuple[int, int]:
        """Number of tokens that encode.onnx encoded again because the graph was not certain, and of all tokens."""
        return self._tiler.redone

    def close(self) -> None:
        """Close the graphs and end the encoding threads. A later call opens them again."""
        self._sessions.close()

    def encode(self, x: ArrayLike, *, k: int | None = None, threshold: ArrayLike | None = None) -> Features:
        """Features of activations by the served rule, which decides each token for itself.

        Args:
            x: [..., d_in], any real type; cast to float32 once.
            k: matches a token, for token choice (TopK); None means as fitted.
            threshold: what a pre-activation must exceed, one number or [d_sae], for mutual and feature choice; None
                means as fitted.

        Raises:
            ValueError: x has another d_in or holds NaN or Inf (the message names the row), or an option belongs to
                another allocation.

        >>> sae.encode(x).shape
        (6,)
        >>> len(sae.encode(x, threshold=1e9).values)
        0
        """
        rows = rows_of(x, self.manifest)
        feed = served_feed(self.manifest.architecture, k, threshold)
        return from_slots(self._tiler.served(rows, feed), self.d_sae, rows.shape)

    def encode_slots(self, x: ArrayLike, *, k: int | None = None, threshold: ArrayLike | None = None) -> Slots:
        """The same features as dense arrays: indices i64 and values f32 [..., slots].

        There are as many slots as the fullest token needs. The features of a token are in order of falling value, and
        an unused slot has value 0. Arguments and errors are those of `encode`.

        >>> indices, values = sae.encode_slots(x)
        >>> indices.shape == values.shape == (6, sae.encode(x).l0().max())
        True
        """
        rows = rows_of(x, self.manifest)
        feed = served_feed(self.manifest.architecture, k, threshold)
        indices, values = joined_slots(list(self._tiler.served(rows, feed)))
        shape = (*rows.shape, values.shape[1])
        return indices.reshape(shape), values.reshape(shape)

    def encode_batch(
        self,
        x: ArrayLike | Read,
        tokens: int | None = None,
        *,
        k: float | None = None,
        max_density: ArrayLike | None = None,
        valid: ArrayLike | None = None,
    ) -> Features:
        """Features of activations by the batch rule of training: all tokens together get round(k n) matches.

        For token choice this is the same as `encode`.

        Args:
            x: [..., d_in], any real type. For more activations than memory holds: a function that gives rows by their
                numbers, such as `Activations.rows`. It gives rows with far more features than others a second time.
            tokens: the number of rows that such a function gives.
            k: matches a token, on average; None means as fitted.
            max_density: the largest density of each feature, [d_sae], for feature choice; None means as fitted.
            valid: bool [...], for an array. A token that is False (padding) gets no matches and does not count in n.

        Raises:
            ValueError: as `encode`; the SAE has no allocation; or the function gives other rows than it was asked for.

        >>> sae.encode_batch(x, k=2).l0().sum()
        np.int64(12)
        >>> sae.encode_batch(lambda ids: x[ids], 6, k=2)
        Features(6 tokens, 12 matches, L0 2.00, d_sae 150)
        """
        rows = batch_rows(x, tokens, valid, self.manifest)
        features = encode_by_batch(self._bundle, self._tiler, rows, k=k, max_density=max_density)
        return features.spread(rows.ids, rows.shape)

    def batch_encoder(self, tokens: int) -> BatchEncoder:
        """How `encode_batch` encodes so many tokens, for callers that encode parts of them and cut by themselves.

        Raises:
            ValueError: the SAE has no allocation.

        >>> sae.batch_encoder(6).total
        36
        """
        return batch_encoder(self._bundle, self._tiler, tokens)

    def encode_tensor(self, x: T) -> tuple[T, T]:
        """Features of a tensor of torch, CuPy or numpy by the served rule, on its device and without copies.

        If the SAE was loaded with encode_gpu.onnx, that graph computes them, otherwise encode.onnx.

        Args:
            x: float32 [n, d_in], contiguous, on the device of the preferred provider. The features of a row that is not
                finite are undefined.

        Returns:
            Indices i64 and values f32 [n, slots], as tensors of the same library, with the manifest's number of slots.
            A row is in order of falling value, and an unused slot has value 0. Under mutual and feature choice a row
            that fills its last slot may lack features.

        Raises:
            ImportError: onnxruntime is older than 1.27, which has no DLPack.
            ValueError: x is not such a tensor.

        >>> indices, values = sae.encode_tensor(x)
        >>> values.shape == (6, sae.manifest.slots)
        True
        """
        graph = GPU.file if self.graph == GPU.file else ENCODE.file
        return encode_tensor(self._sessions, self.manifest, graph, x)

    def decode(self, features: Features, x: ArrayLike | None = None) -> NDArray[np.float32]:
        """Reconstructions: float32 [*features.shape, d_out].

        Args:
            features: of any activations.
            x: these activations, [*features.shape, d_in]. They are needed if the SAE normalises activations or adds a
                linear skip (`manifest.architecture.decodes_with_x`), and ignored otherwise.

        Raises:
            ValueError: the features have another d_sae, are not sound (`Features.check`), or are so large that a
                reconstruction overflows; or x is needed and is missing, has another shape or is not finite. The message
                names the token.

        >>> sae.decode(sae.encode(x)).shape
        (6, 24)
        """
        return decoding.decode(self._sessions, self.manifest, features, x, tile=self.decoded_tile)

    def resolved(self, edits: Sequence[Edit]) -> list[Edit]:
        """The same edits in numbers: labels are features, and multiples of a largest activation are activations.

        Args:
            edits: those of one request. `labels` and `stats` are read where an edit needs them.

        Raises:
            ValueError: no feature or several have a label, or a largest activation is not known or is 0.

        >>> sae.resolved([Edit.set(3, 8.0)]) == [Edit.set(3, 8.0)]
        True
        """
        if in_numbers(edits):
            return list(edits)
        multiples = any(edit.of_largest for edit in edits)
        largest = self.stats.largest if multiples and self.stats is not None else None
        return resolved(edits, largest, self.labels if by_label([edits]) else None)

    def steer(
        self,
        x: ArrayLike,
        edits: Edit | Sequence[Edit] | Sequence[Sequence[Edit]],
        *,
        gate: ArrayLike | None = None,
    ) -> NDArray[np.float32]:
        """Activations with some features edited. All else stays, the error of the reconstruction included.

        Args:
            x: [..., d_in].
            edits: one edit, or a list of edits, for all tokens. For x [b, t, d_in] also b lists, one for each request.
                Multiples of a feature's largest activation need `stats`, and edits by label need `labels`.
            gate: how much of the edits each token gets, broadcastable to [...]; None means 1 everywhere.

        Returns:
            float32 [..., d_in]; equal to x if there are no edits.

        Raises:
            ValueError: x has another d_in or holds NaN or Inf, a feature is out of range or edited twice, no feature or
                several have a label, the lists or the gate do not fit x, a row overflows float32 (the message names
                it), the SAE is a transcoder, whose features do not add up to x, or a largest activation that an edit
                needs is not known or is 0.

        >>> bool((sae.steer(x, Edit.set(3, 8.0)) != x).any()), bool((sae.steer(x, []) == x).all())
        (True, True)
        """
        return decoding.steer(
            self._sessions,
            self.manifest,
            x,
            edits,
            gate,
            tile=self._tiler.tile,
            resolve=self.resolved,
            encode=self.encode,
        )
