"""The model card of a repository that holds several bundles, as `train` writes them for several k: one row for each."""

from collections.abc import Iterator, Mapping

from sae_runtime.bundle.card import NOT_STATED, TAGS, base_model, front, licence_in
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.markdown import inline, table
from sae_runtime.bundle.sae_lens_cfg import CFG
from sae_runtime.bundle.sealed import HUB, sealed


def index_card(bundles: Mapping[str, Manifest]) -> str:
    """The text of the card, sealed.

    Args:
        bundles: the manifests by the names of their folders.

    >>> text = index_card({"k16": sae.manifest, "k32": sae.manifest})
    >>> "# 2 sparse autoencoders" in text, 'load("hf://OWNER/NAME/k16")' in text
    (True, True)
    """
    models = {base_model(manifest.model) for manifest in bundles.values()}
    licences = {licence_in(manifest) for manifest in bundles.values()}
    licence = licences.pop() if len(licences) == 1 else None
    lens = all(CFG in manifest.files for manifest in bundles.values())
    first = next(iter(bundles))
    parts = [
        f"# {len(bundles)} sparse autoencoders",
        "Each folder is a bundle of sae-runtime, with a model card of its own.",
        table(["folder", "model", "hook", "d_sae", "k", "FVU", "L0"], _rows(bundles)),
        f"""## How to load one

```python
import sae_runtime

sae = sae_runtime.load("{HUB}/{first}")
```""",
        "## Licence",
        NOT_STATED if licence is None else f"Licence: {inline(licence)}.",
    ]
    tags = [*TAGS, *(["saelens"] if lens else [])]
    head = front(tags, licence, models.pop() if len(models) == 1 else None)
    return sealed(f"{head}\n\n" + "\n\n".join(parts))


def _rows(bundles: Mapping[str, Manifest]) -> Iterator[list[str]]:
    for name, manifest in bundles.items():
        fvu, l0 = (manifest.measured.get(figure) for figure in ("fvu", "l0"))
        yield [
            inline(f"{name}/"),
            inline(manifest.model) if manifest.model else "not recorded",
            inline(manifest.hook) if manifest.hook else "not recorded",
            f"{manifest.architecture.d_sae:,}",
            "not recorded" if manifest.allocation is None else f"{manifest.allocation.kind} {manifest.allocation.k:g}",
            "not measured" if fvu is None else f"{fvu:.4f}",
            "not measured" if l0 is None else f"{l0:.2f}",
        ]
