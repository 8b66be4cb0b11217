"""The documents are true in what a program can check: links, names, words, options and the width of their lines."""

import ast
import functools
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from document_blocks import LANGUAGES, MARKS, Block, blocks_of, runs
from document_commands import faults, unknown_extras

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))))
HISTORY = "docs/log.md"  # it tells of names that are gone
# Pages whose blocks are not all run yet: whoever has a page walked by tests/documents/test_NAME.py takes it out.
PENDING: tuple[str, ...] = ()
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
    assert len(text_of("README.md").splitlines()) <= 150
    assert len(text_of("docs/architecture.md").splitlines()) <= 250


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name not in (HISTORY, "docs/reference/api.md")])
@pytest.mark.parametrize("word", OLD_WORDS)
def test_old_words_are_gone(document: str, word: str) -> None:
    assert re.findall(rf"(?<![\w-]){re.escape(word)}(?!\w)", text_of(document), flags=re.IGNORECASE) == []


def glossary() -> Iterator[str]:
    """Every word in the first columns of docs/concepts.md, without quotes."""
    tables = re.findall(r"^\| here \|.*\n\|[-|]+\n((?:\|.*\n)+)", text_of("docs/concepts.md"), flags=re.MULTILINE)
    for row in re.findall(r"^\| (.+?) \|", "".join(tables), flags=re.MULTILINE):
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


BLOCKS = [block for document in DOCUMENTS if document != HISTORY for block in blocks_of(document)]


def places(blocks: Iterable[Block]) -> list[str]:
    return [f"{block.place}: {block.text.partition(chr(10))[0]}" for block in blocks]


def converted(document: str) -> bool:
    return document not in (*PENDING, HISTORY)


def test_documents_have_fences_of_known_languages_alone() -> None:
    assert places(block for block in BLOCKS if block.language not in LANGUAGES and converted(block.page)) == []


def test_first_lines_that_say_how_a_block_runs_are_of_the_list() -> None:
    said = re.compile(r"#\s*(needs?\b|requires?\b|in (an)?other terminal|not run)", flags=re.IGNORECASE)
    assert places(block for block in BLOCKS if said.match(block.text) and block.mark not in MARKS) == []


def test_commands_stand_in_fences() -> None:
    command = r"^(?:    |\t)+(?:sae-runtime|pip|python3?|make|curl|docker|torchrun|export|cd|git) .*$"
    found = []
    for document in filter(converted, DOCUMENTS):
        prose = re.sub(r"^ *```.*?^ *```$", "", text_of(document), flags=re.DOTALL | re.MULTILINE)
        found += [f"{document}: {line.strip()}" for line in re.findall(command, prose, flags=re.MULTILINE)]
    assert found == []


def test_commands_of_blocks_exist_with_their_options() -> None:
    """Those of sae-runtime, of benchmarks, targets of make and modules, also where a block is not run."""
    assert [fault for block in BLOCKS if block.language in LANGUAGES for fault in faults(block)] == []


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != HISTORY])
def test_commands_within_a_line_exist_with_their_options(document: str) -> None:
    prose = re.sub(r"^ *```.*?^ *```$", "", text_of(document), flags=re.DOTALL | re.MULTILINE)
    spans = re.findall(r"(?<!`)`((?:\S*sae-runtime|make|python(?: -m)?) [^`]+)`(?!`)", prose)
    lines = [*spans, *(line.strip() for line in re.findall(r"^    sae-runtime .*$", prose, flags=re.MULTILINE))]
    assert [fault for line in lines for fault in faults(Block(document, 1, "bash", line + "\n", ()))] == []


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != HISTORY])
def test_extras_that_documents_name_exist(document: str) -> None:
    assert unknown_extras(text_of(document)) == []


def test_blocks_of_settings_can_be_read() -> None:
    for block in BLOCKS:
        try:
            if block.language == "toml":
                tomllib.loads(block.text)
            elif block.language == "yaml":
                list(yaml.safe_load_all(block.text))
            elif block.language == "json":
                json.loads(block.text)
        except ValueError as error:
            raise AssertionError(f"{block.place}: {error}") from None


def named(node: ast.expr, constants: Mapping[str, object]) -> str:
    """The page that a test walks: a text, or one with constants of its module in it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(named(part, constants) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return named(node.value, constants)
    if isinstance(node, ast.Name):
        return str(constants.get(node.id))
    return str(node.value) if isinstance(node, ast.Constant) else ""


@functools.cache
def walked() -> dict[str, set[str] | None]:
    """The pages that tests walk: None where they walk all of it, else the headings that they name together."""
    found: dict[str, set[str] | None] = {}
    for path in [*sorted((ROOT / "tests/documents").glob("test_*.py")), ROOT / "tests/project/test_readme.py"]:
        tree = ast.parse(path.read_text())
        constants = {
            ast.unparse(node.targets[0]): node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "walk" and node.args:
                page = named(node.args[0], constants)
                parts = [ast.literal_eval(word.value) for word in node.keywords if word.arg == "headings"]
                before = found.get(page, set())
                found[page] = None if not parts or before is None else before | set(parts[0])
    return found


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name not in (*PENDING, HISTORY)])
def test_pages_with_blocks_to_run_are_walked_by_a_test(document: str) -> None:
    """By a call of `walk` with the page's name in tests/documents; of all headings, where calls name headings."""
    to_run = [block for block in BLOCKS if block.page == document and runs(block)]
    headings = walked().get(document, set())
    assert places(block for block in to_run if headings is not None and not headings & set(block.headings)) == []


def test_pages_that_tests_walk_exist() -> None:
    assert sorted(set(walked()) - set(DOCUMENTS) - {""}) == []  # "": pages that the tests of the walker make
