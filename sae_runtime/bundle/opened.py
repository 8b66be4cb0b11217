"""A bundle that was read, and is known again by its files whenever something is read from it later."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle import file_set
from sae_runtime.bundle.contract import check_graph, check_order
from sae_runtime.bundle.derived_weights import fault_of_derived
from sae_runtime.bundle.graphs import EXACT, export_options
from sae_runtime.bundle.identity import Identity, identity
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.parts import DERIVED, MANIFEST, SAMPLE, STATS, WEIGHTS, altered, check_file, read_manifest
from sae_runtime.bundle.stats import Stats, read_stats
from sae_runtime.bundle.tensors import TensorSpec, map_tensor, read_header
from sae_runtime.bundle.token_logits import TokenLogits, read_logits

T = TypeVar("T")


class BundleError(ValueError):
    """A folder is not a sound bundle: a file is missing, altered or does not fit the others."""


class BundleChanged(BundleError):
    """A bundle is not the one that was read: its files were replaced or rewritten. Reading it again may help."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} changed since it was loaded; load it again")
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return BundleChanged, (self.path,)


@dataclass(frozen=True)
class Bundle:
    """A bundle that `read` has checked: its folder, its manifest, and the position of each weight in its file.

    Whatever it gives later comes from the files that were checked, or from equal ones; else it raises `BundleChanged`.

    Attributes:
        path: the folder.
        manifest: its manifest.
        specs: of the weights, by name.
        checked: the files that this process has checked, by name.
    """

    path: Path
    manifest: Manifest
    specs: Mapping[str, TensorSpec]
    checked: dict[str, Identity] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "checked": {}}  # another machine has other files

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A weight, mapped from the file; `weight_shapes` gives the names and shapes."""
        with self.unchanged(WEIGHTS):
            return map_tensor(self.path / WEIGHTS, self.specs[name])

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """All weights, mapped from the file, and b_pre [d_in], which is b_dec or zeros."""
        with self.unchanged(WEIGHTS):
            weights = {name: map_tensor(self.path / WEIGHTS, spec) for name, spec in self.specs.items()}
        architecture = self.manifest.architecture
        b_pre = weights["b_dec"] if architecture.pre_bias else np.zeros(architecture.d_in, np.float32)
        return weights | {"b_pre": b_pre}

    @property
    def calibrated(self) -> bool:
        """Whether the SAE has all that it selects by; an SAE that lacks its threshold cannot be served."""
        return self.manifest.architecture.selection != "threshold" or "threshold" in self.specs

    def sample(self) -> NDArray[np.float32] | None:
        """The sample: activations [m, d_in] like those that the SAE was fitted on. None if the bundle has no sample."""
        if SAMPLE not in self.manifest.files:
            return None
        with self.unchanged(SAMPLE):
            return np.array(map_tensor(self.path / SAMPLE, read_header(self.path / SAMPLE)["x"]))

    def stats(self) -> Stats | None:
        """How often and how strongly each feature was active on measured tokens. None if the bundle has no stats."""
        return self._of_stats(read_stats)

    def logits(self) -> TokenLogits | None:
        """The tokens that each feature promotes and suppresses most. None if no splice has computed them."""
        return self._of_stats(read_logits)

    def _of_stats(self, reader: Callable[[Path, int], T | None]) -> T | None:
        if STATS not in self.manifest.files:
            return None
        try:
            with self.unchanged(STATS):
                return reader(self.path / STATS, self.manifest.architecture.d_sae)
        except BundleError:
            raise
        except ValueError as error:
            raise BundleError(str(error)) from error

    def graph(self, name: str) -> bytes:
        """The bytes of a graph, checked; whoever runs them compares the files of `read_by` at that time.

        Args:
            name: file name of the graph.

        Raises:
            BundleError: the bundle has no such graph, or a file is missing or altered.
            BundleChanged: the bundle changed since it was read.

        >>> len(sae._bundle.graph("encode.onnx")) > 1000
        True
        """
        record = self.manifest.graphs.get(name)
        if record is None:
            if self._has_changed():
                raise BundleChanged(self.path)
            command = f"sae-runtime export {self.path}{export_options(name)}"
            raise BundleError(f"{self.path} has no {name}: not exported yet; run: {command}")
        now = identity(self.path / name)
        try:
            check_file(self.path, name, record, verify=False)
            graph = (self.path / name).read_bytes()
            if hashlib.sha256(graph).hexdigest() != record.sha256:
                raise altered(self.path / name)
            self.refuse_change(*self.read_by(name))
            derived = read_header(self.path / DERIVED) if record.derived else {}
            check_graph(graph, name, self.manifest, {WEIGHTS: self.specs, DERIVED: derived})
            if name == EXACT.file:
                order = map_tensor(self.path / DERIVED, derived["int8_order"])
                check_order(order, self.manifest.architecture.d_sae)
        except BundleChanged:
            raise
        except (OSError, ValueError) as error:
            if self._has_changed():
                raise BundleChanged(self.path) from error
            raise BundleError(f"{error}, or run: sae-runtime export {self.path}") from error
        if now is None or identity(self.path / name) != now:
            raise BundleChanged(self.path)
        self.checked[name] = now
        return graph

    def read_by(self, name: str) -> tuple[str, ...]:
        """The files that a graph of the bundle reads, by its name.

        >>> sae._bundle.read_by("encode.onnx")
        ('sae_weights.safetensors',)
        """
        return (WEIGHTS, DERIVED) if self.manifest.graphs[name].derived else (WEIGHTS,)

    @contextlib.contextmanager
    def unchanged(self, *names: str) -> Iterator[None]:
        """Let a block open these files by their paths; raise if they are not those that were checked.

        Raises:
            BundleChanged: a file is another one, before or after the block.
            BundleError: a file that was not checked yet is missing or altered.

        >>> bundle = sae._bundle
        >>> with bundle.unchanged("sae_weights.safetensors"):
        ...     _ = (bundle.path / "sae_weights.safetensors").read_bytes()
        """
        self.refuse_change(*names)
        before = {name: self.checked[name] for name in names}
        try:
            yield
        finally:  # an error of the block may come from the change
            if any(identity(self.path / name) != known for name, known in before.items()):
                raise BundleChanged(self.path)

    def refuse_change(self, *names: str) -> None:
        """Raise `BundleChanged` if one of these files, graphs, or the manifest, is not as it was read.

        A file of another identity is compared by its sha256: it may be an equal copy.

        >>> sae._bundle.refuse_change("sae_runtime.json", "sae_weights.safetensors")
        """
        for name in names:
            now = identity(self.path / name)
            if now is None or now != self.checked.get(name):
                self._compare(name)
                if now is None or identity(self.path / name) != now:
                    raise BundleChanged(self.path)
                self.checked[name] = now

    def take_checks_of(self, other: "Bundle") -> None:
        """Take over what another reading of the bundle has checked, where its records are equal.

        >>> sae._bundle.take_checks_of(sae._bundle)
        """
        mine, others = ({MANIFEST: b.manifest, **b.manifest.files} for b in (self, other))
        self.checked.update(
            (name, known) for name, known in other.checked.items() if mine.get(name) == others.get(name)
        )

    def _compare(self, name: str) -> None:
        """Compare the bytes of a file with its record, and the manifest with the one that was read."""
        try:
            if name != MANIFEST:
                record = self.manifest.files.get(name) or self.manifest.graphs[name]
                check_file(self.path, name, record, verify=True)
                if name == DERIVED:
                    self._check_derived()
            elif read_manifest(self.path) != self.manifest:
                raise BundleChanged(self.path)
        except (OSError, ValueError) as error:
            if name in self.checked or self._has_changed():
                raise BundleChanged(self.path) from error
            raise BundleError(str(error)) from error

    def _check_derived(self) -> None:
        """Refuse derived weights that are not those of the weights."""
        path = self.path / DERIVED
        derived = {name: map_tensor(path, spec) for name, spec in read_header(path).items()}
        if (fault := fault_of_derived(derived, self.weights(), self.manifest)) is not None:
            raise ValueError(f"{path} is not made from the weights ({fault}); load with rebuild=True")

    def _has_changed(self) -> bool:
        """Whether a writer replaces the bundle or has replaced its manifest."""
        staged = (self.path / file_set.STAGED).exists()  # looked for first: it goes away after the manifest has come
        return staged or identity(self.path / MANIFEST) != self.checked.get(MANIFEST)
