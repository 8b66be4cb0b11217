"""Malformed requests get a code below 500, and the server answers the next one."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from malformed import answered, requests
from running import asked, running_command

KNOWN = {0, 200, 400, 403, 404, 405, 408, 413, 503, 504}  # 0: nothing that HTTP could answer
LIMITS = ("--max-body", "1M", "--max-rows", "100", "--max-texts", "20")


def check(address: str, log: Path, count: int, seed: int) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    for number, wrong in enumerate(requests(count, seed)):
        code = answered(address, wrong)
        seen[wrong.what, code] += 1
        assert code in KNOWN, (number, code, wrong)
    assert asked(address, "GET", "/v2/health/ready")[0] == 200
    assert "Traceback" not in log.read_text()
    assert sum(number for (_, code), number in seen.items() if 400 <= code < 500) > count / 2, seen
    assert not [one for one in seen if one[1] in (503, 504)], seen


def test_300_malformed_requests(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_command(f"mine={bundle_of('mutual')}", *LIMITS, log=log) as (address, process):
        check(address, log, 300, seed=1)
        assert process.poll() is None


@pytest.mark.slow
def test_10_000_malformed_requests(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    from deployed_model import deploy  # it imports torch

    model, log = deploy(tmp_path / "model", "bert", {"bundle": bundle_of("mutual")}), tmp_path / "log"
    with running_command(f"mine={bundle_of('mutual')}", f"text={model}", *LIMITS, log=log) as (address, process):
        check(address, log, 10_000, seed=2)
        assert process.poll() is None
