"""SAEs of several hooks in one pass over a model: each is what a fit at its hook alone gives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases_common import read_weights
from command_line import run
from tiny_model import save_gpt2, write_words

from sae_runtime.bundle import folder as bundle
from sae_runtime.train import TrainConfig, fit, fit_many
from sae_runtime.train.harvest.config import HarvestConfig, for_hooks

pytestmark = pytest.mark.usefixtures("one_thread")

HOOKS = ("h.1", "h.0.mlp.c_fc", "input:h.1.mlp")  # d_in 16, 64 and 16
CONFIG = TrainConfig(k=2, d_sae=64, tokens=6_400, batch=64, max_norm=None)


@pytest.fixture
def harvests(tmp_path: Path) -> dict[str, HarvestConfig]:
    text = write_words(tmp_path / "text.txt", 60)
    return for_hooks(HOOKS, model=str(save_gpt2(tmp_path / "model")), text=(text,), context=20, batch_tokens=400)


def close(a: Path, b: Path) -> None:
    """Equal weights but for the rounding of the forward pass, whose batches do not differ."""
    first, second = read_weights(a), read_weights(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        np.testing.assert_allclose(tensor, second[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_each_bundle_is_that_of_its_hook_alone(harvests: dict[str, HarvestConfig], tmp_path: Path) -> None:
    made = fit_many(harvests, tmp_path / "many", {"mutual": CONFIG})
    assert list(made) == sorted(made, key=list(harvests).index) == list(harvests)
    for name, harvest in harvests.items():
        alone = fit(harvest, tmp_path / name, CONFIG)
        close(tmp_path / name, tmp_path / "many" / name)
        assert made[name].hook == alone.hook == harvest.hook
        assert made[name].architecture == alone.architecture
        assert made[name].measured == pytest.approx(alone.measured, rel=1e-4)
        assert bundle.read(tmp_path / "many" / name).manifest.left_out == alone.left_out
    assert [made[name].architecture.d_in for name in harvests] == [16, 64, 16]


def test_every_config_is_fitted_at_every_hook_and_a_row_is_left_out_for_all(
    harvests: dict[str, HarvestConfig], tmp_path: Path
) -> None:
    configs = {f"k{k}": replace(CONFIG, k=k, max_norm=1.3) for k in (1, 2)}
    made = fit_many(harvests, tmp_path / "many", configs)
    assert list(made) == [f"{hook}-{name}" for hook in harvests for name in configs]
    counts = [manifest.left_out.rows for manifest in made.values() if manifest.left_out]
    assert all(rows == counts[0] for rows in counts) and counts[0]["calibration"] > 0
    alone = [fit(one, tmp_path / name, configs["k1"]).left_out for name, one in harvests.items()]
    assert counts[0]["calibration"] >= max(left_out.rows["calibration"] for left_out in alone if left_out)


def test_a_run_goes_on_where_it_was_stopped(
    harvests: dict[str, HarvestConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_runtime.train.trainer import Trainer

    fit_many(harvests, tmp_path / "whole", {"k2": CONFIG})
    step, steps = Trainer.step, 0

    def stopped(self: Any, x: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > 150:
            raise KeyboardInterrupt
        return step(self, x)

    options: dict[str, Any] = {"run_state": tmp_path / "state", "run_state_seconds": 0}
    monkeypatch.setattr(Trainer, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit_many(harvests, tmp_path / "many", {"k2": CONFIG}, **options)
    monkeypatch.undo()
    fit_many(harvests, tmp_path / "many", {"k2": CONFIG}, resume=True, **options)
    for name in harvests:
        for tensor, value in read_weights(tmp_path / "whole" / name).items():
            assert np.array_equal(value, read_weights(tmp_path / "many" / name)[tensor])


def test_hooks_that_cannot_share_a_pass_are_refused(harvests: dict[str, HarvestConfig], tmp_path: Path) -> None:
    other = {**harvests, "h.0": replace(harvests["h.1"], hook="h.0", context=10)}
    with pytest.raises(ValueError, match=r"h\.0 has other settings than the first"):
        fit_many(other, tmp_path / "many", {"k2": CONFIG})
    with pytest.raises(ValueError, match="fit makes one SAE, got 3 harvests by name; give one, or call fit_many"):
        fit(harvests, tmp_path / "one", CONFIG)


def test_the_command_makes_a_bundle_for_each_hook(harvests: dict[str, HarvestConfig], tmp_path: Path) -> None:
    hooks = ("--hook", "h.0", "--hook", "input:h.1.mlp", "--context", "20")
    sizes = ("--d-sae", "64", "--tokens", "640", "--batch", "64")
    common = ("train", "--model", tmp_path / "model", *hooks, "--text", tmp_path / "text.txt", *sizes, "-q")
    assert run(*common, "--k", "2", "-o", tmp_path / "one").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["h.0", "input_h.1.mlp"]
    assert bundle.read(tmp_path / "one" / "input_h.1.mlp").manifest.hook == "input:h.1.mlp"
    assert run(*common, "--k", "1", "--k", "2", "-o", tmp_path / "two").exit_code == 0
    names = ["h.0-mutual-k1", "h.0-mutual-k2", "input_h.1.mlp-mutual-k1", "input_h.1.mlp-mutual-k2"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == names
