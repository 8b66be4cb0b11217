import json
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


def test_page_of_several_bundles(bundle_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    bundles = [bundle_of(kind) for kind in KINDS]
    curves: list[str | Path] = []
    for number, path in enumerate(bundles):
        metrics = tmp_path / f"{path.name}.jsonl"
        curves += ["--metrics", metrics]
        metrics.write_text(f'{{"tokens": 10, "fvu": 0.{number + 2}}}\n{{"tokens": 20, "fvu": 0.1}}\n')
    out = tmp_path / "report.html"
    result = run("report", *bundles, "--activations", acts, *curves, "-o", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["report", "about", "size"]
    page = out.read_text()
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 4
    assert 'src="http' not in page and "<link" not in page and "<script" not in page
    evaluated = json.loads(run("evaluate", bundles[1], "--activations", acts, "--json").stdout)
    assert f"<td>{evaluated['served']['fvu']:.4f}</td>" in page and f"<td>{evaluated['batch']['fvu']:.4f}</td>" in page
    assert "Measured on 200 tokens of x.npy, which training may have seen." in page
    found = json.loads(run("report", bundles[0], "--activations", acts, "-o", out, "--force", "--json").stdout)
    assert found == {"report": str(out), "bundles": ["token-150"], "size": out.stat().st_size}
    assert out.read_text().count("<img") == 3  # no training curves


def test_refusals(bundle_of: BundleOf, copy_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    one, out = bundle_of("token"), tmp_path / "report.html"
    arguments = ("--activations", acts, "-o", out)
    assert misused("report", *arguments) == "Missing argument 'BUNDLE...'."
    assert misused("report", one, *arguments, "--metrics", "a", "--metrics", "b") == (
        "2 --metrics for 1 bundle; give one for each."
    )
    assert refused("report", one, one, *arguments) == "error: a bundle is given twice; name every bundle once"
    assert refused("report", one, "--activations", acts, "-o", acts, "--force").endswith("name another output")
    assert refused("report", one, "--activations", acts, "-o", one / "report.html") == (
        f"error: the output {one / 'report.html'} would lie inside the input {one}; name another output"
    )
    assert refused("report", one, *arguments, "--metrics", tmp_path / "no.jsonl").endswith("that train --metrics wrote")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"tokens": 1, "fvu": 0.5}\n{"tokens": 1}\n')
    assert refused("report", one, *arguments, "--metrics", bad).startswith(f"error: {bad}, line 2: expected a JSON obj")
    bad.write_text('{"sae": "other", "tokens": 1, "fvu": 0.5}\n')
    assert f"{bad} is of other, not of {one.name}; " in refused("report", one, *arguments, "--metrics", bad)
    spoiled = copy_of("mutual")
    (spoiled / "cfg.json").write_text("{}")
    assert refused("report", one, spoiled, *arguments).endswith("copy it again")
    assert not out.exists()
