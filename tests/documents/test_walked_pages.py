"""The walker of the documents: it fails where a page is not true, and leaves no process behind."""

from pathlib import Path
from typing import Any

import pytest
from document_blocks import blocks_of, runnable
from walked_output import difference
from walked_pages import walk


def page(folder: Path, *blocks: str) -> Path:
    """A page of blocks such as "bash: ls", below the heading One; a text that begins with # is a heading."""
    parts = ["# One"]
    for block in blocks:
        language, _, text = block.partition(": ")
        parts.append(block if block.startswith("#") else f"```{language}\n{text}\n```")
    path = folder / "page.md"
    path.write_text("\n\n".join(parts) + "\n")
    return path


def refused(folder: Path, *blocks: str, error: type[Exception] = AssertionError, **options: Any) -> str:
    with pytest.raises(error) as raised:
        walk(page(folder, *blocks), folder, **options)
    return str(raised.value)


def test_blocks_run_in_one_folder_and_keep_variables_names_and_place(tmp_path: Path) -> None:
    walk(
        page(
            tmp_path,
            'bash: NAME="a b"\nmkdir inner\ncd inner\necho 1 > one',
            "python: import os\nx = open('one').read()",
            'bash: printf \'%s\\n\' "$NAME" "$(cat one)"',
            "text: a b\n1",
            "python: print(os.path.basename(os.getcwd()), x)",
            "text: inner 1",
        ),
        tmp_path,
    )


def test_what_a_page_says_of_numbers_and_dots_is_loose(tmp_path: Path) -> None:
    walk(
        page(
            tmp_path,
            "bash: echo 'L0   7.93 of 1,024 (-3e-5), more'; echo two; echo three",
            "text: L0 8.1 of 2 (1), …\n...",
        ),
        tmp_path,
    )
    assert difference("12 %\n…\nend", ["3 %\nend"]) is None
    assert difference("12 %\n…\nend", ["3 %\na\nb\nend"]) is None
    assert difference("a b", ["a c"]) == "- a b\n+ a c"
    assert difference("a", ["a\nb"]) is not None and difference("a\nb", ["a"]) is not None
    assert difference("…", [""]) is None and difference("", ["word"]) is not None
    assert difference("all-MiniLM-L6-v2", ["all-MiniLM-L12-v2"]) is None


def test_an_exact_page_is_compared_letter_by_letter(tmp_path: Path) -> None:
    walk(page(tmp_path, "bash: echo '8.1 a '", "text: 8.1 a"), tmp_path, exact=True)
    assert "- 8.1 a\n+ 8.2 a" in refused(tmp_path, "bash: echo 8.2 a", "text: 8.1 a", exact=True)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (("bash: echo one\nfalse\necho two",), ["page.md:4: ", "exit code 1", "page.md at line 5", "echo two", "one"]),
        (("bash: echo word", "text: other"), ["page.md:4: ", "- other\n+ word"]),
        (("bash: echo $NOWHERE",), ["exit code 1", "NOWHERE: unbound variable"]),
        (("bash: false | true",), ["exit code 1"]),
        (("bash: echo one", "python: x = 1\nprint(y)"), ["page.md:8: ", "line 9", "name 'y' is not defined"]),
        (("python: print(3)", "text: word"), ["page.md:4: ", "- word\n+ 3"]),
        (("python: import os; os._exit(3)",), ["ended its process"]),
        (
            ("bash: # needs a GPU\nsae-runtime train --no-such-option", "bash: ls"),
            ["page.md:5: ", "train has no option --no-such"],
        ),
        (("bash: # needs the Hub\nsae-runtime no-such-command", "bash: ls"), ["sae-runtime has no no-such-command"]),
        (("bash: python benchmarks/encode.py --no-such", "bash: ls"), ["benchmarks/encode.py has no option --no-such"]),
        (("bash: make no-such-target", "bash: ls"), ["the Makefile has no target no-such-target"]),
        (("console: $ echo one\ntwo",), ["page.md:4: ", "- two\n+ one"]),
        (("bash: false && true",), ["page.md:4: ", "a failure before && would pass"]),
        (("bash: echo one\nexit 0\nfalse",), ["page.md:4: ", "left the terminal before its last line"]),
        (("console: $ echo one\n$ false",), ["page.md:5: ", "exit code 1"]),
    ],
)
def test_a_page_that_is_not_true_fails_and_names_the_place(
    tmp_path: Path, blocks: tuple[str, ...], said: list[str]
) -> None:
    error = refused(tmp_path, *blocks)
    assert [part for part in said if part not in error] == [], error


def test_a_session_may_show_how_a_command_fails(tmp_path: Path) -> None:
    walk(
        page(tmp_path, "console: $ sae-runtime inspect nowhere\nerror: nowhere does not exist…\n$ echo \\\n    a\na"),
        tmp_path,
    )


def test_blocks_that_need_more_than_this_machine_are_left_out_unless_it_has_that(tmp_path: Path) -> None:
    blocks = ("bash: touch here", "bash: # needs a GPU\ntouch there", "python: # needs vLLM, an hour\nraise SystemExit")
    walk(page(tmp_path, *blocks), tmp_path)
    assert (tmp_path / "here").exists() and not (tmp_path / "there").exists()
    walk(page(tmp_path, *blocks), tmp_path, marks=["needs a GPU"])
    assert (tmp_path / "there").exists()


def test_lines_that_install_or_measure_are_left_out(tmp_path: Path) -> None:
    text = (
        "pip install \\\n  nothing-of-this-name\nmake test\npython benchmarks/encode.py \\\n  --rounds 5\ntouch here\n"
    )
    assert runnable(text) == ":\n\n:\n:\n\ntouch here\n"
    walk(page(tmp_path, f"bash: {text}"), tmp_path)
    assert (tmp_path / "here").exists()
    assert "no block to run" in refused(tmp_path, "bash: pip install x", "bash: make test", error=ValueError)


def test_words_of_the_reader_are_replaced_and_must_be_there(tmp_path: Path) -> None:
    walk(page(tmp_path, "bash: echo MODEL MODELS", "text: here MODELS"), tmp_path, replace={"MODEL": "here"})
    assert "no block with GONE" in refused(tmp_path, "bash: ls", error=ValueError, replace={"GONE": "x"})


def test_parts_of_a_page_run_by_their_headings(tmp_path: Path) -> None:
    blocks = (
        "bash: touch one",
        "## Two",
        "bash: touch two",
        "### Three",
        "bash: touch three",
        "## Four",
        "bash: false",
    )
    walk(page(tmp_path, *blocks), tmp_path, headings=["Two"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.md", "three", "two"]
    assert "no block below Five" in refused(tmp_path, *blocks, error=ValueError, headings=["Five"])


def test_settings_with_a_name_are_written_to_that_file(tmp_path: Path) -> None:
    walk(
        page(tmp_path, "toml: # in.toml\nk = 3", "toml: k = 4", "bash: tail -1 in.toml", "text: k = 3"),
        tmp_path,
        exact=True,
    )


SERVE = (
    "bash: # in another terminal\npython -m http.server 8080 --bind 127.0.0.1 & echo $! > leader; echo 8080 ready; wait"
)
ASK = "python: import urllib.request\nprint(urllib.request.urlopen('http://127.0.0.1:8080').status)"


def test_servers_answer_on_a_free_port_and_end_with_the_page(tmp_path: Path) -> None:
    walk(page(tmp_path, SERVE, "text: 8080 ready", ASK, "text: 200"), tmp_path, exact=True)
    assert not alive(tmp_path)


def test_servers_end_where_a_page_fails(tmp_path: Path) -> None:
    refused(tmp_path, SERVE, ASK, "bash: false")
    assert not alive(tmp_path)


def test_a_later_server_takes_the_port_of_an_earlier_one(tmp_path: Path) -> None:
    other = SERVE.replace("leader", "later").replace("8080 --bind", "8080 --directory other --bind")
    blocks = ("bash: mkdir other; touch other/found", SERVE, ASK, other)
    asked = "python: print('found' in urllib.request.urlopen('http://127.0.0.1:8080').read().decode())"
    walk(page(tmp_path, *blocks, asked, "text: True"), tmp_path, exact=True)
    assert not alive(tmp_path) and not alive(tmp_path, "later")


def test_a_server_that_does_not_start_fails_with_its_own_words(tmp_path: Path) -> None:
    server = "bash: # in another terminal\nsae-runtime serve nowhere"
    error = refused(tmp_path, server)
    assert "ended before it answered" in error and "nowhere does not exist" in error


def test_a_block_has_a_time_and_ends_with_its_children(tmp_path: Path) -> None:
    error = refused(tmp_path, "bash: sleep 600 & echo $! > leader; wait", timeout=0.5)
    assert "did not end in 0.5 s" in error and not alive(tmp_path)
    failing = refused(tmp_path, "console: $ echo error: no; sleep 600\nerror: no", timeout=0.5)
    assert "did not end in 0.5 s" in failing
    assert "did not end in 3 s" in refused(tmp_path, "python: while True: pass", timeout=3)
    walk(page(tmp_path, "bash: sleep 600 & echo $! > leader"), tmp_path)
    assert not alive(tmp_path)


def alive(folder: Path, file: str = "leader") -> bool:
    """Whether the process whose number a block wrote down lives."""
    try:
        state = Path(f"/proc/{int((folder / file).read_text())}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_blocks_know_their_place_their_heading_and_what_they_print() -> None:
    one, two, _, three = blocks_of(
        "x.md", "# A\n## B\n\n  ```bash\n  ls\n  ```\n# C\n```python\n```\n\n```text\n1\n```\n## D\n```text\n2\n```\n"
    )
    assert (one.place, one.text, one.headings, one.printed) == ("x.md:5", "ls\n", ("A", "B"), None)
    assert (two.headings, two.printed) == (("C",), "1\n")
    assert (three.headings, three.printed) == (("C", "D"), None)
    with pytest.raises(ValueError, match="x.md:1: a fence is not closed"):
        blocks_of("x.md", "```bash\nls\n")
