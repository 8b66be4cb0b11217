"""What a request may ask of SAEs in vLLM: read in the front process, refused there, and kept apart in the cache."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from native import native

from sae_runtime import Edit
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.labels import write_labels
from sae_runtime.bundle.stats import Stats
from sae_runtime.serve.vllm import asking, plugin
from sae_runtime.serve.vllm.asking import Reader
from sae_runtime.serve.vllm.engine_check import check_engine
from sae_runtime.serve.vllm.plugin import _with_plan
from sae_runtime.serve.vllm.settings import read_settings

HALF = 65504.0


def settings_of(*saes: dict[str, Any], **more: Any) -> Any:
    return read_settings({"sae": {"saes": list(saes), **more}})


@pytest.fixture
def labelled(copy_of: Callable[..., Path]) -> Path:
    """A bundle in which feature 5 is called `king` and has the largest activation 4."""
    path = copy_of("mutual")
    write_labels(path, {5: "king", 6: "queen", 7: "queen"})
    largest = np.zeros(150, np.float32)
    largest[5] = 4.0
    bundle.put_stats(bundle.read(path), Stats(np.full(150, 0.1, np.float32), largest, 100))
    return path


def test_labels_and_multiples_become_numbers_in_the_front_process(labelled: Path) -> None:
    reader = Reader(settings_of({"bundle": str(labelled), "hook": "layers.1", "name": "mine"}), HALF)
    asked = reader.read({"sae_edits": '[{"feature": "king", "set": "x2"}, {"feature": 3, "ablate": true}]'})
    assert asked is not None
    arrays = asked.plan("r", 1, ())["edits"]["mine"]
    assert arrays["features"] == [5, 3] and arrays["shift"] == [8.0, 0.0] and arrays["scale"] == [0.0, 0.0]
    same = reader.read({"sae_edits": [Edit.set("king", times=2), Edit.ablate(3)]})
    assert same is not None and same.edits == asked.edits
    json.dumps(asked.plan("r", 2, (0, 2)))  # plain values alone reach the engine


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sae_edits": '[{"feature": 150, "set": 1}]'}, "feature 150 does not exist, expected 0 to 149"),
        ({"sae_edits": '[{"feature": 3, "set": 1}, {"feature": 3, "add": 1}]'}, "edited twice"),
        ({"sae_edits": '[{"feature": "duke", "set": 1}]'}, "duke"),
        ({"sae_edits": '[{"feature": "queen", "set": 1}]'}, "queen"),
        ({"sae_edits": '[{"feature": 3, "set": "x2"}]'}, "was active on none of the tokens"),
        ({"sae_edits": '[{"feature": 3, "set": NaN}]'}, "NaN"),
        ({"sae_edits": '[{"feature": 3, "set": 1e5}]'}, "the model's numbers take less than 1.64e+04"),
        ({"sae_edits": '[{"feature": 3, "set": 1, "sae": "yours"}]'}, "there is no SAE 'yours'; the SAEs are mine"),
        ({"sae_edits": '[{"feature": 3, "set": 1'}, "JSON"),
        ({"sae_edits": "[" * 100_000}, "JSON"),
        ({"sae_edits": 7}, "edits is a list"),
        ({"sae_edits": None}, "edits is a list"),
        ({"sae_edits": [{"feature": f, "set": 1} for f in (5, "king")]}, "edited twice"),
        ({"sae_edits": [{"feature": 3, "set": float("inf")}]}, "finite"),
        ({"sae_edits": [{"feature": "king", "set": "x1e38"}]}, "finite"),
        ({"sae_edits": [{"feature": f, "set": 16000.0} for f in range(60)]}, "give smaller edits"),
        ({"sae_edits": [{"feature": 3, "set": 1}] * 65}, "65 edits were given, and this server takes 64"),
        ({"sae_gate": "tail"}, "a gate is one of"),
        ({"sae_gate": [0.5]}, "a gate is one of"),
        ({"sae_gate": [-1]}, "positions"),
        ({"sae_gate": '{"spans": [[0, 4]]}'}, "takes no spans here"),
        ({"sae_features": 101}, "sae_features is a whole number from 0 to 100"),
        ({"sae_features": -1}, "sae_features is a whole number"),
        ({"sae_features": 2.5}, "sae_features is a whole number"),
        ({"sae_features": True}, "sae_features is a whole number"),
        ({"sae_features": "5"}, "sae_features is a whole number"),
        ({"sae_ticket": 7}, "sae_ticket is a text"),
        ({"sae_ticket": "\ud800"}, "printable"),
        ({"sae_edit": "[]"}, "'sae_edit' is no argument of a request"),
        ({"sae": {"edits": {}}}, "'sae' is no argument of a request"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(labelled: Path, given: dict[str, Any], message: str) -> None:
    reader = Reader(settings_of({"bundle": str(labelled), "hook": "layers.1", "name": "mine"}), HALF)
    with pytest.raises(ValueError) as caught:
        reader.read(given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_request_that_asks_nothing_has_no_plan(bundle_of: Callable[..., Path]) -> None:
    reader = Reader(settings_of({"bundle": str(bundle_of("token")), "hook": "h.1"}), HALF)
    for given in (None, {}, {"other": 3}, {"sae_edits": "[]"}, {"sae_gate": "prompt"}, {"sae_features": 0}):
        assert reader.read(given) is None


def test_an_edit_of_a_transcoder_is_refused_and_its_features_are_not(tmp_path: Path) -> None:
    path = native(tmp_path / "sae", selection="topk", k=6, pre_bias=False, d_out=7)
    reader = Reader(settings_of({"bundle": str(path), "hook": "h.1.mlp"}), HALF)
    assert reader.read({"sae_features": 5}) is not None
    with pytest.raises(ValueError, match="transcoder"):
        reader.read({"sae_edits": [Edit.ablate(3)]})


def test_of_several_saes_an_edit_names_one(bundle_of: Callable[..., Path]) -> None:
    places = [{"bundle": str(bundle_of(kind)), "hook": "h.1", "name": kind} for kind in ("token", "mutual")]
    reader = Reader(settings_of(*places), HALF)
    asked = reader.read({"sae_edits": '[{"feature": 3, "set": 1, "sae": "mutual"}]'})
    assert asked is not None and list(asked.edits) == ["mutual"]
    with pytest.raises(ValueError, match="names its SAE here, one of token, mutual"):
        reader.read({"sae_edits": '[{"feature": 3, "set": 1}]'})


def test_the_policy_holds(bundle_of: Callable[..., Path]) -> None:
    policy = {"edit_kind": ["ablate"], "refuse_feature": ["9"]}
    reader = Reader(settings_of({"bundle": str(bundle_of("token")), "hook": "h.1"}, policy=policy), HALF)
    assert reader.read({"sae_edits": [Edit.ablate(3)]}) is not None
    for edit in (Edit.set(3, 1.0), Edit.ablate(9)):
        with pytest.raises(ValueError, match="on this server|this server allows"):
            reader.read({"sae_edits": [edit]})


def test_prefixes_are_shared_by_equal_edits_alone(bundle_of: Callable[..., Path]) -> None:
    reader = Reader(settings_of({"bundle": str(bundle_of("mutual")), "hook": "h.1", "name": "mine"}), HALF)

    def salt(edit: Edit | None, gate: Any, tokens: int, given: str | None = None) -> str | None:
        asked = reader.read({"sae_edits": [] if edit is None else [edit], "sae_gate": gate, "sae_features": 1})
        assert asked is not None
        return asked.salt(given, tokens)

    edit = Edit.set(3, 2.0)
    assert salt(None, "all", 7) is None and salt(None, "all", 7, "own") == "own"
    assert salt(edit, "all", 7) == salt(edit, "all", 9) != salt(Edit.set(3, 2.5), "all", 7)
    assert salt(edit, [0, 2], 7) == salt(edit, [2, 0], 9) != salt(edit, [0, 3], 7)
    assert salt(edit, "all", 7, "own") not in ("own", salt(edit, "all", 7), salt(edit, "all", 7, "another"))
    for gate in ("prompt", "last_prompt", "generated", "answer"):  # a next turn has the first answer in its prompt
        assert salt(edit, gate, 7) == salt(edit, gate, 7) != salt(edit, gate, 9)


def test_no_caller_can_give_the_salt_of_anothers_edits(
    bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(settings_of({"bundle": str(bundle_of("mutual")), "hook": "h.1", "name": "mine"}), HALF)
    asked = reader.read({"sae_edits": [Edit.set(3, 2.0)]})
    assert asked is not None
    here = asked.salt(None, 7)
    monkeypatch.setattr(asking, "_SECRET", "what another process drew")
    assert asked.salt(None, 7) != here


def test_other_keys_of_extra_args_are_no_matter(bundle_of: Callable[..., Path]) -> None:
    reader = Reader(settings_of({"bundle": str(bundle_of("mutual")), "hook": "h.1"}), HALF)
    given: Any = {7: "another plugin's", "sae_features": 3}
    assert reader.read(given) is not None
    wrong: Any = ["sae_features"]
    with pytest.raises(ValueError, match="extra_args is a dict, got list"):
        reader.read(wrong)


@pytest.mark.parametrize("given", [None, {}, {"sae": None}, {"other": 1}, object(), 5, "sae", ["sae"]])
def test_an_engine_whose_configuration_has_no_saes_is_left_alone(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class EngineArgs:
        additional_config = given

        def create_engine_config(self, context: str) -> str:
            return f"made for {context}"

    for name, module in (
        ("vllm", SimpleNamespace(__version__="0.1.0")),
        ("vllm.engine", SimpleNamespace()),
        ("vllm.engine.arg_utils", SimpleNamespace(EngineArgs=EngineArgs)),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(plugin, "_registered", False)
    plugin.register()
    assert hasattr(EngineArgs.create_engine_config, "__wrapped__")
    assert EngineArgs().create_engine_config("a server") == "made for a server"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1], "sae"),
        ({"saes": []}, "names no SAE"),
        ({"saes": [{"bundle": "/nowhere", "hook": ""}]}, "/nowhere"),
        ({"saes": [{"bundle": "B", "hook": "h.1"}], "policy": {"largest_edit": -1}}, "largest_edit"),
        ({"saes": [{"bundle": "/nowhere", "hook": "h.1"}], "more": 1}, "more"),
        ({"saes": [{"bundle": 7}]}, "bundle"),
        ({"saes": [{"bundle": "~nobody-of-this-name/sae"}]}, "does not exist"),
        ({"saes": [{"bundle": "B", "hook": "h.1", "name": "a"}] * 2}, "two SAEs are called 'a'"),
        ({"saes": [{"bundle": "B", "hook": "tensor:x"}]}, "vLLM's model is hooked at"),
        ({"saes": [{"bundle": "B", "hook": "h.1@2"}]}, "vLLM's model is hooked at"),
        ({"saes": [{"bundle": "B", "hook": "h.1"}], "limits": {"edits": 0}}, "limits.edits is a whole number above 0"),
        ({"saes": [{"bundle": "B", "hook": "h.1"}], "limits": {"features": 0}}, "limits.features is a whole number"),
        ({"saes": [{"bundle": "B", "hook": "h.1"}], "limits": {"features": 101}}, "limits.features is at most 100"),
        ({"saes": [{"bundle": "B", "hook": "h.1"}], "limits": {"kept_tokens": True}}, "kept_tokens"),
        ({"saes": [{"bundle": "B", "hook": "h.1"}], "policy": {"edit_kind": ["shout"]}}, "shout"),
    ],
)
def test_settings_that_cannot_be_served_are_refused(
    bundle_of: Callable[..., Path], given: dict[str, Any], message: str
) -> None:
    text = json.dumps(given).replace('"B"', json.dumps(str(bundle_of("mutual"))))
    with pytest.raises(ValueError) as caught:
        read_settings({"sae": json.loads(text)})
    assert message in str(caught.value)


def test_without_the_key_sae_there_are_no_settings() -> None:
    assert read_settings(None) is None and read_settings({}) is None and read_settings({"other": {}}) is None


@pytest.mark.parametrize("additional", [None, {}, {"sae": None}, {"other": {"a": 1}}])
def test_an_engine_without_saes_is_left_alone(additional: Any) -> None:
    class Arguments:
        additional_config = additional

        def create_engine_config(self) -> str:
            return "made by vLLM"

    plugin._wrap_config(Arguments)
    assert Arguments().create_engine_config() == "made by vLLM"


def engine(**changed: Any) -> Any:
    """An engine that can serve SAEs of width 24, with some of its options changed."""
    import torch

    sizes = ("pipeline", "data", "prefill_context", "decode_context", "tensor")
    parallel: dict[str, Any] = {f"{name}_parallel_size": 1 for name in sizes} | {"worker_cls": "known"}
    parallel |= {"enable_expert_parallel": False, "use_ubatching": False}
    model = {"enforce_eager": True, "runner_type": "generate", "dtype": torch.float32, "get_hidden_size": lambda: 24}
    model |= {"is_encoder_decoder": False, "is_diffusion": False, "enable_sleep_mode": False}
    cache = {"kv_sharing_fast_prefill": False}
    whole = {"speculative_config": None, "kv_transfer_config": None, "ec_transfer_config": None}
    for fields in (parallel, model, cache, whole):
        fields |= {name: value for name, value in changed.items() if name in fields}
    return SimpleNamespace(
        model_config=SimpleNamespace(**model),
        parallel_config=SimpleNamespace(**parallel),
        cache_config=SimpleNamespace(**cache),
        **whole,
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"enforce_eager": False}, "--enforce-eager"),
        ({"pipeline_parallel_size": 2}, "pipeline parallel"),
        ({"data_parallel_size": 2}, "data parallel"),
        ({"prefill_context_parallel_size": 2}, "prefill context parallel"),
        ({"decode_context_parallel_size": 2}, "decode context parallel"),
        ({"enable_expert_parallel": True}, "--enable-expert-parallel"),
        ({"use_ubatching": True}, "--enable-dbo"),
        ({"kv_sharing_fast_prefill": True}, "--kv-sharing-fast-prefill"),
        ({"ec_transfer_config": object()}, "--ec-transfer-config"),
        ({"enable_sleep_mode": True}, "--enable-sleep-mode"),
        ({"is_diffusion": True}, "by diffusion"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"kv_transfer_config": object()}, "--kv-transfer-config"),
        ({"runner_type": "pooling"}, "pooling models"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"worker_cls": "mine"}, "leave out --worker-cls"),
        ({"get_hidden_size": lambda: 32}, "reads activations of width 24, and the model's are 32"),
    ],
)
def test_an_engine_that_cannot_serve_them_is_refused(
    bundle_of: Callable[..., Path], changed: dict[str, Any], message: str
) -> None:
    settings = settings_of({"bundle": str(bundle_of("mutual")), "hook": "layers.1"})
    check_engine(engine(), settings, known_workers=("known",))
    with pytest.raises(ValueError) as caught:
        check_engine(engine(**changed), settings, known_workers=("known",))
    assert message in str(caught.value)


@pytest.mark.parametrize("hook", ["layers.1", "input:layers.1", "layers.1.resid_mid", "blocks.1.hook_resid_post"])
def test_with_tensor_parallel_an_sae_reads_the_stream(bundle_of: Callable[..., Path], hook: str) -> None:
    check_engine(
        engine(tensor_parallel_size=2),
        settings_of({"bundle": str(bundle_of("mutual")), "hook": hook}),
        known_workers=("known",),
    )


@pytest.mark.parametrize("hook", ["layers.1.mlp", "input:layers.1.mlp.down_proj", "blocks.1.hook_mlp_out"])
def test_with_tensor_parallel_a_part_of_a_block_is_refused(bundle_of: Callable[..., Path], hook: str) -> None:
    settings = settings_of({"bundle": str(bundle_of("mutual")), "hook": hook})
    check_engine(engine(), settings, known_workers=("known",))
    with pytest.raises(ValueError, match="with tensor parallel an SAE reads the stream at a block"):
        check_engine(engine(tensor_parallel_size=2), settings, known_workers=("known",))


def request_of(**changed: Any) -> Any:
    """A request for the engine, with some of its fields changed."""
    usual = {"resumable": False, "prompt_embeds": None, "mm_features": None, "lora_request": None, "cache_salt": None}
    params = SimpleNamespace(extra_args={"sae_features": 3, "another": 1}, n=2, skip_reading_prefix_cache=None)
    fields = {"sampling_params": params, "prompt_token_ids": [5, 6, 7], **usual, **changed}
    return SimpleNamespace(**fields)


def test_a_request_for_the_engine_gets_its_plan(bundle_of: Callable[..., Path]) -> None:
    reader = Reader(settings_of({"bundle": str(bundle_of("mutual")), "hook": "h.1", "name": "mine"}), HALF)
    processor = SimpleNamespace(tokenizer=SimpleNamespace(all_special_ids=[2, 0]))
    asked = reader.read({"sae_features": 3, "sae_edits": [Edit.ablate(4)], "sae_gate": "text"})
    assert asked is not None
    made = _with_plan(request_of(cache_salt="own"), asked, processor, "r-7")
    plan = made.sampling_params.extra_args["sae"]
    assert made.sampling_params.extra_args["another"] == 1 and "sae_features" not in made.sampling_params.extra_args
    assert (plan["ticket"], plan["answers"], plan["skip"], plan["features"]) == ("r-7", 2, [0, 2], 3)
    assert made.sampling_params.skip_reading_prefix_cache and made.cache_salt.startswith("sae:")
    with pytest.raises(ValueError, match="needs a tokenizer"):
        _with_plan(request_of(), asked, SimpleNamespace(tokenizer=None), "r-8")


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"sampling_params": None}, "an embedding"),
        ({"resumable": True}, "a streamed session"),
        ({"prompt_embeds": np.ones((3, 4))}, "embeddings"),
        ({"mm_features": ["an image"]}, "images"),
        ({"lora_request": object()}, "an adapter"),
    ],
)
def test_a_request_that_is_no_text_of_the_model_alone_is_refused(
    bundle_of: Callable[..., Path], changed: dict[str, Any], what: str
) -> None:
    reader = Reader(settings_of({"bundle": str(bundle_of("mutual")), "hook": "h.1"}), HALF)
    asked = reader.read({"sae_features": 3})
    assert asked is not None
    with pytest.raises(ValueError, match=what):
        _with_plan(request_of(**changed), asked, SimpleNamespace(tokenizer=None), "r")
