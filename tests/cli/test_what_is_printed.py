"""What a stranger's file says reaches the terminal and the page as text: it moves no cursor and turns no words."""

import json
import logging
import os
import re
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from command_line import misused, refused, run
from conftest import make_x
from corruption import deadline

from sae_runtime.bundle.folder import MANIFEST
from sae_runtime.cli.common import Run
from sae_runtime.cli.group import Group
from sae_runtime.core.printable import printable

CopyOf = Callable[..., Path]
EVIL = "a\x1b[2J\x07\x9b1m\u202eb\u2066c\u200f\rd\u2028e\x00f$x^{g"
SHOWN = r"a\x1b[2J\x07\x9b1m\u202eb\u2066c\u200f\rd\u2028e\x00f$x^{g"


def harmless(text: str) -> bool:
    marks = re.compile("[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
    return not marks.search(text) and all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cs") for c in text)


def change(path: Path, **fields: Any) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, **fields}))


def test_texts_of_a_manifest_are_shown_and_not_obeyed(copy_of: CopyOf, tmp_path: Path) -> None:
    path, evil = copy_of("token"), EVIL.replace("\0", "")
    change(path, model=evil, provenance={"warnings": [EVIL, 7, None], "fitted_on": {evil: EVIL}, "rows": {evil: 1}})
    for more in ([], ["--json"]):
        result = run("inspect", path, *more)
        assert result.exit_code == 0 and harmless(result.stdout)
    assert SHOWN.replace(r"\x00", "") in run("inspect", path).stdout
    np.save(tmp_path / "x.npy", make_x(9)[:, :5])
    said = refused("extract", path, "--activations", tmp_path / "x.npy", "-o", tmp_path / "features")
    assert harmless(said) and r"a\x1b[2J" in said


def test_names_of_files_and_fields_are_shown_and_not_obeyed(copy_of: CopyOf, tmp_path: Path) -> None:
    path = copy_of("token")
    change(path, **{EVIL: 1})
    assert harmless(refused("inspect", path))
    for name in ("new\nline\x1b[31m", os.fsdecode(b"\xff\xfe"), "\u202egpj.exe"):
        (tmp_path / name).mkdir()
        for place in (tmp_path / name, tmp_path / name / "nothing"):
            assert harmless(refused("inspect", place))
    (tmp_path / "c.toml").write_text(f'["a\\u001b[31m{EVIL[-3:]}"]\nx = 1\n')
    assert harmless(misused("inspect", path, "--config", tmp_path / "c.toml"))


def test_a_bundle_or_a_host_of_a_name_that_is_not_utf8_is_named(copy_of: CopyOf, tmp_path: Path) -> None:
    path = copy_of("mutual").rename(tmp_path / os.fsdecode(b"n\xff"))
    np.save(tmp_path / "x.npy", make_x(9))
    steer = ("steer", path, "--activations", tmp_path / "x.npy", "--ablate", "1", "-o", tmp_path / "y.npy")
    for arguments in (steer, ("export", path), ("splice", path / "decode.onnx", "--sae", path)):
        said = refused(*arguments)
        assert re.fullmatch(
            r"error: onnxruntime opens no graph at .*n\\udcff.*, whose name is not UTF-8; rename it", said
        )


def test_warnings_and_errors_of_libraries_are_shown_and_not_obeyed() -> None:
    class Ours(UserWarning):
        __module__ = "sae_runtime.ours"

    @click.command("evil")
    def command() -> None:
        warnings.warn(EVIL, Ours, stacklevel=1)
        logger = logging.Logger("of a library")  # noqa: LOG001  # one that nothing else has
        logger.addHandler(logging.StreamHandler())
        logger.warning("%s", EVIL)
        raise ValueError(EVIL)

    class Evil(Group):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
            return command

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = CliRunner().invoke(Evil(groups={"": {"evil": ""}}), ["evil"])
    assert result.exit_code == 1 and harmless(result.stderr)
    assert result.stderr.count(r"\x1b[2J") == 3


def test_lines_of_a_result_stay_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    Run().show({}, [("a", "one\ntwo"), ("", "three\tfour")])
    assert capsys.readouterr().out == "a  one\\ntwo\n   three\\tfour\n"
    Run(json=True).show({"x": float("nan"), "y": EVIL}, [])
    out = capsys.readouterr().out
    assert json.loads(out) == {"x": None, "y": EVIL} and harmless(out)


def test_letters_of_every_script_stay_as_they_are() -> None:
    text = "Grüße 你好 مرحبا שלום 👩‍👩‍👧 naïve"
    assert printable(text) == text


def test_settings_and_paths_that_would_hang_or_have_no_end_are_refused(copy_of: CopyOf, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    path = copy_of("mutual")
    with deadline():
        assert "is a pipe, expected a file" in misused("inspect", path, "--config", tmp_path / "pipe")
        for name in ("pipe", "loop", "x" * 300):
            refused("inspect", tmp_path / name)
            refused("steer", path, "--activations", tmp_path / name, "--ablate", "1", "-o", tmp_path / "s.npy")
    np.save(tmp_path / "x.npy", make_x(9))
    assert "loop is a link to nothing" in refused(
        "extract", path, "--activations", tmp_path / "x.npy", "-o", tmp_path / "loop" / "features"
    )
    deep = "d/" * 2000 + "f"
    assert "more than 255 folders" in misused("extract", path, "--activations", tmp_path / "x.npy", "-o", deep)
    said = refused("extract", path, "--activations", "a\0b", "-o", tmp_path / "features")
    assert said == "error: a path holds NUL, which no name of a file can hold; name another path"


def test_a_current_folder_that_is_gone_is_named(
    copy_of: CopyOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_of("mutual")
    np.save(tmp_path / "x.npy", make_x(9))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    said = refused("extract", path, "--activations", tmp_path / "x.npy", "-o", "features")
    assert said == "error: the current folder was removed or replaced; change into it again"
