"""Several hooks in one pass: each folder has the bytes of a harvest of its hook alone, also after a kill."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_common import Rows, all_rows, hooked
from command_line import refused, run
from tiny_model import save_bert, save_gpt2, write_words
from transformers import AutoModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from sae_runtime import open_activations
from sae_runtime.activations.stored import INDEX
from sae_runtime.train.harvest.config import HarvestConfig, for_hooks
from sae_runtime.train.harvest.harvesting import harvest, harvest_many
from sae_runtime.train.harvest.reader import Reader

pytestmark = pytest.mark.usefixtures("one_thread")

HOOKS = ("h.1", "h.0.mlp", "input:h.1.mlp")  # not in the order of the pass, and of two widths below


@pytest.fixture
def configs(tmp_path: Path) -> dict[str, HarvestConfig]:
    """Hooks of a GPT-2 on a text of several shards."""
    model = save_gpt2(tmp_path / "model")
    text = write_words(tmp_path / "text.txt", 20)
    return for_hooks(HOOKS, model=str(model), text=(text,), context=20, batch_tokens=100, shard_tokens=90)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_folder_is_that_of_its_hook_alone(configs: dict[str, HarvestConfig], tmp_path: Path) -> None:
    made = harvest_many(configs, tmp_path / "many")
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["h.0.mlp", "h.1", "input_h.1.mlp"]
    for name, config in configs.items():
        harvest(config, tmp_path / name)
        assert contents(tmp_path / name) == contents(tmp_path / "many" / name)
        assert made[name].hook == config.hook


def test_rows_are_torchs_and_one_pass_gives_all(
    configs: dict[str, HarvestConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {**configs, "c_fc": replace(configs["h.1"], hook="h.0.mlp.c_fc")}
    model: Any = AutoModel.from_pretrained(tmp_path / "model").eval()
    ids = [
        [int(word[1:]) for word in paragraph.split()] for paragraph in (tmp_path / "text.txt").read_text().split("\n\n")
    ]
    windows = [one[begin : begin + 20] for one in ids for begin in range(0, len(one), 20)]
    runs: list[int] = []
    forward = GPT2Block.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        runs.append(0)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(GPT2Block, "forward", counted)
    made = harvest_many(wide, tmp_path / "many")
    assert len(runs) < 2 * len(windows)  # two layers, and fewer passes than windows
    monkeypatch.undo()
    for name, hook in (("h.1", "h.1"), ("h.0.mlp", "h.0.mlp"), ("c_fc", "h.0.mlp.c_fc"), ("input_h.1.mlp", "h.1.ln_2")):
        expected = np.concatenate([passed(model, hook, window) for window in windows])
        np.testing.assert_allclose(all_rows(made[name]), expected, atol=1e-5)
    assert [made[name].d_in for name in wide] == [16, 16, 16, 64]


def passed(model: Any, hook: str, window: Sequence[int]) -> Rows:
    """The rows of one window, by a torch hook."""
    rows: Rows = hooked(model, hook, lambda: model(torch.tensor([list(window)])))[0][0]
    return rows


def test_a_harvest_that_was_killed_goes_on_with_the_same_bytes(
    configs: dict[str, HarvestConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "many"
    harvest_many(configs, out)
    whole = {name: contents(out / name) for name in configs}
    first, second, third = (out / name for name in configs)
    shards = len(open_activations(first).shards)
    assert shards > 3
    for folder in (first, second, third):  # as if killed between the folders of one group of windows
        (folder / INDEX).unlink()
    for number in range(2, shards):
        for folder in (first, second, third) if number > 2 else (second, third):
            (folder / f"shard-{number:05d}.safetensors").unlink()
    harvest_many(configs, out)
    assert {name: contents(out / name) for name in configs} == whole

    (second / INDEX).unlink()  # as if killed between two indexes: whole folders stay as they are
    (third / INDEX).unlink()
    reads: list[int] = []
    monkeypatch.setattr(Reader, "read_all", lambda *_: reads.append(1))
    harvest_many(configs, out)
    assert {name: contents(out / name) for name in configs} == whole and not reads
    with pytest.raises(FileExistsError, match="already exists"):
        harvest_many(configs, out)


def test_another_harvest_in_one_of_the_folders_is_refused(configs: dict[str, HarvestConfig], tmp_path: Path) -> None:
    harvest_many(configs, tmp_path / "many")
    changed = {name: replace(config, context=10) for name, config in configs.items()}
    (tmp_path / "many" / "h.1" / INDEX).unlink()
    with pytest.raises(ValueError, match="was begun with context 20, now it is 10"):
        harvest_many(changed, tmp_path / "many")
    harvest_many(changed, tmp_path / "many", force=True)
    assert open_activations(tmp_path / "many" / "h.0.mlp").tokens is not None


def test_hooks_that_cannot_share_a_pass_are_refused(configs: dict[str, HarvestConfig], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two would have the same folder; name each hook once"):
        for_hooks(["h.0", "h.0"], model="gpt2", text=(Path("a.txt"),))
    other = {**configs, "h.0": replace(configs["h.1"], hook="h.0", context=10)}
    with pytest.raises(ValueError, match=r"h\.0 has other settings than the first"):
        harvest_many(other, tmp_path / "many")
    with pytest.raises(ValueError, match=r"'a/b' is not the name of a folder"):
        harvest_many({"a/b": configs["h.1"]}, tmp_path / "many")
    with pytest.raises(ValueError, match=r"has no module 'h\.7'"):
        harvest_many({**configs, "h.7": replace(configs["h.1"], hook="h.7")}, tmp_path / "many")
    with pytest.raises(ValueError, match="nothing to harvest"):
        harvest_many({}, tmp_path / "many")
    assert not (tmp_path / "many").exists()


def test_the_command_makes_a_folder_for_each_hook(tmp_path: Path) -> None:
    model, text, out = save_bert(tmp_path / "model"), write_words(tmp_path / "text.txt", 5), tmp_path / "acts"
    hooks = ("--hook", "encoder.layer.0", "--hook", "encoder.layer.2")
    arguments = ("harvest", model, *hooks, "--text", text, "--context", "20", "-o", out)
    result = run(*arguments, "--quiet")
    assert result.exit_code == 0
    folders = [f"activations  {out / hook}" for hook in ("encoder.layer.0", "encoder.layer.2")]
    assert [line for line in result.stdout.splitlines() if line.startswith("activations")] == folders
    assert refused(*arguments).startswith("error: ")
