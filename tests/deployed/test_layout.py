"""Which files of a folder are which."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from made_hosts import host

from sae_runtime.bundle.labels import write_labels
from sae_runtime.deployed.layout import Layout, read_layout
from sae_runtime.exports.splice.splicing import Splice, splice

BundleOf = Callable[..., Path]


@pytest.fixture
def source(bundle_of: BundleOf, tmp_path: Path) -> Path:
    """A folder with a host, its tokenizer and configuration."""
    host(tmp_path / "source" / "host.onnx", external="host.data")
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    (tmp_path / "source" / "config.json").write_text('{"model_type": "made"}')
    return tmp_path / "source"


def spliced(source: Path, bundle: Path, out: Path, **settings: Any) -> Layout:
    made = splice(source / "host.onnx", [Splice(bundle=bundle, hook="layer.0")], out, **settings)
    return read_layout(made.path)


def test_a_spliced_folder_is_found_from_the_folder_and_from_the_graph(
    source: Path, bundle_of: BundleOf, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    layout = spliced(source, bundle_of("mutual"), out)
    assert layout == read_layout(out) == read_layout(str(out))
    assert (layout.graph, layout.features, layout.home) == (out / "model.onnx", out / "features.onnx", out)
    assert layout.bundles == {"sae": out / "sae"} and layout.config == {"model_type": "made"}
    assert (layout.genai, layout.sentence, layout.notes) == ({}, None, ())
    shutil.move(out, tmp_path / "moved")
    assert read_layout(tmp_path / "moved").bundles == {"sae": tmp_path / "moved" / "sae"}


def test_an_unspliced_graph_has_no_saes(source: Path) -> None:
    layout = read_layout(source)
    assert layout.graph == source / "host.onnx" and layout.features is None
    assert (layout.splices, layout.bundles) == ({}, {})


def test_a_graph_below_its_tokenizer_is_spliced_in_place_and_into_a_new_folder(
    source: Path, bundle_of: BundleOf, tmp_path: Path
) -> None:
    (source / "onnx").mkdir()
    for name in ("host.onnx", "host.data"):
        (source / name).rename(source / "onnx" / name.replace("host.onnx", "model.onnx"))
    assert read_layout(source).graph == source / "onnx" / "model.onnx"
    wanted = [Splice(bundle=bundle_of("mutual"), hook="layer.0")]
    made = splice(source / "onnx" / "model.onnx", wanted)
    layout = read_layout(source)
    assert layout.graph == made.path == source / "onnx" / "model_sae.onnx" and layout.home == source
    assert layout.features == source / "onnx" / "model_sae_features.onnx"
    assert layout.bundles == {"sae": source / "onnx" / "sae"} and layout.config == {"model_type": "made"}
    layout = read_layout(splice(source / "onnx" / "model.onnx", wanted, tmp_path / "new").path)
    assert layout.home == tmp_path / "new" and layout.config == {"model_type": "made"}


def test_a_cut_graph_of_another_graph_is_not_used_and_the_layout_says_so(
    source: Path, bundle_of: BundleOf, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    spliced(source, bundle_of("mutual"), out)
    other = spliced(source, bundle_of("token"), tmp_path / "other")
    shutil.copy(other.graph, out / "model.onnx")
    layout = read_layout(out)
    assert layout.features is None
    assert any("features.onnx was cut of another graph than" in note for note in layout.notes)
    with pytest.raises(ValueError, match=r"features\.onnx is the part of a graph that gives features; name the whole"):
        read_layout(out / "features.onnx")


def test_a_bundle_that_holds_another_sae_is_not_used(source: Path, bundle_of: BundleOf, tmp_path: Path) -> None:
    out = tmp_path / "out"
    spliced(source, bundle_of("mutual"), out)
    shutil.rmtree(out / "sae")
    assert read_layout(out).bundles == {}
    shutil.copytree(bundle_of("token"), out / "sae")
    layout = read_layout(out)
    assert layout.bundles == {} and "sae is not used, since it is not the SAE that" in layout.notes[0]
    (out / "sae" / "sae_runtime.json").write_text("{}")
    assert "it is no sound bundle" in read_layout(out).notes[0]


def test_a_bundle_below_the_folder_is_named_where_it_is_with_its_labels(source: Path, bundle_of: BundleOf) -> None:
    bundle = Path(shutil.copytree(bundle_of("mutual"), source / "saes" / "mine"))
    write_labels(bundle, {3: "three"})
    layout = spliced(source, bundle, source / "model.onnx")
    assert layout.bundles == {"sae": bundle} and layout.splices["sae"].bundle == "saes/mine"
    assert layout.splices["sae"].file == f"sae_weights.{layout.splices['sae'].weights[:16]}.safetensors"


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["model.onnx", "a.onnx"], "model.onnx"),
        (["a.onnx"], "a.onnx"),
        (["onnx/model.onnx", "onnx/model_quantized.onnx"], "onnx/model.onnx"),
        (["model.onnx", "onnx/model.onnx"], "model.onnx"),
        (["genai.onnx", "model.onnx"], "genai.onnx"),
        (["a.onnx", "b.onnx"], "2 graphs, a.onnx, b.onnx; name one"),
        ([], "holds no graph, .onnx, and nor does"),
        (["genai.onnx", None], "genai.onnx is missing, which .*genai_config.json names"),
    ],
)
def test_one_graph_of_a_folder_is_meant(source: Path, files: list[str], chosen: str) -> None:
    (source / "onnx").mkdir()
    for name in filter(None, files):
        shutil.copy(source / "host.onnx", source / name)
    if "genai.onnx" in files:
        config = {"model": {"decoder": {"filename": "genai.onnx"}}}
        (source / "genai_config.json").write_text(json.dumps(config))
    (source / "host.onnx").unlink()
    if None in files:
        (source / "genai.onnx").unlink()
    if chosen.endswith(".onnx"):
        assert read_layout(source).graph == source / chosen
    else:
        with pytest.raises((ValueError, FileNotFoundError), match=chosen):
            read_layout(source)


def test_several_spliced_graphs_are_refused_with_their_names(source: Path, bundle_of: BundleOf) -> None:
    for name in ("a.onnx", "b.onnx"):
        spliced(source, bundle_of("mutual"), source / name)
    with pytest.raises(ValueError, match=r"holds 2 spliced graphs, a\.onnx, b\.onnx; name one"):
        read_layout(source)


def test_what_is_no_model_is_refused_in_one_sentence(source: Path, bundle_of: BundleOf, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a bundle, an SAE alone; splice it into a host model"):
        read_layout(bundle_of("mutual"))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a graph, \.onnx"):
        read_layout(source / "tokenizer.json")
    with pytest.raises(FileNotFoundError, match="does not exist; name a path on this machine"):
        read_layout(tmp_path / "none")
    (source / "host.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"host\.onnx is not a readable ONNX graph"):
        read_layout(source)


@pytest.mark.parametrize("name", ["config.json", "genai_config.json", "modules.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("fault", ["link", "text", "list"])
def test_a_strangers_json_that_leads_away_or_is_damaged_is_refused(source: Path, name: str, fault: str) -> None:
    library = "sentence_transformers.models"
    modules = [{"type": f"{library}.Transformer", "path": ""}, {"type": f"{library}.Pooling", "path": "1_Pooling"}]
    (source / "1_Pooling").mkdir()
    (source / "modules.json").write_text(json.dumps(modules))
    (source / name).unlink(missing_ok=True)
    if fault == "link":
        (source.parent / "secret.json").write_text("{}")
        (source / name).symlink_to(source.parent / "secret.json")
    else:
        (source / name).write_text({"text": "nothing", "list": '["a"]'}[fault])
    with pytest.raises(ValueError, match=r"\.json") as raised:
        read_layout(source)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bundle", ["../secret", "/secret", "sae", "a/../../x", "", "sae\0"])
def test_metadata_lead_to_no_bundle_outside_of_the_folder(
    source: Path, bundle_of: BundleOf, tmp_path: Path, bundle: str
) -> None:
    layout = spliced(source, bundle_of("mutual"), tmp_path / "out")
    shutil.copytree(layout.bundles["sae"], tmp_path / "secret")
    shutil.rmtree(tmp_path / "out" / "sae")
    os.symlink(tmp_path / "secret", tmp_path / "out" / "sae")
    graph = onnx.load(layout.graph, load_external_data=False)
    for entry in graph.metadata_props:
        if entry.key.startswith("sae_runtime.splice."):
            entry.value = json.dumps({**json.loads(entry.value), "bundle": bundle})
    layout.graph.write_bytes(graph.SerializeToString())
    try:
        assert read_layout(layout.graph).bundles == {}
    except ValueError as error:
        assert "without NUL" in str(error)  # noqa: PT017  (one case of six)
