"""`inspect` says of a deployed model what `load_model` does."""

import json
from pathlib import Path

import pytest
from made_hosts import host

from sae_runtime.deployed.description import described
from sae_runtime.deployed.layout import read_layout
from sae_runtime.text.settings import first_position, read_settings


@pytest.mark.parametrize(("pad", "longest"), [(1, 512), (0, 513), (None, 512)])
def test_positions_behind_padding_shorten_texts(pad: int | None, longest: int, tmp_path: Path) -> None:
    config = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": pad}
    host(tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert described(read_layout(tmp_path)).max_length == read_settings(tmp_path).positions == longest
    assert 514 - first_position(config) == longest
