"""The documents are true in what a program can check: links, names, words, options and the width of their lines."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import command_line
import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))))
HISTORY = "docs/log.md"  # it tells of names that are gone
OLD_WORDS = (
    "theta",
    "latents",
    "sae_width",
    "encode_fast",
    "encode_half",
    "tune",
    "--precision",
    "FixedBatch",
    "slack_start",
    "csr",
)
NO_NAMES = ("EV", "M")  # of the glossary, besides a name of the code


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def anchors(markdown: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_anchors_lead_somewhere(document: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        if not file.is_file() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != HISTORY])
def test_files_that_documents_name_exist(document: str) -> None:
    named = set(re.findall(r"\b(?:sae_runtime|train|exports|tests|benchmarks)/[\w/]*\w\.py\b", text_of(document)))
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_lines_outside_tables_have_at_most_120_columns(document: str) -> None:
    lines = text_of(document).splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_the_readme_and_the_map_of_the_code_stay_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 210
    assert len(text_of("docs/architecture.md").splitlines()) <= 260


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != HISTORY])
@pytest.mark.parametrize("word", OLD_WORDS)
def test_old_words_are_gone(document: str, word: str) -> None:
    assert re.findall(rf"(?<![\w-]){re.escape(word)}(?!\w)", text_of(document), flags=re.IGNORECASE) == []


def glossary() -> Iterator[str]:
    """Every word in the first columns of docs/concepts.md, without quotes."""
    for row in re.findall(r"^\| (.+?) \|", text_of("docs/concepts.md"), flags=re.MULTILINE):
        if row != "here":
            yield from (word.strip(" `") for word in row.split(","))


def spoken(text: str) -> str:
    """A text or a name of the code as words in small letters."""
    return re.sub(r"[\s_-]+", " ", text).lower()


def test_words_of_the_glossary_are_words_of_the_code() -> None:
    files = [path for room in ("sae_runtime", "train", "exports") for path in (ROOT / room).rglob("*.py")]
    code = spoken(" ".join(path.read_text() for path in files))
    words = set(glossary()) - set(NO_NAMES)
    assert len(words) > 50
    # A noun may stand elsewhere in the sentence: "the feature is active" speaks of an active feature.
    stems = {word: spoken(word).removesuffix(" feature").removesuffix(" model") for word in words}
    assert sorted(word for word, stem in stems.items() if not re.search(rf"\b{stem}\b", code)) == []


def commands(markdown: str) -> Iterator[tuple[str, str]]:
    """Name and arguments of every call of sae-runtime that stands at the start of a line, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", markdown)
    calls = r"^(?:    )?(?:torchrun .*--no-python )?sae-runtime ([\w-]+)(.*?)(?:\s#.*)?$"
    yield from re.findall(calls, joined, flags=re.MULTILINE)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != HISTORY])
def test_commands_in_documents_have_the_options_that_they_name(document: str) -> None:
    all_commands = command_line.commands()
    unknown = []
    for name, arguments in commands(text_of(document)):
        command = all_commands.get(name)
        if isinstance(command, click.Group) and (inner := arguments.split()[:1]):
            command = all_commands.get(f"{name} {inner[0]}")
        known = {option for param in command.params for option in param.opts} if command else set()
        given = re.findall(r"(?<=\s)--?[a-z][\w-]*", arguments)
        unknown += [f"{name} {option}" for option in given if option not in known] if command else [name]
    assert unknown == []
