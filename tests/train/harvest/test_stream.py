import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from processes import fit_often_saved, started
from tiny_model import save_bert, write_words

from sae_runtime.activations.stored import Activations
from sae_runtime.activations.windows import Window
from sae_runtime.bundle import folder as bundle
from sae_runtime.train import TrainConfig, fit
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.harvesting import harvest
from sae_runtime.train.harvest.reader import Reader
from sae_runtime.train.harvest.stream import StreamedRows
from sae_runtime.train.run import Data
from sae_runtime.train.trainer import StepStats, Trainer

D_IN = 16


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> HarvestConfig:
    text = write_words(tmp_path_factory.mktemp("text") / "words.txt", 80)
    model = str(save_bert(tmp_path_factory.mktemp("bert")))
    sizes: dict[str, Any] = {"context": 20, "batch_tokens": 200}
    return HarvestConfig(model=model, hook="encoder.layer.1", text=(text,), name="tiny", **sizes)


@pytest.fixture(scope="module")
def harvested(reading: HarvestConfig, tmp_path_factory: pytest.TempPathFactory) -> Activations:
    return harvest(reading, tmp_path_factory.mktemp("acts") / "acts")


def streamed(reading: HarvestConfig, *, rows: int = 10**6, holdout: float = 0.2, seed: int = 0) -> StreamedRows:
    return StreamedRows(reading, holdout, seed, rows * D_IN * 4)


def ignore(_rows: int) -> None:
    pass


def sorted_rows(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x[np.lexsort(np.round(x, 3).T)]


def test_a_stream_gives_the_rows_of_harvest_each_once(reading: HarvestConfig, harvested: Activations) -> None:
    source = streamed(reading)
    train, count = source.take(np.random.default_rng(0).permutation(source.units), ignore)
    assert count == source.units and source.d_in == D_IN
    everything = np.concatenate([train, *source.held_out()])
    stored = harvested.slice(0, len(harvested))
    assert everything.shape == stored.shape
    # Another order of summation in a batch.
    np.testing.assert_allclose(sorted_rows(everything), sorted_rows(stored), atol=1e-5)
    assert [len(x) / len(stored) for x in source.held_out()] == pytest.approx([0.1, 0.1], rel=0.1)


def test_a_pool_of_a_stream_is_whole_units_and_the_same_bits_in_any_order(
    reading: HarvestConfig, harvested: Activations
) -> None:
    source = streamed(reading, rows=200)
    order = np.random.default_rng(1).permutation(source.units)
    seen, begin = [], 0
    while begin < len(order):
        x, count = source.take(order[begin:], ignore)
        again, _ = source.take(order[begin : begin + count][::-1], ignore)
        assert np.array_equal(x, again) and len(x) <= 200
        seen.append(x)
        begin += count
    assert begin == len(order) and len(seen) > 3 and min(map(len, seen[:-1])) > 160
    other = streamed(reading)
    whole, _ = other.take(np.arange(other.units), ignore)
    np.testing.assert_allclose(sorted_rows(np.concatenate(seen)), sorted_rows(whole), atol=1e-5)
    assert harvested.documents is not None
    longest = int(np.bincount(harvested.documents).max())
    assert max(len(streamed(reading, rows=1).take(order[i:], ignore)[0]) for i in range(5)) <= longest


def test_a_stream_has_the_type_of_harvest(reading: HarvestConfig) -> None:
    source = streamed(replace(reading, dtype="bfloat16"), rows=50)
    x, _ = source.take(np.arange(source.units), ignore)
    assert x.dtype == np.float32 and not (x.view(np.uint32) & 0xFFFF).any()


def test_held_out_documents_of_a_stream_follow_the_seed(reading: HarvestConfig) -> None:
    first, second, other = (streamed(reading, seed=seed).held_out()[0] for seed in (1, 1, 2))
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_a_stream_runs_on_held_out_documents_only_when_they_are_asked_for(
    reading: HarvestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[int] = []
    activations = Reader.activations

    def counted(self: Reader, group: Sequence[Window], tick: Callable[[int], object]) -> list[torch.Tensor]:
        windows.append(len(group))
        return activations(self, group, tick)

    monkeypatch.setattr(Reader, "activations", counted)
    source = streamed(reading)
    assert windows == [1] and source.d_in == D_IN, "one window tells the width"
    parts = source.held_out()
    assert [len(x) for x in parts] == [source.provenance["rows"][part] for part in ("calibration", "validation")]
    assert len(windows) == 3


@pytest.mark.parametrize("sizes", [[4000], [3000] + [10] * 60, [1500, 700, 700]], ids=str)
def test_a_stream_of_long_documents_gives_the_shares_that_were_asked(
    reading: HarvestConfig, tmp_path: Path, sizes: list[int]
) -> None:
    for number, size in enumerate(sizes):
        (tmp_path / f"{number:02d}.txt").write_text("word the cat dog " * (size // 4))
    source = streamed(replace(reading, text=tuple(sorted(tmp_path.glob("*.txt"))), document="file"), rows=300)
    rows, total = source.provenance["rows"], sum(source.provenance["rows"].values())
    assert [len(x) for x in source.held_out()] == [rows["calibration"], rows["validation"]]
    found = [rows[part] / total for part in ("train", "calibration", "validation")]
    assert found == pytest.approx([0.8, 0.1, 0.1], rel=0.1)
    order, taken = np.random.default_rng(0).permutation(source.units), 0
    while len(order):
        x, count = source.take(order, ignore)
        assert len(x) <= 300
        taken, order = taken + len(x), order[count:]
    assert taken == rows["train"]


def test_parts_of_a_streamed_document_share_no_window(
    reading: HarvestConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[NDArray[np.int32]] = []
    activations = Reader.activations

    def noted(self: Reader, group: Sequence[Window], tick: Callable[[int], object]) -> list[torch.Tensor]:
        seen.append(np.unique([window.positions[0] for window in group]))
        return activations(self, group, tick)

    monkeypatch.setattr(Reader, "activations", noted)
    (tmp_path / "one.txt").write_text("word the cat dog " * 1000)
    source = streamed(replace(reading, text=(tmp_path / "one.txt",), document="file"))
    source.held_out()
    source.take(np.arange(source.units), ignore)
    _, calibration, validation, train = seen
    starts = np.concatenate([calibration, validation, train])
    part = np.arange(3).repeat([len(calibration), len(validation), len(train)])[np.argsort(starts)]
    assert (np.diff(np.sort(starts))[np.diff(part) != 0] > 18).all()  # a window has 18 tokens of the text


def test_a_stream_of_too_short_a_text_is_refused(reading: HarvestConfig, tmp_path: Path) -> None:
    text = write_words(tmp_path / "few.txt", 2)
    with pytest.raises(
        ValueError, match=r"few\.txt: the text has \d+ rows in 1 document, too few to hold out 20% .*20"
    ):
        streamed(replace(reading, text=(text,), document="file"))


def test_a_stream_of_text_without_tokens_is_refused(reading: HarvestConfig, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    for content in ("", "[SEP]\n\n[SEP]\n\n[SEP]"):
        text.write_text(content)
        with pytest.raises(ValueError, match="too few to hold out"):
            streamed(replace(reading, text=(text,)))


def test_a_stream_refuses_a_harvest_with_a_limit_of_tokens(reading: HarvestConfig) -> None:
    with pytest.raises(
        ValueError, match="streaming reads all of the text, so the harvest's tokens must be None, got 7"
    ):
        streamed(replace(reading, tokens=7))


def pooled(reading: HarvestConfig) -> StreamedRows:
    """The source that `fit` makes of a reading, with a pool of 200 rows: six to a pass, and two passes."""
    return streamed(reading, rows=200, holdout=0.1)


def config(**changes: Any) -> TrainConfig:
    settings = {"allocation": "mutual", "k": 3.0, "d_sae": 40, "tokens": 2400, "batch": 60}
    return TrainConfig(**{**settings, **changes})


class Stopped(Exception):
    pass


def stopped(source: Data, out: Path, step: int) -> Path:
    """The run state of a run that died before this step."""
    whole_step = Trainer.step

    def dying(self: Trainer, x: Any) -> StepStats:
        if self.step_number == step:
            raise Stopped
        return whole_step(self, x)

    run = out.with_name("run")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "step", dying)
        fit(source, out, config(), run_state=run, run_state_seconds=0)
    return run


@pytest.mark.parametrize("step", [2, 33])
def test_a_resumed_streamed_run_ends_with_the_same_bits(reading: HarvestConfig, tmp_path: Path, step: int) -> None:
    fit(pooled(reading), tmp_path / "whole", config())
    run = stopped(pooled(reading), tmp_path / "sae", step)
    fit(pooled(reading), tmp_path / "sae", config(), run_state=run, resume=True)
    assert (tmp_path / "sae" / bundle.WEIGHTS).read_bytes() == (tmp_path / "whole" / bundle.WEIGHTS).read_bytes()


def test_a_killed_streamed_run_that_is_resumed_ends_with_the_same_bits(reading: HarvestConfig, tmp_path: Path) -> None:
    settings = config(tokens=6_000)
    process = started(tmp_path, fit_often_saved, reading, 0.1, 200 * D_IN * 4, settings)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run").exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    fit(pooled(reading), tmp_path / "sae", settings, run_state=tmp_path / "run", resume=True)
    fit(pooled(reading), tmp_path / "whole", settings)
    assert (tmp_path / "sae" / bundle.WEIGHTS).read_bytes() == (tmp_path / "whole" / bundle.WEIGHTS).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"sae", "whole"}


def test_resume_refuses_a_streamed_run_of_other_text(reading: HarvestConfig, tmp_path: Path) -> None:
    run = stopped(reading, tmp_path / "sae", 1)
    with pytest.raises(ValueError, match="is of a run with activations context 20, this one has 19; repeat that run's"):
        fit(replace(reading, context=19), tmp_path / "sae", config(), run_state=run, resume=True)
    other = tmp_path / "other.txt"
    other.write_text(reading.text[0].read_text())
    with pytest.raises(
        ValueError, match=r"with activations text 1 '.*words\.txt \(.*', this one has '.*other\.txt \(.*'; rep"
    ):
        fit(replace(reading, text=(other,)), tmp_path / "sae", config(), run_state=run, resume=True)


def test_the_manifest_of_a_streamed_run_names_its_text(reading: HarvestConfig, tmp_path: Path) -> None:
    manifest = fit(reading, tmp_path / "sae", config(tokens=60))
    assert (manifest.model, manifest.hook) == ("tiny", "encoder.layer.1")
    found = {name: manifest.provenance[name] for name in ("text", "document", "context", "dtype", "special")}
    expected = {"text": ["words.txt"], "document": "paragraph", "context": 20, "dtype": "float32", "special": False}
    assert found == expected
    assert manifest.measured["tokens"] == manifest.provenance["rows"]["validation"]


def test_a_streamed_run_learns_as_well_as_a_stored_one(
    reading: HarvestConfig, harvested: Activations, tmp_path: Path
) -> None:
    settings = config(tokens=6_000, d_sae=64)
    streamed, stored = fit(reading, tmp_path / "a", settings), fit(harvested, tmp_path / "b", settings)
    assert streamed.measured["fvu"] == pytest.approx(stored.measured["fvu"], rel=0.2)
