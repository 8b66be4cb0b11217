from typing import Any

import matplotlib.figure
import numpy as np
import pytest

from sae_runtime.browser import plots
from sae_runtime.core.printable import printable


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every picture that is drawn."""
    drawn: list[Any] = []
    savefig = matplotlib.figure.Figure.savefig

    def keep(figure: Any, *args: Any, **settings: Any) -> None:
        drawn.extend(figure.axes)
        savefig(figure, *args, **settings)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return drawn


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_densities_are_sorted_and_drawn_with_their_law(axes: list[Any]) -> None:
    picture = plots.density_by_rank({"a": np.array([0.1, 0.0, 0.4]), "b": np.array([0.2])}, {"b": np.array([0.3])})
    assert picture.startswith("<svg ")
    a, b, law, _ = axes[0].get_lines()
    assert a.get_xdata().tolist() == [1, 2] and a.get_ydata().tolist() == [0.4, 0.1]
    assert law.get_color() == b.get_color() != a.get_color() and law.get_ydata().tolist() == [0.3]
    assert labels(axes[0]) == ["a", "b", "Zipf law, fitted"]


def test_one_number_for_nearly_all_tokens_is_a_vertical_line(axes: list[Any]) -> None:
    plots.active_features({"token": np.array([1, 0, 99]), "mutual": np.array([0, 5, 3, 2])})
    token, mutual = axes[0].get_lines()
    assert token.get_xdata() == [2, 2]
    assert mutual.get_ydata()[:4] == pytest.approx([0, 0.5, 0.3, 0.2])
    assert labels(axes[0]) == ["token: 99.0% have 2", "mutual"]


def test_cosines_and_curves(axes: list[Any]) -> None:
    plots.largest_cosines({"a": np.array([0, 0, 3, 1])})
    assert axes[0].get_xlim() == (0, 1)
    plots.largest_cosines({"a": np.array([1, 0, 3, 0])})
    assert axes[1].get_xlim() == (-1, 1)
    plots.training_curves({"a": [{"tokens": 10, "fvu": 0.5}, {"tokens": 20, "fvu": 0.25}]})
    (line,) = axes[2].get_lines()
    assert list(line.get_ydata()) == [0.5, 0.25]


def test_a_name_that_the_font_cannot_write_gives_no_warning(axes: list[Any]) -> None:
    assert plots.largest_cosines({"空": np.array([0, 1])}).startswith("<svg ")
    assert labels(axes[0]) == ["空"]


def test_pictures_without_numbers_above_zero_are_drawn() -> None:
    assert plots.density_by_rank({"a": np.zeros(3)}).startswith("<svg ")
    assert plots.training_curves({"a": [{"tokens": 1, "fvu": 0.0}]}).startswith("<svg ")


def test_more_names_than_colours_have_different_lines(axes: list[Any]) -> None:
    plots.training_curves({str(i): [{"tokens": 1, "fvu": 0.5}, {"tokens": 2, "fvu": 0.4}] for i in range(15)})
    assert len({(line.get_color(), line.get_linestyle()) for line in axes[0].get_lines()}) == 15


NAMES = [
    "$x^{",
    r"\frac$",
    "_hidden",
    "",
    "a\x1b[31m\u202e",
    "\ud800",
    "two\nlines",
    "\u0b95\u0bbe",
    "\U0001f984",
    "$a$",
]


def test_names_are_drawn_as_they_are_and_never_as_formulas(axes: list[Any]) -> None:
    def of_each(value: Any) -> dict[str, Any]:
        return dict.fromkeys(NAMES, value)

    for picture in (
        plots.density_by_rank(of_each(np.array([0.4, 0.1])), of_each(np.array([0.3, 0.2]))),
        plots.active_features(of_each(np.array([0, 3, 1]))),
        plots.active_features(of_each(np.array([0, 9]))),
        plots.largest_cosines(of_each(np.array([0, 0, 3, 1]))),
        plots.training_curves(of_each([{"tokens": 1000, "fvu": 0.5}, {"tokens": 2000, "fvu": float("nan")}])),
    ):
        assert picture.startswith("<svg ")
    for drawn in axes:
        shown = labels(drawn)[: len(NAMES)]
        assert all(label.startswith(printable(name)) for name, label in zip(NAMES, shown, strict=True))
        assert not any(text.get_parse_math() for text in drawn.get_legend().get_texts())


def test_a_long_name_leaves_room_for_the_picture(axes: list[Any]) -> None:
    plots.largest_cosines({"x" * 1000: np.array([1, 2])})
    assert labels(axes[0]) == ["x" * 57 + "..."]
