import os
from pathlib import Path
from typing import Any

import pytest

from sae_runtime.train.run_options import check_outputs


@pytest.mark.parametrize("name", ["metrics", "tensorboard", "run_state"])
def test_an_output_beside_the_bundle_is_not_inside_it_and_replaces_nothing_without_force(
    tmp_path: Path, name: str
) -> None:
    out, beside = tmp_path / "sae", tmp_path / "run"
    check_outputs(out, {name: beside}, force=False)  # type: ignore[misc]  # one of the paths
    with pytest.raises(ValueError, match=r"run would be inside the bundle .+sae; name another path"):
        check_outputs(out, {name: out / "run"}, force=True)  # type: ignore[misc]
    if name != "metrics":
        beside.mkdir()
    mine = beside if name == "metrics" else beside / "mine"
    mine.write_text("mine")
    message = r"run already exists; go on with --resume, or start over with --force"
    with pytest.raises(FileExistsError, match=message):
        check_outputs(out, {name: beside}, force=False)  # type: ignore[misc]
    check_outputs(out, {name: beside}, force=True)  # type: ignore[misc]
    state: Any = {"run_state": tmp_path / "state", "resume": True}
    if name != "run_state":
        message = r"there is no run state .+state, so .+run is of another run; name another path, or start over with"
        with pytest.raises(FileExistsError, match=message):
            check_outputs(out, {name: beside, **state}, force=False)  # type: ignore[misc]
        with pytest.raises(FileExistsError, match="there is no run state, so"):
            check_outputs(out, {name: beside, "resume": True}, force=False)  # type: ignore[misc]
        (tmp_path / ".state.0123abcd.old").mkdir()  # of a writer that died between its two renames
    check_outputs(out, {**state, name: beside}, force=False)  # type: ignore[misc]
    assert mine.read_text() == "mine" and not out.exists()


def test_metrics_that_are_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are a folder; name a file in it"):
        check_outputs(tmp_path / "sae", {"metrics": tmp_path}, force=True)


def test_metrics_never_go_to_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="pipe is neither a file nor a folder; name another output"):
        check_outputs(tmp_path / "sae", {"metrics": tmp_path / "pipe"}, force=True)


def test_tensorboard_needs_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("mine")
    same = {"metrics": tmp_path / "m", "tensorboard": tmp_path / "m"}
    for options in ({"tensorboard": tmp_path / "events"}, same):
        with pytest.raises(ValueError, match="TensorBoard's events need a folder of their own"):
            check_outputs(tmp_path / "sae", options, force=True)  # type: ignore[arg-type]


def test_a_bundle_is_replaced_only_by_force(tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    with pytest.raises(FileExistsError, match=r"sae already exists; pass --force"):
        check_outputs(tmp_path / "sae", {}, force=False)
    check_outputs(tmp_path / "sae", {}, force=True)
    (tmp_path / "sae" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"sae holds thesis\.tex, which would be lost; name another output"):
        check_outputs(tmp_path / "sae", {}, force=True)
