"""The tokens that features promote, against torch: tiny models of many families, exported, spliced and read back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import SETTINGS
from exported_models import named
from numpy.typing import NDArray

from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.exports.export_model import export_model
from sae_runtime.exports.splice.splicing import Splice, splice

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

D_SAE = 40
Tail = Callable[[Any], Any]


def llama(model: Any) -> tuple[Tail, str]:
    return lambda x: model.lm_head(model.model.norm(x)), "model.layers.0"


def gpt2(model: Any) -> tuple[Tail, str]:
    return lambda x: model.lm_head(model.transformer.ln_f(x)), "transformer.h.0"


def neox(model: Any) -> tuple[Tail, str]:
    return lambda x: model.get_output_embeddings()(model.gpt_neox.final_layer_norm(x)), "gpt_neox.layers.0"


def opt(model: Any) -> tuple[Tail, str]:
    decoder = model.model.decoder
    out = decoder.project_out or (lambda x: x)
    return lambda x: model.lm_head(out(decoder.final_layer_norm(x))), "model.decoder.layers.0"


def cohere(model: Any) -> tuple[Tail, str]:
    return lambda x: model.logit_scale * model.lm_head(model.model.norm(x)), "model.layers.0"


FAMILIES: dict[str, tuple[str, Callable[[Any], tuple[Tail, str]], dict[str, Any]]] = {
    "llama": ("llama", llama, {}),
    "llama, tied": ("llama", llama, {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", llama, {}),  # a gain of 1 + weight, logits capped by tanh, post-norms
    "gpt2": ("gpt2", gpt2, {}),
    "gpt_neox": ("gpt_neox", neox, {}),
    "opt, project_out": ("opt", opt, {"word_embed_proj_dim": 16}),
    "cohere": ("cohere", cohere, {}),
}


def with_random_norms(model: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) + ("norm" in name or "ln" in name))
    return model.eval()


def truth(tail: Tail, directions: NDArray[np.float32], *, centred: bool) -> NDArray[np.float64]:
    """What a direction adds to the logits where the norm divides by 1: of a long one, times what it divided by."""
    x = 1e4 * torch.from_numpy(directions).double()
    with torch.no_grad():
        size = (x - x.mean(-1, keepdim=True) if centred else x).square().mean(-1, keepdim=True).sqrt()
        added: NDArray[np.float64] = ((tail(x) - tail(torch.zeros_like(x))) * size / 1e4).numpy()
    return added


def made_sae(path: Path, d_in: int, hook: str) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((D_SAE, d_in)).astype(np.float32)
    weights = {
        "W_enc": np.ascontiguousarray(directions.T),
        "W_dec": directions,
        "b_enc": np.zeros(D_SAE, np.float32),
        "b_dec": np.zeros(d_in, np.float32),
    }
    manifest = Manifest(
        architecture=Architecture(d_in=d_in, d_sae=D_SAE, selection="topk", k=4),
        allocation=Allocation(kind="token", k=4.0),
        slots=4,
        hook=hook,
    )
    bundle.write(path, weights, manifest)
    return directions


def assert_logits(folder: Path, expected: NDArray[np.float64]) -> None:
    """Assert that a bundle's tokens and logits are the ten largest and smallest of each row."""
    found = bundle.read(folder).logits()
    assert found is not None
    scale = np.abs(expected).max()
    for tokens, logits, sign in (
        (found.promoted_tokens, found.promoted_logits, 1),
        (found.suppressed_tokens, found.suppressed_logits, -1),
    ):
        best = -np.sort(-sign * expected, axis=1)[:, :10]
        np.testing.assert_allclose(sign * logits, best, atol=1e-5 * scale)
        np.testing.assert_allclose(np.take_along_axis(expected, tokens, axis=1), logits, atol=1e-5 * scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_of_features_are_torchs(family: str, tmp_path: Path) -> None:
    kind, parts, changes = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = with_random_norms(named(kind, **changes)())
    tail, hook = parts(model)
    graph = export_model(model, tmp_path / "host.onnx", cache=False)
    d_in = SETTINGS[kind].get("hidden_size") or SETTINGS[kind].get("n_embd") or model.config.hidden_size
    directions = made_sae(tmp_path / "sae", d_in, hook)
    made = splice(graph, [Splice(bundle=tmp_path / "sae", hook=hook)], tmp_path / "spliced")
    assert made.logits == {"sae": None}
    centred = kind in ("gpt2", "gpt_neox", "opt", "cohere")
    assert_logits(tmp_path / "spliced" / "sae", truth(_double(model, tail), directions, centred=centred))


def _double(model: Any, tail: Tail) -> Tail:
    """The tail in float64."""
    model.double()
    return tail
