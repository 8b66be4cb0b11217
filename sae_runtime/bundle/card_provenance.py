"""What a model card tells of an SAE's origin: texts, activations, settings, seed and versions, or its source."""

from collections.abc import Iterator, Mapping
from typing import Any

from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.markdown import inline, words

_PARTS = {"train": "for the fit", "calibration": "for the threshold", "validation": "for the figures"}
_MOST = 20  # values of one kind


def fitted_on(manifest: Manifest) -> Iterator[str]:
    """The section on the origin, as Markdown paragraphs; none where the manifest tells nothing.

    >>> list(fitted_on(sae.manifest))
    []
    """
    lines = [*_source(manifest), *_rows(manifest), *_settings(manifest), *_versions(manifest)]
    if not lines:
        return
    yield "## What it was fitted on"
    yield "\n".join(f"- {line}" for line in lines)
    warned = [text for text in manifest.told("warnings", list) if isinstance(text, str)][:_MOST]
    yield from (f"Note: {words(text)}" for text in warned)


def _source(manifest: Manifest) -> Iterator[str]:
    source = manifest.told("source", dict)
    if not source:
        return
    where = source.get("reference") or source.get("file")
    yield f"converted from {inline(where)}" + (f" (sha256 {inline(sha)})" if (sha := source.get("sha256")) else "")
    names = [manifest.told(name, str) for name in ("format", "source_format")]
    if shown := ", ".join(inline(name) for name in dict.fromkeys(filter(None, names))):
        yield f"format: {shown}"
    for name, value in list(manifest.told("fitted_on", dict).items())[:_MOST]:
        yield f"{inline(name)}: {inline(value)}"


def _rows(manifest: Manifest) -> Iterator[str]:
    if texts := [name for name in manifest.told("text", list) if isinstance(name, str)]:
        more = f" and {len(texts) - _MOST:,} more" if len(texts) > _MOST else ""
        yield f"texts: {', '.join(map(inline, texts[:_MOST]))}{more}"
    if activations := manifest.told("activations", str):
        yield f"activations: {inline(activations)}"
    if rows := _counted(manifest.told("rows", dict)):
        yield f"tokens: {rows}"
    calibration = manifest.told("calibration", dict)
    if isinstance(name := calibration.get("activations"), str):
        rows = _counted(calibration.get("rows"))
        yield f"threshold fitted again on: {inline(name)}" + (f"; tokens: {rows}" if rows else "")


def _settings(manifest: Manifest) -> Iterator[str]:
    config, recipe = manifest.told("config", dict), manifest.told("recipe", dict)
    if _is_count(tokens := config.get("tokens")):
        yield f"tokens of the fit, repeats counted: {tokens:,}"
    shown = {name: config.get(name) for name in ("batch", "seed", "holdout")}
    shown |= {"steps": recipe.get("steps"), "learning rate": recipe.get("lr")}
    if settings := ", ".join(f"{name} {value:g}" for name, value in shown.items() if _is_number(value)):
        yield f"settings: {settings}"


def _versions(manifest: Manifest) -> Iterator[str]:
    for of in (manifest.told("versions", dict), manifest.told("calibration", dict).get("versions")):
        known = [(k, v) for k, v in of.items() if isinstance(v, str)][:_MOST] if isinstance(of, dict) else []
        if known:
            yield f"versions: {', '.join(f'{inline(name)} {inline(value)}' for name, value in known)}"


def _counted(rows: Any) -> str:
    if not isinstance(rows, Mapping):
        return ""
    return ", ".join(f"{rows[part]:,} {use}" for part, use in _PARTS.items() if _is_count(rows.get(part)))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1 << 53
