"""The numbers of an evaluation in words: what each is called, how it is written and what it means."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sae_runtime.manifest import Manifest
from sae_runtime.report import page
from sae_runtime.train.evaluation import Evaluation, RuleEvaluation
from sae_runtime.train.host_loss import HostLoss
from sae_runtime.train.redundancy import Redundancy


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A bundle that the report is about: its name there, and what is known of it."""

    name: str
    manifest: Manifest
    evaluation: Evaluation
    host: HostLoss | None = None
    metrics: Sequence[dict[str, Any]] | None = None  # lines of `train --metrics`


@dataclass(frozen=True)
class _Row:
    name: str
    note: str
    text: Callable[[Any], str]


_IDENTITY = (
    _Row("allocation", "who competes for the budget of active features", lambda m: _choice(m)),
    _Row("k", "active features a token gets on average", lambda m: _k(m)),
    _Row("features", "in the dictionary", lambda m: f"{m.encoder.d_sae:,}"),
    _Row("width", "of the activations", lambda m: f"{m.encoder.d_in:,}"),
    _Row("model", "", lambda m: m.model or "unknown"),
    _Row("hook", "", lambda m: m.hook or "unknown"),
    _Row("trained on", "tokens, repeats counted", lambda m: _trained_on(m)),
)
_RULE = (
    _Row("FVU", "share of the activations' variance that the reconstruction misses; 0 is perfect", lambda r: _4(r.fvu)),
    _Row("FVU of the median token", "the same within one token", lambda r: _4(r.token_fvu["0.5"])),
    _Row("FVU of the 95 % token", "one token in twenty is explained worse", lambda r: _4(r.token_fvu["0.95"])),
    _Row("L0", "active features of a token, on average", lambda r: f"{r.l0:.2f}"),
    _Row(
        "L0, 5 % to 95 %",
        "nine tokens in ten lie between",
        lambda r: f"{r.l0_quantiles['0.05']:g} to {r.l0_quantiles['0.95']:g}",
    ),
    _Row("dead", "features that never fire on these tokens", lambda r: f"{r.dead:.2%}"),
    _Row(
        "under-used",
        "features that fire less than a tenth as often as the Zipf law gives their rank, dead ones included",
        lambda r: f"{r.under_used:.2%}" if r.zipf else "no law",
    ),
    _Row(
        "Zipf exponent",
        "how steeply density falls with rank, as (rank + offset)^-exponent; 0 is equal use",
        lambda r: f"{r.zipf.exponent:.2f}" if r.zipf else "no law",
    ),
    _Row("Zipf offset", "ranks over which the head is flat", lambda r: f"{r.zipf.offset:.1f}" if r.zipf else "no law"),
    _Row(
        "R² of the Zipf law",
        "of the densities' logarithm, every octave of ranks alike; 1 is a perfect fit",
        lambda r: f"{r.zipf.r_squared:.3f}" if r.zipf else "no law",
    ),
    _Row(
        "tokens that share a budget",
        "the batch rule spends k a token over so many; as served, every token is decided for itself",
        lambda r: "1" if r.batch is None else f"{r.batch:,}",
    ),
)
_DECODER = (
    _Row(
        "median cosine",
        "of a feature's direction to the most similar other; near 1 means doubles",
        lambda d: f"{d.median:.3f}",
    ),
    _Row("99 % of the features are below", "the same cosine", lambda d: f"{d.high:.3f}"),
    _Row("above 0.9", "features that nearly repeat another", lambda d: f"{d.nearly_equal:.2%}"),
    _Row(
        "effective rank",
        "directions that the decoder spreads over, at most the activations' width (exp of the entropy of its singular "
        "values, Roy and Vetterli 2007)",
        lambda d: f"{d.effective_rank:.1f}",
    ),
)
_HOST = {
    "cross_entropy": _Row("cross-entropy", "of the next token, in nats", lambda v: f"{v:.4f}"),
    "kl": _Row("KL", "from the untouched model's prediction, in nats a token", lambda v: f"{v:.4f}"),
    "recovered": _Row(
        "loss recovered", "share of what the mean instead costs that this does not cost", lambda v: f"{v:.2%}"
    ),
    "embedding_cosine": _Row(
        "cosine of embeddings", "to the untouched model's, averaged over each window's tokens", lambda v: f"{v:.4f}"
    ),
    "embedding_cosine_low": _Row("cosine of embeddings, 5 %", "one window in twenty is below", lambda v: f"{v:.4f}"),
    "token_cosine": _Row("cosine of tokens", "of the final hidden state of each replaced token", lambda v: f"{v:.4f}"),
    "token_cosine_low": _Row("cosine of tokens, 5 %", "one token in twenty is below", lambda v: f"{v:.4f}"),
    "fvu": _Row("FVU", "of the activations on this text", lambda v: f"{v:.4f}"),
}
_STAND_INS = {"served": "served", "batch": "batch rule", "mean": "the mean", "zero": "zeros"}


def identity(subjects: Sequence[Subject]) -> str:
    """What the SAEs are."""
    return _table(_IDENTITY, {subject.name: subject.manifest for subject in subjects})


def rules(subjects: Sequence[Subject]) -> str:
    """What they achieve, by each of their rules."""
    columns: dict[str, RuleEvaluation] = {}
    for subject in subjects:
        columns[f"{subject.name}, served"] = subject.evaluation.served
        if subject.evaluation.batch is not None:
            columns[f"{subject.name}, batch rule"] = subject.evaluation.batch
    return _table(_RULE, columns)


def decoders(subjects: Sequence[Subject]) -> str:
    """How much their decoders repeat themselves."""
    columns: dict[str, Redundancy] = {subject.name: subject.evaluation.decoder for subject in subjects}
    return _table(_DECODER, columns)


def hosts(subjects: Sequence[Subject]) -> str:
    """What the host loses with each, and with the floors, which are the same for all."""
    columns: dict[str, dict[str, float]] = {}
    measured = [(subject.name, subject.host) for subject in subjects if subject.host is not None]
    for name, host in measured:
        for rule in ("served", "batch"):
            if rule in host.replaced:
                columns[f"{name}, {_STAND_INS[rule]}"] = dict(host.replaced[rule])
    first = measured[0][1]
    for floor in ("mean", "zero"):
        if floor in first.replaced:
            columns[_STAND_INS[floor]] = dict(first.replaced[floor])
    if first.cross_entropy is not None:
        columns["untouched"] = {"cross_entropy": first.cross_entropy, "kl": 0.0, "recovered": 1.0}
    rows = [(key, row) for key, row in _HOST.items() if any(key in column for column in columns.values())]
    return page.table(
        ["", *columns],
        [[row.name, *(row.text(c[key]) if key in c else "" for c in columns.values())] for key, row in rows],
        [row.note for _, row in rows],
    )


def _table(rows: Sequence[_Row], columns: dict[str, Any]) -> str:
    return page.table(
        ["", *columns],
        [[row.name, *(row.text(column) for column in columns.values())] for row in rows],
        [row.note for row in rows],
    )


def _choice(manifest: Manifest) -> str:
    return f"{manifest.allocation.kind} choice" if manifest.allocation else "unknown"


def _k(manifest: Manifest) -> str:
    return f"{manifest.allocation.k:g}" if manifest.allocation else "unknown"


def _trained_on(manifest: Manifest) -> str:
    config = manifest.provenance.get("config")
    tokens = config.get("tokens") if isinstance(config, dict) else None
    return f"{tokens:,}" if isinstance(tokens, int) else "unknown"


def _4(value: float) -> str:
    return f"{value:.4f}"
