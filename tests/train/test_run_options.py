from pathlib import Path

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
    if name == "tensorboard":
        beside.mkdir()
    mine = beside / "mine" if name == "tensorboard" else beside
    mine.write_text("mine")
    message = r"run already exists; go on with --resume, or start over with --force"
    with pytest.raises(FileExistsError, match=message):
        check_outputs(out, {name: beside}, force=False)  # type: ignore[misc]
    check_outputs(out, {name: beside}, force=True)  # type: ignore[misc]
    check_outputs(out, {name: beside, "resume": True}, force=False)  # type: ignore[misc]
    assert mine.read_text() == "mine" and not out.exists()


def test_metrics_that_are_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are a folder; name a file in it"):
        check_outputs(tmp_path / "sae", {"metrics": tmp_path}, force=True)


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
