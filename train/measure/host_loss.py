"""What a host model loses when an SAE's reconstructions replace its activations at the hook.

The model runs several times over the same text. Each time something else replaces the activation of every kept token:

- "served": its reconstruction under the served rule.
- "batch": its reconstruction under the batch rule over the tokens of one forward pass.
- "mean": the mean of all activations, as a floor (mean ablation).
- "zero": zeros, as a floor (zero ablation), in language models only.

Tokens of massive norm, such as attention sinks, keep the model's own activation, and no figure is read at them. If
there are some, the figures are also given with all kept tokens replaced.

For a causal language model, the figures are the cross-entropy on the next token in nats, and the KL divergence of the
prediction from the untouched model's prediction, both at the replaced tokens. For any other model, the figures are
cosines of the final hidden states to the untouched model's: at the replaced tokens, and averaged over each window, as
sentence embeddings are.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.activations.documents import documents
from sae_runtime.activations.left_out import limit, norms, rule_for, warn_of_many
from sae_runtime.activations.windows import Window, batches, first_rows
from sae_runtime.bundle.evaluation_file import HostLoss
from sae_runtime.core.progress import progress_bar
from sae_runtime.train.device import memory_errors
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.forward import arguments, foreign_errors
from sae_runtime.train.harvest.hook_point import replaced
from sae_runtime.train.harvest.reader import Pass, Reader
from sae_runtime.train.measure.tally import reconstruct
from sae_runtime.train.measure.torch_sae import TorchSAE

_LOGITS_AT_ONCE = 1 << 24
_LOW = 0.05  # the quantile of the cosines that is recorded beside the mean


Readings = dict[str, Tensor]
"""Figures by name, with a number for each token or window."""


@memory_errors()
@torch.inference_mode()
def host_loss(
    sae: TorchSAE, config: HarvestConfig, *, max_norm: float | None = None, progress: bool = False
) -> HostLoss:
    """Run the host model over text, untouched and with each replacement of its activations.

    Args:
        sae: it is moved to the host model's device.
        config: model, hook and text, as for `harvest`; the type and the shards of stored activations have no effect.
        max_norm: tokens keep their activation if its norm exceeds this multiple of the median norm; infinity for no
            limit; None means as the bundle has it, else 10.
        progress: show the progress on stderr.

    Raises:
        FileNotFoundError: a text file or the folder of the model is missing.
        ValueError: the SAE is a transcoder; the model, hook or text cannot be used; the hook's width is not the SAE's;
            or an activation is NaN or Inf, or all are equal.
        MemoryError: a batch does not fit on the device.
    """
    sae.refuse_transcoder()
    texts = documents(config.text, config.reading)
    host = Reader(config, head=True)
    kept = list(first_rows(host.windows(texts), config.tokens))
    if not kept:
        raise ValueError(f"no token of the text is kept ({_names(config)} hold none); give more text")
    groups = [[kept[number] for number in numbers] for numbers in batches(kept, host.batch_tokens)]
    sae = sae.to(host.model.device)
    rule = rule_for(sae.manifest, max_norm)
    bound = math.inf
    if rule is not None:
        bound = limit(np.concatenate([_norms(host.read(group)) for group in groups]), rule)
    ordinary = _measured(sae, host, groups, bound, progress=progress)
    left_out = sum(window.rows for window in kept) - ordinary.tokens
    if left_out:
        warn_of_many(left_out / (left_out + ordinary.tokens), rule, config.text[0])
        ordinary = replace(ordinary, with_left_out=_measured(sae, host, groups, math.inf, progress=progress))
    return replace(ordinary, max_norm=rule, left_out=left_out)


def _measured(
    sae: TorchSAE, host: Reader, groups: Sequence[Sequence[Window]], bound: float, *, progress: bool
) -> HostLoss:
    """The figures if the kept tokens whose norm is not above a bound are replaced."""
    config, causal = host.config, host.model.get_output_embeddings() is not None
    mean, spread, tokens = _mean_and_spread((_within(host.read(group), bound) for group in groups), sae.b_dec)
    if spread <= 1e-12 * tokens * float(mean.double().pow(2).sum()):  # no more than rounding
        raise ValueError(
            f"{config.hook} gives the same at all kept tokens of {_names(config)} ({tokens}); give more text"
        )
    readings, errors = _run(host, groups, bound, sae, mean, causal=causal, progress=progress)
    original = None
    if causal:
        if not len(readings["untouched"]["cross_entropy"]):
            raise ValueError(f"no kept token of {_names(config)} has a next one to predict; give longer texts")
        original = float(readings["untouched"]["cross_entropy"].mean())
    if all(torch.equal(values, readings["untouched"][key]) for key, values in readings["mean"].items()):
        raise ValueError(
            f"replacing {host.points[0].hook} changes nothing that the model gives; hook a block or a module inside one"
        )
    del readings["untouched"]
    return HostLoss(
        model=config.called,
        hook=host.points[0].hook,
        text=tuple(path.name for path in config.text),
        tokens=tokens,
        windows=sum(map(len, groups)),
        special=config.special,
        batch=tokens / len(groups),
        cross_entropy=original,
        replaced=_results(readings, original, {name: error / spread for name, error in errors.items()}),
    )


def _norms(batch: Pass) -> NDArray[np.float64]:
    return norms(batch.x.float().cpu().numpy())


def _within(batch: Pass, bound: float) -> Pass:
    """The batch with those kept tokens alone whose norm is not above a bound."""
    if bound == math.inf:
        return batch
    within = torch.from_numpy(_norms(batch) <= bound).to(batch.x.device)
    kept = batch.kept.clone()
    kept[batch.kept] = within
    return replace(batch, kept=kept, x=batch.x[within])


def _run(
    host: Reader,
    groups: Sequence[Sequence[Window]],
    bound: float,
    sae: TorchSAE,
    mean: Tensor,
    *,
    causal: bool,
    progress: bool,
) -> tuple[dict[str, Readings], dict[str, float]]:
    """The readings of the untouched model and under each replacement, and the squared error of each replacement."""
    read = _predictions if causal else _embeddings
    parts: dict[str, list[Readings]] = defaultdict(list)
    errors: dict[str, float] = defaultdict(float)
    with progress_bar(len(groups), "batches", shown=progress) as bar:
        for group in groups:
            batch = _within(host.read(group), bound)
            x, untouched = batch.x.float(), _forward(host, batch)
            parts["untouched"].append(read(untouched, untouched, batch))
            for name, y in _replacements(sae, x, mean, zeros=causal):
                errors[name] += float((x - y).double().pow(2).sum())
                hidden = batch.hidden.clone()
                hidden[batch.kept] = y.to(hidden.dtype)
                with replaced(host.points[0], host.laid_out(hidden)):
                    parts[name].append(read(untouched, _forward(host, batch), batch))
            bar.update()
    return {name: _joined(of_batches) for name, of_batches in parts.items()}, errors


def _forward(host: Reader, batch: Pass) -> Any:
    """The output of the whole model."""
    with foreign_errors(host.model):
        return host.model(**arguments(host.model, batch.ids, batch.real))


def _names(config: HarvestConfig) -> str:
    return ", ".join(map(str, config.text))


def _joined(parts: Sequence[Readings]) -> Readings:
    return {key: torch.cat([part[key] for part in parts]).double() for key in parts[0]}


def _mean_and_spread(batches: Iterable[Pass], near: Tensor) -> tuple[Tensor, float, int]:
    """Mean of the kept activations [d_in], the sum of their squared distances from it, and their number."""
    count, total, square = 0, torch.zeros_like(near, dtype=torch.float64), 0.0
    for batch in batches:
        if batch.x.shape[1] != len(near):
            raise ValueError(
                f"the hook gives width {batch.x.shape[1]}, this SAE expects {len(near)}; name its own hook"
            )
        offset = (batch.x.float() - near).double()  # from a point near the mean, so that little precision cancels
        count += len(offset)
        total += offset.sum(dim=0)
        square += float(offset.pow(2).sum())
    mean = total / count
    return (near.double() + mean).float(), max(square - count * float(mean.pow(2).sum()), 0.0), count


def _replacements(sae: TorchSAE, x: Tensor, mean: Tensor, *, zeros: bool) -> Iterator[tuple[str, Tensor]]:
    yield "served", reconstruct(sae, x, sae.served)[0]
    if sae.batch is not None:
        yield "batch", reconstruct(sae, x, sae.batch)[0]
    yield "mean", mean.expand_as(x)
    if zeros:
        yield "zero", torch.zeros_like(x)


def _predictions(untouched: Any, output: Any, batch: Pass) -> Readings:
    """Cross-entropy of the next token, and KL(untouched || output), at each kept token before a next one: [m]."""
    row, time = (batch.kept[:, :-1] & batch.real[:, 1:]).nonzero(as_tuple=True)
    loss, divergence = [], []
    size = max(_LOGITS_AT_ONCE // output.logits.shape[2], 1)
    for r, t in zip(torch.split(row, size), torch.split(time, size), strict=True):
        p = untouched.logits[r, t].float().log_softmax(dim=1)
        q = output.logits[r, t].float().log_softmax(dim=1)
        loss.append(-q.gather(1, batch.ids[r, t + 1][:, None])[:, 0])
        divergence.append((p.exp() * (p - q)).sum(dim=1).clamp_min(0))
    return {"cross_entropy": torch.cat(loss).cpu(), "kl": torch.cat(divergence).cpu()}


def _embeddings(untouched: Any, output: Any, batch: Pass) -> Readings:
    """Cosines of final hidden states: of their means over each window [batch], and of each kept token [m]."""
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
