"""Commands, extras and targets that documents name, compared with those that exist. Nothing is run."""

import ast
import functools
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator

import click
import command_line
from document_blocks import NOT_RUN, ROOT, Block, logical_lines, runnable, session, shell

_BENCHMARK = re.compile(r"(?:\S*/)?benchmarks/(\w+\.py)")


def commands_of(block: Block) -> Iterator[tuple[int, list[str]]]:
    """Every simple command in the lines of the shell of a block: the line of the page, and its words."""
    if block.language == "console":
        for line, command, _ in session(block):
            yield from ((line, words) for _, words in _commands(command))
    elif block.language == "bash":
        yield from ((block.line + line, words) for line, words in _commands(block.text))


def _commands(text: str) -> Iterator[tuple[int, list[str]]]:
    lines, end = logical_lines(text), ""  # `end`: of a file that is written down here
    for first, _, joined in lines:
        if end:
            end = "" if joined.strip() == end else end
            continue
        while (words := _words(joined)) is None:  # a quoted text goes on in the next line
            joined += "\n" + next(lines)[2]
        if here := re.search(r"<<-?\s*['\"]?(\w+)", joined):
            end = here[1]
        yield from ((first, command) for command in _split(words))


def _words(line: str) -> list[str] | None:
    """Words and signs of a line of the shell; None where a quote is open."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:
        return None


def _split(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in [*words, ";"]:
        for inner in re.findall(r"\$\(([^()]*)\)", word):  # quoted: others are split by their parentheses
            yield from _split(_words(inner) or [])
        if re.fullmatch(r"[();|&]+", word):
            while command and re.fullmatch(r"\w+=.*|time|exec|do|then|else|if|while|!", command[0], re.DOTALL):
                command.pop(0)
            if command:
                yield command
            command = []
        else:
            command.append(word)


def faults(block: Block) -> list[str]:
    """What is wrong with the commands of a block, each with its place; an option must be one that its command has."""
    found = [
        f"{block.place}: a failure before && would pass; write two lines"
        for _, _, joined in logical_lines(runnable(shell(block)) if block.mark not in NOT_RUN else "")
        if re.search(r"\s&&\s", joined) and not re.match(r"\s*(if|while) ", joined)
    ]
    for line, words in commands_of(block):
        found += [f"{block.page}:{line}: {fault}" for fault in _faults(words)]
    return found


def _faults(words: list[str]) -> list[str]:
    for number, word in enumerate(words):
        if word.rpartition("/")[2] == "sae-runtime" and (number == 0 or words[0] in ("torchrun", "srun", "env")):
            return _faults_of_ours(words[number + 1 :])
    if named := [found for word in words[:3] if (found := _BENCHMARK.fullmatch(word))]:
        return _faults_of_benchmark(named[0][1], words)
    if words[0] == "make":
        targets = [word for word in words[1:] if re.fullmatch(r"[a-z][\w-]*", word)]
        return [f"the Makefile has no target {target}" for target in targets if target not in targets_of_makefile()]
    if words[0].rpartition("/")[2].startswith("python") and words[1:2] == ["-m"]:
        return (
            [f"there is no module {words[2]}"] if words[2].startswith("sae_runtime") and not _module(words[2]) else []
        )
    return []


def _module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _options(words: list[str]) -> list[str]:
    given = words[: words.index("--")] if "--" in words else words
    return [found[0] for word in given if (found := re.match(r"--?[A-Za-z][\w-]*", word))]


@functools.cache
def _all_commands() -> dict[str, click.Command]:
    return command_line.commands()


def _faults_of_ours(words: list[str]) -> list[str]:
    all_commands, name = _all_commands(), ""
    while words and (inner := f"{name} {words[0]}".strip()) in all_commands:
        name, words = inner, words[1:]
    if not name:
        known = {"-h", "--help", "-V", "--version"}
        return [f"sae-runtime has no {word}" for word in words[:1] if word not in known and not word.isupper()]
    command = all_commands[name]
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        return [f"sae-runtime {name} has no command {words[0]}"]
    params = [param for param in command.params if isinstance(param, click.Option)]
    known = {"-h", "--help"}.union(*(set(param.opts) | set(param.secondary_opts) for param in params))
    return [f"sae-runtime {name} has no option {option}" for option in _options(words) if option not in known]


def _faults_of_benchmark(name: str, words: list[str]) -> list[str]:
    if not (ROOT / "benchmarks" / name).is_file():
        return [f"there is no benchmarks/{name}"]
    known = _options_of_benchmark(name) | {"--help"}
    return [f"benchmarks/{name} has no option {option}" for option in _options(words) if option not in known]


@functools.cache
def _options_of_benchmark(name: str) -> frozenset[str]:
    """What it gives to `click.option` or `add_argument`; a decorator of a neighbouring file counts too."""
    found, waiting, seen = set[str](), [name], set[str]()
    while waiting:  # files may import each other
        seen.add(name := waiting.pop())
        for node in ast.walk(ast.parse((ROOT / "benchmarks" / name).read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("option", "add_argument"):
                texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
                found.update(option for text in texts for option in text.split("/") if option.startswith("-"))
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            files = [f"{module}.py" for module in modules if (ROOT / "benchmarks" / f"{module}.py").is_file()]
            waiting += [file for file in files if file not in seen]
    return frozenset(found)


@functools.cache
def targets_of_makefile() -> frozenset[str]:
    """The targets that a person may name."""
    lines = re.findall(r"^([\w -]+):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    return frozenset(target for line in lines for target in line.split())


@functools.cache
def extras() -> frozenset[str]:
    """The extras that pyproject.toml has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return frozenset(project["optional-dependencies"])


def unknown_extras(markdown: str) -> list[str]:
    """Extras that a text names, as in '.[cpu,text]', and that do not exist."""
    named = re.findall(r"(?:sae[-_]runtime|[\s'\"(`]\.)\[([\w,. -]+)\]", markdown)
    every = {extra.strip() for names in named for extra in names.split(",")}
    return sorted(extra for extra in every - extras() if not extra.isupper())
