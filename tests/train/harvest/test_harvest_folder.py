import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_model import save_bert, write_words

from sae_runtime.bundle.tensors import read_header
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.harvesting import harvest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> HarvestConfig:
    """A harvest of several shards and batches."""
    folder = tmp_path_factory.mktemp("reading")
    text = write_words(folder / "words.txt", 70)
    sizes: dict[str, Any] = {"context": 20, "batch_tokens": 200, "shard_tokens": 300}
    return HarvestConfig(model=str(save_bert(folder / "bert")), hook="encoder.layer.1", text=(text,), **sizes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def interrupted(config: HarvestConfig, tmp_path: Path) -> Path:
    """The folder of a harvest that was killed while it wrote its second shard."""
    folder = tmp_path / "interrupted"
    harvest(config, folder)
    for path in folder.iterdir():
        if path.name not in ("harvest.json", "shard-00000.safetensors"):
            path.unlink()
    return folder


def test_an_interrupted_harvest_continues_and_writes_the_same_bytes(
    config: HarvestConfig, interrupted: Path, tmp_path: Path
) -> None:
    (interrupted / ".shard-00001.safetensors.0123abcd.partial.safetensors").write_bytes(b"of a killed writer")
    first = (interrupted / "shard-00000.safetensors").stat()
    harvest(config, interrupted)
    again = (interrupted / "shard-00000.safetensors").stat()
    assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns), "a finished shard is kept"
    harvest(config, tmp_path / "at once")
    assert contents(interrupted) == contents(tmp_path / "at once")


@pytest.mark.parametrize("damage", ["truncated", "rows", "dtype", "tensors"])
def test_a_shard_that_is_not_whole_is_computed_again(
    config: HarvestConfig, interrupted: Path, tmp_path: Path, damage: str
) -> None:
    shard = interrupted / "shard-00000.safetensors"
    whole = shard.read_bytes()
    rows = read_header(shard)["activations"].shape[0]
    if damage == "truncated":
        shard.write_bytes(whole[:-1])
    else:
        n = 100 if damage == "rows" else rows
        ids = {name: torch.zeros(n, dtype=torch.int32) for name in ("tokens", "documents", "positions")}
        x = torch.zeros(n, 16, dtype=torch.float16 if damage == "dtype" else torch.float32)
        safetensors.torch.save_file({"activations": x} | ({} if damage == "tensors" else ids), shard)
    harvest(config, interrupted)
    assert shard.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 21}, "with context 20, now it is 21"),
        ({"dtype": "float16"}, "with dtype 'float32', now it is 'float16'"),
        ({"hook": "encoder.layer.0"}, "with hook 'encoder.layer.1', now it is 'encoder.layer.0'"),
        ({"document": "file"}, "with document 'paragraph', now it is 'file'"),
        ({"special": True}, "with special False, now it is True"),
        ({"tokens": 7}, "with tokens None, now it is 7"),
        ({"shard_tokens": 700}, "with shard_tokens 300, now it is 700"),
    ],
)
def test_an_interrupted_harvest_refuses_another_config(
    config: HarvestConfig, interrupted: Path, change: dict[str, Any], message: str
) -> None:
    before = contents(interrupted)
    end = "; use another folder or --force$"
    with pytest.raises(ValueError, match=f"^{re.escape(str(interrupted))} was begun {re.escape(message)}{end}"):
        harvest(replace(config, **change), interrupted)
    assert contents(interrupted) == before
    got = harvest(replace(config, **change), interrupted, force=True)
    assert len(got) > 0 and not (interrupted / "harvest.json").read_bytes() == before["harvest.json"]


def test_an_interrupted_harvest_refuses_changed_files(config: HarvestConfig, interrupted: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("w1 w2")
    with pytest.raises(ValueError, match=r"was begun with text None, now it is '.*more\.txt \(5 bytes, changed at"):
        harvest(replace(config, text=(*config.text, more)), interrupted)
    shutil.copytree(config.model, tmp_path / "model")
    with pytest.raises(ValueError, match="was begun with model '.*', now it is '.*model'; use another folder"):
        harvest(replace(config, model=str(tmp_path / "model")), interrupted)
    for path, name in ((config.text[0], "text"), (Path(config.model) / "config.json", "model_files")):
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
        with pytest.raises(
            ValueError, match=f"was begun with {name} '.*{path.name} .*', now it is '.*{path.name} .*'; use"
        ):
            harvest(config, interrupted)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(harvest(config, interrupted)) > config.shard_tokens


def test_an_interrupted_harvest_accepts_other_paths_to_the_same_files(
    config: HarvestConfig, interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = Path(config.model), config.text[0]
    monkeypatch.chdir(model.parent)
    config = replace(config, model=model.name, text=(Path(os.path.relpath(path)),))
    assert len(harvest(config, interrupted)) > config.shard_tokens


def test_an_interrupted_harvest_accepts_another_batch_size_and_device(config: HarvestConfig, interrupted: Path) -> None:
    got = harvest(replace(config, batch_tokens=100, device="cpu"), interrupted)
    assert len(got) > config.shard_tokens


def test_a_begun_folder_without_shards_accepts_another_config(config: HarvestConfig, interrupted: Path) -> None:
    (interrupted / "shard-00000.safetensors").unlink()
    assert len(harvest(replace(config, tokens=9), interrupted)) == 9


@pytest.mark.parametrize("plan", [None, "{", "[]"])
def test_shards_without_a_readable_plan_are_refused(config: HarvestConfig, interrupted: Path, plan: str | None) -> None:
    (interrupted / "harvest.json").unlink()
    if plan is not None:
        (interrupted / "harvest.json").write_text(plan)
    with pytest.raises(ValueError, match=r"holds shards but no readable harvest\.json; use another folder or --force$"):
        harvest(config, interrupted)
    assert len(harvest(replace(config, tokens=9), interrupted, force=True)) == 9


def test_a_finished_harvest_is_replaced_only_by_force(config: HarvestConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    harvest(config, out)
    before = contents(out)
    for other in (config, replace(config, tokens=9)):
        with pytest.raises(
            FileExistsError, match=r"out already exists; pass --force to replace it, in Python force=True$"
        ):
            harvest(other, out)
    with pytest.raises(ValueError, match="has no module"):
        harvest(replace(config, hook="nothing"), out, force=True)
    assert contents(out) == before
    (out / ".shard-00007.safetensors.0123abcd.partial.safetensors").write_bytes(b"of a killed writer")
    assert len(harvest(replace(config, tokens=9), out, force=True)) == 9
    assert sorted(contents(out)) == ["activations.json", "documents.jsonl", "harvest.json", "shard-00000.safetensors"]


@pytest.mark.parametrize("force", [False, True])
def test_harvest_leaves_a_folder_of_other_files_alone(config: HarvestConfig, tmp_path: Path, force: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("dear")
    (out / "shard-00000.safetensors").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex, which would be lost; name another output$"):
        harvest(config, out, force=force)
    with pytest.raises(FileExistsError, match=r"thesis\.tex is a file; name a folder$"):
        harvest(config, out / "thesis.tex", force=force)
    with pytest.raises(NotADirectoryError, match=r"thesis\.tex is a file, so .* cannot be made in it; name another"):
        harvest(config, out / "thesis.tex" / "acts", force=force)
    assert contents(out) == {"thesis.tex": b"dear", "shard-00000.safetensors": b"mine"}


def test_force_leaves_a_harvest_beside_other_files_alone(config: HarvestConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    harvest(config, out)
    (out / "thesis.tex").write_text("dear")
    before = contents(out)
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex, which would be lost; name another output$"):
        harvest(config, out, force=True)
    assert contents(out) == before


def test_an_empty_folder_is_filled_and_its_files_can_be_read_by_others(config: HarvestConfig, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    harvest(config, tmp_path / "out")
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}
