"""What the key `sae` of vLLM's additional configuration says: which SAEs are served at which hooks, and the bounds."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_runtime.bundle.hooks import parse_hook
from sae_runtime.bundle.parts import read_manifest
from sae_runtime.bundle.typed_json import from_dict
from sae_runtime.serve.edit_objects import MOST_FEATURES
from sae_runtime.serve.policy import Policy

VERSIONS = ("0.32",)  # of vLLM: rows, positions and layers are found by names that each of them may change


@dataclass(frozen=True)
class Place:
    """An SAE and its place in the model.

    Attributes:
        bundle: path of its folder.
        hook: where it reads; empty: the hook of its manifest.
        name: by which requests name it; empty: the folder's name.
    """

    bundle: str
    hook: str = ""
    name: str = ""


@dataclass(frozen=True)
class Bounds:
    """How much a request may ask.

    Attributes:
        edits: of one request.
        features: of a token that an answer shows.
        kept_tokens: tokens whose features wait for their caller, up to 1.6 KB each at 100 features; beyond, the oldest
            are dropped.

    Raises:
        ValueError: one of them is not above 0, or there are more features than a request may name.
    """

    edits: int = 64
    features: int = MOST_FEATURES
    kept_tokens: int = 1 << 18

    def __post_init__(self) -> None:
        for name, number in dataclasses.asdict(self).items():
            if number < 1:
                raise ValueError(f"limits.{name} is a whole number above 0, got {number}; give one")
        if self.features > MOST_FEATURES:
            raise ValueError(f"limits.features is at most {MOST_FEATURES}, got {self.features}; give fewer")


@dataclass(frozen=True)
class Settings:
    """The value of the key `sae`.

    Attributes:
        saes: what is served. Two may have one hook; the first one reads and edits first.
        policy: which edits requests may ask for.
        limits: how many.
    """

    saes: tuple[Place, ...]
    policy: Policy = field(default_factory=Policy)
    limits: Bounds = field(default_factory=Bounds)


def read_settings(given: Any) -> Settings | None:
    """The settings in an additional configuration of vLLM; None without a key `sae`.

    Names and hooks are filled in from the bundles.

    Args:
        given: the configuration, a dict as a rule.

    Raises:
        ValueError: a value has another form, two SAEs have one name, or a hook is none of a torch model.
        BundleError: a bundle is missing or damaged.

    >>> read_settings({"sae": {"saes": [{"bundle": bundle_path, "hook": "h.1", "name": "mine"}]}}).saes[0].name
    'mine'
    """
    value = given.get("sae") if isinstance(given, Mapping) else None
    if value is None:
        return None
    settings: Settings = from_dict(Settings, value, "additional_config.sae")
    if not settings.saes:
        raise ValueError('additional_config.sae names no SAE; give {"saes": [{"bundle": PATH}]}')
    places = tuple(_filled(place) for place in settings.saes)
    names = [place.name for place in places]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two SAEs are called {twice[0]!r}; give each a name in additional_config.sae")
    return Settings(places, settings.policy, settings.limits)


def _filled(place: Place) -> Place:
    path = Path(os.path.expanduser(place.bundle)).absolute()  # that of Path raises for users that do not exist
    hook = place.hook or read_manifest(path).hook or ""
    if not hook:
        raise ValueError(f"{path} does not say where its SAE reads; give its hook in additional_config.sae")
    parsed = parse_hook(hook)
    if parsed.place == "tensor" or parsed.call is not None:
        raise ValueError(
            f"vLLM's model is hooked at [input:]MODULE, BLOCK.resid_post or a name of TransformerLens, got {hook!r}; "
            "give such a hook in additional_config.sae"
        )
    return Place(str(path), hook, place.name or path.name)
