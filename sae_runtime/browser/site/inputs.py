"""What a path of `sae-runtime browse` is, told by what it holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_runtime.bundle.hub import SCHEME
from sae_runtime.bundle.parts import MANIFEST
from sae_runtime.bundle.siblings import repaired
from sae_runtime.store.schema import STORE

SITE = "site.json"
# Files that say what a folder is, and what to do with one of these.
_OTHERS = {
    MANIFEST: "is a bundle; name a feature store, and the bundle by --sae",
    SITE: "is a site already; open it: sae-runtime browse {path} --open",
    "features.json": "has features of a corpus; make a store of them: sae-runtime features build {path} -o store",
    "extract.json": "has features that are not finished; run the same sae-runtime extract again",
    "activations.json": "has activations; extract features, and make a store of them: sae-runtime features build",
}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The paths of stores, in their order, and of the model, if there is one."""

    stores: tuple[Path, ...]
    model: str | None


def is_site(path: str | Path) -> bool:
    """Whether a path is a folder that `write_site` wrote.

    >>> is_site(store_path)
    False
    """
    folder = repaired(Path(path))
    return (folder / SITE).is_file() and (folder / "index.html").is_file()


def sorted_out(paths: Sequence[str]) -> Inputs:
    """Which of the paths are stores, and which is a model.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a path is something else, a store is named twice, there is no store, or there are two models.

    >>> sorted_out([model_path, store_path]).stores == (Path(store_path),)
    True
    """
    models = [path for path in paths if _is_model(path)]
    stores = [repaired(Path(path)) for path in paths if path not in models]
    for path in stores:
        if not (path / STORE).is_file():
            raise _no_store(path)
    if len({path.resolve() for path in stores}) < len(stores):
        raise ValueError("a store is named twice; name each store once")
    if len(models) > 1:
        raise ValueError(f"a site has one model, got {' and '.join(models)}; name one, spliced with all SAEs")
    if not stores:
        raise ValueError(
            f"{models[0]} is a model, and no feature store is named; make one: sae-runtime features build, of what "
            f"sae-runtime extract {models[0]} writes"
        )
    return Inputs(stores=tuple(stores), model=models[0] if models else None)


def _is_model(path: str) -> bool:
    """Whether a path means a deployed model: a reference to the Hub, a graph, or a folder with one."""
    if path.startswith(SCHEME) or path.endswith(".onnx"):
        return True
    folder = Path(path)
    known = (STORE, *_OTHERS)
    return not any((folder / name).exists() for name in known) and any(
        (*folder.glob("[!.]*.onnx"), *folder.glob("onnx/[!.]*.onnx"))
    )


def _no_store(path: Path) -> Exception:
    if not path.exists():
        return FileNotFoundError(f"{path} does not exist; name a feature store or a deployed model")
    if not path.is_dir():
        return ValueError(f"{path} is a file; name a feature store, which features build writes, or a deployed model")
    said = next((text for name, text in _OTHERS.items() if (path / name).exists()), None)
    if said is not None:
        return ValueError(f"{path} {said.format(path=path)}")
    if any((path / name).exists() for name in ("config.json", "tokenizer.json")):
        return ValueError(f"{path} has no graph, .onnx; make one: sae-runtime export-model, then sae-runtime splice")
    return ValueError(f"{path} is no feature store; make one: sae-runtime features build")
