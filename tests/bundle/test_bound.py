"""Readers and writers of one bundle at once: each reader has one bundle, and no writer undoes another."""

import dataclasses
import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from campaign.readers import run
from conftest import make_manifest, make_weights, make_x

from sae_runtime import BundleError, load, open_activations
from sae_runtime.bundle import file_set, parts
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import MANIFEST, WEIGHTS, BundleChanged, put_stats
from sae_runtime.bundle.stats import counted
from sae_runtime.calibration import calibrate_bundle as calibration

BundleOf = Callable[..., Path]
STATS = counted(np.ones(150, np.int64), np.ones(150), 10)


def test_a_reader_has_one_bundle_while_a_writer_replaces_it(tmp_path: Path) -> None:
    found = run(0.6, tmp_path)
    assert found["faults"] == 0 and found["tried"] == found["old"] + found["new"] + found["refused"] > 0


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("way", ["exchange", "file set"])
@pytest.mark.parametrize("moment", [WEIGHTS, "stats.safetensors"])
def test_a_read_begins_again_where_the_bundle_is_replaced_in_its_middle(
    bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, moment: str, verify: bool
) -> None:
    path, other = tmp_path / "sae", tmp_path / "other"
    shutil.copytree(bundle_of("mutual"), path)
    put_stats(bundle.read(path), STATS)
    bundle.write(other, make_weights(150, "mutual", 1), make_manifest(150, "mutual", slots=12), stats=STATS)
    check = parts.check_file
    left = 1

    def replaced_first(folder: Path, name: str, *arguments: object, **options: object) -> None:
        nonlocal left
        if name == moment and left:
            left -= 1
            if way == "exchange":
                shutil.rmtree(path)
                shutil.copytree(other, path)
            else:
                with file_set.replaced_together(path, last=MANIFEST) as staged:
                    shutil.copytree(other, staged, dirs_exist_ok=True)
        check(folder, name, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(parts, "check_file", replaced_first)
    read = bundle.read(path, verify=verify)
    assert not left and read.manifest.slots == 12
    assert (read.tensor("W_enc") == bundle.read(other).tensor("W_enc")).all()


def test_a_bundle_that_never_settles_is_refused_in_a_sentence(
    bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(bundle_of("mutual"), tmp_path / "sae"))
    specs = parts.checked_specs

    def touched(folder: Path, *arguments: object, **options: object) -> object:
        os.utime(path / MANIFEST)
        return specs(folder, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bundle, "checked_specs", touched)
    monkeypatch.setattr(bundle, "_PAUSE", 0)
    with pytest.raises(BundleError, match="sae changes again and again while it is read; load it when its writer is"):
        load(path)


def test_a_half_replaced_bundle_that_nobody_may_finish_is_refused(
    bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(bundle_of("mutual"), tmp_path / "sae"))
    shutil.copytree(bundle_of("mutual"), path / file_set.STAGED)

    def may_not(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", may_not)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(bundle, "_PAUSE", 0)
    assert load(path).d_sae == 150, "hashes prove that no file was moved yet"
    with pytest.raises(BundleError, match="which a writer left unfinished; run sae-runtime inspect .*sae as a user"):
        load(path, verify=False)
    (path / WEIGHTS).write_bytes(b"moved")
    with pytest.raises(BundleError, match="which a writer left unfinished; run sae-runtime inspect .*sae as a user"):
        load(path)


def test_a_writer_that_worked_from_another_bundle_changes_nothing(bundle_of: BundleOf, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bundle_of("mutual"), tmp_path / "sae"))
    late, lost = bundle.read(path), counted(np.full(150, 2), np.ones(150), 10)
    put_stats(bundle.read(path), STATS)
    with pytest.raises(BundleChanged):
        put_stats(late, lost)
    assert bundle.read(path).stats().tokens == 10  # type: ignore[union-attr]
    put_stats(bundle.read(path), lost)
    assert not (path / file_set.STAGED).exists() and not list(path.glob(".*"))


def test_an_export_and_a_calibration_do_not_undo_what_came_meanwhile(
    bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(bundle_of("mutual"), tmp_path / "sae"))
    exporting = importlib.import_module("sae_runtime.exports.export")  # the package has a function of this name
    derive, measure = exporting.write_derived, calibration._measured

    def with_stats_meanwhile(function: Callable[..., object]) -> Callable[..., object]:
        def called(*arguments: object) -> object:
            now = bundle.read(path)
            put_stats(now, dataclasses.replace(STATS, tokens=1 + (now.stats() or STATS).tokens))
            return function(*arguments)

        return called

    np.save(tmp_path / "x.npy", make_x(2000))
    monkeypatch.setattr(exporting, "write_derived", with_stats_meanwhile(derive))
    monkeypatch.setattr(calibration, "_measured", with_stats_meanwhile(measure))
    with pytest.raises(BundleChanged):
        exporting.export(path, activations=make_x(50))
    assert bundle.read(path).stats().tokens == 11  # type: ignore[union-attr]
    with pytest.raises(BundleChanged):
        calibration.calibrate_bundle(path, open_activations(tmp_path / "x.npy"), k=3.0)
    read = bundle.read(path)
    assert read.stats().tokens == 12 and read.manifest.graphs  # type: ignore[union-attr]
    assert load(path).d_sae == 150
