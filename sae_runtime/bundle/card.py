"""The model card of a bundle, README.md: what the SAE is, what it explains, how to load it, what it was fitted on.

The card is made from the manifest alone. Its texts may be a stranger's, so they never become markup.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from sae_runtime.bundle.card_figures import figures
from sae_runtime.bundle.card_provenance import fitted_on
from sae_runtime.bundle.graphs import DECODE, ENCODE, EXACT, GPU, JOINT, STEER
from sae_runtime.bundle.hub import is_repository
from sae_runtime.bundle.licences import check_licence, front_matter
from sae_runtime.bundle.manifest import Allocation, Manifest
from sae_runtime.bundle.markdown import inline, table, words
from sae_runtime.bundle.parts import DERIVED, MANIFEST, SAMPLE, STATS, WEIGHTS
from sae_runtime.bundle.sae_lens_cfg import CFG
from sae_runtime.bundle.same_source import public_name
from sae_runtime.bundle.sealed import HUB, HUB_CALL, sealed

NOT_STATED = "Licence: not stated."
TAGS = ("sparse-autoencoder", "mechanistic-interpretability", "onnx")
_GRAPHS = {
    ENCODE.file: "activations to features: each token by itself",
    EXACT.file: "the same features, quicker for many features: int8 finds the matches, float32 decides",
    GPU.file: "the same features on a GPU: float16 finds the matches, float32 decides",
    JOINT.file: "activations to features by the batch rule, over all tokens of a call",
    DECODE.file: "features to reconstructed activations",
    STEER.file: "edits of features, put into activations",
}
_FILES = {
    MANIFEST: "manifest: sizes, hook, figures, provenance, sha256 of every file",
    "cfg.json": "configuration of SAELens",
    WEIGHTS: "weights, float32; the graphs read them there",
    DERIVED: "what graphs read besides; `sae-runtime export` makes it again",
    SAMPLE: "typical activations, for the steps of int8",
    STATS: "density and largest activation of each feature",
}


def card(
    manifest: Manifest,
    *,
    title: str | None = None,
    paragraphs: Sequence[str] = (),
    licence: str | None = None,
    ready: str | None = None,
) -> str:
    """The text of README.md, sealed (`sealed.py`): unless somebody edits it, it may be written again.

    Args:
        manifest: of the bundle, with the files and graphs that it has.
        title: the heading, a text; None: from model and hook.
        paragraphs: Markdown that stands after the first paragraph, such as what the features are good for. It is the
            caller's own and is not escaped.
        licence: of the SAE; None: the one of the manifest's provenance, if it has one.
        ready: the name of a ready SAE, for the lines that load it; None: these name a repository of the Hub.

    >>> text = card(sae.manifest, paragraphs=["The features are made up."])
    >>> text.splitlines()[0], "150 features" in text, "The features are made up." in text
    ('---', True, True)
    """
    licence = licence or licence_in(manifest)
    parts = [
        f"# {title_of(manifest) if title is None else words(title)}",
        _introduction(manifest),
        *paragraphs,
        table(["field", "value"], _facts(manifest)),
        *figures(manifest),
        _loading(manifest, ready),
        _files(manifest),
        *fitted_on(manifest),
        "## Licence",
        NOT_STATED if licence is None else f"Licence: {inline(licence)}.",
    ]
    return sealed(f"{_front(manifest, licence)}\n\n" + "\n\n".join(parts))


def licence_in(manifest: Manifest) -> str | None:
    """The licence that a manifest's provenance has; for a converted SAE that of its source. None if it has none.

    >>> licence_in(sae.manifest)
    """
    for licence in (manifest.told("licence", str), manifest.told("source", dict).get("licence")):
        if isinstance(licence, str) and licence:
            return licence
    return None


def with_licence(manifest: Manifest, licence: str | None) -> Manifest:
    """A manifest whose provenance has a licence that a user names; None changes nothing.

    Raises:
        ValueError: it is no name of a licence.

    >>> licence_in(with_licence(sae.manifest, "mit"))
    'mit'
    """
    if licence is None:
        return manifest
    return dataclasses.replace(manifest, provenance={**manifest.provenance, "licence": check_licence(licence)})


def title_of(manifest: Manifest) -> str:
    """The heading of a card, as Markdown.

    >>> title_of(sae.manifest)
    'Sparse autoencoder with 150 features'
    """
    kind = "Sparse autoencoder" if manifest.architecture.d_out is None else "Transcoder"
    if manifest.model is None:
        return f"{kind} with {manifest.architecture.d_sae:,} features"
    return f"{kind} of {', '.join(inline(name) for name in (manifest.model, manifest.hook) if name)}"


def base_model(model: str | None) -> str | None:
    """The repository on the Hub that a model's name is; None for a path or another name.

    >>> base_model("sentence-transformers/all-MiniLM-L6-v2"), base_model("gpt2"), base_model("/models/gpt2")
    ('sentence-transformers/all-MiniLM-L6-v2', 'openai-community/gpt2', None)
    """
    if model is None:
        return None
    if public_name(model) == "gpt2" or model == "gpt2-small":
        return "openai-community/gpt2"
    return model if is_repository(model) else None


def front(tags: Sequence[str], licence: str | None, model: str | None) -> str:
    """The front matter of a card, as YAML that the Hub reads.

    >>> print(front(["onnx"], "mit", None))
    ---
    library_name: sae-runtime
    license: mit
    tags:
    - onnx
    ---
    """
    lines = ["---", "library_name: sae-runtime", *(front_matter(licence) if licence else [])]
    if (base := base_model(model)) is not None:
        lines.append(f'base_model: "{base}"')
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _front(manifest: Manifest, licence: str | None) -> str:
    return front([*TAGS, *(["saelens"] if CFG in manifest.files else [])], licence, manifest.model)


def _introduction(manifest: Manifest) -> str:
    architecture = manifest.architecture
    kind = "sparse autoencoder (SAE)" if architecture.d_out is None else "transcoder"
    where = f" at {inline(manifest.hook)}" if manifest.hook else ""
    of = f" of {inline(manifest.model)}" if manifest.model else ""
    what = f"This {kind} writes an activation{where}{of} as a sum of a few of {architecture.d_sae:,} features."
    if architecture.d_out is not None:
        out = inline(manifest.hook_out) if manifest.hook_out else "another activation"
        what = f"This {kind} predicts {out}{of} from an activation{where}, by a few of {architecture.d_sae:,} features."
    return f"{what} It is a bundle of sae-runtime, which reads and steers its features with onnxruntime, without torch."


def _facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    architecture = manifest.architecture
    yield "model", inline(manifest.model) if manifest.model else "not recorded"
    lens = manifest.transformer_lens_hook
    hook = inline(manifest.hook) if manifest.hook else "not recorded"
    yield "hook", f"{hook}, in TransformerLens {inline(lens)}" if lens and lens != manifest.hook else hook
    yield "d_in", f"{architecture.d_in:,} numbers of an activation"
    if architecture.d_out is not None:
        out = f" of {inline(manifest.hook_out)}" if manifest.hook_out else ""
        yield "d_out", f"{architecture.d_out:,} numbers{out}"
    yield "d_sae", f"{architecture.d_sae:,} features"
    yield "allocation", "not recorded" if manifest.allocation is None else _allocation(manifest.allocation)
    yield "served rule", _served(manifest)
    norms = {"layer": "mean 0 and standard deviation 1", "length": "one length"}
    if architecture.norm != "none":
        yield "norm", f"activations are brought to {norms[architecture.norm]} first"
    if architecture.skip:
        yield "skip", "a linear map of the activation is added to the reconstruction"
    yield "slots", f"{manifest.slots:,} (feature, value) places of a token in `encode.onnx`"


def _allocation(allocation: Allocation) -> str:
    return {
        "token": "token choice (TopK): each token keeps its k largest pre-activations",
        "mutual": "mutual choice (BatchTopK): n tokens together keep their k n largest pre-activations",
        "feature": "feature choice: BatchTopK with a limit on the share of tokens that a feature is active on",
    }[allocation.kind] + f"; k = {allocation.k:g}"


def _served(manifest: Manifest) -> str:
    k = manifest.architecture.k
    return {
        "topk": f"the {k} largest features of a token",
        "groupmax": f"the largest feature of each of {k} groups of neighbours",
        "threshold": "a feature is active where it exceeds its threshold (JumpReLU), each token by itself",
    }[manifest.architecture.selection]


def _loading(manifest: Manifest, ready: str | None) -> str:
    d_in, reference = manifest.architecture.d_in, ready or HUB
    text = f"""## How to load it

```bash
pip install "sae-runtime[{"cpu" if ready else "cpu,hub"}]"
sae-runtime inspect {reference}
```

```python
import numpy as np
import sae_runtime

sae = sae_runtime.load("{reference}")
x = np.zeros((1, {d_in}), np.float32)  # activations [tokens, d_in] of the hook
features = sae.encode(x)
```"""
    if manifest.hook and manifest.architecture.d_out is None:
        text += f"""

`sae-runtime splice model.onnx --sae {reference} -o model` puts it into an ONNX graph of the model, which then gives
features of texts and takes edits of them."""
    if CFG not in manifest.files:
        return text
    call = f'load_from_disk(sae_runtime.load("{ready}").folder)' if ready else f"from_pretrained({HUB_CALL})"
    text += f"""

SAELens computes the same features:

```python
from sae_lens import SAE

sae = SAE.{call}
```"""
    if ready:
        return text
    return f"""{text}

Of a folder on this machine, that is `sae_runtime.load("my-sae")` and `SAE.load_from_disk("my-sae")`."""


def _files(manifest: Manifest) -> str:
    rows = [[f"`{name}`", what] for name, what in _FILES.items() if name == MANIFEST or name in manifest.files]
    rows += [[f"`{name}`", what] for name, what in _GRAPHS.items() if name in manifest.graphs]
    text = f"## Files\n\n{table(['file', 'content'], rows)}"
    if not manifest.graphs:
        text += "\n\nThere are no ONNX graphs yet; `sae-runtime export` adds them."
    return text
