"""Pictures of matplotlib as SVG that stands in a page: no style, no script, few bytes, light and dark."""

import io
import re
import warnings
from collections.abc import Iterator
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

_NAMESPACE = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_FEWER = re.compile(r"(-?\d+\.\d\d)\d+")  # of a pixel, which nobody sees
_BLACK = "#000000"


def svg(figure: Figure, title: str) -> str:
    """The figure as one element of HTML, and equally as the text of an SVG file.

    A page's content security policy forbids styles that stand in elements, so they become attributes. What is drawn in
    black takes the colour of the page's text. Equal figures give equal bytes.

    Args:
        figure: the figure.
        title: what the picture shows, for those who do not see it.

    >>> figure = Figure()
    >>> _ = figure.subplots().set_xlabel("a < b")
    >>> made = svg(figure, "nothing")
    >>> made[:5], "<title>nothing</title>" in made, ">a &lt; b</text>" in made, "style" in made
    ('<svg ', True, True, False)
    """
    written = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # matplotlib's own font lacks letters that a reader's has
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    drawn = ElementTree.fromstring(written.getvalue())
    root = ElementTree.Element("svg", {"xmlns": _NAMESPACE.strip("{}"), "viewBox": drawn.attrib["viewBox"]})
    root.attrib |= {"class": "picture", "role": "img", "font-family": "system-ui, sans-serif"}
    ElementTree.SubElement(root, "title").text = title
    root.extend(part for child in drawn for part in _plain(child))
    _keep_ids(root)
    return ElementTree.tostring(root, encoding="unicode")


def _plain(element: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """The element with its styles as attributes; nothing where it draws nothing; the children alone of a bare group."""
    name = element.tag.removeprefix(_NAMESPACE)
    if name in ("style", "metadata"):
        return
    given = {key: value for key, value in element.attrib.items() if key not in ("style", _LINK)}
    if _LINK in element.attrib:
        given["href"] = element.attrib[_LINK]
    for part in filter(None, element.get("style", "").split(";")):
        key, _, value = part.partition(":")
        given[key.strip()] = value.strip().replace(_BLACK, "currentColor")
    given.pop("font-family", None)
    if given.get("transform", "").startswith("rotate(-0 "):
        del given["transform"]
    if name == "path" and given.get("fill") == "none" and "stroke" not in given:
        return
    plain = ElementTree.Element(name, {key: _FEWER.sub(r"\1", " ".join(value.split())) for key, value in given.items()})
    if name in ("text", "tspan"):
        plain.text = element.text
    if name == "text":
        plain.attrib.setdefault("fill", "currentColor")
    plain.extend(part for child in element for part in _plain(child))
    if name in ("g", "defs") and not set(given) - {"id"}:
        children = list(plain)
        if name == "g":
            yield from children
            return
        if not children:
            return
    yield plain


def _keep_ids(root: ElementTree.Element) -> None:
    """Leave the names alone that something in the picture refers to: a page may hold several pictures."""
    used = {
        name for element in root.iter() for value in element.attrib.values() for name in re.findall(r"#(\w+)", value)
    }
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
