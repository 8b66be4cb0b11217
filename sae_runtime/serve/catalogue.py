"""What a server has: bundles and deployed models by name and version, opened at the start."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_runtime.bundle.hub import SCHEME, local
from sae_runtime.bundle.manifest import FILE as MANIFEST
from sae_runtime.core.printable import printable
from sae_runtime.deployed.spliced_sae import SplicedSAE
from sae_runtime.engine.sessions import CPU, Provider, let_threads_sleep
from sae_runtime.model import Model, load_model
from sae_runtime.sae import SAE, load
from sae_runtime.serve.errors import NotFound
from sae_runtime.serve.refusal import known_as

OPERATIONS = ("encode", "encode_batch", "decode", "steer", "features", "run", "embed", "generate")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)
_SPEC = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)(?:@([^=]*))?=(.*)", re.ASCII | re.DOTALL)
_VERSION = re.compile("[1-9][0-9]{0,8}", re.ASCII)


@dataclass(frozen=True)
class Loaded:
    """A bundle or a deployed model under its name.

    Attributes:
        name: by which callers ask for it.
        version: likewise, from 1 on.
        sae: the bundle's SAE; None: this is a deployed model.
        model: the deployed model; None: this is a bundle.
    """

    name: str
    version: int
    sae: SAE | None = None
    model: Model | None = None

    def __str__(self) -> str:
        return f"{self.name} (version {self.version})"

    @property
    def saes(self) -> Mapping[str, SAE | SplicedSAE]:
        """Its SAEs by name; that of a bundle has the bundle's."""
        if self.sae is not None:
            return {self.name: self.sae}
        return {} if self.model is None else self.model.saes

    def close(self) -> None:
        """Close its graphs."""
        for one in (self.sae, self.model):
            if one is not None:
                one.close()


def open_all(
    specs: Iterable[str | Path],
    *,
    providers: Sequence[Provider] = CPU,
    threads: int | None = None,
    tell: Callable[[Loaded], None] | None = None,
) -> list[Loaded]:
    """Open what a server serves. The threads of its graphs sleep when they have nothing to do.

    Args:
        specs: PATH, NAME=PATH or NAME@VERSION=PATH each, where PATH is a bundle or a deployed model. Without a name it
            is the folder's, without a version it is 1.
        providers: of `load` and `load_model`.
        threads: likewise.
        tell: is called with each, when it is open.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: a name or a version cannot be used or is given twice, or a path holds nothing that is served.

    >>> [str(one) for one in open_all([f"mine@3={bundle_path}"])]
    ['mine (version 3)']
    """
    asked = [_read(str(spec)) for spec in specs]
    if not asked:
        raise ValueError("there is nothing to serve; name a bundle or a deployed model")
    seen: dict[tuple[str, int], str] = {}
    for name, version, path in asked:
        if (other := seen.setdefault((name, version), path)) is not path:
            raise ValueError(
                f"{printable(other)} and {printable(path)} are both {name} of version {version}; give one of them "
                "another name or version: NAME@VERSION=PATH"
            )
    let_threads_sleep()
    found: list[Loaded] = []
    try:
        for name, version, path in asked:
            found.append(_opened(name, version, path, providers, threads))
            if tell is not None:
                tell(found[-1])
    except BaseException:
        for one in found:
            one.close()
        raise
    return found


def chosen(loaded: Sequence[Loaded], name: str, version: str | int | None = None) -> Loaded:
    """What a name and a version mean; without a version the highest one.

    Raises:
        NotFound: nothing has this name, or this version.
    """
    own = [one for one in loaded if one.name == name]
    if not own:
        names = sorted({one.name for one in loaded})
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise NotFound(f"there is no model {printable(str(name)[:100])!r} here; there are {shown}")
    if version is None or version == "":
        return max(own, key=lambda one: one.version)
    for one in own:
        if str(one.version) == str(version):
            return one
    versions = ", ".join(str(one.version) for one in own)
    raise NotFound(f"{name} has no version {printable(str(version)[:20])!r}; it has {versions}")


def _read(spec: str) -> tuple[str, int, str]:
    """Name, version and path of a spec."""
    named = _SPEC.fullmatch(spec)
    if not spec:
        raise ValueError("an empty PATH was given; name a bundle or a deployed model")
    if named is None and "=" in spec and not _exists(spec):
        given = printable(spec.partition("=")[0])
        raise ValueError(f"{given!r} cannot be a name in URLs; give one of letters, digits, '.', '_' and '-'")
    if named is None or _exists(spec):
        path = Path(spec.rpartition("@")[0] if spec.startswith(SCHEME) and "@" in spec else spec)
        path = path if spec.startswith(SCHEME) else path.absolute()
        name, version, where = path.parent.name if path.suffix == ".onnx" else path.name, "1", spec
    else:
        name, version, where = named[1], named[2] or "1", named[3]
        if named[2] == "":
            version = ""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{printable(name)!r} cannot be a name in URLs; give one of letters, digits, '.', '_' and '-': "
            f"NAME={printable(where)}"
        )
    if name.rpartition(".")[2] in OPERATIONS:
        raise ValueError(f"the name {name} ends like one of its operations; give another: NAME={printable(where)}")
    if not _VERSION.fullmatch(version):
        raise ValueError(
            f"a version is a whole number from 1 on, got {printable(version)!r} in {printable(spec)}; give one"
        )
    if not where:
        raise ValueError(f"{printable(spec)} names no path; write NAME=PATH")
    return name, int(version), where


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _opened(name: str, version: int, path: str, providers: Sequence[Provider], threads: int | None) -> Loaded:
    home = path if path.startswith(SCHEME) else str(local(path).absolute())
    if _is_bundle(home):
        sae = load(home, providers=providers, threads=threads)
        known_as(sae.folder, name)
        return Loaded(name, version, sae=sae)
    if not path.startswith(SCHEME) and not _has_graph(Path(home)):
        raise FileNotFoundError(
            f"{printable(path)} holds neither a bundle, {MANIFEST}, nor a deployed model, .onnx; name a folder that "
            "`export` or `splice` left"
        )
    model = load_model(home, providers=providers, threads=threads)
    for folder in (model.layout.home, model.layout.graph.parent):
        known_as(folder, name)
    return Loaded(name, version, model=model)


def _has_graph(home: Path) -> bool:
    """Whether a folder, or the one of that name in it, has a graph; a file is left to `load_model`."""
    return home.is_file() or any(home.glob("*.onnx")) or any(home.glob("onnx/*.onnx"))


def _is_bundle(path: str) -> bool:
    if not path.startswith(SCHEME):
        return (Path(path) / MANIFEST).is_file()
    try:
        return (local(path) / MANIFEST).is_file()
    except FileNotFoundError:  # a folder of the Hub that holds a deployed model may have no file of an SAE
        return False
