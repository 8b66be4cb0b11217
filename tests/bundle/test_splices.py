import json
from typing import Any

import pytest

from sae_runtime.bundle.splices import KEY, Spliced, read_splices

SPLICED = Spliced(
    name="knob",
    hook="encoder.layer.0",
    tensor="layer_norm_2",
    inputs=("knob_slots", "knob_features"),
    outputs=(),
    replace=False,
    d_in=24,
    d_sae=150,
    weights="9f86d081",
)


def test_read_splices_gives_what_to_metadata_wrote() -> None:
    other = Spliced(**vars(SPLICED) | {"name": "sae", "replace": True})
    metadata = {"license": "MIT"} | SPLICED.to_metadata() | other.to_metadata()
    assert read_splices(metadata) == {"knob": SPLICED, "sae": other}
    assert read_splices({"license": "MIT"}) == {}


def test_read_splices_reads_what_an_older_version_wrote() -> None:
    older = json.loads(SPLICED.to_metadata()[f"{KEY}knob"])
    del older["slots"]
    assert read_splices({f"{KEY}knob": json.dumps(older)}) == {"knob": SPLICED}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_sae": "150"}, "d_sae must be int, got '150'"),
        ({"d_sae": True}, "d_sae must be int, got True"),
        ({"inputs": "knob_slots"}, "inputs must be a list, got 'knob_slots'"),
        ({"outputs": [1]}, r"outputs\[0\] must be str, got 1"),
        ({"name": "sae"}, "name is 'sae'"),
        ({"more": 1}, "must have the fields name, hook, tensor"),
    ],
)
def test_read_splices_refuses_metadata_that_describe_no_splice(change: dict[str, Any], message: str) -> None:
    text = json.dumps(json.loads(SPLICED.to_metadata()[f"{KEY}knob"]) | change)
    with pytest.raises(ValueError, match=f"{message}.*; splice the host model again"):
        read_splices({f"{KEY}knob": text})


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_read_splices_refuses_metadata_that_are_not_json(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"sae_runtime.splice.knob does not describe a splice .*; splice the host model again"
    ):
        read_splices({f"{KEY}knob": text})
