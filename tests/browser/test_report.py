import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import KINDS, make_x

from sae_runtime.activations.stored import Activations, Shard
from sae_runtime.browser import tables
from sae_runtime.browser.report import Subject, read_metrics, report
from sae_runtime.bundle import quota
from sae_runtime.bundle.evaluation_file import AllRows, HostLoss, Zipf, law_by_rank
from sae_runtime.train.measure.config import EvaluateConfig
from sae_runtime.train.measure.evaluation import evaluate
from sae_runtime.train.measure.torch_sae import open_sae
from sae_runtime.train.step.density import expected_density

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
        "served": {
            "cross_entropy": 2.75,
            "kl": 0.125,
            "fvu": 0.3333,
            "explained_variance": 0.6667,
            "loss_recovered_mean": 0.9,
            "loss_recovered_zero": 0.9286,
        },
        "mean": {"cross_entropy": 5.0, "kl": 3.0},
        "zero": {"cross_entropy": 6.0, "kl": 4.0},
    },
)


@pytest.fixture(scope="module")
def subjects(bundle_of: Callable[..., Path]) -> list[Subject]:
    rows, made = Activations(Path("acts"), [Shard(make_x(120))]), []
    for kind in KINDS:
        evaluation = evaluate(open_sae(bundle_of(kind)), rows, EvaluateConfig())
        made.append(Subject(name=kind, evaluation=evaluation))
    return made


def test_every_rule_of_every_bundle_has_a_column(subjects: list[Subject]) -> None:
    page = report(subjects)
    for column in ("token, served", "mutual, served", "mutual, batch rule", "feature, served", "feature, batch rule"):
        assert f"<th>{column}</th>" in page
    assert "token, batch rule" not in page and "What the model loses" not in page
    for subject in subjects:
        assert f"<td>{subject.evaluation.served.fvu:.4f}</td>" in page
        assert f"<td>{subject.evaluation.decoder.effective_rank:.1f}</td>" in page


def changed(subject: Subject, **changes: Any) -> Subject:
    return dataclasses.replace(subject, evaluation=dataclasses.replace(subject.evaluation, **changes))


def test_the_page_says_which_rows_were_measured(subjects: list[Subject]) -> None:
    first, second, third = subjects
    page = report([changed(first, rows="held-out"), second, changed(third, tokens=60)])
    assert "120 tokens of acts, which training never saw (token)." in page
    assert "120 tokens of acts, which training may have seen (mutual)." in page
    assert "60 tokens of acts, which training may have seen (feature)." in page


def test_the_page_shows_what_the_host_model_loses(subjects: list[Subject]) -> None:
    page = report([changed(subjects[0], host=HOST)])
    assert "tiny read 1,234 tokens of words.txt in 56 windows" in page
    assert "<td>2.7500</td><td>5.0000</td><td>6.0000</td><td>2.5000</td>" in page
    assert "loss recovered, mean ablation" in page and "<td>90.00%</td>" in page
    assert "loss recovered, zero ablation" in page and "<td>92.86%</td>" in page
    host = dataclasses.replace(HOST, cross_entropy=None, replaced={"served": {"token_cosine": 0.75}})
    table = tables.hosts([changed(subjects[0], host=host)])
    assert "<td>0.7500</td>" in table and "cross-entropy" not in table


def test_the_page_shows_what_is_left_out_and_figures_with_it(subjects: list[Subject]) -> None:
    first, second, _ = subjects
    assert "left out" not in report([first]).replace("rows left out", "", 1)
    every = AllRows(tokens=130, fvu=0.0123, explained_variance=0.9877, l0=7.5, dead=0.25)
    served = dataclasses.replace(first.evaluation.served, with_left_out=every)
    host = dataclasses.replace(HOST, left_out=17, max_norm=10.0, with_left_out=dataclasses.replace(HOST, tokens=1251))
    page = report([changed(first, served=served, left_out=10, max_norm=10.0, host=host), second])
    assert "10 more with over 10 times the median norm are left out." in page
    assert "<td>0.0123</td>" in page and "<td>7.50</td>" in page and "<td>25.00%</td>" in page
    assert "17 tokens of massive norm kept their own activation." in page and page.count("<th>the mean</th>") == 2


def test_measurements_on_different_texts_have_separate_tables(subjects: list[Subject]) -> None:
    other = dataclasses.replace(HOST, text=("other.txt",))
    same = dataclasses.replace(HOST)
    page = report([changed(s, host=host) for s, host in zip(subjects, (HOST, other, same), strict=True)])
    assert page.count("What the model loses") == 2 and page.count("<th>the mean</th>") == 2


def test_a_transcoder_without_targets_shows_no_variance(subjects: list[Subject]) -> None:
    served = dataclasses.replace(subjects[0].evaluation.served, fvu=None, explained_variance=None, token_fvu=None)
    assert tables.rules([changed(subjects[0], served=served)]).count("<td>unknown</td>") == 4


def test_the_picture_and_training_have_the_same_law() -> None:
    density = np.random.default_rng(0).permutation(0.5 * np.arange(1, 61) ** -0.9)
    law = Zipf(**dict(zip(("exponent", "offset", "r_squared"), quota.fit(density), strict=True)))
    expected = expected_density(torch.from_numpy(density)).sort(descending=True).values.numpy()
    np.testing.assert_allclose(law_by_rank(law, density), expected, rtol=1e-12)


def test_the_table_says_that_there_is_no_law(subjects: list[Subject]) -> None:
    served = dataclasses.replace(subjects[0].evaluation.served, zipf=None, matches=(0,) * 150)
    assert tables.rules([changed(subjects[0], served=served)]).count("<td>no law</td>") == 4


def test_metrics_are_read_by_name_and_others_are_refused(tmp_path: Path) -> None:
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
    with pytest.raises(
        ValueError, match=r"m\.jsonl is of a, b, not of c; give the metrics of c, or the bundle the name"
    ):
        read_metrics(path, "c")
    with pytest.raises(FileNotFoundError, match="are no file; give the file that train --metrics wrote"):
        read_metrics(tmp_path)
