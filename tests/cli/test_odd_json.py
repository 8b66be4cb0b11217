"""Each field of a manifest, a cfg.json and an evaluation is taken out and given other values; commands stay sound.

`ODD_JSON=0` tries all of them, in place of a few of each kind.
"""

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from conftest import make_x
from corruption import deadline

from sae_runtime.bundle.folder import MANIFEST, record
from sae_runtime.bundle.sae_lens_cfg import CFG

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of activations that are not those of the figures
EACH = int(os.environ.get("ODD_JSON", "12"))
GONE = object()
ODD: tuple[Any, ...] = (
    *(GONE, None, True, -1, 0, 3, 1.5, 1e308, -1e300, 5e-324, 2**62, 10**38),
    *("", "x" * 300, "\x1b[31m\u202e", "$x^{", "\ud800", "a\0b"),
    *([], {}, [None], [1, "a"], {"a": None}, [[[]]], {"a": {"b": [1]}}),
)
FREE = {
    "model": "gpt2",
    "hook": "h.3",
    "transformer_lens_hook": "blocks.3.hook_resid_post",
    "measured": {
        **{"tokens": 500, "fvu": 0.2, "l0": 6.0, "dead": 0.1, "dead_tokens": 500},
        **{"batch": 256, "batch_fvu": 0.2, "batch_l0": 6.0},
    },
    "measured_with_left_out": {"tokens": 500, "fvu": 0.2, "l0": 6.0},
    "left_out": {
        **{"norm_multiple": 10.0, "first_positions": 1, "token_ids": [1, 2]},
        "rows": {"train": 3, "calibration": 1, "validation": 1},
    },
    "provenance": {
        "warnings": ["one"],
        "fitted_on": {"dataset": "a", "context": 128},
        "rows": {"train": 400, "calibration": 100, "validation": 100, "gaps": 0},
        "config": {"holdout": 0.2, "seed": 0, "batch": 256, "tokens": 1000, "max_norm": 10.0},
        "activations": "x.npy",
        "calibration": {"activations": "x.npy", "rows": {"calibration": 100, "validation": 100, "gaps": 0}},
    },
}
QUICK = (("inspect", "{}"), ("inspect", "{}", "--json"))
COMMANDS = (
    *QUICK,
    ("extract", "{}", "--activations", "x.npy", "-o", "features", "--force", "-q", "--any-source"),
    ("steer", "{}", "--activations", "x.npy", "--set", "3=1", "-o", "s.npy", "--force", "-q", "--any-source"),
    ("evaluate", "{}", "--activations", "x.npy", "-o", "e.json", "--force", "-q", "--any-source"),
    ("calibrate", "{}", "--activations", "x.npy", "-o", "cal", "--force", "-q", "--any-source"),
    ("export", "{}"),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def changed(value: Any, path: tuple[Any, ...], to: Any) -> Any:
    out = copy.deepcopy(value)
    inside = out
    for key in path[:-1]:
        inside = inside[key]
    if to is GONE:
        del inside[path[-1]]
    else:
        inside[path[-1]] = to
    return out


def cases(value: Any, seed: int) -> list[tuple[tuple[Any, ...], Any]]:
    every = [(path, to) for path in places(value) for to in ODD]
    random.Random(seed).shuffle(every)
    return every[:EACH] if EACH else every


def goes_on_or_refuses(*arguments: str | Path) -> bool:
    """Run a command, which must give a result or one line; whether it gave a result."""
    with deadline():
        result = run(*arguments)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert (result.exit_code, len(lines)) in ((0, 0), (1, 1)), (arguments, result.stderr)
    assert not {"\x1b", "\0", "\u202e"} & set(result.stdout + result.stderr)
    return result.exit_code == 0


@pytest.fixture
def folder(bundle_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with activations, and a bundle that has all that a manifest can have."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle_of("feature", sampled=True), "sae")
    np.save("x.npy", make_x(1600))
    run("evaluate", "sae", "--activations", "x.npy", "--stats", "-q", "-o", "evaluation.json")
    manifest = Path("sae", MANIFEST)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **FREE}))
    return tmp_path


def test_every_field_of_a_manifest_may_be_anything(folder: Path) -> None:
    file = Path("sae", MANIFEST)
    whole = json.loads(file.read_text())
    for path, to in cases(whole, seed=1):
        file.write_text(json.dumps(changed(whole, path, to)))
        if goes_on_or_refuses(*(word.format("sae") for word in QUICK[0])):
            shutil.copytree("sae", "copy", dirs_exist_ok=True)
            for command in COMMANDS[1:]:
                goes_on_or_refuses(*(word.format("copy") for word in command))


def test_every_field_of_the_free_parts_may_be_missing_or_null(folder: Path) -> None:
    file = Path("sae", MANIFEST)
    whole = json.loads(file.read_text())
    for path in places(FREE):
        for to in (GONE, None, [], {}, "x"):
            file.write_text(json.dumps(changed(whole, path, to)))
            goes_on_or_refuses("inspect", "sae")


def test_every_field_of_a_configuration_may_be_anything(folder: Path) -> None:
    file, manifest = Path("sae", CFG), Path("sae", MANIFEST)
    whole, listed = json.loads(file.read_text()), json.loads(manifest.read_text())
    shutil.copytree("sae", "theirs", ignore=lambda *_: [MANIFEST])
    for path, to in cases(whole, seed=2):
        file.write_text(json.dumps(changed(whole, path, to)))
        shutil.copy(file, "theirs")
        now = record(file)
        listed["files"][CFG] = {"size": now.size, "sha256": now.sha256}
        manifest.write_text(json.dumps(listed))
        goes_on_or_refuses("inspect", "sae")
        goes_on_or_refuses("convert", "theirs", "-o", "made", "--force")


def test_every_field_of_an_evaluation_may_be_anything(folder: Path) -> None:
    whole = json.loads(Path("evaluation.json").read_text())
    for path, to in cases(whole, seed=3):
        Path("odd.json").write_text(json.dumps(changed(whole, path, to)))
        goes_on_or_refuses("report", "odd.json", "-o", "r.html", "--force")
