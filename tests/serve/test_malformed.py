"""Malformed requests get a code below 500, and the server answers the next one."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployed_model import deploy
from malformed import answered, requests
from running import asked, running_command

KNOWN = {0, 200, 400, 403, 404, 405, 408, 413, 503, 504}  # 0: nothing that HTTP could answer


@pytest.fixture(scope="module")
def server(bundle_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("served")
    model = deploy(folder / "model", "bert", {"bundle": bundle_of("mutual")})
    limits = ("--max-body", "1M", "--max-rows", "100", "--max-texts", "20")
    log = folder / "log"
    with running_command(f"mine={bundle_of('mutual')}", f"text={model}", *limits, log=log) as (address, process):
        yield address, log
        assert process.poll() is None


def check(server: tuple[str, Path], count: int, seed: int) -> None:
    address, log = server
    seen: Counter[tuple[str, int]] = Counter()
    for number, wrong in enumerate(requests(count, seed)):
        code = answered(address, wrong)
        seen[wrong.what, code] += 1
        assert code in KNOWN, (number, wrong)
    assert asked(address, "GET", "/v2/health/ready")[0] == 200
    assert "Traceback" not in log.read_text()
    assert sum(number for (_, code), number in seen.items() if 400 <= code < 500) > count / 2, seen


def test_300_malformed_requests(server: tuple[str, Path]) -> None:
    check(server, 300, seed=1)


@pytest.mark.slow
def test_10_000_malformed_requests(server: tuple[str, Path]) -> None:
    check(server, 10_000, seed=2)
