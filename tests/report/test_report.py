import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import KINDS, make_x

from sae_runtime.activations import Activations, Shard
from sae_runtime.report import Subject, read_metrics, report, tables
from sae_runtime.train.evaluation import EvaluateConfig, evaluate
from sae_runtime.train.fitted import open_fitted
from sae_runtime.train.host_loss import HostLoss

HOST = HostLoss(
    model="tiny",
    hook="h.0",
    text=("words.txt",),
    tokens=1234,
    windows=56,
    special=False,
    batch=400.0,
    cross_entropy=2.5,
    replaced={
        "served": {"cross_entropy": 2.75, "kl": 0.125, "fvu": 0.3333, "recovered": 0.9},
        "mean": {"cross_entropy": 5.0, "kl": 3.0, "recovered": 0.0},
        "zero": {"cross_entropy": 6.0, "kl": 4.0, "recovered": -0.4},
    },
)


@pytest.fixture(scope="module")
def subjects(bundle_of: Callable[..., Path]) -> list[Subject]:
    rows, made = Activations(Path("acts"), [Shard(make_x(120))]), []
    for kind in KINDS:
        fitted = open_fitted(bundle_of(kind), torch.device("cpu"))
        made.append(Subject(name=kind, manifest=fitted.manifest, evaluation=evaluate(fitted, rows, EvaluateConfig())))
    return made


def test_every_rule_of_every_bundle_has_a_column(subjects: list[Subject]) -> None:
    page = report(subjects)
    for column in ("token, served", "mutual, served", "mutual, batch rule", "feature, served", "feature, batch rule"):
        assert f"<th>{column}</th>" in page
    assert "token, batch rule" not in page and "What the model loses" not in page
    for subject in subjects:
        assert f"<td>{subject.evaluation.served.fvu:.4f}</td>" in page
        assert f"<td>{subject.evaluation.decoder.effective_rank:.1f}</td>" in page


def test_says_which_rows(subjects: list[Subject]) -> None:
    first, *others = subjects
    held_out = dataclasses.replace(first, evaluation=dataclasses.replace(first.evaluation, rows="held-out"))
    page = report([held_out, *others])
    assert "120 tokens of acts, which training never saw (token)." in page
    assert "120 tokens of acts, which training may have seen (mutual, feature)." in page


def test_host(subjects: list[Subject]) -> None:
    page = report([dataclasses.replace(subjects[0], host=HOST)])
    assert "tiny read 1,234 tokens of words.txt in 56 windows" in page
    assert "<td>2.7500</td><td>5.0000</td><td>6.0000</td><td>2.5000</td>" in page
    assert "<td>90.00%</td><td>0.00%</td><td>-40.00%</td><td>100.00%</td>" in page
    encoder = dataclasses.replace(HOST, cross_entropy=None, replaced={"served": {"token_cosine": 0.75}})
    table = tables.hosts([dataclasses.replace(subjects[0], host=encoder)])
    assert "<td>0.7500</td>" in table and "cross-entropy" not in table


def test_no_law_is_said(subjects: list[Subject]) -> None:
    served = dataclasses.replace(subjects[0].evaluation.served, zipf=None, matches=(0,) * 150)
    silent = dataclasses.replace(subjects[0], evaluation=dataclasses.replace(subjects[0].evaluation, served=served))
    assert tables.rules([silent]).count("<td>no law</td>") == 4


def test_metrics(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for text, message in (
        ("", "holds no line"),
        ("x", "line 1: expected"),
        ('{"tokens": true, "fvu": 1}', "line 1"),
        ("[1]", "line 1"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_metrics(path)
    path.write_text('{"tokens": 3, "fvu": 0.5, "l0": 2}\n')
    assert read_metrics(path) == [{"tokens": 3, "fvu": 0.5, "l0": 2}]
    several = [f'{{"sae": "{name}", "tokens": 3, "fvu": 0.{n}}}\n' for n, name in enumerate("abab")]
    path.write_text("".join(several))
    assert [line["fvu"] for line in read_metrics(path, "b")] == [0.1, 0.3]
    with pytest.raises(ValueError, match=r"m\.jsonl is of a, b, not of c; give its own, or the bundle the name"):
        read_metrics(path, "c")
    with pytest.raises(FileNotFoundError, match="are no file; give the file that train --metrics wrote"):
        read_metrics(tmp_path)
