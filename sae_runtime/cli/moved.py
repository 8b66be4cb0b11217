"""What the edits of `sae-runtime steer MODEL --text` move: neighbours of a text, an answer, or any output."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from sae_runtime.cli import texts
from sae_runtime.core.columns import aligned
from sae_runtime.core.printable import printable

if TYPE_CHECKING:
    from sae_runtime.core.edits import Edit
    from sae_runtime.generation.answer import Answer
    from sae_runtime.model import Model

_LENGTH = 1e-12  # of a vector that has no direction


@dataclass(frozen=True)
class Neighbour:
    """A text of a list as a neighbour of a text, before and after an edit.

    Attributes:
        text: its number in the list.
        ranks: among the list, from 1 on, before and after.
        cosines: to the text, before and after.
    """

    text: int
    ranks: tuple[int, int]
    cosines: tuple[float, float]


def cosines(vectors: NDArray[np.float32], to: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine of each row [n, d] to each row [m, d]: [n, m]; 0 for a vector of length 0.

    >>> cosines(np.eye(2, dtype=np.float32), np.array([[2.0, 0.0]], np.float32)).tolist()
    [[1.0], [0.0]]
    """
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _LENGTH) for x in (vectors.astype(float), to))
    found: NDArray[np.float64] = a @ b.T
    return found


def neighbours(before: NDArray[np.float64], after: NDArray[np.float64], count: int) -> list[Neighbour]:
    """The nearest texts of a list before and after an edit, those that are nearest now first.

    Args:
        before: cosine of each text of the list to the text before, [n].
        after: the same after the edit.
        count: how many of the nearest ones to take, before and after.

    >>> [(one.text, one.ranks) for one in neighbours(np.array([0.9, 0.2, 0.1]), np.array([0.1, 0.2, 0.8]), 1)]
    [(2, (3, 1)), (0, (1, 3))]
    """
    orders = [np.argsort(-values, kind="stable") for values in (before, after)]
    ranks = [np.argsort(order) + 1 for order in orders]
    chosen = sorted({int(text) for order in orders for text in order[:count]}, key=lambda text: ranks[1][text])
    return [
        Neighbour(text, (int(ranks[0][text]), int(ranks[1][text])), (float(before[text]), float(after[text])))
        for text in chosen
    ]


def distance(before: NDArray[Any], after: NDArray[Any]) -> tuple[float, float]:
    """How far an output moved: the length of the change by that of the output, and the largest change of a number.

    >>> distance(np.array([3.0, 4.0]), np.array([3.0, 5.0]))
    (0.2, 1.0)
    """
    a, b = before.astype(np.float64), after.astype(np.float64)
    size, change = float(np.linalg.norm(a)), b - a
    relative = float(np.linalg.norm(change)) / max(size, _LENGTH)
    return relative, float(np.abs(change).max(initial=0))


@dataclass(frozen=True, kw_only=True)
class Steering:
    """Texts of a deployed model without edits and with them.

    Attributes:
        model: the model.
        texts: the texts.
        edits: of each SAE.
        gate: the tokens that the edits reach.
        among: texts whose nearest ones are shown, before and after.
        nearest: how many of them.
        chat: whether the texts are messages of a conversation.
        most: the most tokens of an answer.
        temperature: of the answers; 0 takes the most likely tokens.
        seed: of the answers' random numbers.
    """

    model: "Model"
    texts: Sequence[str]
    edits: Mapping[str, Sequence["Edit"]]
    gate: Any
    among: Sequence[str]
    nearest: int
    chat: bool
    most: int
    temperature: float
    seed: int

    def moved(self) -> Iterator[dict[str, Any]]:
        """What the edits move, of each text: by the kind of the model its vector, its answer or its outputs."""
        results = {"vectors": self._vectors, "text": self._answers, "other": self._outputs}[self.model.kind]()
        for text, result in zip(self.texts, results, strict=True):
            yield {"text": text, **result}

    def answer(self, text: str, *, edited: bool) -> "Answer":
        """The answer to a text, piece by piece."""
        prompt: Any = [{"role": "user", "content": text}] if self.chat else text
        return self.model.generate(
            prompt,
            self.edits if edited else (),
            gate=self.gate,
            max_new_tokens=self.most,
            temperature=self.temperature,
            seed=self.seed,
        )

    def _vectors(self) -> Iterator[dict[str, Any]]:
        before, after = self.model.embed(self.texts), self.model.embed(self.texts, self.edits, gate=self.gate)
        listed = self.model.embed(self.among) if self.among else before[:0]
        for old, new in zip(before, after, strict=True):
            near = neighbours(cosines(listed, old[None])[:, 0], cosines(listed, new[None])[:, 0], self.nearest)
            shown = [asdict(one) | {"text": self.among[one.text]} for one in near]
            yield {"cosine": float(cosines(old[None], new[None])[0, 0]), "nearest": shown}

    def _answers(self) -> Iterator[dict[str, Any]]:
        for text in self.texts:
            answers = [self.answer(text, edited=edited) for edited in (False, True)]
            yield {name: _read(one) for name, one in zip(("without", "with"), answers, strict=True)}

    def _outputs(self) -> Iterator[dict[str, Any]]:
        runs = self.model.run(self.texts), self.model.run(self.texts, self.edits, gate=self.gate)
        for before, after in zip(*runs, strict=True):
            far = {name: distance(array, after[name]) for name, array in before.items()}
            yield {"outputs": {name: {"relative": share, "largest": most} for name, (share, most) in far.items()}}


def _read(answer: "Answer") -> str:
    for _ in answer:
        pass
    return answer.text


def show(steering: Steering, heading: Callable[[], None]) -> None:
    """Print a heading and what the edits move. What cannot be done is refused before; answers appear piece by piece."""
    if steering.model.kind != "text":
        results = list(steering.moved())
        heading()
        for result in results:
            click.echo("\n".join(["", texts.title(result["text"]), *_lines(result)]))
        return
    for number, text in enumerate(steering.texts):
        answers = {f"{word} edits": steering.answer(text, edited=word == "with") for word in ("without", "with")}
        if not number:
            heading()
        click.echo(f"\n{texts.title(text)}")
        for name, answer in answers.items():
            click.echo(f"\n  {name}:\n")
            for piece in answer:
                click.echo(printable(piece, keep="\n\t"), nl=False)
            click.echo()


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The lines on what moved of a text."""
    if "cosine" in result:
        yield f"  cosine of before and after {result['cosine']:.3f}"
    for name, far in result.get("outputs", {}).items():
        yield printable(
            f"  {name} moved by {far['relative']:.2%} of its length, a number by {far['largest']:.4g} at most"
        )
    if result.get("nearest"):
        rows: list[tuple[str, ...]] = [("", "before", "", "after", "", "nearest texts")]
        for one in result["nearest"]:
            rows.append(("", *_cells(one), texts.one_line(one["text"], texts.columns() - 32)))
        yield from aligned(rows, right=[1, 2, 3, 4])


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Rank and cosine before, and after."""
    return tuple(
        cell
        for rank, cosine in zip(one["ranks"], one["cosines"], strict=True)
        for cell in (f"#{rank}", f"{cosine:.2f}")
    )
