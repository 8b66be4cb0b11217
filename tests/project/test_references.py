"""The references of the command line and of Python are those that the code gives, and nothing is missing in them."""

import inspect
import re

import click
import command_line
import pytest
from document_blocks import ROOT, blocks_of
from references import api, cli
from references.prose import escaped, markdown_of, wrapped

PAGES = {name: (ROOT / f"docs/reference/{name}.md").read_text() for name in ("api", "cli")}
ADVICE = "it is not what the code gives; run: make references"


def part(page: str, heading: str) -> str:
    """The text below a heading, up to the next heading."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    assert found, f"docs/reference/{page}.md has no {heading}; {ADVICE}"
    return found[1]


@pytest.mark.parametrize(("name", "made"), [("api", api), ("cli", cli)])
def test_a_reference_is_what_the_code_gives(name: str, made: object) -> None:
    assert made.page() == PAGES[name], f"docs/reference/{name}.md: {ADVICE}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(command_line.commands()))
def test_every_command_has_its_help_example_and_options(name: str) -> None:
    command, text = command_line.commands()[name], part("cli", name)
    words = "".join(re.findall(r"\w+", inspect.cleandoc(command.help or "")))
    assert words in "".join(re.findall(r"\w+", text))
    assert f"sae-runtime {name}" in text
    example = getattr(command, "example", None)
    assert example is None or example in text
    options = [param for param in command.params if isinstance(param, click.Option) and not param.hidden]
    named = [option for param in options for option in (*param.opts, *param.secondary_opts)]
    assert [option for option in named if not re.search(rf"^\|.*`{option}[` ]", text, flags=re.MULTILINE)] == []


def public_names() -> list[str]:
    names = [f"{package}.{name}" for package in api.PACKAGES for name in api.names_of(package)]
    for page in ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]:
        if page.startswith(("docs/results/", "docs/log", "docs/reference/api")):
            continue
        for block in blocks_of(page):
            if block.language == "python":
                for module, imported in re.findall(
                    r"^from (sae_runtime[\w.]*) import ([\w, ]+)", block.text, re.MULTILINE
                ):
                    names += [f"{module}.{name.split(' as ')[0].strip()}" for name in imported.split(",")]
    return sorted(set(names) - {name for name in names if name.startswith("sae_runtime.demo")})


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_has_its_docstring_and_methods(name: str) -> None:
    assert name in [known for room in api.ROOMS for known in room.names], f"name it in tests/references/api.py: {name}"
    value, heading = api.found(name), api.shown(name)
    text = part("api", heading)
    assert f"from {name.rpartition('.')[0]} import " in text
    said = inspect.getdoc(value)
    assert said and markdown_of(said) in text
    for method in api.methods(value) if isinstance(value, type) else ():
        docstring = inspect.getdoc(inspect.getattr_static(value, method))
        assert docstring, f"{name}.{method} has no docstring"
        if f"- `{method}`: " not in text:
            assert markdown_of(docstring) in part("api", f"{heading}.{method}")


def test_docstrings_become_markdown() -> None:
    docstring = inspect.cleandoc(
        """Give a sum.

        Args:
            a: the first,
                or --none.
            *rest: others.

        Returns:
            A number [n, d_in] * 2.

        >>> 1 + 1
        2
        """
    )
    said = "Give a sum.\n\nArguments:\n\n- `a`: the first, or `--none`.\n- `*rest`: others.\n\n"
    assert markdown_of(docstring) == said + "Returns: A number [n, d_in] \\* 2.\n\n```text\n>>> 1 + 1\n2\n```"
    assert escaped("a < `b<c` * --k") == "a &lt; `b<c` \\* `--k`"
    assert wrapped("one `two three` four", 11) == "one\n`two three`\nfour"
