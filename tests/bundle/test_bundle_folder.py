import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from conftest import D_IN, K, make_manifest, make_weights, make_x
from numpy.typing import NDArray

from sae_runtime import BundleError, Manifest, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import DERIVED, MANIFEST, WEIGHTS
from sae_runtime.bundle.manifest import Allocation, Architecture
from sae_runtime.bundle.quota import Quota
from sae_runtime.bundle.sae_lens_cfg import CFG
from sae_runtime.bundle.sealed import CARD
from sae_runtime.exports.export import export

CopyOf = Callable[..., Path]


def change(path: Path, *keys: str, to: Any) -> None:
    """Set one entry of a JSON file."""
    data = json.loads(path.read_text())
    at = data
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = to
    path.write_text(json.dumps(data))


def vouch_for(path: Path, name: str) -> None:
    """Put the size and hash of an altered file into the manifest, as an attacker would."""
    kind = "graphs" if name.endswith(".onnx") else "files"
    found = bundle.record(path / name)
    change(path / MANIFEST, kind, name, "size", to=found.size)
    change(path / MANIFEST, kind, name, "sha256", to=found.sha256)


def save_weights(path: Path, weights: Mapping[str, NDArray[Any]]) -> None:
    safetensors.numpy.save_file(dict(weights), path / WEIGHTS)
    vouch_for(path, WEIGHTS)


def flip_last_bit(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


# Round trip


def test_read_gives_what_write_was_given(tmp_path: Path, kind: str) -> None:
    weights = make_weights(150, kind)
    manifest = dataclasses.replace(
        make_manifest(150, kind),
        model="gpt2",
        hook="h.6",
        measured={"l0": 6.1},
        provenance={"seed": 0, "of": ["a", None]},
    )
    bundle.write(tmp_path / "b", weights, manifest)
    found = bundle.read(str(tmp_path / "b"))
    assert dataclasses.replace(found.manifest, files={}) == manifest
    assert (
        set(found.manifest.files) == {WEIGHTS, CFG} == {f.name for f in (tmp_path / "b").iterdir()} - {MANIFEST, CARD}
    )
    assert len({file.stat().st_mode for file in (tmp_path / "b").iterdir()}) == 1, "a file that others cannot read"
    for name, array in weights.items():
        tensor = found.tensor(name)
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, array)


def test_write_gives_the_same_bytes_for_the_same_bundle(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        bundle.write(tmp_path / name, make_weights(150, kind), make_manifest(150, kind))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_weights_in_fortran_order_are_written_in_c_order(tmp_path: Path) -> None:
    weights = {name: np.asfortranarray(array) for name, array in make_weights(150, "mutual").items()}
    bundle.write(tmp_path / "b", weights, make_manifest(150, "mutual"))
    np.testing.assert_array_equal(bundle.read(tmp_path / "b").tensor("W_enc"), weights["W_enc"])


def test_an_existing_bundle_is_replaced_with_force_only(tmp_path: Path) -> None:
    path = tmp_path / "b"
    bundle.write(path, make_weights(150, "mutual"), make_manifest(150, "mutual"))
    with pytest.raises(FileExistsError, match="pass --force"):
        bundle.write(path, make_weights(150, "token"), make_manifest(150, "token"))
    assert bundle.read(path).manifest.batch_allocation.kind == "mutual"
    bundle.write(path, make_weights(150, "token"), make_manifest(150, "token"), force=True)
    assert bundle.read(path).manifest.batch_allocation.kind == "token"
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_weights_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    weights = make_weights(150, "mutual")
    del weights["b_enc"]
    with pytest.raises(BundleError, match=r"holds \['W_dec', 'W_enc', 'b_dec', 'threshold'\], expected exactly"):
        bundle.write(tmp_path / "b", weights, make_manifest(150, "mutual"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("survivor", ["aside", "both"])
def test_read_repairs_a_folder_that_a_dead_writer_left(tmp_path: Path, survivor: str) -> None:
    path = tmp_path / "b"
    bundle.write(path, make_weights(150, "mutual"), make_manifest(150, "mutual"))
    path.rename(tmp_path / ".b.0123abcd.old")
    if survivor == "both":
        bundle.write(tmp_path / "c", make_weights(150, "token"), make_manifest(150, "token"))
        (tmp_path / "c").rename(path)
    assert bundle.read(path).manifest.batch_allocation.kind == ("mutual" if survivor == "aside" else "token")
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


# Manifests


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Architecture(d_in=0, d_sae=4, selection="threshold"),
            "d_in and d_sae must be at least 1, got 0 and 4",
        ),
        (
            lambda: Architecture(d_in=2, d_sae=4, selection="relu"),
            "must be one of topk, groupmax, threshold, got 'relu'",
        ),
        (lambda: Architecture(d_in=2, d_sae=4, selection="topk"), "k belongs to selections 'topk' and"),
        (lambda: Architecture(d_in=2, d_sae=4, selection="threshold", k=1), "k belongs to selections 'topk' and"),
        (lambda: Architecture(d_in=2, d_sae=4, selection="topk", k=5), r"k must be in \[1, d_sae=4\], got 5"),
        (lambda: Allocation(kind="batch", k=1.0), "must be token, mutual or feature, got 'batch'"),
        (lambda: Allocation(kind="mutual", k=0.0), "k must be positive, got 0"),
        (lambda: Allocation(kind="mutual", k=math.nan), "k must be positive, got nan"),
        (lambda: Allocation(kind="mutual", k=math.inf), "k must be positive, got inf"),
        (lambda: Allocation(kind="feature", k=1.0), "a quota belongs to feature choice, and only there"),
        (lambda: Allocation(kind="token", k=1.0, quota=Quota(exponent=1.0)), "a quota belongs to feature choice"),
        (lambda: make_manifest(150, "mutual", slots=151), r"slots must be in \[1, d_sae=150\], got 151"),
        (lambda: make_manifest(4, "mutual", k=5, slots=4), "k must be at most d_sae=4, got 5"),
        (lambda: make_manifest(150, "token", slots=7), "a token that keeps 6 features has as many slots, got 7"),
        (
            lambda: dataclasses.replace(make_manifest(150, "token"), allocation=Allocation(kind="mutual", k=6.0)),
            "token choice is served by 'topk' or 'groupmax'",
        ),
    ],
)
def test_a_manifest_refuses_fields_that_contradict_each_other(make: Callable[[], Manifest], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Refusals of read


def test_read_refuses_a_folder_that_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere does not exist; a bundle is the folder that"):
        bundle.read(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=f"holds no {MANIFEST}, so it is not a bundle; make one: sae-runtime train"):
        bundle.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "\ufeff{}", "[" * 200_000])
def test_a_manifest_that_is_not_json_is_refused(copy_of: CopyOf, text: str) -> None:
    path = copy_of("mutual")
    (path / MANIFEST).write_text(text)
    with pytest.raises(
        BundleError, match=f"{MANIFEST}: manifest is not readable JSON .*; fit or convert the SAE again"
    ):
        bundle.read(path)


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_another_schema_version_is_refused(copy_of: CopyOf, version: Any) -> None:
    path = copy_of("mutual")
    change(path / MANIFEST, "schema_version", to=version)
    with pytest.raises(
        BundleError, match=f"has schema version {version!r}, this sae-runtime reads 2; fit or convert the SAE again"
    ):
        bundle.read(path)


@pytest.mark.parametrize(
    "where", [(), ("architecture",), ("allocation", "quota"), ("files", WEIGHTS), ("graphs", "steer.onnx")]
)
def test_unknown_and_missing_fields_of_the_manifest_are_refused(copy_of: CopyOf, where: tuple[str, ...]) -> None:
    path = copy_of("feature")
    dotted = ".".join(("manifest", *where))
    whole = (path / MANIFEST).read_text()
    change(path / MANIFEST, *where, "colour", to="red")
    with pytest.raises(BundleError, match=f"{dotted} must have the fields .*; fit or convert the SAE"):
        bundle.read(path)
    data = json.loads(whole)
    at = data
    for key in where:
        at = at[key]
    del at[next(key for key in at if key != "schema_version")]
    (path / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=f"{dotted} must have the fields"):
        bundle.read(path)


@pytest.mark.parametrize(
    ("keys", "to", "message"),
    [
        (("slots",), 24.0, "manifest.slots must be int, got 24.0"),
        (("slots",), True, "manifest.slots must be int, got True"),
        (("slots",), 0, r"slots must be in \[1, d_sae=150\], got 0"),
        (("hook",), 3, "manifest.hook must be str, got 3"),
        (("measured",), {"l0": "six"}, "manifest.measured.l0 must be float, got 'six'"),
        (("measured",), [], "manifest.measured must be an object"),
        (("architecture",), None, "manifest.architecture must have the fields d_in, d_sae, selection, k"),
        (("architecture", "d_in"), -1, "d_in and d_sae must be at least 1"),
        (("architecture", "selection"), "topk", "k belongs to selections 'topk' and 'groupmax'"),
        (("allocation", "k"), "6", "manifest.allocation.k must be float, got '6'"),
        (("allocation", "k"), 10**400, "the number 10+... has 401 digits"),
        (("allocation", "k"), 151.0, "k must be at most d_sae=150, got 151"),
        (("allocation", "quota", "slack"), -1.0, "slack > 0, got"),
    ],
)
def test_fields_of_another_type_or_range_are_refused(
    copy_of: CopyOf, keys: tuple[str, ...], to: Any, message: str
) -> None:
    path = copy_of("feature")
    change(path / MANIFEST, *keys, to=to)
    with pytest.raises(BundleError, match=f"{MANIFEST}: .*{message}.*; fit or convert the SAE"):
        bundle.read(path)


def test_a_manifest_may_have_whole_numbers_in_fields_of_real_numbers(copy_of: CopyOf) -> None:
    path = copy_of("mutual")
    change(path / MANIFEST, "allocation", "k", to=6)
    k = bundle.read(path).manifest.batch_allocation.k
    assert k == 6 and isinstance(k, float)


@pytest.mark.parametrize("name", ["../b.txt", "/etc/passwd", "a/b", "..", ".", "", "a/"])
@pytest.mark.parametrize("kind", ["files", "graphs"])
def test_names_that_lead_out_of_the_folder_are_refused(copy_of: CopyOf, kind: str, name: str) -> None:
    path = copy_of("mutual")
    entry: dict[str, Any] = {"size": 1, "sha256": "0"}
    change(path / MANIFEST, kind, name, to=entry | ({"row_independent": True} if kind == "graphs" else {}))
    with pytest.raises(BundleError, match=re.escape(f"{name!r} is not the name of a file in the bundle's own folder")):
        bundle.read(path)


@pytest.mark.parametrize("name", [WEIGHTS, CFG])
def test_files_that_are_missing_truncated_or_altered_are_refused(copy_of: CopyOf, name: str) -> None:
    path = copy_of("mutual")
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[:-1])
    for verify in (True, False):
        expected = f"{name} has {len(whole) - 1} bytes, expected {len(whole)}: truncated or altered; copy it again"
        with pytest.raises(BundleError, match=expected):
            bundle.read(path, verify=verify)
    (path / name).write_bytes(whole)
    flip_last_bit(path / name)
    with pytest.raises(BundleError, match=f"{name} was altered: its sha256 differs from the manifest's; copy it again"):
        bundle.read(path)
    (path / name).unlink()
    for verify in (True, False):
        with pytest.raises(BundleError, match=f"{name} is missing; copy its folder again"):
            bundle.read(path, verify=verify)


@pytest.mark.parametrize("name", [WEIGHTS, CFG])
def test_a_manifest_that_does_not_list_a_file_is_refused(copy_of: CopyOf, name: str) -> None:
    path = copy_of("mutual")
    data = json.loads((path / MANIFEST).read_text())
    del data["files"][name]
    (path / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=f"does not list {name}; make the bundle again"):
        bundle.read(path)


def test_without_verify_the_hashes_of_weights_are_not_checked(copy_of: CopyOf) -> None:
    path = copy_of("mutual")
    flip_last_bit(path / WEIGHTS)
    assert bundle.read(path, verify=False).manifest.architecture.d_in == D_IN
    assert load(path, verify=False).encode(make_x(7)).l0().sum() > 0
    flip_last_bit(path / "encode.onnx")
    with pytest.raises(BundleError, match="encode.onnx was altered"):
        load(path, verify=False)


def wrong_weights(what: str) -> tuple[dict[str, NDArray[Any]], str]:
    weights: dict[str, NDArray[Any]] = dict(make_weights(150, "mutual"))
    if what == "extra":
        return weights | {
            "scale": np.ones(1, np.float32)
        }, r"holds \[.*'scale'.*\], expected exactly \['W_dec', 'W_enc'"
    if what == "missing":
        return {k: v for k, v in weights.items() if k != "b_enc"}, r"holds \['W_dec', 'W_enc', 'b_dec', 'threshold'\]"
    if what == "shape":
        return weights | {"W_enc": weights["W_dec"]}, rf"W_enc is F32 \[150, {D_IN}\], expected F32 \[{D_IN}, 150\]"
    if what == "dtype":
        return weights | {"b_enc": weights["b_enc"].astype(np.float16)}, r"b_enc is F16 \[150\], expected F32 \[150\]"
    if what == "no threshold":
        return {k: v for k, v in weights.items() if k != "threshold"}, "has no threshold yet.*: sae-runtime calibrate"
    name = "threshold" if "threshold" in what else "W_dec"
    spoilt = weights[name].copy()
    spoilt.flat[77] = {"NaN": np.nan, "Inf": np.inf, "negative": -1e-9}[what.split()[0]]
    unset = "threshold is negative, which means unset; run: sae-runtime calibrate"
    return weights | {name: spoilt}, unset if "negative" in what else f"{name} holds NaN or Inf; make the bundle again"


WRONG = ["extra", "missing", "shape", "dtype", "no threshold"]
NOT_FINITE = ["NaN weights", "Inf weights", "NaN threshold", "Inf threshold", "negative threshold"]


@pytest.mark.parametrize("what", [*WRONG, *NOT_FINITE])
def test_weights_that_do_not_fit_are_refused(copy_of: CopyOf, what: str) -> None:
    path = copy_of("mutual")
    weights, message = wrong_weights(what)
    save_weights(path, weights)
    with pytest.raises(BundleError, match=f"{WEIGHTS}.*{message}"):
        bundle.read(path)
    if what in NOT_FINITE:
        bundle.read(path, verify=False)
    else:
        with pytest.raises(BundleError, match=message):
            bundle.read(path, verify=False)


def test_weights_that_are_not_safetensors_are_refused(copy_of: CopyOf) -> None:
    path = copy_of("mutual")
    (path / WEIGHTS).write_bytes(b"PK\x03\x04 a zip")
    vouch_for(path, WEIGHTS)
    with pytest.raises(BundleError, match="is not a whole safetensors file"):
        bundle.read(path)


# cfg.json


def test_cfg_is_what_sae_lens_reads(copy_of: CopyOf, kind: str) -> None:
    cfg = json.loads((copy_of(kind) / CFG).read_text())
    assert cfg.pop("metadata").keys() == {"sae_lens_version", "hook_name", "model_name"}
    topk = {"k": K, "rescale_acts_by_decoder_norm": False}
    assert cfg == {
        "architecture": "topk" if kind == "token" else "jumprelu",
        "d_in": D_IN,
        "d_sae": 150,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **(topk if kind == "token" else {}),
    }


@pytest.mark.parametrize(
    ("key", "to"),
    [
        ("k", 7),
        ("d_sae", 151),
        ("architecture", "jumprelu"),
        ("normalize_activations", "layer_norm"),
        ("apply_b_dec_to_input", False),
        ("rescale_acts_by_decoder_norm", True),
        ("dtype", "bfloat16"),
    ],
)
def test_a_cfg_that_disagrees_with_the_manifest_is_refused(copy_of: CopyOf, key: str, to: Any) -> None:
    path = copy_of("token")
    change(path / CFG, key, to=to)
    vouch_for(path, CFG)
    for verify in (True, False):
        with pytest.raises(BundleError, match=f"{CFG} and {MANIFEST} disagree on {key}; copy the bundle again"):
            bundle.read(path, verify=verify)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not readable JSON"), ("[" * 200_000, "is not readable JSON"), ("[]", "must be an object, got")],
)
def test_a_cfg_that_is_no_configuration_is_refused(copy_of: CopyOf, text: str, message: str) -> None:
    path = copy_of("token")
    (path / CFG).write_text(text)
    vouch_for(path, CFG)
    with pytest.raises(BundleError, match=message):
        bundle.read(path)


def test_a_cfg_may_have_another_device_and_more_metadata(copy_of: CopyOf) -> None:
    path = copy_of("token")
    change(path / CFG, "device", to="cuda")
    change(path / CFG, "metadata", "neuronpedia_id", to="x/y")
    vouch_for(path, CFG)
    assert bundle.read(path).manifest.architecture.k == K


# Links


@pytest.mark.parametrize("name", [WEIGHTS, CFG])
def test_a_link_out_of_the_folder_is_refused(copy_of: CopyOf, tmp_path: Path, name: str) -> None:
    path = copy_of("mutual")
    shutil.move(path / name, tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        BundleError, match=f"{name} is a link out of its folder, to .*elsewhere; put the file itself there"
    ):
        bundle.read(path)


def test_a_linked_graph_is_refused(copy_of: CopyOf, tmp_path: Path) -> None:
    path = copy_of("mutual")
    shutil.move(path / "steer.onnx", tmp_path / "elsewhere")
    (path / "steer.onnx").symlink_to("../elsewhere")
    with pytest.raises(BundleError, match="steer.onnx is a link out of its folder"):
        load(path).steer(make_x(1), [])


def test_links_of_a_hub_cache_are_followed(copy_of: CopyOf, tmp_path: Path) -> None:
    path, x = copy_of("feature"), make_x(7)
    snapshot = tmp_path / "models--me--sae" / "snapshots" / "0123"
    blobs = snapshot.parents[1] / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    expected = load(path).encode(x).to_dense()
    for number, file in enumerate(sorted(path.iterdir())):
        shutil.move(file, blobs / f"b{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/b{number}")
    assert bundle.read(snapshot).manifest.architecture.d_sae == 150
    np.testing.assert_array_equal(load(snapshot).encode(x).to_dense(), expected)


def test_a_bundle_may_be_reached_by_a_link(copy_of: CopyOf, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy_of("mutual"))
    assert load(tmp_path / "link").encode(make_x(7)).l0().sum() > 0


# Graphs


def test_a_graph_of_a_bundle_that_was_not_exported_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b"
    bundle.write(path, make_weights(150, "mutual"), make_manifest(150, "mutual"))
    with pytest.raises(BundleError, match=f"has no encode.onnx: not exported yet; run: sae-runtime export {path}$"):
        load(path)
    export(path)
    assert load(path).d_sae == 150


def test_token_choice_has_no_joint_graph(copy_of: CopyOf) -> None:
    with pytest.raises(BundleError, match="has no encode_joint.onnx"):
        bundle.read(copy_of("token")).graph("encode_joint.onnx")


@pytest.mark.parametrize("name", ["encode.onnx", "steer.onnx"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_graph_that_is_missing_truncated_or_altered_is_refused(copy_of: CopyOf, name: str, verify: bool) -> None:
    path = copy_of("mutual")
    whole = (path / name).read_bytes()

    def use() -> None:
        load(path, verify=verify).steer(make_x(1), [])

    flip_last_bit(path / name)
    with pytest.raises(BundleError, match=f"{name} was altered.*, or run: sae-runtime export {path}$"):
        use()
    (path / name).write_bytes(whole[:-1])
    with pytest.raises(BundleError, match=f"{name} has .*truncated or altered.*, or run: sae-runtime export {path}$"):
        use()
    (path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing.*, or run: sae-runtime export {path}$"):
        use()
    (path / name).write_bytes(whole)
    use()


@pytest.mark.parametrize("location", ["../elsewhere/sae_weights.safetensors", "absolute", "link"])
def test_a_graph_that_reads_outside_of_the_folder_is_refused(copy_of: CopyOf, tmp_path: Path, location: str) -> None:
    path = copy_of("mutual")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(path / WEIGHTS, tmp_path / "elsewhere")
    if location == "absolute":
        location = str(tmp_path / "elsewhere" / WEIGHTS)
    if location == "link":
        (path / "link").symlink_to(tmp_path / "elsewhere" / WEIGHTS)
    model = onnx.load(path / "encode.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (path / "encode.onnx").write_bytes(model.SerializeToString())
    vouch_for(path, "encode.onnx")
    refusal = "^encode.onnx is not a graph that sae-runtime writes for this SAE .*, or run: sae-runtime export"
    with pytest.raises(BundleError, match=refusal) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_graph_that_is_not_onnx_is_refused(copy_of: CopyOf) -> None:
    path = copy_of("mutual")
    (path / "encode.onnx").write_bytes(b"no graph")
    vouch_for(path, "encode.onnx")
    with pytest.raises(BundleError, match=r"^encode.onnx is not a graph .*wire type 6\).*run: sae-runtime export"):
        load(path)


def test_derived_weights_may_be_deleted(copy_of: CopyOf) -> None:
    path = copy_of("feature")
    (path / DERIVED).unlink()
    found = bundle.read(path)
    assert found.graph("encode.onnx")
    with pytest.raises(BundleError, match=f"{DERIVED} is missing"):
        found.graph("encode_joint.onnx")
