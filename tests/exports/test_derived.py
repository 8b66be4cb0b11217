from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import QUOTA, K, make_manifest, make_weights, make_x

from sae_runtime import bundle, load, quota
from sae_runtime.bundle import DERIVED, Bundle
from sae_runtime.exports.derived import default_cap, has_integers, write_derived
from sae_runtime.exports.export import PRECISIONS, export
from sae_runtime.exports.integers import quantise
from sae_runtime.tensors import map_tensor, read_header

INTEGERS = {"centre", "map", "rounding", "direct", "order", "weights", "scale", "bias", "bound", "share"}
INTEGERS = {f"int8_{name}" for name in INTEGERS}


def written(tmp_path: Path, kind: str, d_sae: int) -> Bundle:
    bundle.write(tmp_path / "b", make_weights(d_sae, kind), make_manifest(d_sae, kind))
    return bundle.read(tmp_path / "b")


@pytest.mark.parametrize(
    ("precisions", "names"),
    [
        ((), set()),
        (("float32",), set()),
        (("fast",), INTEGERS),
        (("exact",), INTEGERS | {"W_enc_rows"}),
        (("float16",), {"W_enc_half"}),
        (("exact", "fast", "float16"), INTEGERS | {"W_enc_rows", "W_enc_half"}),
    ],
)
def test_it_holds_what_the_precisions_need(
    tmp_path: Path, kind: str, precisions: tuple[str, ...], names: set[str]
) -> None:
    made = written(tmp_path, kind, 512)
    names = names | ({"cap"} if kind == "feature" else set())
    specs = write_derived(made, make_x(100), precisions)
    assert set(specs) == names
    assert (made.path / DERIVED).exists() == bool(names)
    if names:
        assert specs == read_header(made.path / DERIVED)
    arrays = {name: map_tensor(made.path / DERIVED, spec) for name, spec in specs.items()}
    if "int8_weights" in arrays:
        made_of = quantise(made.weights(), make_x(100), np.random.default_rng(0))
        assert set(made_of) == INTEGERS and arrays["int8_weights"].dtype == np.int8
        for name, array in made_of.items():
            np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize(("d_sae", "can"), [(496, False), (500, False), (512, True), (520, False), (528, True)])
def test_int8_needs_whole_groups_and_some_size(tmp_path: Path, d_sae: int, can: bool) -> None:
    made = written(tmp_path, "mutual", d_sae)
    assert has_integers(made) == can
    assert bool(write_derived(made, make_x(100), ("exact", "fast"))) == can


@pytest.mark.parametrize("kind", ["token", "mutual"])
def test_a_later_export_leaves_nothing_of_an_earlier(tmp_path: Path, kind: str) -> None:
    made = written(tmp_path, kind, 512)
    export(made.path, precisions=("exact", "fast", "float16"))
    first = load(made.path, graph="encode.onnx").encode(make_x(5)).to_dense()
    for precisions, graphs in (
        (("float16",), {"encode_half.onnx"}),
        (("exact",), {"encode_exact.onnx"}),
        ((), set()),
    ):
        manifest = export(made.path, precisions=precisions).manifest
        there = {file.name for file in made.path.glob("*.onnx")}
        assert there == set(manifest.graphs)
        assert graphs <= there and not {"encode_exact.onnx", "encode_half.onnx"} & there - graphs
        assert (made.path / DERIVED).exists() == (DERIVED in manifest.files) == bool(graphs)
        found = load(made.path).encode(make_x(5)).to_dense()
        np.testing.assert_array_equal(found > 0, first > 0)


def test_an_unknown_precision(tmp_path: Path) -> None:
    made = written(tmp_path, "mutual", 512)
    message = f"precisions must be some of {', '.join(PRECISIONS)}, got int4"
    with pytest.raises(ValueError, match=message):
        export(made.path, precisions=["exact", "int4"])
    assert not (made.path / DERIVED).exists() and not list(made.path.glob("*.onnx"))


def test_caps_are_those_of_the_fit(bundle_of: Callable[..., Path]) -> None:
    for d_sae in (150, 512):
        cap = default_cap(bundle.read(bundle_of("feature", d_sae)))
        np.testing.assert_array_equal(cap, quota.caps(QUOTA, K, d_sae))
        specs = read_header(bundle_of("feature", d_sae) / DERIVED)
        np.testing.assert_array_equal(map_tensor(bundle_of("feature", d_sae) / DERIVED, specs["cap"]), cap)
