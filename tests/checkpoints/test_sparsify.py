import json
from pathlib import Path
from typing import Any

import pytest
from foreign import assert_same
from foreign_saes.sparsify import CASES, encode, make

from sae_runtime.checkpoints import sparsify
from sae_runtime.checkpoints.convert import convert


def test_every_activation_is_tested() -> None:
    assert {architecture.split()[0] for architecture, _ in CASES.values()} == set(sparsify.ARCHITECTURES)


@pytest.mark.parametrize("name", CASES)
def test_a_bundle_computes_what_sparsify_does(tmp_path: Path, name: str) -> None:
    architecture, settings = CASES[name]
    coder = make(**settings)
    coder.save_to_disk(tmp_path / "run" / "layers.1")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": "tiny", "hookpoints": ["layers.1"]}))
    made = assert_same(
        tmp_path / "run" / "layers.1",
        tmp_path / "out",
        16,
        lambda x: encode(coder, x),
        lambda x: coder(x).sae_out,
    )
    transcodes = "transcoder" in name
    assert (made.source_format, made.model) == (architecture, "tiny")
    assert (made.hook, made.hook_out) == (("input:layers.1", "layers.1") if transcodes else ("layers.1", None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signed": True}, "keeps negative features"),
        ({"activation": "batchtopk"}, "activation is batchtopk, expected one of topk, groupmax"),
        ({"activation": "groupmax", "k": 7}, "k that divides"),
        ({"num_latents": 65}, r"encoder.weight has shape \[64, 16\], expected \[65, 16\]"),
        ({"skip_connection": True}, "lacks the tensor W_skip"),
        ({"k": -1}, "k is -1, expected at least 1"),
    ],
)
def test_settings_and_tensors_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    make(k=5).save_to_disk(tmp_path / "run")
    cfg = json.loads((tmp_path / "run" / "cfg.json").read_text())
    (tmp_path / "run" / "cfg.json").write_text(json.dumps(cfg | change))
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
