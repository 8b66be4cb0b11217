"""What the field asks of vLLM's engine: the check of a request, its features, and what is loaded."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_runtime.bundle.labels import read_labels
from sae_runtime.serve.edit_objects import read_sae_object
from sae_runtime.serve.errors import Full, NotFound
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.token_objects import TokenObjects
from sae_runtime.serve.vllm.field_answer import ChoiceTokens
from sae_runtime.serve.vllm.field_body import Wanted
from sae_runtime.serve.vllm.plugin import reader_of_processor
from sae_runtime.serve.vllm.reading import as_features

_SECONDS = 60.0  # in which an engine answers a call


class FieldEngine:
    """The SAEs of a running vLLM.

    Args:
        client: vLLM's EngineClient; None for a server without an engine.
    """

    def __init__(self, client: Any) -> None:
        self._client, self._reader = client, None if client is None else reader_of_processor(client.input_processor)
        self._names: Mapping[int, str] | None = None
        self._sizes: Mapping[str, int] = {}

    def check(self, arguments: Mapping[str, Any], sae: Any) -> None:
        """Raise ValueError if a request cannot be done; the message is for the caller.

        Args:
            arguments: its extra arguments that are ours.
            sae: its `sae` object, or None.
        """
        if self._reader is None:
            raise ValueError("this vLLM serves no SAE; start it with the key sae in its additional configuration")
        read_sae_object(sae, Limits(edits=self._reader.settings.limits.edits))
        self._reader.read(arguments)

    async def status(self) -> dict[str, Any]:
        """Of each SAE by name, its hook and figures.

        Raises:
            NotFound: none is served.
            Full: the engine does not answer.
        """
        if self._reader is None:
            raise NotFound("this vLLM serves no SAE")
        return await self._call("sae_status")  # type: ignore[no-any-return]

    async def features(self, wanted: Wanted, choices: Sequence[ChoiceTokens]) -> list[list[dict[str, Any]]]:
        """The token objects of each choice of an answer.

        Raises:
            Full: the engine does not answer, or keeps the features no longer.
        """
        assert self._reader is not None
        kept = in_order((await self._call("sae_features", [wanted.ticket]))[wanted.ticket])
        if len(kept) != len(choices):
            raise _lost(f"features of {len(kept)} answers out of {len(choices)} were kept")
        if not self._sizes:
            self._sizes = {name: one["d_sae"] for name, one in (await self.status()).items()}
        if self._names is None:
            self._names = {number: name for name, number in self._client.get_tokenizer().get_vocab().items()}
        labels = {place.name: read_labels(Path(place.bundle)) for place in self._reader.settings.saes}
        shown = TokenObjects(self._names.get, labels, wanted.most)
        return await asyncio.to_thread(self._shown, shown, kept, choices)

    def _shown(
        self, shown: TokenObjects, kept: Sequence[Mapping[str, Any]], choices: Sequence[ChoiceTokens]
    ) -> list[list[dict[str, Any]]]:
        found = []
        for saes, tokens in zip(kept, choices, strict=True):
            read = tokens.read
            try:
                features = {name: as_features(saes[name], size, len(read)) for name, size in self._sizes.items()}
            except (KeyError, ValueError) as error:
                raise _lost(str(error)) from None
            found.append(shown.tokens(read, features))
        return found

    async def drop(self, wanted: Wanted) -> None:
        """Let the engine keep the features no longer.

        Raises:
            Full: the engine does not answer.
        """
        await self._call("sae_drop", [wanted.ticket])

    async def _call(self, method: str, *arguments: Any) -> Any:
        """What the first worker gives; in tensor parallel, all of them have the same."""
        try:
            async with asyncio.timeout(_SECONDS):
                return (await self._client.collective_rpc(method, args=arguments))[0]
        except Exception as error:  # vLLM's own errors of a dead engine are of many classes
            raise _lost(f"the engine did not answer ({type(error).__name__})") from None


def in_order(kept: Mapping[str, Mapping[int, Any]]) -> list[Any]:
    """What is kept of a ticket, in the order of the choices of its answer.

    Each prompt of /v1/completions is a request of its own, whose id ends with its number; each of its answers is a
    child.

    Args:
        kept: by request and child.

    >>> in_order({"cmpl-a-1": {0: "c", 1: "d"}, "cmpl-a-0": {1: "b", 0: "a"}})
    ['a', 'b', 'c', 'd']
    """
    requests = sorted(kept, key=lambda name: int(name.rpartition("-")[2]) if len(kept) > 1 else 0)
    return [kept[name][child] for name in requests for child in sorted(kept[name])]


def _lost(why: str) -> Full:
    return Full(1.0, f"the features of this answer cannot be had: {why}")
