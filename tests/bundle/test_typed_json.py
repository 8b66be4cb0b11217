import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from corruption import deadline

from sae_runtime.bundle.tensors import read_header
from sae_runtime.bundle.typed_json import from_dict, read_file, read_json, to_text


@dataclass(frozen=True)
class Inner:
    name: str
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    count: int
    inner: Inner | None
    parts: tuple[Inner, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    anything: Any = None


def test_a_text_becomes_the_dataclass_that_it_describes() -> None:
    text = json.dumps(
        {"count": 2, "inner": {"name": "a"}, "parts": [{"name": "b", "share": 1}], "shares": {"x": 2}, "anything": [1]}
    )
    expected = Outer(2, Inner("a"), (Inner("b", 1.0),), {"x": 2.0}, [1])
    assert read_json(Outer, text, "outer") == expected
    assert read_json(Outer, text.encode(), "outer") == expected
    assert read_json(Outer, '{"count": 2, "inner": null}', "outer") == Outer(2, None)


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "[" * 200_000, "nul"])
def test_a_text_that_is_not_json_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="^outer is not readable JSON "):
        read_json(Outer, text, "outer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 2.0}, r"outer\.count must be int, got 2\.0"),
        ({"count": True}, r"outer\.count must be int, got True"),
        ({"inner": 3}, r"outer\.inner must have the fields name, share, got 3"),
        ({"inner": {}}, r"outer\.inner must have the fields name, share, name is missing"),
        ({"inner": {"name": "a", "colour": 1}}, r"outer\.inner must have the fields name, share, colour is unknown"),
        ({"parts": {}}, r"outer\.parts must be a list, got \{\}"),
        ({"parts": [{"name": "a"}, {"name": 1}]}, r"outer\.parts\[1\]\.name must be str, got 1"),
        ({"shares": []}, r"outer\.shares must be an object, got \[\]"),
        ({"shares": {"x": "six"}}, r"outer\.shares\.x must be float, got 'six'"),
        ({"shares": {"x": 10**400}}, r"outer\.shares\.x must be float, got 10+$"),
        ({"shares": {"x": [10**5000]}}, r"outer\.shares\.x must be float, got a number that is far too large"),
        ({"count": "long" * 1000}, r"outer\.count must be int, got 'long.{75}$"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(Outer, {"count": 2, "inner": None} | change, "outer")


def test_unknown_fields_are_left_out_only_with_more() -> None:
    value = {"count": 2, "inner": {"name": "a", "colour": 1}, "more": 3}
    assert from_dict(Outer, value, "outer", more=True) == Outer(2, Inner("a"))
    with pytest.raises(ValueError, match="more is unknown"):
        from_dict(Outer, value, "outer")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"count": 1, "count": 2, "inner": null}', "the name 'count' stands twice in one object"),
        ('{"a": {"b": {"c": 1, "c": 1}}}', "'c' stands twice"),
        ('{"count": NaN}', "JSON has no NaN; write null"),
        ("[-Infinity]", "JSON has no -Infinity"),
        ("[1e999]", "the number 1e999 is beyond float64"),
        (f"[{'9' * 5000}]", "has 5000 digits"),
        ("[" * 65 + "]" * 65, "more than 64 objects and lists"),
        (b"\xff\xfe[\x00]\x00", "can't decode byte"),
        ("\ufeff{}", "BOM"),
    ],
)
def test_what_json_does_not_have_or_programs_read_differently_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^it is not readable JSON .*{message}"):
        read_json(Any, text, "it")
    assert read_json(Any, "[" * 64 + "]" * 64, "it")


def test_a_foreign_text_may_hold_what_other_programs_write() -> None:
    text = '\ufeff{"a": NaN, "b": [Infinity, -Infinity, 1e999], "c": 1, "c": 2, "d": ' + "9" * 5000 + "}"
    for given in (text, text.encode()):
        read = read_json(Any, given, "it", foreign=True)
        assert read["a"] != read["a"] and read["b"] == [float("inf"), -float("inf"), float("inf")]
        assert read["c"] == 2 and read["d"] == float("inf")
    for damaged in ("{", "[" * 65 + "]" * 65, b"\xff", "[NaN"):
        with pytest.raises(ValueError, match="^it is not readable JSON "):
            read_json(Any, damaged, "it", foreign=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"count": 9223372036854775808, "inner": null}', "outer.count must be an int of 64 bits"),
        ('{"count": 1, "inner": {"name": "a\\u0000b"}}', "outer.inner.name must be text without NUL"),
        ('{"count": 1, "inner": {"name": "\\ud800"}}', r"outer.inner.name must be text .*, got '.ud800'"),
        ('{"count": 1, "inner": null, "shares": {"\\udc00": 1}}', "a name in outer.shares must be text"),
        ('{"count": 1, "inner": null, "colour\\u001b": 1}', "colour\x1b is unknown"),
    ],
)
def test_fields_hold_what_numpy_and_utf8_can(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_json(Outer, text, "outer")


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 1 << 40)
    (tmp_path / "link").symlink_to("pipe")
    for name, message in {
        "pipe": "is a pipe",
        "link": "is a pipe",
        ".": "is a folder",
        "large": "has more than 16,777,216 bytes",
    }.items():
        with deadline(), pytest.raises(ValueError, match=message):
            read_file(Any, tmp_path / name)
    with deadline(), pytest.raises(ValueError, match="is a device"):
        read_file(Any, Path("/dev/zero"))
    with deadline(), pytest.raises(ValueError, match="is a pipe"):
        read_header(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        read_file(Any, tmp_path / "nothing")


def test_numbers_that_are_not_finite_are_written_as_null() -> None:
    value: dict[str, Any] = {"a": [float("nan"), 1.5, (float("inf"), {"b": -float("inf")})], "c": None, "d": True}
    assert json.loads(to_text(value)) == {"a": [None, 1.5, [None, {"b": None}]], "c": None, "d": True}
    assert to_text({"p": Path("x"), "n": float("nan")}, other=str) == '{"p": "x", "n": null}'
