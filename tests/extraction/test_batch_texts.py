"""The batch rule on texts: torch and numpy in float64 agree on the matches, whatever the parts and the slots are."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from conftest import K, joint, slots_of
from deployed_model import D_SAE, deploy, ids_of, some_texts
from feature_folders import bytes_of, read_tokens
from numpy.typing import NDArray
from tiny_host import HOOKS, torch_host

from sae_runtime import load_model
from sae_runtime.activations.reading import Reading
from sae_runtime.bundle.folder import BundleError
from sae_runtime.exports import witness
from sae_runtime.extraction import batch_parts, two_passes
from sae_runtime.extraction.extract import extract
from sae_runtime.extraction.text_source import TextSource

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = some_texts(40, 30)


@pytest.fixture(params=["mutual", "feature"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def deployed(bundle_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    @functools.cache
    def give(host: str, kind: str, **how: Any) -> Path:
        folder = tmp_path_factory.mktemp("deployed") / "model"
        return deploy(folder, host, {"bundle": bundle_of(kind), **how})

    return give


def written(folder: Path) -> Path:
    """The texts, one a line."""
    path = folder / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def source(model: Path, texts: Path, **settings: Any) -> TextSource:
    return TextSource(load_model(model, threads=1), [texts], reading=Reading(document="line"), **settings)


@torch.no_grad()
def activations(host: str, *, special: bool) -> NDArray[np.float32]:
    """The rows of all texts at a torch hook, one after the other."""
    model, rows = torch_host(host), list[NDArray[np.float32]]()

    def keep(_module: Any, _given: Any, output: Any) -> None:
        x = (output[0] if isinstance(output, tuple) else output).numpy()[0]
        rows.append(x[1:-1] if host == "bert" and not special else x)

    handle = model.get_submodule(HOOKS[host]).register_forward_hook(keep)
    try:
        for text in TEXTS:
            model(torch.tensor([ids_of(text, host)]))
    finally:
        handle.remove()
    return np.concatenate(rows)


@pytest.mark.parametrize("slots", [None, 3])
@pytest.mark.parametrize(("host", "special"), [("bert", False), ("bert", True), ("gpt2", False)])
def test_torch_and_numpy_agree(
    deployed: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    host: str,
    special: bool,
    slots: int | None,
) -> None:
    """With 3 slots in the first pass, most tokens need the second one, and many its further slots."""
    if slots is not None:
        monkeypatch.setattr(two_passes, "first_slots", lambda manifest, k: slots)
    expected = joint(kind, D_SAE, activations(host, special=special))
    model, texts = deployed(host, kind), written(tmp_path)
    for part in (300, 10**6):
        out = tmp_path / f"features-{part}"
        made = extract(source(model, texts, special=special, part=part), out, rule="batch", values="float32")
        features = read_tokens(out, D_SAE)
        assert witness.disagreement(expected, *slots_of(features)) is None
        assert made.matches == K * len(features) == expected.kept.sum()


def test_documents_pool_the_matches(deployed: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    model, texts = deployed("bert", kind), written(tmp_path)
    for per in ("token", "document"):
        extract(source(model, texts, part=500), tmp_path / per, per=per, rule="batch", values="float32")
    features = read_tokens(tmp_path / "token", D_SAE).to_dense()
    parts = [pyarrow.parquet.read_table(path) for path in sorted((tmp_path / "document" / "documents").iterdir())]
    rows = [row for part in parts for row in part.to_pylist()]
    ends = np.cumsum([row["tokens"] for row in rows])
    assert len(rows) == len(TEXTS) and ends[-1] == len(features)
    for row, end in zip(rows, ends, strict=True):
        pooled = features[end - row["tokens"] : end].max(axis=0)
        assert row["indices"] == np.flatnonzero(pooled).tolist()
        assert row["values"] == pooled[pooled > 0].tolist()


def test_windows_of_a_long_document(
    deployed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Windows that are read again are those of the rows that lack a match, and of no other row."""
    model, texts = deployed("bert", kind), written(tmp_path)
    extract(source(model, texts, context=9, part=900), tmp_path / "plenty", rule="batch", values="float32")
    monkeypatch.setattr(two_passes, "first_slots", lambda manifest, k: 4)
    extract(source(model, texts, context=9, part=900), tmp_path / "few", rule="batch", values="float32")
    plenty, few = (read_tokens(tmp_path / name, D_SAE) for name in ("plenty", "few"))
    np.testing.assert_array_equal(few.indptr, plenty.indptr)
    np.testing.assert_array_equal(few.indices, plenty.indices)
    np.testing.assert_allclose(few.values, plenty.values, rtol=1e-5)


def test_a_model_is_as_it_was_for_the_served_rule(deployed: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    """The threshold is lowered for the batch rule alone, also where one model serves both."""
    own = source(deployed("bert", kind), written(tmp_path))
    extract(own, tmp_path / "before", values="float32")
    extract(own, tmp_path / "batch", rule="batch", values="float32")
    extract(own, tmp_path / "after", values="float32")
    assert bytes_of(tmp_path / "after") == bytes_of(tmp_path / "before") != bytes_of(tmp_path / "batch")


def test_a_replaced_activation_and_another_splice_change_nothing(
    deployed: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    texts = written(tmp_path)
    for name, how in (("plain", {}), ("replaced", {"replace": True}), ("required", {"required": True})):
        extract(source(deployed("bert", kind, **how), texts), tmp_path / name, rule="batch", values="float32")
    plain, *others = (read_tokens(tmp_path / name, D_SAE) for name in ("plain", "replaced", "required"))
    for other in others:
        np.testing.assert_array_equal(other.indices, plain.indices)


def test_token_choice_is_the_served_rule(deployed: Callable[..., Path], tmp_path: Path) -> None:
    own = source(deployed("bert", "token"), written(tmp_path))
    for rule in ("served", "batch"):
        extract(own, tmp_path / rule, rule=rule, values="float32")
    served, batch = (read_tokens(tmp_path / rule, D_SAE) for rule in ("served", "batch"))
    np.testing.assert_array_equal(batch.values, served.values)


def test_what_has_no_batch_rule_is_refused(
    bundle_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = deploy(tmp_path / "model", "bert", {"bundle": bundle_of("mutual")})
    texts = written(tmp_path)
    monkeypatch.setattr("sae_runtime.deployed.host_sessions.THRESHOLD", "{}/theta")
    with pytest.raises(BundleError, match="has no threshold of sae that can be lowered"):
        extract(source(folder, texts), tmp_path / "features", rule="batch", values="float32")
    (folder / "sae" / "sae_runtime.json").unlink()
    with pytest.raises(ValueError, match="the batch rule of sae is not known: .* has no bundle of it"):
        extract(source(folder, texts), tmp_path / "others", rule="batch", values="float32")


def test_no_part_needs_a_second_pass_where_slots_hold_everything(
    deployed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(two_passes, "first_slots", lambda manifest, k: D_SAE)
    monkeypatch.delattr(batch_parts.MakeAgain, "__call__")
    expected = joint(kind, D_SAE, activations("bert", special=False))
    extract(source(deployed("bert", kind), written(tmp_path)), tmp_path / "features", rule="batch", values="float32")
    assert witness.disagreement(expected, *slots_of(read_tokens(tmp_path / "features", D_SAE))) is None
