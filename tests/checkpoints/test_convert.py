"""The command `convert`: which formats it recognises, its messages, and that a refusal leaves no output."""

import json
import os
import shutil
import struct
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from command_line import refused, run
from numpy.typing import NDArray

from sae_runtime import load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.labels import write_labels
from sae_runtime.checkpoints.convert import FORMATS, convert, recognise

ROOT = Path(__file__).parents[2]
CFG = {
    "architecture": "jumprelu",
    "d_in": 6,
    "d_sae": 20,
    "dtype": "float32",
    "metadata": {"sae_lens_version": "6.54.12"},
}


def arrays() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (6, 20), "W_dec": (20, 6), "b_enc": (20,), "b_dec": (6,)}
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {**made, "threshold": rng.uniform(0, 1, 20).astype(np.float32)}


@pytest.fixture
def lens(tmp_path: Path) -> Path:
    """A folder as SAELens writes it."""
    path = tmp_path / "lens"
    path.mkdir()
    (path / "cfg.json").write_text(json.dumps(CFG))
    safetensors.numpy.save_file(arrays(), path / "sae_weights.safetensors")
    return path


@pytest.fixture
def jump(tmp_path: Path) -> Path:
    """A file as dictionary_learning writes it."""
    path = tmp_path / "jump" / "ae.pt"
    path.parent.mkdir()
    torch.save({name: torch.from_numpy(array) for name, array in arrays().items()}, path)
    return path


def nothing_but(tmp_path: Path, *names: str) -> bool:
    return sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_checkpoint_becomes_a_bundle_that_export_takes(lens: Path, tmp_path: Path) -> None:
    message = run("convert", lens, "-o", tmp_path / "out")
    assert (message.exit_code, message.stderr) == (0, "")
    assert message.stdout.splitlines() == [
        f"bundle  {tmp_path / 'out'}",
        "read    jumprelu, 6 -> 20",
        f"next    sae-runtime export {tmp_path / 'out'}",
    ]
    assert run("export", tmp_path / "out", "--graph", "none").exit_code == 0
    assert load(tmp_path / "out").d_sae == 20
    manifest = bundle.read(tmp_path / "out").manifest
    assert manifest.provenance == {
        "format": "sae-lens",
        "source_format": "jumprelu",
        "sae_lens_version": "6.54.12",
        "source": {"file": "sae_weights.safetensors", "sha256": bundle.record(lens / "sae_weights.safetensors").sha256},
    }
    assert (manifest.allocation, manifest.slots) == (None, 20)


def test_warnings_go_to_stderr_and_into_the_manifest(lens: Path, tmp_path: Path) -> None:
    (lens / "cfg.json").write_text(json.dumps(CFG | {"normalize_activations": "expected_average_only_in"}))
    message = run("convert", lens, "-o", tmp_path / "out", "--json")
    (warning,) = json.loads(message.stdout)["warnings"]
    assert message.stderr == f"warning: {warning}\n"
    assert bundle.read(tmp_path / "out").manifest.provenance["warnings"] == [warning]


def test_convert_names_calibrate_as_the_next_step_of_a_bundle_without_threshold(tmp_path: Path) -> None:
    weights = arrays()
    del weights["threshold"]
    torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, tmp_path / "sae.pt")
    (tmp_path / "config.json").write_text(
        json.dumps({"act_size": 6, "dict_size": 20, "top_k": 3, "sae_type": "batchtopk"})
    )
    message = run("convert", tmp_path / "sae.pt", "-o", tmp_path / "out" / "sae")
    assert message.stdout.splitlines()[-1] == f"next    sae-runtime calibrate {tmp_path / 'out' / 'sae'}"
    assert f"run: sae-runtime calibrate {tmp_path / 'out' / 'sae'}" in refused("export", tmp_path / "out" / "sae")


def test_weights_equal_those_of_the_file_bit_for_bit(lens: Path, jump: Path, tmp_path: Path) -> None:
    for number, path in enumerate((lens, lens / "sae_weights.safetensors", jump, jump.parent)):
        convert(path, tmp_path / str(number))
        written = safetensors.numpy.load_file(tmp_path / str(number) / "sae_weights.safetensors")
        for name, array in arrays().items():
            np.testing.assert_array_equal(written[name], array)


def test_the_format_is_recognised_from_the_named_file_or_the_folder(lens: Path, jump: Path) -> None:
    shutil.copy(jump, lens)
    assert recognise(lens) == "sae-lens"
    assert recognise(lens / "ae.pt") == "dictionary-learning"
    assert recognise(lens / "sae_weights.safetensors") == "sae-lens"


def test_a_format_can_be_named(lens: Path, jump: Path, tmp_path: Path) -> None:
    shutil.copy(jump, lens)
    run("convert", lens, "--format", "dictionary-learning", "-o", tmp_path / "out")
    assert bundle.read(tmp_path / "out").manifest.provenance["format"] == "dictionary-learning"
    message = refused("convert", lens, "--format", "onnx", "-o", tmp_path / "other")
    assert message == f"error: format must be one of {', '.join(FORMATS)}, got 'onnx'"
    message = refused("convert", lens, "--format", "sparsify", "-o", tmp_path / "other")
    assert message.endswith("lens lacks cfg.json or sae.safetensors, which sparsify writes; get the whole folder")
    assert nothing_but(tmp_path, "lens", "jump", "out")


def test_convert_overwrites_an_output_only_with_force_and_never_an_input(lens: Path, tmp_path: Path) -> None:
    convert(lens, tmp_path / "out")
    assert "already exists; pass --force" in refused("convert", lens, "-o", tmp_path / "out")
    assert run("convert", lens, "-o", tmp_path / "out", "--force").exit_code == 0
    write_labels(tmp_path / "out", {3: "a"})
    assert "holds labels.jsonl, which would be lost" in refused("convert", lens, "-o", tmp_path / "out", "--force")
    assert "is or holds the checkpoint" in refused("convert", lens, "-o", lens, "--force")
    assert "would be inside the checkpoint" in refused("convert", lens, "-o", lens / "sub")
    assert (lens / "cfg.json").exists()


def test_convert_refuses_a_path_without_a_checkpoint(lens: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    message = refused("convert", tmp_path / "none", "-o", out)
    assert message.endswith("none does not exist; name a path on this machine, or hf://owner/name")
    message = refused("convert", tmp_path, "-o", out.parent.parent / "elsewhere-out")
    assert f"{tmp_path} (lens) is no checkpoint of a known format" in message
    (tmp_path / "notes.txt").write_text("x")
    assert "notes.txt (a file) is no checkpoint" in refused("convert", tmp_path / "notes.txt", "-o", out)
    convert(lens, tmp_path / "bundle")
    assert "is a bundle already, and if it holds cfg.json" in refused("convert", tmp_path / "bundle", "-o", out)
    assert nothing_but(tmp_path, "lens", "notes.txt", "bundle")


def spoil(lens: Path, **change: Any) -> None:
    tensors = {name: array for name, array in (arrays() | change).items() if array is not None}
    safetensors.numpy.save_file(tensors, lens / "sae_weights.safetensors")


def test_damaged_checkpoints_are_refused_in_one_sentence(lens: Path, tmp_path: Path) -> None:
    out, weights = tmp_path / "out", lens / "sae_weights.safetensors"
    spoilt = arrays()["W_dec"].copy()
    spoilt[19, 5] = np.nan
    for change, expected in (
        ({"W_dec": spoilt}, "W_dec holds NaN or Inf; get a sound copy of the checkpoint"),
        ({"b_dec": np.full(6, np.inf, np.float32)}, "b_dec holds NaN or Inf; get a sound copy of the checkpoint"),
        ({"b_dec": None}, "lacks the tensor b_dec; get a whole copy of the checkpoint"),
        ({"W_enc": np.zeros((20, 6), np.float32)}, "W_enc has shape [20, 6], expected [6, 20]; get a whole copy"),
        ({"W_enc": np.full((6, 20), 1e300)}, "W_enc is beyond float32 when folded; it cannot be served"),
        ({"more": np.zeros(3)}, "holds more, which such an SAE does not have; expected only "),
    ):
        spoil(lens, **change)
        message = refused("convert", lens, "-o", out)
        assert message.startswith(f"error: {weights}") and expected in message
    spoil(lens)
    weights.write_bytes(weights.read_bytes()[:-5])
    assert "truncated; copy it again" in refused("convert", lens, "-o", out)
    (lens / "cfg.json").write_text("{")
    assert "cfg.json is not readable JSON" in refused("convert", lens, "-o", out)
    (lens / "cfg.json").write_text(json.dumps(CFG | {"architecture": "crystal"}))
    assert "architecture is crystal, expected one of standard" in refused("convert", lens, "-o", out)
    assert nothing_but(tmp_path, "lens")


def test_hostile_files_are_refused_in_one_sentence(lens: Path, jump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    class Payload:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "mark"),))

    torch.save({"encoder.weight": Payload()}, jump)
    assert "holds pickled objects, which could run anything" in refused("convert", jump, "-o", out)
    torch.save({"W_enc": torch.zeros(200, 200)}, jump)
    raw = bytearray(jump.read_bytes())
    entry = raw.rindex(b"PK\x01\x02")
    raw[entry + 24 : entry + 28] = struct.pack("<I", 1 << 31)
    jump.write_bytes(raw)
    assert "a member is compressed or claims a wrong size" in refused("convert", jump, "-o", out)
    np.savez_compressed(jump.parent / "params.npz", W_enc=np.zeros(1 << 23, np.float32))
    assert "it would unpack from" in refused("convert", jump.parent / "params.npz", "-o", out)
    with zipfile.ZipFile(jump.parent / "params.npz", "w") as archive:
        archive.writestr("../W_enc.npy", b"x")
    assert "is not a sound file of numpy.savez" in refused("convert", jump.parent / "params.npz", "-o", out)
    (tmp_path / "secret.safetensors").write_bytes((lens / "sae_weights.safetensors").read_bytes())
    (lens / "sae_weights.safetensors").unlink()
    (lens / "sae_weights.safetensors").symlink_to(tmp_path / "secret.safetensors")
    assert "is a link out of its folder" in refused("convert", lens, "-o", out)
    assert nothing_but(tmp_path, "lens", "jump", "secret.safetensors")


def test_a_hub_cache_is_read(lens: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--o--n" / "snapshots" / "1" / "layer", tmp_path / "models--o--n" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(lens.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path(os.path.relpath(blobs / str(number), snapshot)))
    convert(snapshot, tmp_path / "out")
    assert bundle.read(tmp_path / "out").manifest.architecture.d_sae == 20


def test_the_docs_name_exactly_the_formats_and_architectures_that_are_tested() -> None:
    text = (ROOT / "docs" / "reference" / "checkpoints.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    row_of = {cells[0].strip("`"): cells for cells in rows if cells[0].strip("`") in FORMATS}
    assert set(row_of) == set(FORMATS)
    packages = {"sae-lens": "sae-lens", "sparsify": "eai-sparsify", "dictionary-learning": "dictionary-learning"}
    for name, reader in FORMATS.items():
        _, _, architectures, witness = row_of[name]
        assert set(architectures.split(", ")) == set(reader.ARCHITECTURES), name
        if name in packages:
            assert witness == f"{packages[name]} {version(packages[name])}"
    assert f"sae-lens {version('sae-lens')}" in row_of["gemma-scope"][3]
    assert f"sae-lens {version('sae-lens')}" in row_of["llama-scope"][3]
