"""The numbers of an evaluation in words: what each is called, how it is written and what it means."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sae_runtime.browser import page
from sae_runtime.bundle.evaluation_file import Evaluation, Redundancy, RuleEvaluation


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A bundle that the report is about: its name there, and what is known of it."""

    name: str
    evaluation: Evaluation
    metrics: Sequence[dict[str, Any]] | None = None  # lines of `train --metrics`


@dataclass(frozen=True)
class _Row:
    name: str
    note: str
    text: Callable[[Any], str]


_IDENTITY = (
    _Row("allocation", "what competes for matches", lambda e: _choice(e)),
    _Row("k", "active features a token gets on average", lambda e: _k(e)),
    _Row("features", "in the dictionary", lambda e: f"{e.architecture.d_sae:,}"),
    _Row("width", "of the activations", lambda e: f"{e.architecture.d_in:,}"),
    _Row("model", "", lambda e: e.model or "unknown"),
    _Row("hook", "", lambda e: e.hook or "unknown"),
    _Row("trained on", "tokens, repeats counted", lambda e: _trained_on(e)),
)
_RULE = (
    _Row(
        "explained variance",
        "share of the activations' variance that the reconstruction gives back; 1 is perfect",
        lambda r: _4(r.explained_variance),
    ),
    _Row("FVU", "fraction of variance unexplained, 1 - explained variance; 0 is perfect", lambda r: _4(r.fvu)),
    _Row("FVU of the median token", "the same within one token", lambda r: _of_tokens(r, "0.5")),
    _Row("FVU of the 95 % token", "one token in twenty is explained worse", lambda r: _of_tokens(r, "0.95")),
    _Row("L0", "active features of a token, on average", lambda r: f"{r.l0:.2f}"),
    _Row(
        "L0, 5 % to 95 %",
        "nine tokens in ten lie between",
        lambda r: f"{r.l0_quantiles['0.05']:g} to {r.l0_quantiles['0.95']:g}",
    ),
    _Row("dead", "features that are not active on any of these tokens", lambda r: f"{r.dead:.2%}"),
    _Row(
        "under-used",
        "features with less than a tenth of the density that the Zipf law gives their rank, dead ones included",
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
        "tokens that share their matches",
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
    "loss_recovered_mean": _Row(
        "loss recovered, mean ablation", "share of what the mean costs that this does not cost", lambda v: f"{v:.2%}"
    ),
    "loss_recovered_zero": _Row(
        "loss recovered, zero ablation", "share of what zeros cost that this does not cost", lambda v: f"{v:.2%}"
    ),
    "embedding_cosine": _Row(
        "cosine of embeddings", "to the untouched model's, averaged over each window's tokens", lambda v: f"{v:.4f}"
    ),
    "embedding_cosine_low": _Row("cosine of embeddings, 5 %", "one window in twenty is below", lambda v: f"{v:.4f}"),
    "token_cosine": _Row("cosine of tokens", "of the final hidden state of each replaced token", lambda v: f"{v:.4f}"),
    "token_cosine_low": _Row("cosine of tokens, 5 %", "one token in twenty is below", lambda v: f"{v:.4f}"),
    "explained_variance": _Row("explained variance", "of the activations on this text", lambda v: f"{v:.4f}"),
    "fvu": _Row("FVU", "1 - explained variance", lambda v: f"{v:.4f}"),
}
_REPLACEMENTS = {"served": "served", "batch": "batch rule", "mean": "the mean", "zero": "zeros"}


def identity(subjects: Sequence[Subject]) -> str:
    """What the SAEs are."""
    return _table(_IDENTITY, {subject.name: subject.evaluation for subject in subjects})


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
    """What the host model loses with each, and with the floors, which are the same for all."""
    columns: dict[str, dict[str, float]] = {}
    measured = [(s.name, s.evaluation.host) for s in subjects if s.evaluation.host is not None]
    for name, host in measured:
        for rule in ("served", "batch"):
            if rule in host.replaced:
                columns[f"{name}, {_REPLACEMENTS[rule]}"] = dict(host.replaced[rule])
    first = measured[0][1]
    for floor in ("mean", "zero"):
        if floor in first.replaced:
            columns[_REPLACEMENTS[floor]] = dict(first.replaced[floor])
    if first.cross_entropy is not None:
        columns["untouched"] = {"cross_entropy": first.cross_entropy, "kl": 0.0}
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


def _choice(evaluation: Evaluation) -> str:
    return f"{evaluation.allocation.kind} choice" if evaluation.allocation else "unknown"


def _k(evaluation: Evaluation) -> str:
    return f"{evaluation.allocation.k:g}" if evaluation.allocation else "unknown"


def _trained_on(evaluation: Evaluation) -> str:
    return "unknown" if evaluation.trained_tokens is None else f"{evaluation.trained_tokens:,}"


def _of_tokens(rule: RuleEvaluation, level: str) -> str:
    return _4(None if rule.token_fvu is None else rule.token_fvu[level])


def _4(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
