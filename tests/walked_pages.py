"""A page of the documents, run from top to bottom in one folder, as a reader would run it.

    from walked_pages import walk

    def test_the_page_runs(stage: Path) -> None:
        walk("docs/guides/text.md", stage, replace={"MODEL": str(MODEL)})

- ```bash and ```console are run with `bash -euo pipefail`, as one terminal: variables and `cd` stay for later blocks.
- ```python is run in one namespace, in a process of its own that stays for the page.
- A first line `# in another terminal` starts a server, which ends at the end of the page, or when a later server takes
  its port. Ports such as 8080 become free ones in the whole page.
- A first line `# needs a GPU`, `# needs the Hub`, ... (`document_blocks.NOT_RUN`): the commands are only checked.
- `pip install`, `make` and `python benchmarks/...` are only checked.
- ```toml and ```yaml whose first line is `# NAME.toml` or `# NAME.yaml` are written to a file of that name.
- ```text right after a block, and what follows the `$ ` lines of a session, is what it prints: stdout, or stdout and
  stderr; of a server, its first lines. Numbers stand for any numbers; `…` or `...` for anything in the line, and alone
  in a line for any lines.
"""

import contextlib
import dataclasses
import os
import re
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy
from document_blocks import NOT_RUN, ROOT, RUN, SERVER, Block, blocks_of, runnable, runs, session
from document_commands import faults
from walked_output import difference
from walked_processes import Python, Ran, Servers, Shell, free_port


def walk(
    page: str | Path,
    folder: Path,
    *,
    replace: Mapping[str, str] = {},
    exact: bool = False,
    environment: Mapping[str, str] = {},
    headings: Collection[str] = (),
    marks: Collection[str] = (),
    timeout: float = 600.0,
) -> None:
    """Run the blocks of a page in a folder; the first that fails, or prints something else, is an AssertionError.

    Args:
        page: Path below the root of the project, such as "docs/guides/text.md"; or the path of any Markdown file.
        folder: Where everything runs. It holds what the page says is at hand.
        replace: Words of the page that stand for something of the reader's, such as MODEL, and what takes their place.
            A word that is in no block of the page is an error.
        exact: Compare what is printed letter by letter, without numbers and dots that stand for others.
        environment: More variables.
        headings: Run the blocks below these headings alone. Calls for one page together must have all its headings
            that have blocks to run (tests/project/test_documents.py).
        marks: Of `document_blocks.NOT_RUN`, those that this machine has, whose blocks run like others.
        timeout: Seconds for each block.

    Raises:
        AssertionError: with page, line, command and what was printed.
        ValueError: where the page has no such heading or word, or nothing to run.
    """
    name, markdown = _read(page)
    blocks = [block for block in blocks_of(name, markdown) if block.language in RUN or block.file]
    for word in replace:
        if not any(_replaced(block.text, {word: "\0"}) != block.text for block in blocks):
            raise ValueError(f"{name} has no block with {word}")
    if missing := set(headings) - {title for block in blocks for title in block.headings}:
        raise ValueError(f"{name} has no block below {', '.join(sorted(missing))}")
    chosen = [block for block in blocks if not headings or set(block.headings) & set(headings)]
    if not any(runs(block) or block.mark in marks for block in chosen):
        raise ValueError(f"{name} has no block to run")
    checked = [fault for block in chosen for fault in faults(block)]
    assert checked == [], "\n".join(checked)
    ports = _free_ports(chosen)
    ready = [_with(_with(block, ports), replace) for block in chosen]
    variables = _environment(ports["8080"]) | dict(environment)
    with contextlib.ExitStack() as stack:
        shell = stack.enter_context(Shell(folder, variables, timeout))
        python = stack.enter_context(Python(shell))
        servers = stack.enter_context(Servers(shell, int(ports["8080"])))
        for block in ready:
            if block.file:
                (folder / block.file).write_text(block.text)
            elif block.mark in NOT_RUN and block.mark not in marks:
                continue
            else:
                _run(block, shell, python, servers, exact)


def _read(page: str | Path) -> tuple[str, str]:
    """The name of a page in messages, and its text."""
    path = ROOT / page  # an absolute path stays what it is
    return (str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name), path.read_text()


def _replaced(text: str, replace: Mapping[str, str]) -> str:
    """A text with other words in the place of some; a word is not found within a word, nor as a variable."""
    for word, other in replace.items():
        before = r"(?<![\w${-])" if re.match(r"\w", word) else ""
        after = r"(?![\w-])" if re.search(r"\w$", word) else ""
        text = re.sub(before + re.escape(word) + after, lambda _, other=other: other, text)  # type: ignore[misc]
    return text


def _with(block: Block, replace: Mapping[str, str]) -> Block:
    printed = None if block.printed is None else _replaced(block.printed, replace)
    return dataclasses.replace(block, text=_replaced(block.text, replace), printed=printed)


def _free_ports(blocks: Sequence[Block]) -> dict[str, str]:
    """A free port for each that the blocks name."""
    named = {"8080"}
    for block in blocks:
        named.update(re.findall(r"(?:127\.0\.0\.1:|localhost:|\bport[= ]|\bhttp\.server )(\d{4,5})\b", block.text))
    return {port: str(free_port()) for port in sorted(named)}


def _environment(port: str) -> dict[str, str]:
    """That of the tests, with the project's commands first on PATH, one thread, and nothing set for its commands."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SAE_RUNTIME_", "PYTEST_"))}
    # Packages may lie in another environment than the interpreter; their commands lie there too.
    places = [Path(sys.executable).parent, Path(numpy.__file__).parents[4] / "bin"]
    path = os.pathsep.join([*map(str, places), os.environ["PATH"]])
    given = {"PATH": path, "OMP_NUM_THREADS": "1", "SAE_RUNTIME_SERVE_PORT": port}
    return kept | given | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1"}


def _run(block: Block, shell: Shell, python: Python, servers: Servers, exact: bool) -> None:
    if block.mark == SERVER:
        ran, out = servers.start(block.text)
        _judge(block.place, block.text, ran, None, exact)
        if block.printed is not None:
            count, until = len(block.printed.splitlines()), time.monotonic() + 20
            while difference(block.printed, [_first(out, count)], exact=exact) and time.monotonic() < until:
                time.sleep(0.1)
            ran = dataclasses.replace(ran, out=_first(out, count))
            _judge(block.place, block.text, ran, block.printed, exact)
    elif block.language == "python":
        _judge(block.place, block.text, python.run(block.text, block.page, block.line), block.printed, exact)
    elif block.language == "bash":
        _judge(block.place, block.text, shell.run(runnable(block.text)), block.printed, exact)
    else:
        for line, command, printed in session(block):
            ran = shell.run(runnable(command))
            if ran.exit_code and re.search(r"^(error|Error|Usage|Traceback)\b", printed, flags=re.MULTILINE):
                ran = dataclasses.replace(ran, fault=None)  # the page shows how it fails
            _judge(f"{block.page}:{line}", command + "\n", ran, printed or None, exact)


def _first(path: Path, count: int) -> str:
    """The first lines that a server printed: later ones come when it likes."""
    return "".join(path.read_text(errors="replace").splitlines(keepends=True)[:count])


def _judge(place: str, text: str, ran: Ran, said: str | None, exact: bool) -> None:
    """Raise what is wrong with a block that ran."""
    printed = f"--- stdout\n{_end(ran.out)}\n--- stderr\n{_end(ran.err)}"
    if ran.fault:
        page, _, first = place.rpartition(":")
        where = f" at line {int(first) + ran.line - 1}" if ran.line else ""
        raise AssertionError(f"{place}: the block {ran.fault}{where and f' ({page}{where})'}\n{text}{printed}")
    if said is None:
        return
    wrong = difference(said, [ran.out, ran.out + ran.err, ran.err + ran.out], exact=exact)
    if wrong is not None:
        head = f"{place}: the block prints something else (-: the page, +: the block)"
        raise AssertionError(f"{head}\n{text}{wrong}\n{printed}")


def _end(text: str) -> str:
    """The last 4,000 characters."""
    return text.rstrip() if len(text) <= 4000 else f"… {text[-4000:].rstrip()}"
