"""Parts that several processes make by themselves: the same folder as one run's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import make_x
from feature_folders import bytes_of

from sae_runtime import load
from sae_runtime.cli import main
from sae_runtime.extraction.array_source import ArraySource
from sae_runtime.extraction.extract import extract
from sae_runtime.extraction.feature_index import INDEX
from sae_runtime.extraction.shares import make_share, plan_only
from sae_runtime.extraction.tasks import Task

BundleOf = Callable[..., Path]


@pytest.fixture
def source(bundle_of: BundleOf, tmp_path: Path) -> ArraySource:
    np.save(tmp_path / "x.npy", make_x(140))
    return ArraySource(load(bundle_of("mutual"), threads=1), tmp_path / "x.npy", part=20)


def test_shares_in_any_order_and_a_last_run_give_what_one_run_gives(source: ArraySource, tmp_path: Path) -> None:
    extract(source, tmp_path / "one")
    assert len(plan_only(source, tmp_path / "many").parts) == 7
    assert not (tmp_path / "many" / "tokens").exists() and not (tmp_path / "many" / INDEX).exists()
    assert [make_share(source, tmp_path / "many", (number, 3)) for number in (3, 1, 2)] == [3, 2, 2]
    assert not (tmp_path / "many" / INDEX).exists()

    def nothing(task: Task, numbers: object) -> list[int]:
        assert numbers == []  # all parts are there
        return []

    extract(source, tmp_path / "many", engine=nothing)
    assert bytes_of(tmp_path / "many") == bytes_of(tmp_path / "one")


def test_a_last_run_makes_what_shares_left(source: ArraySource, tmp_path: Path) -> None:
    extract(source, tmp_path / "one")
    plan_only(source, tmp_path / "many")
    make_share(source, tmp_path / "many", (2, 2))
    extract(source, tmp_path / "many")
    assert bytes_of(tmp_path / "many") == bytes_of(tmp_path / "one")


def test_a_share_that_is_made_again_makes_nothing_but_what_was_lost(source: ArraySource, tmp_path: Path) -> None:
    plan_only(source, tmp_path / "f")
    assert make_share(source, tmp_path / "f", (1, 2)) == 3
    assert make_share(source, tmp_path / "f", (1, 2)) == 0
    lost = tmp_path / "f" / "tokens" / "part-00001.parquet"
    whole = lost.read_bytes()
    lost.write_bytes(whole[:-1])
    assert make_share(source, tmp_path / "f", (1, 2)) == 1 and lost.read_bytes() == whole


def test_more_shares_than_parts_leave_some_empty(source: ArraySource, tmp_path: Path) -> None:
    plan_only(source, tmp_path / "f")
    made = [make_share(source, tmp_path / "f", (number, 9)) for number in range(1, 10)]
    assert sum(made) == 7 and max(made) == 1


def test_shares_of_the_batch_rule_are_candidates_of_the_last_run(source: ArraySource, tmp_path: Path) -> None:
    extract(source, tmp_path / "alone", rule="batch")
    plan_only(source, tmp_path / "f", rule="batch")
    assert make_share(source, tmp_path / "f", (2, 2), rule="batch") == 4
    assert make_share(source, tmp_path / "f", (2, 2), rule="batch") == 0
    extract(source, tmp_path / "f", rule="batch")
    assert bytes_of(tmp_path / "f") == bytes_of(tmp_path / "alone")
    assert make_share(source, tmp_path / "f", (1, 2), rule="batch") == 0


@pytest.mark.parametrize("share", [(0, 3), (4, 3), (1, 0)])
def test_a_share_that_does_not_exist_is_refused(source: ArraySource, tmp_path: Path, share: tuple[int, int]) -> None:
    plan_only(source, tmp_path / "f")
    with pytest.raises(ValueError, match=f"a share is 1/{share[1]} to"):
        make_share(source, tmp_path / "f", share)


def test_a_share_without_a_plan_or_of_another_one_is_refused(source: ArraySource, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no plan; write it first"):
        make_share(source, tmp_path / "f", (1, 2))
    plan_only(source, tmp_path / "f")
    with pytest.raises(ValueError, match="begun with values float24, now it is float16"):
        make_share(source, tmp_path / "f", (1, 2), values="float16")
    np.save(tmp_path / "x.npy", make_x(140, seed=5))
    with pytest.raises(ValueError, match="begun with"):
        make_share(ArraySource(source.sae, tmp_path / "x.npy", part=20), tmp_path / "f", (1, 2))


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["extract", *map(str, words)])
    return result.exit_code, result.output


def test_the_command_plans_and_makes_shares(bundle_of: BundleOf, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", make_x(50))
    asked = [bundle_of("mutual"), "--activations", tmp_path / "x.npy", "-o", tmp_path / "f", "--quiet"]
    assert run(*asked, "--plan-only") == (0, f"plan   {tmp_path / 'f'}\nparts  1\n")
    assert run(*asked, "--share", "1/2")[1].splitlines()[1] == "parts made  0"
    assert run(*asked, "--share", "2/2")[1].splitlines()[1] == "parts made  1"
    assert run(*asked)[0] == 0 and (tmp_path / "f" / INDEX).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--share", "3/2"], "'3/2' is no share"),
        (["--share", "0/2"], "'0/2' is no share"),
        (["--share", "1-2"], "'1-2' is no share"),
        (["--share", "1/2", "--plan-only"], "--plan-only comes first"),
        (["--share", "1/2", "--force"], "--force goes with --plan-only"),
        (["--workers", "2"], "--workers goes with --engine ray"),
        (["--address", "a:1"], "--address goes with --engine ray"),
        (["--format", "delphi", "--share", "1/2"], "--share goes with --format parquet"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    bundle_of: BundleOf, tmp_path: Path, words: list[str], said: str
) -> None:
    np.save(tmp_path / "x.npy", make_x(5))
    asked = [bundle_of("mutual"), "--activations", tmp_path / "x.npy", "-o", tmp_path / "f"]
    status, output = run(*asked, *words)
    assert status == 2 and said in " ".join(output.split()) and not (tmp_path / "f").exists()
