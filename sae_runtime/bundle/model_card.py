"""The model card of a deployed model: the SAEs in its graph, how to load it, what the splices take and give."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from sae_runtime.bundle.card import NOT_STATED, TAGS, front
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.markdown import inline, table
from sae_runtime.bundle.sealed import CARD, HUB, may_write, sealed
from sae_runtime.bundle.splices import Spliced

BESIDE = "README-sae.md"
"""The name of our card where README.md is the host's or a person's."""
HOST_CARD = "README-host.md"
"""The name that `push` gives the host's card in a repository, whose README.md is ours."""

_PORTS = {
    "features": ("i64 [b or 1, e]", "the features to edit"),
    "scale": ("f32 [b or 1, e]", "f' = clip(scale f + shift, low, high)"),
    "shift": ("f32 [b or 1, e]", "likewise"),
    "low": ("f32 [b or 1, e]", "likewise"),
    "high": ("f32 [b or 1, e]", "likewise"),
    "gate": ("f32, broadcastable to [b, t, e]", "how much of an edit each token gets"),
    "direction": ("f32, broadcastable to [b, t, d_in]", "a direction that is added to the activation"),
    "when": ("i64 [b or 1, c]", "edits apply only where every one of these features exceeds its value in `above`"),
    "above": ("f32 [b or 1, c]", "likewise"),
    "slots": ("i64 [b or 1]", "slots of the outputs; 0 reads nothing"),
    "indices": ("i64 [b, t, slots]", "the features of each token before editing, strongest first"),
    "values": ("f32 [b, t, slots]", "their activations; an unused slot has value 0"),
}


def model_card(
    splices: Mapping[str, Spliced],
    manifests: Mapping[str, Manifest],
    *,
    graph: str,
    tokenizer: bool,
    licence: str | None = None,
) -> str:
    """The text of the card of a spliced model, sealed as that of a bundle.

    Args:
        splices: the SAEs in its graph, by name.
        manifests: those of their bundles, as far as they are known.
        graph: the file name of the graph.
        tokenizer: whether the folder has a tokenizer.
        licence: of the host model; None if it is not known.

    >>> one = Spliced(name="sae", hook="h.3", tensor="add_7", inputs=("sae_slots",), outputs=("sae_values",),
    ...               replace=False, d_in=24, d_sae=150, weights="9f86d081", slots=24)
    >>> text = model_card({"sae": one}, {"sae": sae.manifest}, graph="model.onnx", tokenizer=True)
    >>> "## Inputs and outputs" in text, "load_model" in text
    (True, True)
    """
    models = list(dict.fromkeys(manifest.model for manifest in manifests.values() if manifest.model))
    named = inline(models[0]) if len(models) == 1 else "A model"
    count = "a sparse autoencoder" if len(splices) == 1 else f"{len(splices)} sparse autoencoders"
    parts = [
        f"# {named} with {count} inside",
        f"`{graph}` is the graph of a model with {count} (SAE) in it, put in by "
        "sae-runtime. It gives features of each token and takes edits of "
        "them, wherever ONNX runs. A program that knows nothing of the SAE gets the outputs of the model as it was.",
        table(["SAE", "hook", "d_in", "d_sae", "slots", "what it does", "bundle"], _rows(splices)),
        _loading(tokenizer=tokenizer),
        "## Inputs and outputs",
        "These come beside the model's own. b is the number of texts, t of tokens, e of edits, c of conditions.",
        table(["name", "type, shape", "what it is"], _ports(splices)),
        "## Licence",
        NOT_STATED if licence is None else f"Licence: {inline(licence)}, as the files of the model state it.",
    ]
    base = models[0] if len(models) == 1 else None
    return sealed(f"{front(TAGS, licence, base)}\n\n" + "\n\n".join(parts))


def _rows(splices: Mapping[str, Spliced]) -> Iterator[list[str]]:
    for name, one in splices.items():
        slots = "not recorded" if one.slots is None else f"{one.slots:,}"
        bundle = f"{inline(f'{one.bundle}/')}" if one.bundle else "not in this folder"
        yield [inline(name), inline(one.hook), f"{one.d_in:,}", f"{one.d_sae:,}", slots, _does(one), bundle]


def _does(spliced: Spliced) -> str:
    reads, edits = bool(spliced.outputs), any(name.endswith("_features") for name in spliced.inputs)
    does = [text for text, is_so in (("gives features", reads), ("takes edits", edits)) if is_so]
    does += ["its reconstruction replaces the activation"] if spliced.replace else []
    return ", ".join(does)


def _loading(*, tokenizer: bool) -> str:
    text = f"""## How to load it

```bash
pip install "sae-runtime[cpu,text,hub]"
```

```python
import sae_runtime

model = sae_runtime.load_model("{HUB}")"""
    if tokenizer:
        text += """
seen = model.features(["A text."])  # tokens, and the features of each"""
    return f"""{text}
```

Of a folder on this machine, that is `sae_runtime.load_model("model")`. onnxruntime opens the graph as it is: give the
inputs below beside the model's own."""


def _ports(splices: Mapping[str, Spliced]) -> Iterator[list[str]]:
    for one in splices.values():
        for kind, names in (("input", one.inputs), ("output", one.outputs)):
            for name in names:
                shape, what = _PORTS.get(name.removeprefix(f"{one.name}_"), ("", ""))
                yield [f"{inline(name)} ({kind})", shape, what]


def name_of_card(folder: Path, *, copied: bool) -> str | None:
    """The name that our card gets in the folder of a spliced graph; None: both names are taken by cards of people.

    Args:
        folder: of the graph; it need not exist.
        copied: whether the README.md of the host goes there.

    >>> name_of_card(Path("model"), copied=False), name_of_card(Path("model"), copied=True)
    ('README.md', 'README-sae.md')
    """
    if may_write(folder) and not copied:
        return CARD
    return BESIDE if may_write(folder, BESIDE) else None
