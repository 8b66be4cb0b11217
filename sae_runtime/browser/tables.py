"""The tables of the report: what each number of an evaluation is called, how it is written and what it means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_runtime.browser import page
from sae_runtime.bundle.evaluation_file import Evaluation


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A bundle in the report: its name there, its evaluation, and the lines of `train --metrics` if there are any."""

    name: str
    evaluation: Evaluation
    metrics: Sequence[dict[str, Any]] | None = None


@dataclass(frozen=True)
class _Row:
    """A row of a table: its name, what it means, where a column's object has its value, and the value's format."""

    name: str
    note: str
    path: str  # attributes or keys from the object to the value, such as "zipf/offset"
    form: str = "{}"
    absent: str = "unknown"  # the text if there is no value

    def text(self, column: Any) -> str:
        value = column
        for part in self.path.split("/"):
            value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
        return self.absent if value is None else self.form.format(value)


_IDENTITY = (
    _Row("allocation", "what competes for matches", "allocation/kind", "{} choice"),
    _Row("k", "matches a token that training asked for", "allocation/k", "{:g}"),
    _Row("features", "d_sae", "architecture/d_sae", "{:,}"),
    _Row("d_in", "numbers in an activation vector", "architecture/d_in", "{:,}"),
    _Row("model", "", "model"),
    _Row("hook", "", "hook"),
    _Row("rows left out", "for their massive norm; no figure but those with them counts them", "left_out", "{:,}", ""),
    _Row("trained on", "tokens, repeats counted", "trained_tokens", "{:,}"),
)
_RULE = (
    _Row(
        "explained variance", "share of the variance that is reconstructed; 1 is best", "explained_variance", "{:.4f}"
    ),
    _Row("FVU", "fraction of variance unexplained, 1 - explained variance; 0 is perfect", "fvu", "{:.4f}"),
    _Row(
        "explained variance with rows left out",
        "over all rows, those of massive norm too",
        "with_left_out/explained_variance",
        "{:.4f}",
        "",
    ),
    _Row("FVU with rows left out", "the same as FVU", "with_left_out/fvu", "{:.4f}", ""),
    _Row("FVU of the median token", "the same within one token", "token_fvu/0.5", "{:.4f}"),
    _Row("FVU of the 95 % token", "one token in twenty is explained worse", "token_fvu/0.95", "{:.4f}"),
    _Row("L0", "active features of a token, on average", "l0", "{:.2f}"),
    _Row("L0 with rows left out", "over all rows", "with_left_out/l0", "{:.2f}", ""),
    _Row("L0, 5 % to 95 %", "nine tokens in ten", "l0_quantiles", "{0[0.05]:g} to {0[0.95]:g}"),
    _Row("dead", "features that are not active on any of these tokens", "dead", "{:.2%}"),
    _Row("dead with rows left out", "over all rows", "with_left_out/dead", "{:.2%}", ""),
    _Row("under-used", "below a tenth of the density of the Zipf law, or dead", "under_used", "{:.2%}", "no law"),
    _Row("Zipf exponent", "a in density = c (rank + offset)^-a; 0 is equal use", "zipf/exponent", "{:.2f}", "no law"),
    _Row("Zipf offset", "ranks over which the law is flat", "zipf/offset", "{:.1f}", "no law"),
    _Row(
        "R² of the Zipf law",
        "of log density, octaves weigh equally; 1 is perfect",
        "zipf/r_squared",
        "{:.3f}",
        "no law",
    ),
    _Row("tokens that share their matches", "by the batch rule; the served rule decides alone", "batch", "{:,}", "1"),
)
_DECODER = (
    _Row("median cosine", "of a feature's direction to the most similar other; 1: repeated", "median", "{:.3f}"),
    _Row("99 % of the features are below", "the same cosine", "high", "{:.3f}"),
    _Row("above 0.9", "features that nearly repeat another", "nearly_equal", "{:.2%}"),
    _Row(
        "effective rank",
        "directions that the decoder spreads over, at most d_in (exp of the entropy of its singular values, Roy and "
        "Vetterli 2007)",
        "effective_rank",
        "{:.1f}",
    ),
)
_HOST = (
    _Row("cross-entropy", "of the next token, in nats", "cross_entropy", "{:.4f}", ""),
    _Row("KL", "from the untouched model's prediction, in nats a token", "kl", "{:.4f}", ""),
    _Row(
        "loss recovered, mean ablation", "share of the mean's cost that this saves", "loss_recovered_mean", "{:.2%}", ""
    ),
    _Row(
        "loss recovered, zero ablation", "share of the zeros' cost that this saves", "loss_recovered_zero", "{:.2%}", ""
    ),
    _Row("cosine of embeddings", "of a window, to the untouched model's", "embedding_cosine", "{:.4f}", ""),
    _Row("cosine of embeddings, 5 %", "one window in twenty is below", "embedding_cosine_low", "{:.4f}", ""),
    _Row("cosine of tokens", "of the final hidden state of each replaced token", "token_cosine", "{:.4f}", ""),
    _Row("cosine of tokens, 5 %", "one token in twenty is below", "token_cosine_low", "{:.4f}", ""),
    _Row("explained variance", "of the activations on this text", "explained_variance", "{:.4f}", ""),
    _Row("FVU", "1 - explained variance", "fvu", "{:.4f}", ""),
)


def identity(subjects: Sequence[Subject]) -> str:
    """The table of what the SAEs are, as HTML."""
    return _table(_IDENTITY, {subject.name: subject.evaluation for subject in subjects})


def rules(subjects: Sequence[Subject]) -> str:
    """The table of what the SAEs achieve by the served rule and by the batch rule, as HTML."""
    columns = {}
    for subject in subjects:
        for title, rule in (("served", subject.evaluation.served), ("batch rule", subject.evaluation.batch)):
            if rule is not None:
                no_law = {"under_used": None} if rule.zipf is None else {}
                columns[f"{subject.name}, {title}"] = vars(rule) | no_law
    return _table(_RULE, columns)


def decoders(subjects: Sequence[Subject]) -> str:
    """The table of how much the decoders repeat themselves, as HTML."""
    return _table(_DECODER, {subject.name: subject.evaluation.decoder for subject in subjects})


def hosts(subjects: Sequence[Subject]) -> str:
    """The table of what the host model loses with each SAE, and with the ablations, which are the same for all."""
    measured = [(s.name, s.evaluation.host) for s in subjects if s.evaluation.host is not None]
    first = measured[0][1]
    columns = {
        f"{name}, {title}": host.replaced[rule]
        for name, host in measured
        for rule, title in (("served", "served"), ("batch", "batch rule"))
        if rule in host.replaced
    }
    ablations = (("mean", "the mean"), ("zero", "zeros"))
    columns |= {title: first.replaced[rule] for rule, title in ablations if rule in first.replaced}
    if first.cross_entropy is not None:
        columns["untouched"] = {"cross_entropy": first.cross_entropy, "kl": 0.0}
    return _table(_HOST, columns)


def _table(rows: Sequence[_Row], columns: dict[str, Any]) -> str:
    """A table with a column for each object, without the rows that are empty in all columns."""
    cells = {row: [row.text(column) for column in columns.values()] for row in rows}
    shown = [row for row in rows if any(cells[row])]
    return page.table(["", *columns], [[row.name, *cells[row]] for row in shown], [row.note for row in shown])
