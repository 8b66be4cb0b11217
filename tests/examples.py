"""How many examples Hypothesis makes: few and the same ones in every run of the tests, many in a campaign."""

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

CAMPAIGN = "SAE_RUNTIME_CAMPAIGN_EXAMPLES"
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "sae-runtime-hypothesis")  # else in the repository


def examples(quick: int) -> settings:
    """Settings of a test: `quick` examples, or as many as the environment variable CAMPAIGN says, then at random."""
    asked = os.environ.get(CAMPAIGN)
    return settings(
        max_examples=int(asked or quick),
        derandomize=asked is None,
        database=None,
        deadline=None,  # a shared machine has slow moments
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
