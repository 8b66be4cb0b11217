"""The ready SAE in the model, before anything is fitted: features of a sentence, and one edit of it by a label."""

from pathlib import Path

from sae_runtime.core.edits import Edit
from sae_runtime.demo.lines import Line, Lists
from sae_runtime.exports import Splice, splice
from sae_runtime.model import Model, load_model

READY = "all-MiniLM-L6-v2/encoder.layer.3"
SENTENCE = "The weather was nice and we walked to the lake."
LABEL, TIMES = "errors and exceptions", 2  # the edit: the feature, and how much of its largest activation
TEXTS = (
    "The file could not be opened.",
    "The meeting is on Monday, 3 March.",
    "The painting shows a red house.",
    "She took a photo of the mountains.",
    "An error occurred while parsing the input.",
    "The exam results were worse than expected.",
    "The dog sleeps in the garden.",
    "Our train leaves from platform nine.",
    "Prices rose by three percent last year.",
    "The server refused the connection.",
    "Rain is expected in the afternoon.",
    "Install the package with pip.",
    "They signed the contract yesterday.",
)
_WORDS, _NEAREST = 6, 4


def first_look(host: Path, folder: Path) -> dict[str, Lists]:
    """Splice the ready SAE into a host graph; gives the sections that show what it says of a sentence.

    Args:
        host: the graph of all-MiniLM-L6-v2.
        folder: of the deployed model that is made.
    """
    splice(host, Splice(bundle=READY, name="ready"), folder)
    model = load_model(folder)
    edit = f"“{SENTENCE}”: the feature “{LABEL}” set to {TIMES} times its largest activation"
    return {
        f"The ready SAE {READY}: what “{SENTENCE}” is about, by labels": [("strongest features", _features(model))],
        f"Steering {edit}": [
            ("nearest sentences before", _nearest(model, [])),
            ("nearest sentences after", _nearest(model, [Edit.set(LABEL, times=TIMES)])),
        ],
    }


def _features(model: Model) -> tuple[Line, ...]:
    """The words with the strongest features, each with the label of its strongest."""
    seen, labels = model.features(SENTENCE), model.saes["ready"].labels
    dense, lines = seen.saes["ready"].to_dense(), []
    for token, (begin, end) in enumerate(seen.offsets.tolist()):
        row = dense[token]
        if not seen.special[token] and row.any():
            feature = int(row.argmax())
            line = Line(float(row[feature]), f"{labels.get(feature, f'feature {feature}')}: ", SENTENCE[begin:end])
            lines.append(line)
    return tuple(sorted(lines, key=lambda line: -line.value)[:_WORDS])


def _nearest(model: Model, edits: list[Edit]) -> tuple[Line, ...]:
    cosines = model.embed(list(TEXTS)) @ model.embed(SENTENCE, edits)
    order = (-cosines).argsort(kind="stable")[:_NEAREST].tolist()
    return tuple(Line(float(cosines[number]), TEXTS[number]) for number in order)
