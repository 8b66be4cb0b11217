"""What a request asks of the SAEs, read and checked in vLLM's front process: the engine ends if a worker fails."""

import hashlib
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.labels import read_labels
from sae_runtime.core.edits import Edit, edit_arrays, resolved
from sae_runtime.core.gates import Gate, Positions, Spans
from sae_runtime.core.labels import shown
from sae_runtime.serve import json_text
from sae_runtime.serve.edit_bounds import Guard
from sae_runtime.serve.edit_kinds import strength_of
from sae_runtime.serve.edit_objects import edits_of_text, read_edits, read_gate
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.vllm.settings import Place, Settings

KEYS = ("sae_edits", "sae_gate", "sae_features", "sae_ticket")
PLAN = "sae"  # the key of a request's extra arguments under which the worker finds its plan
ALL = "all"  # of sae_features: every active feature
_BY_PROMPT = ("prompt", "last_prompt", "generated", "answer")  # gates that depend on where the prompt ends
_LONGEST_TICKET = 256
LARGEST = 1e16  # what edits may make of an activation; a norm adds up squares, which still fit into float32
_SECRET = secrets.token_hex()  # a part of each salt, so that no caller can compute that of another's edits


@dataclass(frozen=True)
class Asked:
    """What a request asks.

    Attributes:
        edits: of each SAE by name, in numbers: the arrays of `edit_arrays` of one request, as lists.
        gate: which tokens they reach.
        features: how many features of each token are kept; "all" for every active one, 0 for none.
        ticket: under which they are kept; empty: the id of the request.
    """

    edits: Mapping[str, Mapping[str, list[Any]]]
    gate: Gate
    features: int | str
    ticket: str

    def plan(self, request: str, answers: int, special: Collection[int]) -> dict[str, Any]:
        """What the worker does for the request, in plain values.

        Args:
            request: its id, as its caller knows it.
            answers: its number of answers; each is a request of its own for the worker.
            special: ids of special tokens, which the gate "text" leaves out.
        """
        gate = list(self.gate.numbers) if isinstance(self.gate, Positions) else self.gate
        skip = sorted(special) if gate == "text" and self.edits else []
        return {
            "edits": {name: dict(arrays) for name, arrays in self.edits.items()},
            "gate": gate,
            "skip": skip,
            "features": self.features,
            "ticket": self.ticket or request,
            "request": request,
            "answers": answers,
        }

    def salt(self, given: str | None, prompt_tokens: int) -> str | None:
        """The salt of the request's prefixes in the cache: those computed under other edits are none of its.

        Where a gate depends on the end of the prompt, equal tokens under equal edits still differ by it: a second turn
        of a chat has the first answer in its prompt.

        Args:
            given: the caller's own salt.
            prompt_tokens: number of tokens of the prompt.
        """
        if not self.edits:
            return given
        plan = self.plan("", 0, ())
        told = [_SECRET, given, plan["edits"], plan["gate"], prompt_tokens if self.gate in _BY_PROMPT else None]
        return "sae:" + hashlib.sha256(json.dumps(told).encode()).hexdigest()


class Reader:
    """Reads what requests ask of the SAEs of these settings.

    Args:
        settings: of the server.
        largest_number: of the model's dtype, such as 65504 for float16.

    Raises:
        ValueError: the policy does not fit the SAEs.
        BundleError: a bundle is damaged.

    >>> from sae_runtime.serve.vllm.settings import read_settings
    >>> reader = Reader(read_settings({"sae": {"saes": [{"bundle": bundle_path, "hook": "h.1"}]}}), 65504.0)
    >>> reader.read({"sae_edits": '[{"feature": 3, "set": 8.0}]', "sae_gate": "generated"}).gate
    'generated'
    """

    def __init__(self, settings: Settings, largest_number: float) -> None:
        self.settings = settings
        self._limits = Limits(edits=settings.limits.edits)
        elsewhere = {place.name for place in settings.saes}
        self._saes = {
            place.name: _ServedSAE(place, settings, elsewhere - {place.name}, largest_number) for place in settings.saes
        }

    def read(self, arguments: Mapping[str, Any] | None) -> Asked | None:
        """What the extra arguments of a request ask; None if they ask nothing.

        Raises:
            Invalid: they cannot be done as they are; the message is for the caller.
            TooLarge: they exceed a limit.
        """
        if not isinstance(arguments or {}, Mapping):
            raise ValueError(f"extra_args is a dict, got {type(arguments).__name__}; give one")
        named = ((key, value) for key, value in (arguments or {}).items() if isinstance(key, str))
        given = {key: value for key, value in named if key == PLAN or key.startswith("sae_")}
        if unknown := [key for key in given if key not in KEYS]:
            raise ValueError(f"{shown(unknown[0])} is no argument of a request; the arguments are {', '.join(KEYS)}")
        features, ticket = self._features(given.get("sae_features", 0)), given.get("sae_ticket", "")
        if not isinstance(ticket, str) or len(ticket) > _LONGEST_TICKET or not ticket.isprintable():
            raise ValueError(f"sae_ticket is a text of at most {_LONGEST_TICKET} printable characters; give one")
        edits = self._edits(given.get("sae_edits", []))
        gate = _gate(given.get("sae_gate", "all"))
        return Asked(edits, gate, features, ticket) if edits or features else None

    def _features(self, given: Any) -> int | str:
        most = self.settings.limits.features
        if given == ALL or (type(given) is int and 0 <= given <= most):
            return given  # type: ignore[no-any-return]
        raise ValueError(f"sae_features is a whole number from 0 to {most}, got {shown(given)}; give one")

    def _edits(self, given: Any) -> dict[str, dict[str, list[Any]]]:
        by_name: dict[str, list[Edit]] = {}
        for name, edits in _listed(given, self._limits).items():
            if name is None and len(self._saes) > 1:
                raise ValueError(f"an edit names its SAE here, one of {', '.join(self._saes)}; give it the key sae")
            own = next(iter(self._saes)) if name is None else name
            if own not in self._saes:
                raise ValueError(f"there is no SAE {shown(own)}; the SAEs are {', '.join(self._saes)}")
            by_name.setdefault(own, []).extend(edits)
        return {name: self._saes[name].arrays(edits) for name, edits in by_name.items() if edits}


class _ServedSAE:
    """An SAE as the front process knows it: what its edits may be."""

    def __init__(self, place: Place, settings: Settings, elsewhere: Collection[str], largest_number: float) -> None:
        self._name, self._bundle = place.name, bundle.read(Path(place.bundle))
        self._largest_number, self._d_sae = largest_number, self._bundle.manifest.architecture.d_sae
        self._decoder = self._bundle.tensor("W_dec")  # mapped once: each mapping reads the file's header again
        stats = self._bundle.stats()
        self._largest = None if stats is None else stats.largest
        self._guard = Guard(
            settings.policy,
            self._d_sae,
            names={place.name},
            elsewhere=elsewhere,
            largest=lambda: self._largest,
            labels=lambda: read_labels(self._bundle.path, self._d_sae),
        )
        self._guard.check_start()

    def arrays(self, edits: Sequence[Edit]) -> dict[str, list[Any]]:
        """The edits of a request in numbers.

        Raises:
            ValueError: one of them cannot be done, or may not be.
        """
        if self._bundle.manifest.architecture.d_out is not None:
            raise ValueError(f"{self._name} is a transcoder, whose features can be read and not edited; edit another's")
        plain = resolved(edits, self._largest, read_labels(self._bundle.path, self._d_sae))
        arrays = edit_arrays([plain], self._d_sae)
        self._guard.check(plain)
        self._check_size(plain)
        return {name: array[0].tolist() for name, array in arrays.items()}

    def _check_size(self, edits: Sequence[Edit]) -> None:
        """Refuse edits that together overflow the numbers of the model, as far as they can be known here."""
        moved = np.zeros(1)
        for edit in edits:
            feature = int(edit.feature)
            known = 0.0 if self._largest is None else abs(edit.factor) * float(self._largest[feature])
            moved = moved + max(strength_of(edit), known) * np.abs(self._decoder[feature], dtype=np.float64)
        if not moved.max() < (most := min(self._largest_number / 4, LARGEST)):
            raise ValueError(
                f"the edits move an activation by {moved.max():.3g}, and the model's numbers take less than "
                f"{most:.3g}; give smaller edits"
            )


def _listed(given: Any, limits: Limits) -> Mapping[str | None, Sequence[Edit]]:
    """The edits of a request by SAE: JSON, its text, or in Python a list of `Edit`."""
    if isinstance(given, str):
        return edits_of_text(given, limits)
    if isinstance(given, Edit):
        given = [given]
    if isinstance(given, list | tuple) and given and all(isinstance(one, Edit) for one in given):
        limits.check(edits=len(given))
        return {None: list(given)}
    return read_edits(list(given) if isinstance(given, tuple) else given, limits)


def _gate(given: Any) -> Gate:
    if isinstance(given, str) and given[:1] in ("[", "{"):
        given = json_text.read(given, "sae_gate")
    gate = read_gate(list(given) if isinstance(given, set | tuple) else given)
    if isinstance(gate, Spans):
        raise ValueError("sae_gate takes no spans here, since vLLM gets tokens; give positions, or a word")
    return gate
