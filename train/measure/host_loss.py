"""What a host model loses when the SAE's reconstructions replace its activations at the hook.

Each kept token's activation is replaced by its reconstruction under the served rule, by its reconstruction under the
batch rule over the tokens of one forward pass, and, as floors, by the mean of all activations and, in language models,
by zeros. The rest of the model runs on as it is.

Of a causal language model, the cross-entropy on the next token is measured, in nats, and the KL divergence of its
prediction from the untouched model's, both at the replaced tokens. Of any other model, the final hidden states are
compared by cosine: at the replaced tokens, and averaged over each window, as a sentence embedding is.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_runtime.activations.text import documents
from sae_runtime.activations.windows import Window, batches, first_rows, padded, windows
from sae_runtime.bundle.evaluation_file import HostLoss
from sae_runtime.core.progress import progress_bar
from sae_runtime.train.device import memory_errors
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.host_model import find_module, hidden_states, load_host_model, longest_window, replaced
from sae_runtime.train.measure.tally import reconstruct
from sae_runtime.train.measure.torch_sae import TorchSAE

_LOGITS_AT_ONCE = 1 << 24
_LOW = 0.05  # quantile of the cosines


@dataclass(frozen=True)
class _Batch:
    """Windows that go through the host together: ids, which are real and which are kept, each [batch, time]."""

    ids: Tensor
    real: Tensor
    kept: Tensor
    hidden: Tensor  # the hook's output, [batch, time, d_in]
    x: Tensor  # of it, the kept tokens in float32, [n, d_in]


Readings = dict[str, Tensor]  # by what is read: one number for each token or window


@memory_errors()
@torch.inference_mode()
def host_loss(sae: TorchSAE, config: HarvestConfig, *, progress: bool = False) -> HostLoss:
    """Run the host model over text, untouched and with each replacement of its activations.

    Args:
        sae: it is moved to the host model's device.
        config: model, hook and text, read as `harvest` reads them; how activations are stored means nothing here.
        progress: show the progress on stderr.

    Raises:
        FileNotFoundError: a text file or the folder of the model is missing.
        ValueError: the SAE is a transcoder; the model, hook or text cannot be used; the hook's width is not the SAE's;
            or an activation is NaN or Inf, or all are equal.
        MemoryError: a batch does not fit on the device.
    """
    sae.refuse_transcoder()
    host = _open(config)
    sae = sae.to(host.model.device)
    tokens = sum(window.rows for group in host.groups for window in group)
    mean, spread = _mean_and_spread(host.batches(), sae.b_dec)
    if spread <= 1e-12 * tokens * float(mean.double().pow(2).sum()):  # no more than rounding
        raise ValueError(
            f"{config.hook} gives the same at all kept tokens of {_names(config)} ({tokens}); give more text"
        )
    readings, errors = _run(host, sae, mean, progress)
    original = None
    if host.causal:
        if not len(readings["untouched"]["cross_entropy"]):
            raise ValueError(f"no kept token of {_names(config)} has a next one to predict; give longer texts")
        original = float(readings["untouched"]["cross_entropy"].mean())
    del readings["untouched"]
    return HostLoss(
        model=config.called,
        hook=config.hook,
        text=tuple(path.name for path in config.text),
        tokens=tokens,
        windows=sum(map(len, host.groups)),
        special=config.special,
        batch=tokens / len(host.groups),
        cross_entropy=original,
        replaced=_results(readings, original, {name: error / spread for name, error in errors.items()}),
    )


def _run(host: "_Host", sae: TorchSAE, mean: Tensor, progress: bool) -> tuple[dict[str, Readings], dict[str, float]]:
    """What is read of the untouched model and under each replacement, and each replacement's squared error."""
    read = _predictions if host.causal else _embeddings
    parts: dict[str, list[Readings]] = defaultdict(list)
    errors: dict[str, float] = defaultdict(float)
    with progress_bar(len(host.groups), "batches", shown=progress) as bar:
        for batch in host.batches():
            untouched = host.forward(batch)
            parts["untouched"].append(read(untouched, untouched, batch))
            for name, y in _replacements(sae, batch.x, mean, zeros=host.causal):
                errors[name] += float((batch.x - y).double().pow(2).sum())
                whole = batch.hidden.clone()
                whole[batch.kept] = y.to(whole.dtype)
                with replaced(host.module, whole):
                    parts[name].append(read(untouched, host.forward(batch), batch))
            bar.update()
    return {name: _joined(of_batches) for name, of_batches in parts.items()}, errors


@dataclass(frozen=True)
class _Host:
    """A model with a hook, and the windows of text that go through it together."""

    model: Any
    module: torch.nn.Module
    hook: str
    pad: int
    groups: Sequence[Sequence[Window]]

    @property
    def causal(self) -> bool:
        """Whether it predicts the next token."""
        return self.model.get_output_embeddings() is not None

    def batches(self) -> Iterator[_Batch]:
        """The batches with their activations; no layer after the hook is run."""
        for group in self.groups:
            ids, real, kept = (torch.from_numpy(array).to(self.model.device) for array in padded(group, self.pad))
            hidden = hidden_states(self.hook, self.model, self.module, ids, real)
            x = hidden[kept].float()
            if not torch.isfinite(x).all():
                raise ValueError(f"{self.hook} gives NaN or Inf on this text; leave it out or hook another module")
            yield _Batch(ids, real, kept, hidden, x)

    def forward(self, batch: _Batch) -> Any:
        """What the model gives for a batch."""
        return self.model(input_ids=batch.ids, attention_mask=batch.real)


def _open(config: HarvestConfig) -> _Host:
    texts = documents(config.text, config.document)
    tokenizer, model = load_host_model(config.model, config.device, head=True)
    limit = longest_window(tokenizer, model)
    if limit is not None and config.context > limit:
        raise ValueError(f"context is {config.context} tokens, {config.model} reads at most {limit}; lower it")
    # A hook is named from the base model, which harvest loads alone.
    module = find_module(model.base_model, config.hook)
    found = list(first_rows(windows(tokenizer, texts, context=config.context, special=config.special), config.tokens))
    if not found:
        raise ValueError(f"no token of the text is kept ({_names(config)} hold none); give more text")
    groups = [[found[number] for number in numbers] for numbers in batches(found, config.batch_tokens)]
    return _Host(model, module, config.hook, tokenizer.pad_token_id or 0, groups)


def _names(config: HarvestConfig) -> str:
    return ", ".join(map(str, config.text))


def _joined(parts: Sequence[Readings]) -> Readings:
    return {key: torch.cat([part[key] for part in parts]).double() for key in parts[0]}


def _mean_and_spread(batches: Iterable[_Batch], near: Tensor) -> tuple[Tensor, float]:
    """Mean of the kept activations [d_in], and the sum of their squared distances from it."""
    count, total, square = 0, torch.zeros_like(near, dtype=torch.float64), 0.0
    for batch in batches:
        if batch.x.shape[1] != len(near):
            raise ValueError(
                f"the hook gives width {batch.x.shape[1]}, this SAE expects {len(near)}; name its own hook"
            )
        offset = (batch.x - near).double()  # from a point near the mean, so that little cancels
        count += len(offset)
        total += offset.sum(dim=0)
        square += float(offset.pow(2).sum())
    mean = total / count
    return (near.double() + mean).float(), max(square - count * float(mean.pow(2).sum()), 0.0)


def _replacements(sae: TorchSAE, x: Tensor, mean: Tensor, *, zeros: bool) -> Iterator[tuple[str, Tensor]]:
    yield "served", reconstruct(sae, x, sae.served)[0]
    if sae.batch is not None:
        yield "batch", reconstruct(sae, x, sae.batch)[0]
    yield "mean", mean.expand_as(x)
    if zeros:
        yield "zero", torch.zeros_like(x)


def _predictions(untouched: Any, output: Any, batch: _Batch) -> Readings:
    """Cross-entropy of the next token, and KL(untouched || output), at each kept token that has a next one: [m]."""
    row, time = (batch.kept[:, :-1] & batch.real[:, 1:]).nonzero(as_tuple=True)
    loss, divergence = [], []
    size = max(_LOGITS_AT_ONCE // output.logits.shape[2], 1)
    for r, t in zip(torch.split(row, size), torch.split(time, size), strict=True):
        p = untouched.logits[r, t].float().log_softmax(dim=1)
        q = output.logits[r, t].float().log_softmax(dim=1)
        loss.append(-q.gather(1, batch.ids[r, t + 1][:, None])[:, 0])
        divergence.append((p.exp() * (p - q)).sum(dim=1).clamp_min(0))
    return {"cross_entropy": torch.cat(loss).cpu(), "kl": torch.cat(divergence).cpu()}


def _embeddings(untouched: Any, output: Any, batch: _Batch) -> Readings:
    """Cosines of final hidden states: averaged over each window [batch], and of each kept token [m]."""
    before, after = untouched.last_hidden_state.float(), output.last_hidden_state.float()
    real = batch.real[..., None]
    pooled, pooled_after = ((hidden * real).sum(dim=1) / real.sum(dim=1) for hidden in (before, after))
    return {
        "embedding_cosine": torch.cosine_similarity(pooled, pooled_after, dim=1).cpu(),
        "token_cosine": torch.cosine_similarity(before[batch.kept], after[batch.kept], dim=1).cpu(),
    }


def _results(
    readings: Mapping[str, Readings], original: float | None, fvu: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    results: dict[str, dict[str, float]] = {}
    for name, by in readings.items():
        results[name] = {key: float(values.mean()) for key, values in by.items()}
        if original is None:
            results[name] |= {f"{key}_low": float(np.quantile(values.numpy(), _LOW)) for key, values in by.items()}
        if name not in ("served", "batch"):
            continue
        results[name] |= {"fvu": fvu[name], "explained_variance": 1 - fvu[name]}
        if original is None:
            continue
        for ablation in ("mean", "zero"):
            floor = float(readings[ablation]["cross_entropy"].mean())
            if floor > original:
                recovered = (floor - results[name]["cross_entropy"]) / (floor - original)
                results[name][f"loss_recovered_{ablation}"] = recovered
    return results
