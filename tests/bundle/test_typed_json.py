import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from sae_runtime.bundle.typed_json import from_dict, read_json


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
