import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_runtime.checkpoints.folder import config_of, find, has, read_config


def test_files_are_found_by_folder_or_file(tmp_path: Path) -> None:
    (tmp_path / "ae.pt").touch()
    (tmp_path / "config.json").write_text('{"k": 3}')
    for path in (tmp_path, tmp_path / "ae.pt"):
        assert find(path, "ae.pt") == tmp_path / "ae.pt"
        assert find(path, "none.pt") is None
        assert has(path, "ae.pt", "config.json")
    assert not has(tmp_path / "config.json", "ae.pt")
    cfg = config_of(tmp_path / "ae.pt", "config.json")
    assert cfg is not None and cfg.integer("k") == 3
    assert config_of(tmp_path, "none.json") is None


def test_a_link_may_leave_the_folder_only_for_the_blobs_of_its_hub_cache(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cfg.json").symlink_to(tmp_path / "secret")
    with pytest.raises(
        ValueError, match=r"cfg.json is a link out of its folder, to .*secret; put the file itself there"
    ):
        find(tmp_path / "run", "cfg.json")
    cache = tmp_path / "models--me--repo"
    blobs, deep = cache / "blobs", cache / "snapshots" / "0" / "layer" / "width"
    blobs.mkdir(parents=True)
    deep.mkdir(parents=True)
    (blobs / "abc").write_text("{}")
    (deep / "cfg.json").symlink_to(Path("../../../../blobs/abc"))
    assert find(deep, "cfg.json") == deep / "cfg.json"
    (deep / "other.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="link out of its folder"):
        find(deep, "other.json")


def test_a_configuration_may_hold_what_other_libraries_write(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('\ufeff{"k": 1, "k": 3, "decay": NaN, "limit": Infinity, "seed": ' + "9" * 50 + "}")
    cfg = read_config(file)
    assert cfg.size("k") == 3
    for name in ("decay", "limit"):
        with pytest.raises(ValueError, match=f"c.json: {name} is (nan|inf), expected a finite number"):
            cfg.number(name)
    with pytest.raises(ValueError, match="seed is 1e\\+50, expected a whole number"):
        cfg.integer("seed")


def test_fields_of_a_configuration_are_checked_when_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"n": 3, "b": true, "s": "x", "f": 2.5, "o": {"k": 1}, "none": null}')
    cfg = read_config(file)
    assert (cfg.integer("n"), cfg.flag("b"), cfg.text("s"), cfg.number("f"), cfg.number("n")) == (
        3,
        True,
        "x",
        2.5,
        3.0,
    )
    assert (cfg.inner("o").size("k"), cfg.inner("p").fields, cfg.maybe_text("none")) == (1, {}, None)
    assert (cfg.integer("p", 7), cfg.flag("none", False), "none" in cfg) == (7, False, False)
    asked: dict[Callable[[], object], str] = {
        lambda: cfg.integer("b"): "b is True, expected a whole number",
        lambda: cfg.integer("f"): "f is 2.5, expected a whole number",
        lambda: cfg.size("p", 0): "p is None, expected at least 1",
        lambda: cfg.flag("n"): "n is 3, expected true or false",
        lambda: cfg.text("n"): "n is 3, expected a string",
        lambda: cfg.number("b"): "b is True, expected a finite number",
        lambda: cfg.inner("s"): "s is 'x', expected an object",
        lambda: cfg.text("none"): "does not say none",
    }
    for ask, message in asked.items():
        with pytest.raises(ValueError, match=message):
            ask()


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '"x"', "[" * 100_000])
def test_a_file_without_a_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match="is not readable JSON|must be an object, got"):
        read_config(tmp_path / "c.json")


def test_a_file_too_large_for_a_configuration_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "c.json", "wb") as file:
        file.truncate(1 << 25)
    with pytest.raises(ValueError, match="has more than 16,777,216 bytes"):
        read_config(tmp_path / "c.json")


@pytest.mark.parametrize("value", [10**30, -(2**54), "a\x00b", "\ud800", "two\nlines"])
def test_values_that_a_bundle_cannot_hold_are_refused(tmp_path: Path, value: int | str) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"a": value}))
    config = read_config(tmp_path / "c.json")
    for ask in (config.text,) if isinstance(value, str) else (config.integer, config.number, config.size):
        with pytest.raises(ValueError, match=r"c\.json: a is .*, expected"):
            ask("a")
