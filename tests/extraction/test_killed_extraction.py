"""Extractions that are killed at random moments and run again: the same bytes as of one that was left alone."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from feature_folders import bytes_of
from word_model import deploy_words, some_words

BundleOf = Callable[..., Path]

_CHILD = """
import sys
from pathlib import Path
from sae_runtime import load_model
from sae_runtime.extraction.extract import extract
from sae_runtime.extraction.text_source import TextSource

model, text, out, rule = sys.argv[1:]
source = TextSource(load_model(model, threads=1), [Path(text)], part=600)
source.model.features("w1")
print("begun", flush=True)
extract(source, Path(out), rule=rule)
"""


def begun(model: Path, text: Path, out: Path, rule: str) -> subprocess.Popen[str]:
    """A process that is about to extract."""
    command = [sys.executable, "-c", _CHILD, *map(str, (model, text, out, rule))]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "begun\n"
    return child


@pytest.mark.parametrize(("rule", "kills"), [("served", 20), ("batch", 5)])
def test_kills_at_random_moments_and_a_last_run_give_the_same_bytes(
    bundle_of: BundleOf, tmp_path: Path, rule: str, kills: int
) -> None:
    model, text = deploy_words(tmp_path / "model", bundle_of("mutual")), tmp_path / "text.txt"
    text.write_text("\n\n".join(some_words(1_200, 30)))
    with begun(model, text, tmp_path / "alone", rule) as child:
        assert child.wait() == 0
    out, chance, killed, seen = tmp_path / "killed", random.Random(0), 0, set[int]()
    for _ in range(kills):
        parts = len(list(out.glob("*/part-*"))) + chance.randrange(8)
        with begun(model, text, out, rule) as child:
            while child.poll() is None and len(list(out.glob("*/part-*"))) < parts:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.03))  # in the middle of a part, or of the plan where it waits for no part
            child.kill()
            killed += child.wait() != 0
        seen.add(len(list(out.glob("*/part-*"))))
    assert killed >= kills // 2 and len(seen) > kills // 2
    with begun(model, text, out, rule) as child:
        assert child.wait() == 0
    assert bytes_of(out) == bytes_of(tmp_path / "alone")
