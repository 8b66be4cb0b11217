"""An SAE of one name meets rows that were harvested by another name of the same place, and no others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_common import all_rows, harvested, random_texts, word_tokenizer, write_paragraphs
from numpy.typing import NDArray
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel

from sae_runtime import Edit, load
from sae_runtime.activations.stored import check_source, open_activations
from sae_runtime.bundle import folder as bundle
from sae_runtime.checkpoints.convert import convert
from sae_runtime.exports import export
from sae_runtime.train import TrainConfig, attach, fit

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.* deprecated:DeprecationWarning"),
]
D_IN, D_SAE = 32, 64
TEXTS = random_texts([20] * 40)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of three blocks, in a folder named tiny."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    sizes: dict[str, Any] = {"n_embd": D_IN, "n_layer": 3, "n_head": 4, "n_inner": 64, "n_positions": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: Any = GPT2LMHeadModel(GPT2Config(vocab_size=64, bos_token_id=2, eos_token_id=3, **sizes))
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    made.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_paragraphs(tmp_path_factory.mktemp("text") / "text.txt", TEXTS)


def by_torch(model: Path, module: str, side: int) -> NDArray[np.float32]:
    """The first argument (0) or the first output (1) of a module on the texts, by torch's own hook."""
    loaded, tokenizer, rows = AutoModel.from_pretrained(model).eval(), word_tokenizer(), []

    def see(_module: Any, args: Any, output: Any) -> None:
        rows.append((args[0], output if isinstance(output, torch.Tensor) else output[0])[side][0].numpy())

    loaded.get_submodule(module).register_forward_hook(see)
    with torch.no_grad():
        for words in TEXTS:
            loaded(input_ids=tokenizer(words, return_tensors="pt")["input_ids"])
    return np.concatenate(rows)


@pytest.mark.parametrize(
    ("hook", "module", "side", "names"),
    [
        ("h.1", "h.1", 1, ("h.1", "blocks.1.hook_resid_post")),
        ("transformer.h.1", "h.1", 1, ("h.1", "blocks.1.hook_resid_post")),
        ("blocks.1.hook_resid_post", "h.1", 1, ("h.1", "blocks.1.hook_resid_post")),
        ("blocks.2.hook_resid_pre", "h.1", 1, ("input:h.2", "blocks.2.hook_resid_pre")),
        ("input:h.1.mlp", "h.1.mlp", 0, ("input:h.1.mlp", "blocks.1.mlp.hook_in")),
        ("blocks.1.attn.hook_z", "h.1.attn.c_proj", 0, ("input:h.1.attn.c_proj", "blocks.1.attn.hook_z")),
        ("h.1.resid_mid", "h.1.ln_2", 0, ("h.1.resid_mid", "blocks.1.hook_resid_mid")),
        ("ln_f@0", "ln_f", 1, ("ln_f@0", None)),
    ],
)
def test_a_harvest_keeps_the_rows_and_both_names_of_a_hook(
    model: Path, text: Path, tmp_path: Path, hook: str, module: str, side: int, names: tuple[str, str | None]
) -> None:
    made = harvested(model, hook, text, tmp_path / "rows", context=64)
    np.testing.assert_allclose(all_rows(made), by_torch(model, module, side), atol=1e-5)
    assert (made.model, made.hook, made.transformer_lens_hook) == ("tiny", *names)


def lens_sae(folder: Path, hook: str, model_name: str = "tiny") -> Path:
    """A saved SAE of SAELens, with random weights."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    config = JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE)
    config.metadata = SAEMetadata(model_name=model_name, hook_name=hook)
    sae: Any = JumpReLUSAE(config)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    sae.save_model(folder)
    return folder


@pytest.mark.parametrize("hook", ["h.1", "input:h.2", "blocks.1.hook_resid_post"])
@pytest.mark.parametrize(
    ("lens_hook", "model_name", "fits"),
    [
        ("blocks.1.hook_resid_post", "tiny", True),
        ("blocks.2.hook_resid_pre", "someone/tiny", True),
        ("blocks.2.hook_resid_post", "tiny", False),
        ("blocks.1.hook_resid_pre", "tiny", False),
        ("blocks.1.hook_mlp_out", "tiny", False),
        ("blocks.1.hook_resid_post", "tinier", False),
    ],
)
def test_an_sae_of_sae_lens_meets_the_rows_of_its_place_alone(
    model: Path, text: Path, tmp_path: Path, hook: str, lens_hook: str, model_name: str, fits: bool
) -> None:
    rows = harvested(model, hook, text, tmp_path / "rows", context=64)
    convert(lens_sae(tmp_path / "sae", lens_hook, model_name), tmp_path / "bundle")
    manifest = bundle.read(tmp_path / "bundle").manifest
    if fits:
        check_source(rows, manifest)
        return
    with pytest.raises(ValueError, match="this SAE was fitted on .*harvest those.*, or pass --any-source"):
        check_source(rows, manifest)
    check_source(rows, manifest, any_source=True)


def lens_of(model: Path) -> Any:
    """The model as SAELens has it."""
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import gpt2

    torch_model: Any = GPT2LMHeadModel.from_pretrained(model)
    sizes: dict[str, Any] = {"n_layers": 3, "d_model": D_IN, "n_heads": 4, "d_head": 8, "d_mlp": 64, "n_ctx": 64}
    kind: dict[str, Any] = {"normalization_type": "LN", "act_fn": "gelu_new", "device": "cpu", "d_vocab": 64}
    hooked = HookedSAETransformer(HookedTransformerConfig(**sizes, **kind))
    state = gpt2.convert_gpt2_weights(torch_model, hooked.cfg)
    hooked.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()}, strict=False)
    hooked.set_use_hook_mlp_in(True)
    return hooked.eval()


@pytest.mark.parametrize("hook", ["h.1", "input:h.2", "h.1.resid_mid", "h.1.mlp", "blocks.1.hook_mlp_in", "wte"])
def test_sae_lens_finds_the_place_of_a_fitted_bundle_and_caches_its_features(
    model: Path, text: Path, tmp_path: Path, hook: str
) -> None:
    from sae_lens import SAE

    rows = harvested(model, hook, text, tmp_path / "rows", context=64)
    fit(rows, tmp_path / "bundle", TrainConfig(k=4, d_sae=D_SAE, tokens=4000, batch=200, allocation="mutual"))
    export(tmp_path / "bundle")
    ours, theirs = load(tmp_path / "bundle"), SAE.load_from_disk(tmp_path / "bundle", device="cpu")
    assert theirs.cfg.metadata.hook_name == rows.transformer_lens_hook == ours.manifest.transformer_lens_hook
    assert theirs.cfg.metadata.model_name == "tiny"
    lens, ids = lens_of(model), torch.arange(4, 20).reshape(2, 8)
    with torch.no_grad():
        lens.add_sae(theirs)
        cache = lens.run_with_cache_with_saes(ids, prepend_bos=False)[1]
        torch_model = AutoModel.from_pretrained(model).eval()
        with attach(torch_model, hook, tmp_path / "bundle") as features:
            torch_model(ids)
    cached = cache[f"{theirs.cfg.metadata.hook_name}.hook_sae_acts_post"]
    np.testing.assert_allclose(features[0].to_dense(), cached.numpy(), atol=2e-4)
    assert features[0].l0().mean() > 0.5


def test_a_bundle_of_sae_lens_is_evaluated_and_attached_at_its_own_name(
    model: Path, text: Path, tmp_path: Path
) -> None:
    convert(lens_sae(tmp_path / "sae", "blocks.1.hook_mlp_out"), tmp_path / "bundle")
    cfg = json.loads((tmp_path / "bundle" / "cfg.json").read_text())
    assert (cfg["metadata"]["hook_name"], cfg["metadata"]["model_name"]) == ("blocks.1.hook_mlp_out", "tiny")
    export(tmp_path / "bundle")
    hook = bundle.read(tmp_path / "bundle").manifest.hook
    assert hook is not None
    rows = harvested(model, hook, text, tmp_path / "rows", context=64)
    expected = load(tmp_path / "bundle").encode(by_torch(model, "h.1.mlp", 1)).to_dense()
    np.testing.assert_allclose(load(tmp_path / "bundle").encode(all_rows(rows)).to_dense(), expected, atol=1e-4)
    torch_model = AutoModel.from_pretrained(model).eval()
    ids = word_tokenizer()(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad(), attach(torch_model, hook, tmp_path / "bundle", [Edit.add(3, 4.0)]) as features:
        torch_model(ids)
    np.testing.assert_allclose(features[0].to_dense()[0], expected[: ids.shape[1]], atol=1e-4)


def test_an_index_of_an_older_harvest_still_opens(model: Path, text: Path, tmp_path: Path) -> None:
    harvested(model, "h.1", text, tmp_path / "rows", context=64)
    index = json.loads((tmp_path / "rows" / "activations.json").read_text())
    del index["transformer_lens_hook"]
    (tmp_path / "rows" / "activations.json").write_text(json.dumps(index))
    opened = open_activations(tmp_path / "rows")
    assert (opened.hook, opened.transformer_lens_hook) == ("h.1", None)
