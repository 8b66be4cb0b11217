"""The figures of a model card: what an SAE explains, by the served rule and by the batch rule."""

import math
from collections.abc import Iterator, Mapping

from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.markdown import table


def figures(manifest: Manifest) -> Iterator[str]:
    """The section on figures, as Markdown paragraphs; none where the manifest has no figures.

    >>> list(figures(sae.manifest))
    []
    """
    rows = list(_rows(manifest))
    if not rows:
        return
    yield "## Figures"
    yield table(["rule", "FVU", "explained variance", "L0", "tokens"], rows)
    yield (
        "FVU is the share of the variance of activations that the reconstruction leaves; explained variance is "
        "1 - FVU. L0 is the mean number of active features of a token."
    )
    measured = manifest.measured
    if {"dead", "dead_tokens"} <= measured.keys():
        yield (
            f"Dead features: {100 * measured['dead']:.3g} % of the features are active on none of "
            f"{_count(measured['dead_tokens'])} tokens."
        )
    yield from _left_out(manifest)


def _rows(manifest: Manifest) -> Iterator[list[str]]:
    measured, all_rows = manifest.measured, manifest.measured_with_left_out
    if {"l0", "tokens"} <= measured.keys():
        yield _row("as served", measured, "fvu", "l0")
    if {"batch_l0", "batch"} <= measured.keys():
        yield _row(f"batch rule, batches of {_count(measured['batch'])} tokens", measured, "batch_fvu", "batch_l0")
    if {"l0", "tokens"} <= all_rows.keys():
        yield _row("as served, with the rows that are left out", all_rows, "fvu", "l0")


def _row(rule: str, measured: Mapping[str, float], fvu: str, l0: str) -> list[str]:
    tokens = _count(measured["tokens"]) if "tokens" in measured else "not recorded"
    if fvu not in measured:
        return [rule, "not measured", "not measured", f"{measured[l0]:.2f}", tokens]
    return [rule, f"{measured[fvu]:.4f}", f"{1 - measured[fvu]:.4f}", f"{measured[l0]:.2f}", tokens]


def _left_out(manifest: Manifest) -> Iterator[str]:
    rule = manifest.left_out
    if rule is None:
        return
    rows = sum(number for number in rule.rows.values() if type(number) is int)
    texts = []
    if rows and rule.norm_multiple is not None:
        texts.append(f"{rows:,} rows with more than {rule.norm_multiple:g} times the median norm")
    if rule.first_positions:
        texts.append(f"the first {rule.first_positions:,} positions of each window")
    if rule.token_ids:
        shown = ", ".join(map(str, rule.token_ids[:10])) + ", ..." * (len(rule.token_ids) > 10)
        texts.append(f"the tokens {shown}")
    if texts:
        yield f"Left out of fit and figures: {'; '.join(texts)}."


def _count(number: float) -> str:
    return f"{number:,.0f}" if math.isfinite(number) else "not recorded"
