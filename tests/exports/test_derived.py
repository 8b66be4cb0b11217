from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import QUOTA, K, make_manifest, make_weights, make_x

from sae_runtime import load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle import quota
from sae_runtime.bundle.folder import DERIVED, Bundle
from sae_runtime.bundle.tensors import map_tensor, read_header
from sae_runtime.exports.certified.integers import quantise
from sae_runtime.exports.derived import default_max_density, has_integers, write_derived
from sae_runtime.exports.export import export

INTEGERS = {"centre", "map", "rounding", "direct", "order", "weights", "scale", "bias", "bound", "share"}
INTEGERS = {f"int8_{name}" for name in INTEGERS}
HALF = {"half_weights", "half_kappa"}


def written(tmp_path: Path, kind: str, d_sae: int) -> Bundle:
    bundle.write(tmp_path / "b", make_weights(d_sae, kind), make_manifest(d_sae, kind))
    return bundle.read(tmp_path / "b")


@pytest.mark.parametrize(
    ("graphs", "names"),
    [
        ((), set()),
        (("exact",), INTEGERS | {"W_enc_rows"}),
        (("gpu",), HALF | {"W_enc_rows"}),
        (("exact", "gpu"), INTEGERS | HALF | {"W_enc_rows"}),
    ],
)
def test_derived_weights_are_what_the_graphs_read(
    tmp_path: Path, kind: str, graphs: tuple[str, ...], names: set[str]
) -> None:
    made = written(tmp_path, kind, 512)
    names = names | ({"max_density"} if kind == "feature" else set())
    path = tmp_path / DERIVED
    specs = write_derived(path, made, make_x(100), graphs)
    assert set(specs) == names
    assert path.exists() == bool(names)
    if names:
        assert specs == read_header(path)
    arrays = {name: map_tensor(path, spec) for name, spec in specs.items()}
    if "int8_weights" in arrays:
        int8 = quantise(made.weights(), make_x(100), np.random.default_rng(0))
        assert set(int8) == INTEGERS and arrays["int8_weights"].dtype == np.int8
        for name, array in int8.items():
            np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize(("d_sae", "can"), [(496, False), (500, False), (512, True), (520, False), (528, True)])
def test_int8_needs_512_features_in_whole_groups(tmp_path: Path, d_sae: int, can: bool) -> None:
    made = written(tmp_path, "mutual", d_sae)
    assert has_integers(made) == can
    assert bool(write_derived(tmp_path / DERIVED, made, make_x(100), ("exact",))) == can


@pytest.mark.parametrize("kind", ["token", "mutual"])
def test_a_later_export_removes_the_graphs_of_an_earlier_one(tmp_path: Path, kind: str) -> None:
    made = written(tmp_path, kind, 512)
    export(made.path, graphs=("exact", "gpu"))
    first = load(made.path, graph="encode.onnx").encode(make_x(5)).to_dense()
    for graphs, expected in (
        (("gpu",), {"encode_gpu.onnx"}),
        (("exact",), {"encode_exact.onnx"}),
        ((), set()),
    ):
        manifest = export(made.path, graphs=graphs).manifest
        present = {file.name for file in made.path.glob("*.onnx")}
        assert present == set(manifest.graphs)
        assert present & {"encode_exact.onnx", "encode_gpu.onnx"} == expected
        assert (made.path / DERIVED).exists() == (DERIVED in manifest.files) == bool(graphs)
        features = load(made.path).encode(make_x(5)).to_dense()
        np.testing.assert_array_equal(features > 0, first > 0)


def test_an_unknown_graph_is_refused(tmp_path: Path) -> None:
    made = written(tmp_path, "mutual", 512)
    with pytest.raises(ValueError, match="^graphs must be some of exact, gpu, got int4; leave those out$"):
        export(made.path, graphs=["exact", "int4"])
    assert not (made.path / DERIVED).exists() and not list(made.path.glob("*.onnx"))


def test_default_max_densities_follow_from_the_quota(bundle_of: Callable[..., Path]) -> None:
    for d_sae in (150, 512):
        max_density = default_max_density(bundle.read(bundle_of("feature", d_sae)))
        np.testing.assert_array_equal(max_density, quota.max_densities(QUOTA, K, d_sae))
        specs = read_header(bundle_of("feature", d_sae) / DERIVED)
        np.testing.assert_array_equal(
            map_tensor(bundle_of("feature", d_sae) / DERIVED, specs["max_density"]), max_density
        )
