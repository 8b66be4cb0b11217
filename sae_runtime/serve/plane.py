"""The plane: everything that is served, by name, with numpy arrays in and out and no HTTP."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.edits import Edit
from sae_runtime.core.gates import Gate
from sae_runtime.core.labels import shown
from sae_runtime.deployed.text_features import TextFeatures
from sae_runtime.serve.admission import Admission
from sae_runtime.serve.bundle_operations import bundle_operations
from sae_runtime.serve.catalogue import OPERATIONS, Loaded, chosen, open_all
from sae_runtime.serve.errors import Closing, Invalid, NotFound, TimedOut
from sae_runtime.serve.guarding import Guards
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.live import Live
from sae_runtime.serve.operation import Listed, Metadata, Operation
from sae_runtime.serve.refusal import refusal
from sae_runtime.serve.row_lane import RowLane
from sae_runtime.serve.scheduler import Job, Scheduler
from sae_runtime.serve.tensors import Arrays, as_bytes, checked, size_of
from sae_runtime.serve.text_operations import resolved, text_operations
from sae_runtime.serve.text_sharing import Work
from sae_runtime.serve.writing import Prompt, WritingLane, Written, texts_of


class Plane:
    """Bundles and deployed models for many callers. All methods may be called by any thread.

    Requests that share a product are merged, where this keeps the bits of a bundle's answers. One thread computes, and
    takes the kinds of work in turn.

    Attributes:
        admission: counts the requests that wait or run.
        watcher: sees what is served; None: nobody does.

    Args:
        loaded: what is served, as `catalogue.open_all` gives it.
        limits: of each request and of what waits.
        policy: which edits are allowed; None: all.
        watcher: sees what is served; None: nobody does.
        merge: whether requests of bundles may be merged; if not, there is no trial at the start.

    >>> from sae_runtime.serve.catalogue import open_all
    >>> plane = Plane(open_all([f"mine={bundle_path}"]))
    >>> plane.infer("mine.encode", {"x": x})["values"].shape == sae.encode_slots(x)[1].shape
    True
    >>> plane.close()
    """

    def __init__(
        self,
        loaded: Sequence[Loaded],
        *,
        limits: Limits | None = None,
        policy: Guards | None = None,
        watcher: Live | None = None,
        merge: bool = True,
    ) -> None:
        self.loaded, self.limits = tuple(loaded), limits or Limits()
        self._policy, self.watcher, self._merge = policy, watcher, merge
        self._operations: dict[tuple[str, int], dict[str, Operation]] = {
            (one.name, one.version): {op.name: op for op in self._made(one)} for one in self.loaded
        }
        if watcher is not None:
            for one in self.loaded:
                for operation in self._operations[one.name, one.version].values():
                    if isinstance(operation.lane, RowLane):
                        operation.lane.merged = functools.partial(watcher.merged, one, operation.name)
        self._found: dict[tuple[str, Any], tuple[Loaded, Operation]] = {}
        self.admission = Admission(self.limits)
        every = [op for ops in self._operations.values() for op in ops.values()]
        self._scheduler = Scheduler([op.lane for op in every if not op.is_long])
        self._long = Scheduler([op.lane for op in every if op.is_long], name="sae-runtime serve, long")

    @classmethod
    def open(cls, specs: Sequence[str], **options: Any) -> "Plane":
        """A plane of what `catalogue.open_all` opens by these specs; options are those of the class."""
        return cls(open_all(specs), **options)

    @property
    def ready(self) -> bool:
        """Whether new requests are taken."""
        return not self.admission.closing

    def index(self) -> list[Listed]:
        """All operations of all models."""
        state, reason = ("UNAVAILABLE", "the server ends") if self.admission.closing else ("READY", "")
        return [
            Listed(f"{name}.{operation}", str(version), state, reason)
            for (name, version), operations in self._operations.items()
            for operation in operations
        ]

    def metadata(self, name: str, version: str | int | None = None) -> Metadata:
        """The tensors of an operation.

        Args:
            name: such as "my-sae.encode".
            version: of the model; None: the highest.

        Raises:
            NotFound: there is no such model or operation.
        """
        loaded, operation = self._find(name, version)
        versions = tuple(str(one.version) for one in self.loaded if one.name == loaded.name)
        return Metadata(f"{loaded.name}.{operation.name}", versions, operation.inputs, operation.outputs)

    def submit(
        self,
        name: str,
        inputs: Mapping[str, NDArray[Any]],
        *,
        version: str | int | None = None,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> "Future[Arrays]":
        """Ask for an answer. The arrays must not change until it is there.

        Args:
            name: of the operation, such as "my-sae.encode".
            inputs: arrays by name; BYTES are arrays of bytes or texts.
            version: of the model; None: the highest.
            outputs: names of the outputs that are wanted; none: all.
            parameters: of the operation.
            timeout: seconds; None, or more than the server allows: as many as it allows.

        Returns:
            A Future of the outputs by name. Its `cancel` drops the work; its exception is one of `errors`.

        Raises:
            NotFound: there is no such model or operation.
            Invalid: the inputs do not fit; `TooLarge`: they exceed a limit.
            Full: too much waits.
            Closing: the server ends.
        """
        loaded, operation = self._find(name, version)
        wanted = tuple(outputs)
        if unknown := [one for one in wanted if one not in {tensor.name for tensor in operation.outputs}]:
            known = ", ".join(tensor.name for tensor in operation.outputs)
            raise Invalid(f"{name} has no output {unknown[0]!r}; it has {known}")
        arrays = checked(operation.inputs, inputs, ranks=operation.ranks)
        return self._submit(
            loaded,
            operation,
            lambda: operation.accept(arrays, parameters or {}),
            arrays,
            _form(operation, wanted),
            timeout,
        )

    def infer(self, name: str, inputs: Mapping[str, NDArray[Any]], **options: Any) -> Arrays:
        """The answer of `submit`, whose options and errors these are.

        Raises:
            TimedOut: it was not there in time.
        """
        answer: Arrays = wait(self.submit(name, inputs, **options), options.get("timeout") or self.limits.seconds)
        return answer

    def features(
        self, name: str, texts: Sequence[str], *, version: str | int | None = None, timeout: float | None = None
    ) -> "Future[list[TextFeatures]]":
        """The features of each token of texts; `name` is that of a deployed model, without an operation.

        Errors are those of `submit`.
        """
        loaded, operation = self._find(f"{name}.features", version)
        arrays = {"text": as_bytes([*texts])}
        return self._submit(
            loaded, operation, lambda: operation.accept(arrays, {}), arrays, lambda found: found[0], timeout
        )

    def embed(
        self,
        name: str,
        texts: Sequence[str],
        edits: Mapping[str | None, Sequence[Edit]] | None = None,
        gate: Gate = "all",
        *,
        version: str | int | None = None,
        timeout: float | None = None,
    ) -> "Future[NDArray[np.float32]]":
        """A vector for each text, float32 [n, d], with the same edits (`edit_objects.read_edits`) in all texts.

        Errors are those of `submit`.
        """
        loaded, operation = self._find(f"{name}.embed", version)
        arrays = {"text": as_bytes([*texts])}

        def accept() -> tuple[Work, int]:
            work, rows = operation.accept(arrays, {})
            plain = self.edits_of(loaded, edits or {})
            return Work(work.texts, [plain] * rows, [gate] * rows), rows

        return self._submit(loaded, operation, accept, arrays, lambda found: found["embedding"], timeout)

    def generate(
        self,
        name: str,
        prompt: Prompt,
        edits: Mapping[str | None, Sequence[Edit]] | None = None,
        gate: Gate = "all",
        *,
        version: str | int | None = None,
        timeout: float | None = None,
        **settings: Any,
    ) -> "Future[Written]":
        """The answer of a language model to a text or messages; `name` is without an operation.

        Settings and errors are those of `WritingLane.read` and `submit`. `on_piece` gets each piece as it is written.
        """
        loaded, operation = self._find(f"{name}.generate", version)
        assert isinstance(operation.lane, WritingLane)
        lane = operation.lane

        def accept() -> tuple[Any, int]:
            return lane.read(prompt, self.edits_of(loaded, edits or {}), gate, **settings), 1

        return self._submit(loaded, operation, accept, {"text": as_bytes(texts_of(prompt))}, None, timeout)

    def find(self, name: str, version: str | int | None = None) -> Loaded:
        """What a name without an operation means; raises `NotFound`."""
        return chosen(self.loaded, name, version)

    def edits_of(self, loaded: Loaded, by_sae: Mapping[str | None, Sequence[Edit]]) -> dict[str, list[Edit]]:
        """The edits of a request of a deployed model in plain numbers by SAE, if they are allowed.

        Raises:
            Invalid: the model does not take them, or the server's policy refuses them.
        """
        assert loaded.model is not None
        try:
            return resolved(loaded.model, by_sae, lambda sae, edits: self._check_edits(loaded, sae, edits))
        except ValueError as error:
            raise refusal(error) from None

    def close(self, drain: float = 30.0) -> None:
        """Take no new requests, finish what was accepted, for so many seconds at most, and end the thread."""
        self.admission.close()
        until = time.monotonic() + drain
        for scheduler in (self._scheduler, self._long):
            scheduler.close(max(until - time.monotonic(), 0), lambda: Closing("the server ends; ask another one"))
        for one in self.loaded:
            one.close()

    def _submit(
        self,
        loaded: Loaded,
        operation: Operation,
        accept: Callable[[], tuple[Any, int]],
        arrays: Arrays,
        form: Callable[[Any], Any] | None,
        timeout: float | None,
    ) -> "Future[Any]":
        self.admission.check_open()
        begun = time.monotonic()
        try:
            work, rows = accept()
        except (ValueError, MemoryError) as error:
            raise refusal(error) from None
        seconds = self.limits.seconds if timeout is None else min(timeout, self.limits.seconds)
        size = size_of(arrays)
        self.admission.enter(size)
        job = Job(work, rows, begun + seconds, form)

        def ended(future: "Future[Any]") -> None:
            self.admission.leave(size)
            if self.watcher is not None:
                error = CancelledError() if future.cancelled() else future.exception()
                self.watcher.answered(loaded, operation.name, seconds=time.monotonic() - begun, rows=rows, error=error)

        job.future.add_done_callback(ended)
        operation.lane.put(job)
        (self._long if operation.is_long else self._scheduler).wake()
        return job.future

    def _find(self, name: str, version: str | int | None) -> tuple[Loaded, Operation]:
        if (found := self._found.get((name, version))) is not None:
            return found
        model, _, operation = str(name).rpartition(".")
        names = {one.name for one in self.loaded}
        if (operation not in OPERATIONS and model not in names) or not model or name in names:
            loaded = chosen(self.loaded, str(name), version)
            known = self._operations[loaded.name, loaded.version]
            raise NotFound(
                f"{loaded} is asked by its operations; name one of {', '.join(f'{name}.{op}' for op in known)}"
            )
        loaded = chosen(self.loaded, model, version)
        operations = self._operations[loaded.name, loaded.version]
        if operation not in operations:
            raise NotFound(f"{loaded} has no operation {shown(operation)}; it has {', '.join(operations)}")
        found = loaded, operations[operation]
        if len(self._found) < 1000 and isinstance(version, str | int | None):
            self._found[name, version] = found
        return found

    def _made(self, loaded: Loaded) -> list[Operation]:
        def check(sae: Any, edits: Sequence[Edit], gate: NDArray[Any] | None = None) -> None:
            self._check_edits(loaded, sae, edits, gate)

        if loaded.sae is not None:

            def saw(x: Any, indices: Any, values: Any) -> None:
                if self.watcher is not None:
                    self.watcher.saw(loaded, x, indices, values)

            return bundle_operations(loaded.sae, self.limits, check, saw, merge=self._merge)
        assert loaded.model is not None

        def saw_texts(seen: Sequence[TextFeatures]) -> None:
            if self.watcher is not None:
                self.watcher.saw_texts(loaded, seen)

        return text_operations(loaded.model, self.limits, check, saw_texts)

    def _check_edits(self, loaded: Loaded, sae: Any, edits: Sequence[Edit], gate: NDArray[Any] | None = None) -> None:
        if edits and self._policy is not None:
            self._policy.check(loaded, sae, edits, gate)
        if edits and self.watcher is not None:
            self.watcher.edited(loaded, sae, edits)


def wait(future: "Future[Any]", seconds: float) -> Any:
    """The result of a future.

    Raises:
        TimedOut: it is not there in so many seconds; then its work is dropped.
    """
    try:
        return future.result(seconds)
    except FutureTimeout:
        future.cancel()
        raise TimedOut(f"the request was not answered in {seconds:g} s; ask for less, or try again later") from None


def _form(operation: Operation, wanted: tuple[str, ...]) -> Callable[[Any], Arrays] | None:
    """Makes the tensors that are wanted of what a lane found; None: they are that already."""
    tensors = operation.tensors
    if not wanted:
        return tensors
    return lambda found: {name: (found if tensors is None else tensors(found))[name] for name in wanted}
