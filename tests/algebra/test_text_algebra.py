"""What is written as text is read back: hooks, JSON of dataclasses, headers of safetensors."""

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.bundle.hooks import Hook, parse_hook
from sae_runtime.bundle.tensors import map_tensor, read_header, save_tensors
from sae_runtime.bundle.typed_json import read_json

WORDS = st.sampled_from(["encoder", "layer", "h", "0", "11", "attn", "mlp_2", "hook", "resid", "blocks"])
MODULES = st.lists(WORDS, min_size=1, max_size=4).map(".".join)
HOOKS = st.one_of(
    st.builds(Hook, MODULES, st.sampled_from(["output", "input"]), st.one_of(st.none(), st.integers(0, 10**9 - 1))),
    st.builds(Hook, MODULES, st.sampled_from(["resid_pre", "resid_mid", "resid_post"])),
    st.builds(Hook, st.text(min_size=1, max_size=20), st.just("tensor")),
    st.builds(
        lambda block, rest: Hook(f"blocks.{block}.{rest}", "lens"),
        st.integers(0, 10**9 - 1),
        st.sampled_from(["hook_resid_mid", "attn.hook_z", "ln1.hook_scale", "mlp.hook_post"]),
    ),
)


@given(HOOKS)
@examples(8)
def test_a_hook_is_read_back(hook: Hook) -> None:
    assert parse_hook(str(hook)) == hook


@given(st.text(max_size=30))
@examples(8)
def test_any_text_is_a_hook_or_refused(text: str) -> None:
    try:
        hook = parse_hook(text)
    except ValueError as error:
        assert str(error).startswith(("a hook is ", "input: and @CALL belong to a module")) and repr(text) in str(error)
        return
    assert parse_hook(str(hook)) == hook


@dataclasses.dataclass(frozen=True)
class Inner:
    name: str
    sizes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    number: float
    flag: bool
    inner: Inner | None
    table: Mapping[str, Inner]
    rows: tuple[Inner, ...] = ()


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
INNERS = st.builds(Inner, TEXTS, st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3).map(tuple))
OUTERS = st.builds(
    Outer,
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.one_of(st.none(), INNERS),
    st.dictionaries(TEXTS, INNERS, max_size=3),
    st.lists(INNERS, max_size=3).map(tuple),
)
JSON: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


@given(OUTERS)
@examples(8)
def test_dataclasses_are_read_back(value: Outer) -> None:
    assert read_json(Outer, json.dumps(dataclasses.asdict(value)), "it") == value


@given(OUTERS, st.sampled_from(["number", "flag", "inner", "table", "rows"]), JSON)
@examples(8)
def test_a_field_of_another_type_is_named(value: Outer, field: str, other: Any) -> None:
    written = dataclasses.asdict(value) | {field: other}
    try:
        read = read_json(Outer, json.dumps(written), "it")
    except ValueError as error:
        assert "\n" not in str(error) and (f"it.{field}" in str(error) or "it is not readable JSON" in str(error))
        return
    assert json.loads(json.dumps(dataclasses.asdict(read)))[field] == (other if other != [] else [])


LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
NAMES = st.text(LETTERS, min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
TENSORS = st.dictionaries(
    NAMES,
    st.tuples(st.sampled_from(["<f4", "<f2", "<f8", "<i8", "<i4", "i1", "u1", "?"]), st.lists(st.integers(0, 4))),
    max_size=4,
)


@given(TENSORS)
@examples(8)
def test_headers_of_safetensors_are_read_back(tensors: dict[str, tuple[str, list[int]]]) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2, shape[:3]).astype(dtype) for name, (dtype, shape) in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_tensors(path, arrays)
        specs = read_header(path)
        assert specs.keys() == arrays.keys()
        for name, array in arrays.items():
            assert specs[name].shape == array.shape
            np.testing.assert_array_equal(map_tensor(path, specs[name]), array)
        floats = {name: a.reshape(len(a), -1) for name, a in arrays.items() if a.dtype == "f4" and a.ndim and a.size}
        save_tensors(path, floats, block=3)
        found = safetensors.numpy.load_file(path)
        assert found.keys() == floats.keys()
        for name, array in floats.items():
            np.testing.assert_array_equal(found[name], array)


@given(TENSORS, st.data())
@examples(8)
def test_a_file_that_was_cut_or_grew_is_refused(tensors: dict[str, tuple[str, list[int]]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_tensors(path, {name: np.zeros(shape[:3], dtype) for name, (dtype, shape) in tensors.items()})
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(ValueError, match="safetensors|truncated|starts at byte"):
            read_header(path)
        path.write_bytes(whole + b"\0")
        with pytest.raises(ValueError, match="truncated"):
            read_header(path)
