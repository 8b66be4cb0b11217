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


def test_the_metadata_of_a_splice_are_read_back_as_they_were() -> None:
    other = Spliced(**vars(SPLICED) | {"name": "sae", "replace": True})
    metadata = {"license": "MIT"} | SPLICED.to_metadata() | other.to_metadata()
    assert read_splices(metadata) == {"knob": SPLICED, "sae": other}
    assert read_splices({"license": "MIT"}) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_sae": "150"}, "d_sae is '150'"),
        ({"d_sae": True}, "d_sae is True"),
        ({"inputs": "knob_slots"}, "inputs is 'knob_slots'"),
        ({"outputs": [1]}, r"outputs is \[1\]"),
        ({"name": "sae"}, "name is 'sae'"),
        ({"more": 1}, "the fields are not name, hook, tensor"),
    ],
)
def test_metadata_that_describe_no_splice_are_refused(change: dict[str, Any], message: str) -> None:
    text = json.dumps(json.loads(SPLICED.to_metadata()[f"{KEY}knob"]) | change)
    with pytest.raises(ValueError, match=f"{message}.*; splice the host model again"):
        read_splices({f"{KEY}knob": text})


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_metadata_that_are_no_json_are_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"sae_runtime.splice.knob does not describe a splice .*; splice the host model again"
    ):
        read_splices({f"{KEY}knob": text})
