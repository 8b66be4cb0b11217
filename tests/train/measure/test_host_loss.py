"""The second witness is a plain torch hook, windows one at a time without padding, and numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_model import SPECIALS, WORDS, save_bert, save_gpt2
from transformers import BertModel, GPT2LMHeadModel, GPT2Model

from sae_runtime.activations.left_out import ManyRowsLeftOut
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.evaluation_file import HostLoss
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.exports import witness
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.hook_point import HookPoint, replaced
from sae_runtime.train.harvest.host_model import load_host_model, longest_window
from sae_runtime.train.measure.host_loss import host_loss
from sae_runtime.train.measure.torch_sae import TorchSAE, open_sae

WIDTH, D_SAE, K = 16, 40, 5
BERT_HOOK, GPT2_HOOK = "encoder.layer.1", "h.0"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("gpt2"), initializer_range=0.5)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty lines of 2 to 15 words."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n\n".join(" ".join(f"w{i}" for i in rng.integers(WORDS, size=size)) for size in range(2, 16)))
    return path


@pytest.fixture(scope="module")
def weights() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((D_SAE, WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    arrays = {"W_enc": rows.T, "W_dec": rows, "b_enc": np.zeros(D_SAE), "b_dec": rng.normal(0, 0.1, WIDTH)}
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()} | {
        "threshold": np.full(D_SAE, 0.4, np.float32)
    }


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, NDArray[np.float32]]) -> TorchSAE:
    path = tmp_path_factory.mktemp("sae") / "sae"
    architecture = Architecture(d_in=WIDTH, d_sae=D_SAE, selection="threshold")
    manifest = Manifest(architecture=architecture, allocation=Allocation(kind="mutual", k=float(K)), slots=16)
    bundle.write(path, weights, manifest)
    return open_sae(path)


def run(sae: TorchSAE, model: Path, hook: str, text: Path, **settings: Any) -> HostLoss:
    sizes: dict[str, Any] = {"context": 20, "batch_tokens": 60}
    rule = {"max_norm": settings.pop("max_norm")} if "max_norm" in settings else {}
    config = HarvestConfig(model=str(model), hook=hook, text=(text,), device="cpu", **sizes | settings)
    return host_loss(sae, config, **rule)


def hooked(net: Any, module: torch.nn.Module, ids: list[int], put: Any, kept: slice) -> Any:
    """Output of a model in which `put` has changed the kept tokens of a module's output."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        x = (output[0] if isinstance(output, tuple) else output).clone()
        x[0, kept] = put(x[0, kept])
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = module.register_forward_hook(hook)
    with torch.no_grad():
        output = net(input_ids=torch.tensor([ids]))
    handle.remove()
    return output


def activations(net: Any, module: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    seen: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x

    hooked(net, module, ids, keep, slice(None))
    return seen[0]


def replacements(
    net: Any, module: torch.nn.Module, lines: list[list[int]], kept: slice, weights: Any
) -> dict[str, Any]:
    """What replaces the activations of the windows, one after the other."""
    seen = [activations(net, module, ids)[kept] for ids in lines]
    together = torch.cat(seen)
    mean = together.double().mean(dim=0).float()
    z = witness.pre_activations(weights, together.numpy())
    joint = (z * witness.joint(z, K).kept) @ weights["W_dec"] + weights["b_dec"]
    parts = iter(torch.split(torch.from_numpy(joint).float(), [len(x) for x in seen]))

    def served(x: torch.Tensor) -> torch.Tensor:
        z = witness.pre_activations(weights, x.numpy())
        features = z * witness.threshold(z, weights["threshold"]).kept
        return torch.from_numpy(features @ weights["W_dec"] + weights["b_dec"]).float()

    return {
        "served": served,
        "batch": lambda x: next(parts),
        "mean": lambda x: mean.expand_as(x),
        "zero": torch.zeros_like,
    }


def test_losses_of_a_language_model_agree_with_plain_hooks(sae: TorchSAE, weights: Any, gpt2: Path, text: Path) -> None:
    found = run(sae, gpt2, GPT2_HOOK, text, batch_tokens=10_000)
    in_batches = run(sae, gpt2, GPT2_HOOK, text)
    assert found.batch == found.tokens and in_batches.batch < found.tokens / 2
    for name in ("served", "mean", "zero"):
        assert in_batches.replaced[name] == pytest.approx(found.replaced[name], rel=1e-3)
    net: Any = GPT2LMHeadModel.from_pretrained(gpt2)
    module = net.transformer.h[0]
    lines = [[int(word[1:]) for word in line.split()] for line in text.read_text().split("\n\n")]
    every = slice(None)
    makers = {"untouched": lambda x: x} | replacements(net, module, lines, every, weights)
    log_p: dict[str, list[NDArray[np.float64]]] = {name: [] for name in makers}
    for name, put in makers.items():
        for ids in lines:
            logits = hooked(net, module, ids, put, every).logits[0, :-1].double()
            log_p[name].append(logits.log_softmax(dim=1).numpy())
    target = np.concatenate([ids[1:] for ids in lines])
    joined = {name: np.concatenate(parts) for name, parts in log_p.items()}
    entropy = {name: -log[np.arange(len(target)), target].mean() for name, log in joined.items()}
    before = joined["untouched"]
    assert (found.tokens, found.windows) == (sum(map(len, lines)), len(lines))
    assert found.cross_entropy == pytest.approx(entropy["untouched"], rel=1e-5)
    assert found.replaced.keys() == {"served", "batch", "mean", "zero"}
    for name in ("served", "batch", "mean", "zero"):
        result = found.replaced[name]
        assert result["cross_entropy"] == pytest.approx(entropy[name], rel=1e-4)
        kl = (np.exp(before) * (before - joined[name])).sum(axis=1).mean()
        assert result["kl"] == pytest.approx(kl, rel=1e-3) and kl > 1e-3
        for floor in ("mean", "zero"):
            key = f"loss_recovered_{floor}"
            if name in ("served", "batch") and entropy[floor] > entropy["untouched"]:
                recovered = (entropy[floor] - entropy[name]) / (entropy[floor] - entropy["untouched"])
                assert result[key] == pytest.approx(recovered, rel=1e-4)
            else:
                assert key not in result
    x = torch.cat([activations(net, module, ids) for ids in lines]).numpy().astype(np.float64)
    z = witness.pre_activations(weights, x)
    for name, kept in (("served", z > 0.4), ("batch", witness.joint(z, K).kept)):
        error = x - (z * kept) @ weights["W_dec"] - weights["b_dec"]
        assert found.replaced[name]["fvu"] == pytest.approx((error**2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-4)
        assert found.replaced[name]["explained_variance"] == 1 - found.replaced[name]["fvu"]


def test_cosines_of_an_embedding_model_agree_with_plain_hooks(
    sae: TorchSAE, weights: Any, bert: Path, text: Path
) -> None:
    net: Any = BertModel.from_pretrained(bert)
    module = net.encoder.layer[1]
    first, last = SPECIALS["[CLS]"], SPECIALS["[SEP]"]
    words = [[int(word[1:]) + len(SPECIALS) for word in line.split()] for line in text.read_text().split("\n\n")]
    lines = [[first, *ids, last] for ids in words]
    for special, kept in ((False, slice(1, -1)), (True, slice(None))):
        found = run(sae, bert, BERT_HOOK, text, special=special, batch_tokens=10_000)
        assert found.cross_entropy is None and found.special == special
        makers = replacements(net, module, lines, kept, weights)
        del makers["zero"]
        assert found.replaced.keys() == makers.keys()
        for name, put in makers.items():
            pooled, tokens = [], []
            for ids in lines:
                before, after = (
                    hooked(net, module, ids, maker, kept).last_hidden_state[0] for maker in (lambda x: x, put)
                )
                pooled.append(float(torch.cosine_similarity(before.mean(dim=0), after.mean(dim=0), dim=0)))
                tokens += torch.cosine_similarity(before[kept], after[kept], dim=1).tolist()
            for key, values in (("embedding_cosine", pooled), ("token_cosine", tokens)):
                assert found.replaced[name][key] == pytest.approx(np.mean(values), abs=1e-5)
                assert found.replaced[name][f"{key}_low"] == pytest.approx(np.quantile(values, 0.05), abs=1e-5)


def test_tokens_of_massive_norm_keep_the_models_own_activation(
    sae: TorchSAE, weights: Any, text: Path, tmp_path: Path
) -> None:
    path = save_gpt2(tmp_path / "gpt2", initializer_range=0.5)
    net: Any = GPT2LMHeadModel.from_pretrained(path)
    with torch.no_grad():
        net.transformer.wte.weight[7] *= 300  # the token w7 is a sink
    net.save_pretrained(path)
    module = net.transformer.h[0]
    lines = [[int(word[1:]) for word in line.split()] for line in text.read_text().split("\n\n")]
    x = torch.cat([activations(net, module, ids) for ids in lines]).numpy().astype(np.float64)
    bound = 10 * np.median(np.linalg.norm(x, axis=1))
    massive = np.linalg.norm(x, axis=1) > bound
    assert np.array_equal(massive, np.concatenate(lines) == 7) and 0 < massive.sum() < len(x) / 20

    found = run(sae, path, GPT2_HOOK, text, batch_tokens=10_000)
    assert (found.max_norm, found.left_out, found.tokens) == (10.0, massive.sum(), (~massive).sum())
    whole = run(sae, path, GPT2_HOOK, text, batch_tokens=10_000, max_norm=np.inf)
    assert (whole.max_norm, whole.left_out, whole.with_left_out) == (None, 0, None)
    assert found.with_left_out == whole

    for result, every in ((found, False), (whole, True)):
        rows = x if every else x[~massive]
        mean = torch.from_numpy(rows.mean(axis=0)).float()

        def served(part: torch.Tensor) -> torch.Tensor:
            z = witness.pre_activations(weights, part.numpy())
            features = z * witness.threshold(z, weights["threshold"]).kept
            return torch.from_numpy(features @ weights["W_dec"] + weights["b_dec"]).float()

        makers: dict[str, Any] = {"untouched": lambda part: part, "served": served, "zero": torch.zeros_like}
        makers["mean"] = mean.expand_as
        entropy = {}
        for name, make in makers.items():

            def put(part: torch.Tensor, make: Any = make, every: bool = every) -> torch.Tensor:
                ours = torch.ones(len(part), dtype=torch.bool) if every else part.norm(dim=1) <= bound
                changed = part.clone()
                changed[ours] = make(part[ours])
                return changed

            losses = []
            for ids in lines:
                log_p = hooked(net, module, ids, put, slice(None)).logits[0, :-1].double().log_softmax(dim=1)
                loss = -log_p[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()
                losses.append(loss if every else loss[np.array(ids[:-1]) != 7])
            entropy[name] = np.concatenate(losses).mean()
        assert result.cross_entropy == pytest.approx(entropy.pop("untouched"), rel=1e-5)
        for name, value in entropy.items():
            assert result.replaced[name]["cross_entropy"] == pytest.approx(value, rel=1e-4), (name, every)
        z = witness.pre_activations(weights, rows)
        error = rows - (z * (z > 0.4)) @ weights["W_dec"] - weights["b_dec"]
        fvu = (error**2).sum() / ((rows - rows.mean(axis=0)) ** 2).sum()
        assert result.replaced["served"]["fvu"] == pytest.approx(fvu, rel=1e-4)


def test_a_batch_of_massive_tokens_alone_is_left_as_it_is(sae: TorchSAE, text: Path, tmp_path: Path) -> None:
    path = save_gpt2(tmp_path / "gpt2", initializer_range=0.5)
    net: Any = GPT2LMHeadModel.from_pretrained(path)
    with torch.no_grad():
        net.transformer.wte.weight[7] *= 300
    net.save_pretrained(path)
    (tmp_path / "words.txt").write_text(text.read_text() + "\n\nw7 w7 w7\n\nw7 w7")
    with pytest.warns(ManyRowsLeftOut, match=r"words\.txt: 5\.\d% of the rows"):
        found = run(sae, path, GPT2_HOOK, tmp_path / "words.txt", context=3, batch_tokens=3)
    assert found.left_out >= 5 and found.replaced["served"]["kl"] > 0


def test_host_loss_of_a_perfect_sae_is_zero(gpt2: Path, text: Path, tmp_path: Path) -> None:
    basis = np.concatenate([np.eye(WIDTH), -np.eye(WIDTH), np.zeros((D_SAE - 2 * WIDTH, WIDTH))])
    zeros = {"b_enc": np.zeros(D_SAE), "b_dec": np.zeros(WIDTH), "threshold": np.zeros(D_SAE)}
    weights = {
        name: np.ascontiguousarray(a, np.float32) for name, a in {"W_enc": basis.T, "W_dec": basis, **zeros}.items()
    }
    architecture = Architecture(d_in=WIDTH, d_sae=D_SAE, selection="threshold")
    bundle.write(tmp_path / "sae", weights, Manifest(architecture=architecture, allocation=None, slots=16))
    found = run(open_sae(tmp_path / "sae"), gpt2, f"transformer.{GPT2_HOOK}", text, tokens=50)
    assert found.tokens == 50 and "batch" not in found.replaced
    assert found.replaced["served"]["kl"] == pytest.approx(0, abs=1e-6)
    assert found.replaced["served"]["cross_entropy"] == pytest.approx(found.cross_entropy, rel=1e-6)
    assert found.replaced["served"]["fvu"] == pytest.approx(0, abs=1e-10)


def test_an_sae_with_a_norm_replaces_activations_as_the_runtime_decodes_them(
    gpt2: Path, text: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(0, 0.3, (D_SAE, WIDTH)).astype(np.float32)
    biases = {"b_enc": np.zeros(D_SAE, np.float32), "b_dec": np.zeros(WIDTH, np.float32)}
    architecture = Architecture(d_in=WIDTH, d_sae=D_SAE, selection="topk", k=K, norm="layer")
    manifest = Manifest(architecture=architecture, allocation=Allocation(kind="token", k=float(K)), slots=K)
    weights = {"W_enc": np.ascontiguousarray(rows.T), "W_dec": rows, **biases}
    bundle.write(tmp_path / "sae", weights, manifest)
    found = run(open_sae(tmp_path / "sae"), gpt2, GPT2_HOOK, text)
    net: Any = GPT2LMHeadModel.from_pretrained(gpt2)
    lines = [[int(word[1:]) for word in line.split()] for line in text.read_text().split("\n\n")]
    x = torch.cat([activations(net, net.transformer.h[0], ids) for ids in lines]).numpy().astype(np.float64)
    z = witness.pre_activations(weights, witness.normalise(x, "layer")[0])
    sums = np.where(witness.token_choice(z, K).kept, z, 0) @ weights["W_dec"] + weights["b_dec"]
    error = np.square(x - witness.completed(weights, sums, x, "layer")).sum()
    assert found.replaced["served"]["fvu"] == pytest.approx(error / np.square(x - x.mean(axis=0)).sum(), rel=1e-4)


def test_host_loss_refuses_a_transcoder(gpt2: Path, text: Path, tmp_path: Path) -> None:
    architecture = Architecture(d_in=WIDTH, d_sae=D_SAE, selection="topk", k=K, pre_bias=False, d_out=3)
    weights = {name: np.zeros(shape, np.float32) for name, shape in bundle.weight_shapes(architecture).items()}
    bundle.write(tmp_path / "sae", weights, Manifest(architecture=architecture, allocation=None, slots=K))
    with pytest.raises(ValueError, match="is a transcoder: .* can neither replace nor edit that"):
        run(open_sae(tmp_path / "sae"), gpt2, GPT2_HOOK, text)


def test_host_loss_refuses_models_hooks_and_texts_that_do_not_fit(
    sae: TorchSAE, gpt2: Path, bert: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="reads at most 64"):
        run(sae, gpt2, GPT2_HOOK, text, context=65, batch_tokens=65)
    with pytest.raises(ValueError, match="has no module 'h.7'"):
        run(sae, gpt2, "h.7", text)
    with pytest.raises(ValueError, match=f"gives width {4 * WIDTH}, this SAE expects {WIDTH}"):
        run(sae, gpt2, "h.0.mlp.c_fc", text)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="no token of the text is kept"):
        run(sae, bert, BERT_HOOK, tmp_path / "empty.txt")
    (tmp_path / "word.txt").write_text("w1")
    with pytest.raises(ValueError, match=rf"{BERT_HOOK} gives the same at all kept tokens of .*word.txt \(1\); give"):
        run(sae, bert, BERT_HOOK, tmp_path / "word.txt")
    (tmp_path / "words.txt").write_text("w1\n\nw2")
    with pytest.raises(ValueError, match="no kept token of .*words.txt has a next one to predict"):
        run(sae, gpt2, GPT2_HOOK, tmp_path / "words.txt")


def test_every_hook_of_one_place_has_the_same_loss(sae: TorchSAE, gpt2: Path, text: Path) -> None:
    results = [run(sae, gpt2, hook, text) for hook in ("h.0", "input:h.1", "blocks.1.hook_resid_pre", "h.0@0")]
    assert [result.hook for result in results] == ["h.0", "input:h.1", "input:h.1", "h.0@0"]
    for other in results[1:]:
        assert other.cross_entropy == results[0].cross_entropy
        assert other.replaced == results[0].replaced
    assert run(sae, gpt2, "h.1", text).replaced != results[0].replaced


def test_a_model_is_loaded_with_its_head_if_it_has_one(gpt2: Path, bert: Path, tmp_path: Path) -> None:
    assert type(load_host_model(str(gpt2), "cpu")[1]) is GPT2Model
    tokenizer, model = load_host_model(str(gpt2), "cpu", head=True)
    assert type(model) is GPT2LMHeadModel and longest_window(tokenizer, model) == 64
    assert (
        type(load_host_model(str(bert), "cpu", head=True)[1]) is BertModel
    )  # bert could have a causal head, this has none


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x, 1), lambda x: [x, 1], lambda x: {"a": x, "b": 1}])
def test_replaced_changes_the_first_call_in_every_form_of_output(form: Any) -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return form(x)

    layer, x, y = Layer(), torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    with replaced(HookPoint("layer", layer), y):
        first, second = layer(x), layer(x)
    assert type(first) is type(form(x)) and repr(first) == repr(form(y))
    assert repr(second) == repr(form(x)) and not layer._forward_hooks
