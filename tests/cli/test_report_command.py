import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import misused, refused, run
from conftest import KINDS, make_x

BundleOf = Callable[..., Path]


@pytest.fixture
def acts(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", make_x(200))
    return tmp_path / "x.npy"


def evaluated(bundle: Path, acts: Path, out: Path) -> Path:
    result = run("evaluate", bundle, "--activations", acts, "-o", out)
    assert result.exit_code == 0, result.stderr
    return out


def test_report_sets_evaluations_beside_each_other(bundle_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    files = [evaluated(bundle_of(kind), acts, tmp_path / f"{kind}.json") for kind in KINDS]
    curves: list[str | Path] = []
    for number, path in enumerate(files):
        metrics = path.with_suffix(".jsonl")
        curves += ["--metrics", metrics]
        metrics.write_text(f'{{"tokens": 10, "fvu": 0.{number + 2}}}\n{{"tokens": 20, "fvu": 0.1}}\n')
    out = tmp_path / "report.html"
    result = run("report", *files, *curves, "-o", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["report", "about", "size"]
    page = out.read_text()
    assert page.count("<svg") == page.count('role="img"') == 4
    assert "<img" not in page and "<script" not in page and not re.search('(?:href|src)="(?!#|data:,)', page)
    found = json.loads(files[1].read_text())
    for rule in ("served", "batch"):
        for key in ("fvu", "explained_variance"):
            assert f"<td>{found[rule][key]:.4f}</td>" in page
    assert "Measured on 200 tokens of x.npy, which training may have seen." in page
    made = json.loads(run("report", files[0], "-o", out, "--force", "--json").stdout)
    assert made == {"report": str(out), "bundles": ["token-150"], "size": out.stat().st_size}
    assert out.read_text().count("<svg") == 3  # no training curves


def test_evaluations_of_one_bundle_are_named_by_their_files(bundle_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    files = [evaluated(bundle_of("token"), acts, tmp_path / f"{name}.json") for name in "ab"]
    made = json.loads(run("report", *files, "-o", tmp_path / "report.html", "--json").stdout)
    assert made["bundles"] == [str(path) for path in files]


def test_report_needs_no_torch(bundle_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    file = evaluated(bundle_of("mutual"), acts, tmp_path / "e.json")
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom sae_runtime.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)"
    )
    subprocess.run(
        [sys.executable, "-c", code, "report", file, "-o", tmp_path / "report.html"], check=True, timeout=120
    )
    assert (tmp_path / "report.html").read_text().count("<svg") == 3


def test_report_refuses_files_that_do_not_fit(bundle_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    one, out = evaluated(bundle_of("token"), acts, tmp_path / "e.json"), tmp_path / "report.html"
    arguments = ("-o", out)
    assert misused("report", *arguments) == "Missing argument 'EVALUATION...'."
    assert misused("report", one, *arguments, "--metrics", "a", "--metrics", "b") == (
        "2 --metrics for 1 evaluation; give one each."
    )
    assert refused("report", one, one, *arguments) == "error: an evaluation is given twice; name every file once"
    assert refused("report", one, "-o", one, "--force").endswith("name another output")
    folder = bundle_of("token")
    assert refused("report", folder, *arguments) == (
        f"error: {folder} is a folder, expected the JSON file of an evaluation; make it: sae-runtime evaluate {folder} "
        "-o FILE"
    )
    assert refused("report", tmp_path / "no.json", *arguments).startswith(
        f"error: {tmp_path / 'no.json'} does not exist"
    )
    assert refused("report", one, *arguments, "--metrics", tmp_path / "no.jsonl").endswith("that train --metrics wrote")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"tokens": 1, "fvu": 0.5}\n{"tokens": 1}\n')
    assert refused("report", one, *arguments, "--metrics", bad).startswith(f"error: {bad}, line 2: expected a JSON obj")
    bad.write_text('{"sae": "other", "tokens": 1, "fvu": 0.5}\n')
    assert f"{bad} is of other, not of token-150; " in refused("report", one, *arguments, "--metrics", bad)
    bad.write_text("{}")
    assert f"{bad}: the evaluation has schema version None, " in refused("report", bad, *arguments)
    assert not out.exists()
