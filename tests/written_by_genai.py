"""Tokens that onnxruntime-genai's Generator writes on a spliced graph with required inputs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sae_runtime import Edit
from sae_runtime.core.edits import as_inputs


def written_by_genai(folder: Path, ids: Sequence[int], edits: Sequence[Edit], *, d_sae: int, count: int) -> list[int]:
    """At most `count` new ids, the most likely ones; the edits are on every token."""
    og = pytest.importorskip("onnxruntime_genai")
    model = og.Model(str(folder))
    settings = og.GeneratorParams(model)
    settings.set_search_options(batch_size=1, max_length=len(ids) + count, do_sample=False)
    generator = og.Generator(model, settings)
    ones = np.ones((1, 1, 1), np.float32)
    inputs = {**as_inputs([edits], d_sae), "gate": ones, "direction": 0 * ones, "slots": np.array([0])}
    inputs |= {"when": np.zeros((1, 0), np.int64), "above": np.zeros((1, 0), np.float32)}
    for name, array in inputs.items():  # the generator reads them, and does not keep them alive
        generator.set_model_input(f"sae_{name}", array)
    generator.append_tokens(np.array([ids], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(number) for number in generator.get_sequence(0)[len(ids) :]]
