"""Models of other forms in a page: positions behind padding's id, optional token types, float16, several SAEs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import D_IN
from made_hosts import WORDS, layer, weights
from model_pages import model_page
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from watched_pages import Pages, until

from sae_runtime import Edit, load_model
from sae_runtime.exports.splice.splicing import Splice, splice

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5
SPECIALS = {"<pad>": 1, "<s>": 0, "</s>": 2, "<unk>": 3}
POSITIONS = 16
LIBRARY = "sentence_transformers.models"
TEXTS = [
    "w4 w5 w6",
    "",
    "  ",
    "W4 w5 unknown </s> w6",
    "</s> </s>",
    "<s>",
    "w11",
    *(" ".join(f"w{4 + (3 * n + seed) % 8}" for n in range(seed)) for seed in (9, 12, 13, 31)),
]


def write_host(folder: Path, *, half: bool = False, positions: bool = True) -> Path:
    """A graph in which each token sees the mean of all, its position and its type; the types have a default."""
    rng = np.random.default_rng(4)
    arrays = weights() | {
        "places": rng.standard_normal((POSITIONS + 2, D_IN)).astype(np.float32),
        "kinds": rng.standard_normal((2, D_IN)).astype(np.float32),
    }
    arrays["words"] = np.vstack([arrays["words"], arrays["words"][:1]])  # for <mask>
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    node = helper.make_node
    nodes = [
        node("Gather", ["words", "input_ids"], ["rows"], name="/embed/Gather"),
        node("Gather", ["kinds", "token_type_ids"], ["of_kind"]),
        node("Add", ["rows", "of_kind"], ["typed"]),
        node("Cast", ["attention_mask"], ["cast"], to=kind),
        node("Unsqueeze", ["cast", "last"], ["mask"]),
    ]
    inputs = ["input_ids", "attention_mask"]
    if positions:
        inputs.append("position_ids")
        nodes += [node("Gather", ["places", "position_ids"], ["of_place"]), node("Add", ["typed", "of_place"], ["all"])]
    else:
        nodes.append(node("Identity", ["typed"], ["all"]))
    nodes += [
        node("Mul", ["all", "mask"], ["seen"]),
        node("ReduceSum", ["seen", "middle"], ["sum"]),
        node("ReduceSum", ["mask", "middle"], ["number"]),
        node("Div", ["sum", "number"], ["mean"]),
        node("Add", ["all", "mean"], ["x0"]),
        *layer(0, "/layer.0/Add_output"),
        *layer(1, "last_hidden_state"),
    ]
    for one in nodes:  # since opset 18 the axes are an input
        if one.op_type == "ReduceMean":
            del one.attribute[:]
            one.input.append("last")
    tensors = [helper.make_tensor(name, kind, a.shape, a.ravel().tolist()) for name, a in arrays.items()]
    tensors += [
        helper.make_tensor("last", TensorProto.INT64, [1], [2]),
        helper.make_tensor("middle", TensorProto.INT64, [1], [1]),
        helper.make_tensor("token_type_ids", TensorProto.INT64, [1, 1], [1]),
    ]
    whole = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "time"]) for name in inputs]
    whole.append(helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, ["one", "two"]))
    out = helper.make_tensor_value_info("last_hidden_state", kind, ["batch", "time", D_IN])
    graph = helper.make_graph(nodes, "host", whole, [out], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def deploy_other(
    folder: Path,
    saes: Mapping[str, Path],
    *,
    files: Mapping[str, Any],
    half: bool = False,
    positions: bool = True,
    required: bool = False,
    lowers: bool = False,
) -> Path:
    """A folder of such a host with SAEs at layer.0, a tokenizer as RoBERTa's, and JSON files."""
    graph = write_host(folder, half=half, positions=positions)
    vocabulary = SPECIALS | {f"w{i}": i for i in range(4, WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if lowers:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(name, SPECIALS[name]) for name in ("<s>", "</s>")]
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    told = {
        "tokenizer_config.json": roles | {"cls_token": "<s>", "sep_token": "</s>"},
        "config.json": {"model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": POSITIONS + 2},
        **files,
    }
    for name, content in told.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    splice(graph, [Splice(bundle=path, hook="layer.0", name=name, required=required) for name, path in saes.items()])
    return folder


def sentence_files(pooling: list[str], *, normalise: bool = True, **more: Any) -> dict[str, Any]:
    """The files of sentence-transformers."""
    names = ["", "1_Pooling", *(["2_Normalize"] if normalise else [])]
    modules = [{"path": n, "type": f"{LIBRARY}.{n.partition('_')[2] or 'Transformer'}"} for n in names]
    include = more.pop("include_prompt", True)
    bert = {name: more.pop(name) for name in ("max_seq_length", "do_lower_case") if name in more}
    files = {"modules.json": modules, "1_Pooling/config.json": {"pooling_mode": pooling, "include_prompt": include}}
    return (
        files
        | {"sentence_bert_config.json": bert or {"max_seq_length": None}}
        | ({"config_sentence_transformers.json": more} if more else {})
    )


PROMPTS: dict[str, Any] = {"prompts": {"query": "w7 W8 ", "other": "w9 "}, "default_prompt_name": "query"}
HOSTS: dict[str, dict[str, Any]] = {
    "positions, all poolings": {
        "files": sentence_files(["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]),
    },
    "prompt left out, lower case, short": {
        "files": sentence_files(
            ["weightedmean", "cls"], include_prompt=False, max_seq_length=12, do_lower_case=True, **PROMPTS
        ),
        "required": True,
    },
    "prompt, left out at last": {
        "files": sentence_files(["lasttoken", "max"], normalise=False, **PROMPTS)
        | {
            "tokenizer_config.json": {
                "bos_token": "<s>",
                "eos_token": "</s>",
                "cls_token": "<s>",
                "sep_token": "</s>",
                "pad_token": "<pad>",
                "unk_token": "<unk>",
                "truncation_side": "left",
                "model_max_length": 14,
            }
        },
        "lowers": True,
        "positions": False,
    },
    "float16": {"files": sentence_files(["mean"]), "half": True, "positions": False, "required": True},
}


@pytest.mark.parametrize("name", HOSTS)
def test_other_hosts_give_pythons_numbers(
    open_page: Pages, tmp_path: Path, bundle_of: Callable[..., Path], name: str
) -> None:
    saes = {"one": bundle_of("mutual", 150, 3), "two": bundle_of("token"), "three": bundle_of("feature", 150, 2)}
    home = deploy_other(tmp_path / "model", saes, **HOSTS[name])
    told = model_page(tmp_path / "site", home)
    assert told["problem"] is None and told["kind"] == "vectors"
    page = open_page(tmp_path / "site")
    until(page, "window.started")
    page.evaluate("() => opened()")
    model = load_model(home, threads=1)
    half = HOSTS[name].get("half", False)
    many = model.features(TEXTS)
    for text, together in zip(TEXTS, many, strict=True):
        seen = page.evaluate("(text) => model.features(text)", text)["tokens"]
        alone = model.features(text)
        assert [one["name"] for one in seen] == alone.tokens == together.tokens
        assert [one["special"] for one in seen] == alone.special.tolist()
        for sae in saes:
            for here in (alone, together):
                f = here.saes[sae].to_dense()
                found = np.zeros_like(f)
                for row, token in enumerate(seen):
                    for feature, value in token["saes"][sae]:
                        found[row, int(feature)] = value
                if not half:
                    assert np.array_equal(f > 0, found > 0), (text, sae)
                assert (np.abs(f - found) <= (5e-3 if half else TOLERANCE) * f.max(initial=1)).all(), (text, sae)
    edits = [
        {"sae": "one", "feature": 3, "kind": "set", "value": 0},
        {"sae": "one", "feature": 7, "kind": "ablate", "value": None},
        {"sae": "two", "feature": 7, "kind": "add", "value": -2.5},
        {"sae": "three", "feature": 149, "kind": "cap", "value": 0.25},
        {"sae": "three", "feature": 0, "kind": "scale", "value": -3},
        {"sae": "three", "feature": 11, "kind": "set", "value": 6},
    ]
    python = {
        "one": [Edit.set(3, 0.0), Edit.ablate(7)],
        "two": [Edit.add(7, -2.5)],
        "three": [Edit.cap(149, 0.25), Edit.scale(0, -3.0), Edit.set(11, 6.0)],
    }
    for asked, given in (([], {}), (edits, python), (edits[2:3], {"two": python["two"]})):
        with pytest.warns(match="were cut"):
            expected = model.embed(TEXTS, given)
        found = np.array(
            page.evaluate("async ([t, e]) => (await model.embed(t, e)).map((v) => [...v])", [TEXTS, asked])
        )
        assert found.shape == expected.shape
        size = np.abs(expected).max(axis=1, keepdims=True)
        assert (np.abs(found - expected) <= (5e-3 if half else TOLERANCE) * size).all(), (
            np.abs(found - expected) / size
        ).max(axis=1)
