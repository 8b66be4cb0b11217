"""What graphs answer is refused where it breaks the contract."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_x

from sae_runtime import SAE, Edit, load
from sae_runtime.bundle.folder import BundleError
from sae_runtime.core.features import from_slots

Change = Callable[[list[Any]], list[Any]]


def answering(path: Path, change: Change) -> SAE:
    """An SAE whose graphs answer something else."""
    sae = load(path)
    run = sae._sessions.run
    sae._sessions.run = lambda *given, **named: change(list(run(*given, **named)))  # type: ignore[method-assign]
    return sae


WRONG: dict[str, Change] = {
    "another type": lambda outputs: [outputs[0], outputs[1].astype(np.float64)],
    "fewer slots than asked for": lambda outputs: [part[:, :1] for part in outputs],
    "fewer rows": lambda outputs: [part[:-1] for part in outputs],
    "one more output": lambda outputs: [*outputs, outputs[0]],
    "another rank": lambda outputs: [part[0] for part in outputs],
    "negative values": lambda outputs: [outputs[0], outputs[1] - 1],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_encoder_that_breaks_the_contract_is_refused(bundle_of: Callable[..., Path], wrong: str) -> None:
    sae = answering(bundle_of("mutual"), WRONG[wrong])
    for encode in (sae.encode, sae.encode_slots, sae.encode_batch):
        with pytest.raises(
            BundleError, match=r"^encode.onnx breaks the contract: .*; load with rebuild=True, or export"
        ):
            encode(make_x(5))


@pytest.mark.parametrize("feature", [-1, 150, 2**32, -(2**63)])
def test_a_feature_out_of_range_is_refused(bundle_of: Callable[..., Path], feature: int) -> None:
    def change(outputs: list[Any]) -> list[Any]:
        outputs[0][2, 0] = feature
        return outputs

    sae = answering(bundle_of("mutual"), change)
    for encode in (sae.encode, sae.encode_batch):
        with pytest.raises(ValueError, match="feature out of range, expected 0 to 149; load with rebuild=True"):
            encode(make_x(5))


def test_a_feature_twice_in_a_row_is_refused_and_in_two_rows_is_not() -> None:
    ones = np.ones((2, 2), np.float32)
    assert from_slots([(np.array([[1, 3], [3, 5]]), ones)], 8, (2,)).indices.tolist() == [1, 3, 3, 5]
    for rows in ([[3, 3], [1, 2]], [[1, 2], [4, 4]], [[3, 1], [3, 3]]):
        with pytest.raises(ValueError, match="a feature twice in a row"):
            from_slots([(np.array(rows), ones)], 8, (2,))


def test_reconstructions_and_edits_of_another_shape_are_refused(bundle_of: Callable[..., Path]) -> None:
    features = load(bundle_of("mutual")).encode(make_x(5))
    sae = answering(bundle_of("mutual"), lambda outputs: [part[..., :1] for part in outputs])
    with pytest.raises(BundleError, match="^decode.onnx breaks the contract"):
        sae.decode(features)
    with pytest.raises(BundleError, match="^steer.onnx breaks the contract"):
        sae.steer(make_x(5), Edit.set(3, 8.0))
