"""Explanations are read out of the files that other tools write."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sae_runtime.labelling.explanation_files import read_explanations, tool_of
from sae_runtime.labelling.explanations import Explanation

# A line of Neuronpedia's dumps; the columns are those that its own export script selects.
DUMPED = {
    **{"id": "clu1", "modelId": "gpt2-small", "layer": "6-res-jb", "index": "12", "authorId": "clk"},
    **{"description": " words about files", "embedding": "[0.1,-0.2]", "typeName": "oai_token-act-pair"},
    **{"explanationModelName": "gpt-4o-mini", "umap_x": 1.5, "umap_y": None, "umap_cluster": 3},
}
PLACE: dict[str, Any] = {"model": "gpt2-small", "place": "6-res-jb"}
READ = Explanation(feature=12, text=" words about files", explainer="gpt-4o-mini", **PLACE)


def read(path: Path) -> list[Explanation | None]:
    return list(read_explanations(path))


def written(path: Path, content: str | bytes, *, compressed: bool = False) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if compressed else data)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        json.dumps(DUMPED),
        json.dumps(DUMPED) + "\n",
        "\ufeff" + json.dumps(DUMPED) + "\r\n\r\n",
        json.dumps([DUMPED], indent=2),
        json.dumps({"explanationsCount": 1, "explanations": [DUMPED]}),
        json.dumps({"modelId": "gpt2-small", "layer": "6-res-jb", "index": "12", "explanations": [DUMPED]}),
    ],
    ids=["a line", "a line with its end", "Windows", "a list", "the old export", "a feature of the API"],
)
def test_every_form_of_neuronpedia_is_read_alike(content: str, compressed: bool, tmp_path: Path) -> None:
    assert read(written(tmp_path / "a", content, compressed=compressed)) == [READ]


def test_a_line_of_the_api_takes_what_its_feature_says(tmp_path: Path) -> None:
    feature = {"modelId": "m", "layer": "1-s", "index": "7", "explanations": [{"description": "a"}, {"text": "b"}]}
    found = read(written(tmp_path / "a.json", json.dumps(feature)))
    assert [(one.feature, one.text, one.place) for one in found if one] == [(7, "a", "1-s"), (7, "b", "1-s")]


def test_a_dump_is_read_in_the_order_of_its_batches(tmp_path: Path) -> None:
    (tmp_path / "6-res-jb" / "explanations").mkdir(parents=True)
    for batch in (10, 2, 0):
        line = json.dumps(DUMPED | {"index": str(batch)})
        written(tmp_path / f"6-res-jb/explanations/batch-{batch}.jsonl.gz", line, compressed=True)
    (tmp_path / "6-res-jb/features").mkdir()
    assert [one.feature for one in read(tmp_path / "6-res-jb") if one] == [0, 2, 10]
    assert tool_of(tmp_path / "6-res-jb") == "neuronpedia"


def test_a_folder_of_delphi_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "explanations"
    folder.mkdir(parents=True)
    texts = {
        "layers.5_latent12": "files",
        "layers.5_latent3": "Explanation could not be parsed.",
        "layers.5_latent4": "",
    }
    for name, text in texts.items():  # as delphi does: the text as JSON
        (folder / f"{name}.txt").write_text(json.dumps(text))
    found = read(tmp_path / "results")
    assert found.count(None) == 2
    assert [one for one in found if one] == [Explanation(feature=12, text="files", place="layers.5")]
    assert tool_of(tmp_path / "results") == "delphi"


@pytest.mark.parametrize(
    "content",
    [
        "feature,label\n12,files\n",
        "feature;label\r\n12;files\r\n",
        "feature\tlabel\n12\tfiles",
        '\ufeffIndex,Description\n"12","files"\n\n',
        "12,files\n",
        "other,label,feature\n1.5,files,12.0\n",
        '{"12": "files"}',
        '{"12": {"description": "files"}}',
        '{"12": ["files"]}',
        '{"feature": 12, "label": "files"}\n{"feature": 13, "label": ""}',
        '[{"feature_index": 12.0, "explanation": "files"}]',
    ],
)
def test_tables_and_plain_json_are_read(content: str, tmp_path: Path) -> None:
    found = [one for one in read(written(tmp_path / "a", content)) if one]
    assert [(one.feature, one.text) for one in found] == [(12, "files")]


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (0.5, 0.5),
        ("0.5", 0.5),
        ([{"value": 0.25}, {"value": 0.75}], 0.5),
        ({"detection": 0.5}, 0.5),
        (None, None),
        ("good", None),
        (float("nan"), None),
        ([], None),
        (True, None),
        ("9" * 400, None),
    ],
)
def test_scores_of_any_form(score: Any, expected: float | None, tmp_path: Path) -> None:
    lines = json.dumps({"index": 1, "description": "a", "scores": score})
    assert [one.score for one in read(written(tmp_path / "a.jsonl", lines)) if one] == [expected]


def test_the_source_of_our_own_lines_is_the_tool(tmp_path: Path) -> None:
    line = {"feature": 1, "label": "a", "source": "neuronpedia", "explainer": "gpt-4o"}
    found = read(written(tmp_path / "labels.jsonl", json.dumps(line)))
    assert found == [Explanation(feature=1, text="a", origin="neuronpedia", explainer="gpt-4o")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"{", "not readable JSON"),
        (b'{"index": 1, "description": "a"}\n{"index": ', "line 2 of"),
        (b'{"index": "twelve", "description": "a"}', "a feature is a whole number, got 'twelve'"),
        (b'{"index": true, "description": "a"}', "a feature is a whole number, got True"),
        (b'{"index": -1, "description": "a"}', "a feature is a whole number, got -1"),
        (b'{"index": 1.5, "description": "a"}', "a feature is a whole number, got 1.5"),
        (b'{"index": 1, "description": 3}', "an explanation must be a text, got 3"),
        (b"[1]", "must be an object"),
        (b"a,b\n1,2\n", "has the columns a, b"),
        (b'feature,label\n1,"files\n', "is not a sound table"),
        ("feature,label\n1,files".encode("utf-16"), "is not UTF-8"),
        (b"\x1f\x8b\x08\x00nothing", "is not sound gzip"),
        (gzip.compress(b'{"index": 1, "description": "a"}\n' * 9)[:-9], "is not sound gzip"),
        (b"[" * 5000, "not readable JSON"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="(?s).") as refusal:
        read(written(tmp_path / "a", content))
    assert said in str(refusal.value)
    assert str(tmp_path / "a") in str(refusal.value)


def test_a_folder_without_explanations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no explanations"):
        read(tmp_path)


def test_a_link_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "secret.jsonl", json.dumps(DUMPED))
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump/batch-0.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(ValueError, match="a link out of its folder"):
        read(tmp_path / "dump")
