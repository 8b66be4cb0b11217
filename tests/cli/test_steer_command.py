import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from command_line import misused, refused, run
from conftest import D_IN, make_manifest, make_weights, make_x, no_file_beyond
from numpy.typing import NDArray

from sae_runtime import SAE, Edit, load, open_activations
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import put_stats
from sae_runtime.bundle.labels import write_labels
from sae_runtime.bundle.stats import counted
from sae_runtime.cli.edits import Change
from sae_runtime.exports.export import export

BundleOf = Callable[..., Path]
EDITS = ("--set", "12=8.0", "--add", "3=1.5", "--scale", "4=0.5", "--ablate", "7", "--cap", "5=2.0", "--ablate", "9")
NOTHING = ("--scale", "4=1")  # an edit that changes nothing
CHOSEN = [
    Edit.set(12, 8.0),
    Edit.add(3, 1.5),
    Edit.scale(4, 0.5),
    Edit.ablate(7),
    Edit.cap(5, 2.0),
    Edit.ablate(9),
]


@pytest.fixture
def x(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", make_x(50))
    return tmp_path / "x.npy"


def assert_close(y: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Edits in another order are summed in another order, and pieces of rows are multiplied by other kernels."""
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(D_IN,), (5000, D_IN), (3, 20, D_IN), (2, 3, 4, D_IN), (0, D_IN), (2, 0, D_IN)])
def test_any_rank(bundle_of: BundleOf, kind: str, tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = make_x(int(np.prod(shape[:-1]))).reshape(shape)
    np.save(tmp_path / "x.npy", x)
    result = run("steer", bundle_of(kind), "--activations", tmp_path / "x.npy", *EDITS, "-o", tmp_path / "y.npy")
    assert (result.exit_code, result.stderr) == (0, "")
    y = np.load(tmp_path / "y.npy")
    assert (y.dtype, y.shape) == (np.float32, shape)
    assert_close(y, load(bundle_of(kind)).steer(x, CHOSEN))
    assert not x.size or (y != x).any()


def test_says_what_it_did(bundle_of: BundleOf, x: Path, tmp_path: Path) -> None:
    out = tmp_path / "y.npy"
    result = run("steer", bundle_of("mutual"), "--activations", x, *EDITS, "-o", out)
    words = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert words == [f"activations {out}", "shape 50 x 24", "edits 6 features on 50 tokens"]
    result = run("steer", bundle_of("mutual"), "--activations", x, *NOTHING, "-o", out, "--force", "--json")
    assert json.loads(result.stdout) == {"activations": str(out), "shape": [50, 24], "edits": 1, "features": [4]}


def test_steer_without_an_edit_is_wrong_usage(bundle_of: BundleOf, x: Path, tmp_path: Path) -> None:
    said = misused("steer", bundle_of("mutual"), "--activations", x, "-o", tmp_path / "y.npy")
    assert said == "Give an edit: --set, --add, --scale, --ablate or --cap."
    assert not (tmp_path / "y.npy").exists()


def test_steer_takes_short_and_full_names_of_providers(bundle_of: BundleOf, x: Path, tmp_path: Path) -> None:
    arguments = ("steer", bundle_of("mutual"), "--activations", x, *EDITS, "--force", "-o", tmp_path / "y.npy")
    for name in ("cpu", "CPU", "CPUExecutionProvider"):
        assert run(*arguments, "--provider", name).exit_code == 0
    assert "QNNExecutionProvider" in refused(*arguments, "--provider", "qnn")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int16])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_an_edit_that_changes_nothing_keeps_every_bit(
    bundle_of: BundleOf, tmp_path: Path, dtype: type, suffix: str
) -> None:
    x: NDArray[np.generic] = (10 * make_x(30)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / f"y{suffix}"
    assert run("steer", bundle_of("mutual"), "--activations", tmp_path / "x.npy", *NOTHING, "-o", out).exit_code == 0
    np.testing.assert_array_equal(open_activations(out).slice(0, 30), x.astype(np.float32))


def test_fortran_order(bundle_of: BundleOf, tmp_path: Path) -> None:
    x = make_x(60).reshape(3, 20, D_IN)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    out = tmp_path / "y.npy"
    assert run("steer", bundle_of("mutual"), "--activations", tmp_path / "x.npy", *NOTHING, "-o", out).exit_code == 0
    np.testing.assert_array_equal(np.load(out), x)


def test_shards_keep_their_tokens(bundle_of: BundleOf, tmp_path: Path) -> None:
    ids = {name: np.arange(50, dtype=np.int32) + i for i, name in enumerate(("tokens", "documents", "positions"))}
    safetensors.numpy.save_file({"activations": make_x(50), **ids}, tmp_path / "x.safetensors")
    out = tmp_path / "y.safetensors"
    result = run("steer", bundle_of("mutual"), "--activations", tmp_path / "x.safetensors", *EDITS, "-o", out)
    assert result.exit_code == 0
    tensors = safetensors.numpy.load_file(out)
    assert set(tensors) == {"activations", *ids}
    for name, array in ids.items():
        np.testing.assert_array_equal(tensors[name], array)
    expected = load(bundle_of("mutual")).steer(make_x(50), CHOSEN)
    assert_close(tensors["activations"], expected)
    (tmp_path / "plain").touch()
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("option", ["--set", "--add", "--scale", "--cap"])
@pytest.mark.parametrize("value", ["12=abc", "12", "=", "12=", "=2", " =2", "a=8=b", "include", "12=xx2", "12=x"])
def test_malformed_edits(option: str, value: str) -> None:
    said = misused("steer", "b", "--activations", "x.npy", "-o", "y.npy", option, value)
    examples = "12=0.5 or include=0.5" if option == "--scale" else "12=8.0, include=8.0 or include=x2"
    assert said == f"Invalid value for '{option}': {value!r} is not FEATURE=NUMBER, such as {examples}."


@pytest.mark.parametrize("value", ["12=x2", "12=X2", " 12 = x2.0 ", "12=x 2"])
def test_multiples_are_read_as_people_write_them(value: str) -> None:
    assert Change(multiples=True).convert(value, None, None) == (12, 2.0, True)


def test_more_malformed_edits() -> None:
    arguments = ("steer", "b", "--activations", "x.npy", "-o", "y.npy")
    assert misused(*arguments, "--set", "1=nan") == "Invalid value for '--set': '1=nan' needs a finite number."
    assert misused(*arguments, "--cap", "1=-inf") == "Invalid value for '--cap': '1=-inf' needs a finite number."
    assert misused(*arguments, "--ablate", " ") == (
        "Invalid value for '--ablate': a label is a text that is not empty, got ' '."
    )
    assert misused(*arguments, "--set", "a\nb=2") == (
        "Invalid value for '--set': a label is one line without control characters, got 'a\\nb'."
    )


def test_edits_from_the_environment_and_a_file(bundle_of: BundleOf, x: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[steer]\nset = ["12=8.0"]\nadd = ["3=1.5"]\nablate = [7, 9]\n')
    arguments = ("steer", bundle_of("mutual"), "--activations", x, "-o", tmp_path / "y.npy", "--config", file)
    env = {"SAE_RUNTIME_STEER_SET": "4=1 5=2"}
    assert run(*arguments, env=env).exit_code == 0
    edits = [Edit.set(4, 1.0), Edit.set(5, 2.0), Edit.add(3, 1.5), Edit.ablate(7), Edit.ablate(9)]
    expected = load(bundle_of("mutual")).steer(make_x(50), edits)
    assert_close(np.load(tmp_path / "y.npy"), expected)


LABELS = {12: "include", 3: "open file", 4: "a=b", 7: "it's", 5: "café", 9: "x2", 20: "loop", 21: "loop"}


def test_features_are_named_by_labels(copy_of: BundleOf, x: Path, tmp_path: Path) -> None:
    path = copy_of("mutual")
    write_labels(path, LABELS)
    edits = ["--set", "include=8.0", "--add", "open file=1.5", "--scale", "a=b=0.5", "--ablate", "it's"]
    edits += ["--cap", " cafe\u0301 = 2.0", "--ablate", "x2"]
    arguments = ("steer", path, "--activations", x, "-o", tmp_path / "y.npy", "--force")
    result = run(*arguments, *edits)
    assert (result.exit_code, result.stderr) == (0, "")
    assert_close(np.load(tmp_path / "y.npy"), load(path).steer(make_x(50), CHOSEN))
    words = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert words[2] == "edits 6 features on 50 tokens"
    assert sorted(words[3:]) == sorted(
        [
            "'include' is feature 12",
            "'open file' is feature 3",
            "'a=b' is feature 4",
            '"it\'s" is feature 7',
            "'café' is feature 5",
            "'x2' is feature 9",
        ]
    )
    found = json.loads(run(*arguments, "--set", "include=1", "--ablate", "3", "--json").stdout)
    assert (found["edits"], found["features"]) == (2, [3, 12])
    put_stats(bundle.read(path), counted(np.ones(150, np.int64), np.arange(150), 10))
    for twice in ("include=x2", "12=x2", "include=24", " include = X2.0"):
        assert run(*arguments, "--set", twice).exit_code == 0
        assert_close(np.load(tmp_path / "y.npy"), load(path).steer(make_x(50), Edit.set(12, 24.0)))


def test_labels_that_name_no_feature(copy_of: BundleOf, x: Path, tmp_path: Path) -> None:
    path = copy_of("mutual")
    arguments = ("steer", path, "--activations", x, "-o", tmp_path / "y.npy")
    file = path / "labels.jsonl"
    assert refused(*arguments, "--ablate", "include") == (
        f"error: 'include' is a label, and there are none in {file}; write lines such as "
        '{"feature": 12, "label": "include"}, or name the feature by its number'
    )
    write_labels(path, LABELS)
    said = refused(*arguments, "--set", "Include=2")
    assert said == f"error: 'Include' is no label in {file}; the closest are 'include' (feature 12)"
    said = refused(*arguments, "--set", "12=8=2")  # of old, no edit at all
    assert said == f"error: '12=8' is no label in {file}; name the feature by its number"
    said = refused(*arguments, "--add", "loop=2")
    assert said == "error: the label 'loop' is that of features 20, 21; name one by its number"
    said = refused(*arguments, "--add", "include=2", "--ablate", "12")
    assert said == "error: feature 12 is edited twice in one request; give one edit for it"
    file.write_text('{"feature": 1, "label": "\\u001b[2J"}')
    said = refused(*arguments, "--ablate", "include")
    assert said == f"error: line 1 of {file}: a label is one line without control characters, got '\\x1b[2J'"
    file.write_text('{"feature": 1, "label": "\u202eevil"}')
    assert "\u202e" not in refused(*arguments, "--ablate", "evil")
    assert not (tmp_path / "y.npy").exists()
    assert run(*arguments, "--ablate", "12").exit_code == 0


def test_labels_in_the_environment_are_quoted_as_for_a_shell(copy_of: BundleOf, x: Path, tmp_path: Path) -> None:
    path = copy_of("mutual")
    write_labels(path, LABELS)
    arguments = ("steer", path, "--activations", x, "-o", tmp_path / "y.npy", "--force")
    env = {"SAE_RUNTIME_STEER_SET": "include=8 'open file=1' 4=2", "SAE_RUNTIME_STEER_ABLATE": '"it\'s" x2'}
    assert run(*arguments, env=env).exit_code == 0
    edits = [Edit.set(12, 8.0), Edit.set(3, 1.0), Edit.set(4, 2.0), Edit.ablate(7), Edit.ablate(9)]
    assert_close(np.load(tmp_path / "y.npy"), load(path).steer(make_x(50), edits))
    said = misused(*arguments, env={"SAE_RUNTIME_STEER_SET": "it's=2"})
    assert '"it\'s=2" is not quoted as a shell needs it (No closing quotation).' in said
    file = tmp_path / "run.toml"
    file.write_text('[steer]\nset = ["open file=1"]\nablate = ["it\'s", 9]\n')
    assert run(*arguments, "--config", file).exit_code == 0
    edits = [Edit.set(3, 1.0), Edit.ablate(7), Edit.ablate(9)]
    assert_close(np.load(tmp_path / "y.npy"), load(path).steer(make_x(50), edits))


def test_labels_are_looked_up_once(copy_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes in the meantime does not give half of the rows another edit."""
    path = copy_of("mutual")
    write_labels(path, {12: "include"})
    np.save(tmp_path / "x.npy", make_x(5000))
    steer = SAE.steer

    def then_relabelled(*arguments: Any) -> Any:
        write_labels(path, {13: "include"})
        return steer(*arguments)

    monkeypatch.setattr(SAE, "steer", then_relabelled)
    out = tmp_path / "y.npy"
    assert run("steer", path, "--activations", tmp_path / "x.npy", "--set", "include=8", "-o", out).exit_code == 0
    monkeypatch.undo()
    assert_close(np.load(out), load(path).steer(make_x(5000), Edit.set(12, 8.0)))


def test_errors_leave_nothing(bundle_of: BundleOf, x: Path, tmp_path: Path) -> None:
    path, out = bundle_of("mutual"), tmp_path / "y.npy"
    arguments = ("steer", path, "--activations", x, "-o", out)
    said = refused(*arguments, "--set", "12=8", "--ablate", "12")
    assert said == "error: feature 12 is edited twice in one request; give one edit for it"
    assert refused(*arguments, "--ablate", "150") == "error: feature 150 does not exist, expected 0 to 149"
    np.save(tmp_path / "none.npy", make_x(0))
    said = refused("steer", path, "--activations", tmp_path / "none.npy", "-o", out, "--ablate", "150")
    assert said == "error: feature 150 does not exist, expected 0 to 149"
    (tmp_path / "none.npy").unlink()
    assert refused(*arguments, "--set", "-1=2") == "error: feature -1 does not exist, expected 0 to 149"
    assert (
        refused(*arguments, "--set", "1=1e39") == "error: an edit of feature 1 needs finite float32 numbers, got 1e+39"
    )
    said = refused("steer", path, "--activations", x, *NOTHING, "-o", tmp_path / "y.npz")
    assert said == f"error: the output must be an .npy or a .safetensors file, got {tmp_path / 'y.npz'}"
    said = refused("steer", path, "--activations", x, *NOTHING, "-o", x, "--force")
    assert said == f"error: the output {x} is or holds the activations {x}; name another output"
    assert list(tmp_path.iterdir()) == [x]
    out.write_text("mine")
    assert (
        refused(*arguments, *NOTHING)
        == f"error: {out} already exists; pass --force to replace it, in Python force=True"
    )
    assert out.read_text() == "mine"


def test_bad_activations(bundle_of: BundleOf, tmp_path: Path) -> None:
    x = tmp_path / "x.npy"
    arguments = ("steer", bundle_of("mutual"), "--activations", x, *NOTHING, "-o", tmp_path / "y.npy")
    assert refused(*arguments).startswith(f"error: {x} does not exist; expected a folder of harvest, or one of .npy, ")
    np.save(x, np.zeros((3, 7), np.float32))
    said = refused(*arguments)
    assert said == f"error: {x}: activations have d_in 7, this SAE expects 24; was another layer captured?"
    for array, what in (
        (np.zeros((), np.float32), "float32 []"),
        (np.zeros((3, 0), np.float32), "float32 [3, 0]"),
        (np.zeros((3, D_IN), np.complex64), f"complex64 [3, {D_IN}]"),
    ):
        np.save(x, array)
        assert refused(*arguments) == f"error: {x} holds {what}, expected real numbers of shape [..., d_in]"
    x.write_bytes(b"\x93NUMPY\x01")
    assert refused(*arguments).startswith(f"error: {x} is not a whole .npy file (")
    x.write_bytes(b"")
    assert refused(*arguments).startswith(f"error: {x} is not a whole .npy file (")
    bad = make_x(60).reshape(3, 20, D_IN)
    bad[2, 1, 0] = np.inf
    np.save(x, bad)
    assert refused(*arguments) == f"error: {x}: row 41 holds NaN or Inf; harvest it again or drop the row"
    assert list(tmp_path.iterdir()) == [x]


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_row_that_overflows_is_named_and_nothing_is_left(bundle_of: BundleOf, tmp_path: Path, suffix: str) -> None:
    x = make_x(5000)
    x[4998] = 3.3e38 * np.sign(make_weights(150, "mutual")["W_dec"][3])
    np.save(tmp_path / "x.npy", x)
    given = ("steer", bundle_of("mutual"), "--activations", tmp_path / "x.npy", "-o", tmp_path / f"y{suffix}")
    said = refused(*given, "--add", "3=3e38")
    assert said.startswith(f"error: {tmp_path / 'x.npy'}, from row 4096 on: row 902 of the activations overflows")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_another_source_is_refused(tmp_path: Path) -> None:
    path, out, folder = tmp_path / "sae", tmp_path / "y.npy", tmp_path / "acts"
    manifest = dataclasses.replace(make_manifest(150, "mutual"), model="tiny", hook="layer.1")
    bundle.write(path, make_weights(150, "mutual"), manifest)
    export(path)
    folder.mkdir()
    safetensors.numpy.save_file({"activations": make_x(50)}, folder / "shard-0.safetensors")
    index = {"format_version": 1, "shards": [{"file": "shard-0.safetensors", "rows": 50}], "d_in": D_IN}
    (folder / "activations.json").write_text(json.dumps(index | {"model": "tiny", "hook": "layer.2"}))
    arguments = ("steer", path, "--activations", folder, *EDITS, "-o", out)
    said = refused(*arguments)
    assert said == (
        f"error: {folder}: activations come from hook 'layer.2', this SAE was fitted on 'layer.1'; harvest those, or "
        "pass --any-source to go on"
    )
    assert not out.exists()
    assert run(*arguments, "--any-source").exit_code == 0
    assert_close(np.load(out), load(path).steer(make_x(50), CHOSEN))


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_full_disk_leaves_nothing(bundle_of: BundleOf, tmp_path: Path, suffix: str) -> None:
    np.save(tmp_path / "x.npy", make_x(5000))
    out = tmp_path / f"y{suffix}"
    with no_file_beyond(100_000):
        said = refused("steer", bundle_of("mutual"), "--activations", tmp_path / "x.npy", *EDITS, "-o", out)
    assert said.startswith("error: ") and "File too large" in said
    assert list(tmp_path.iterdir()) == [tmp_path / "x.npy"]


def test_an_npy_is_written_not_mapped(bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of a map that finds the disk full ends the process by SIGBUS, and no handler cleans up."""
    np.save(tmp_path / "x.npy", make_x(5000))
    sizes: list[int] = []
    steer = SAE.steer

    def measured(*arguments: Any) -> Any:
        sizes.extend(path.stat().st_size for path in tmp_path.glob(".y.npy.*"))
        return steer(*arguments)

    monkeypatch.setattr(SAE, "steer", measured)
    out = tmp_path / "y.npy"
    assert run("steer", bundle_of("mutual"), "--activations", tmp_path / "x.npy", *EDITS, "-o", out).exit_code == 0
    assert len(sizes) == 2 and sizes[0] < sizes[1] < out.stat().st_size
