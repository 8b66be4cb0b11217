import re
import shlex
from pathlib import Path

import click
import pytest
from bare import in_bare, link
from command_line import commands, misused, run, start

from sae_runtime import cli
from sae_runtime.cli import COMMANDS, GROUPS, features, options

ROOT = Path(__file__).parents[2]
LINES = COMMANDS | {f"features {name}": line for name, line in features.LINES.items()}
LEAVES = sorted(name for name, command in commands().items() if not isinstance(command, click.Group))
SHARED = {"__init__", "options", "common", "group", "edits", "texts", "moved", "parallel"}


def command(name: str) -> options.Command:
    made = commands()[name]
    assert isinstance(made, options.Command)
    return made


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with this project and click, and without numpy, torch, onnx, onnxruntime and pyarrow."""
    folder = tmp_path_factory.mktemp("environment") / "bare"
    (folder / "sae_runtime").mkdir(parents=True)
    for path in (ROOT / "sae_runtime").iterdir():
        (folder / "sae_runtime" / path.name).symlink_to(path)
    for name in ("train", "exports"):
        (folder / "sae_runtime" / name).symlink_to(ROOT / name)
    link(folder, "click")
    return folder


def test_help_shows_every_command_in_its_group_and_imports_none() -> None:
    loaded = "[m for m in sys.modules if m in ('numpy', 'onnxruntime', 'torch') or m.startswith('sae_runtime.cli.')]"
    check = f"print(sorted(set({loaded}) - {{'sae_runtime.cli.group', 'sae_runtime.cli.options'}}))"
    process = start("--help", after=check)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    shown, _, imported = out.rstrip("\n").rpartition("\n")
    assert imported == "[]"
    sections = re.split(r"^(\w+):\n", shown, flags=re.MULTILINE)[1:]
    named = {
        title: re.findall(r"^  ([a-z-]+)  +[A-Z]", lines, flags=re.MULTILINE)
        for title, lines in zip(sections[::2], sections[1::2], strict=True)
    }
    del named["Options"]
    assert named == {title: list(lines) for title, lines in GROUPS.items()}


def test_every_module_of_the_command_line_is_a_command_or_shared() -> None:
    top, inner = Path(cli.__file__).parent, Path(features.__file__).parent
    assert {path.stem for path in top.glob("*.py")} == {*(n.replace("-", "_") for n in COMMANDS), *SHARED} - {
        "features"
    }
    assert {path.stem for path in inner.glob("*.py")} == {*features.LINES, "__init__", "sets", "feature_view"}


@pytest.mark.parametrize("name", LEAVES)
def test_help_of_a_command_has_its_line_its_options_and_an_example(name: str) -> None:
    result = run(*name.split(), "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: sae-runtime {name} [OPTIONS]")
    assert result.stdout.splitlines()[2].strip() == LINES[name]
    assert result.stdout == run(*name.split(), "-h").stdout == run("help", *name.split()).stdout
    assert result.stdout.rstrip("\n").endswith(f"  Example:\n    {command(name).example}")
    assert all(param.help for param in command(name).params if isinstance(param, click.Option))


def test_help_of_an_inner_group_lists_its_commands() -> None:
    shown = run("features", "--help").stdout
    assert shown == run("help", "features").stdout and COMMANDS["features"] in shown
    lines = [(name, line) for name, line in features.LINES.items() if re.search(rf"^  {name} +{line}$", shown, re.M)]
    assert lines == list(features.LINES.items())
    assert misused("features", "shwo") == "No such command 'shwo'. Did you mean 'show'?"
    assert misused("help", "features", "shwo") == "No such command 'shwo'. Did you mean 'show'?"
    assert misused("help", "train", "show") == "sae-runtime train has no commands of its own; leave out 'show'."


@pytest.mark.parametrize("name", LEAVES)
def test_output_options_of_a_command_have_the_same_names_everywhere(name: str) -> None:
    flags = {flag for param in command(name).params for flag in param.opts}
    short = {"convert", "demo", "export-model", "export-triton", "splice"}
    of_features = {"features build", "features export"}
    writes = {*of_features, "harvest", "train", "calibrate", "evaluate", "report", "extract", "steer", "browse", *short}
    assert ({"-o", "--output", "--force"} <= flags) == (name in writes)
    assert ("--json" in flags) == (name not in ("demo", "serve", "completion", "help"))
    assert ("--quiet" in flags) == (name in {"features find", "push", *writes} - {"report", *short})


@pytest.mark.parametrize("name", LEAVES)
def test_example_of_a_command_is_one_that_its_parser_takes(name: str) -> None:
    example = command(name).example
    words = shlex.split(example.partition('"$(')[2].partition(")")[0] or example, comments=True)
    names = name.split()
    assert words[: 1 + len(names)] == ["sae-runtime", *names]
    command(name).make_context(name, words[1 + len(names) :])


def test_help_without_a_name_is_the_help_of_all() -> None:
    assert run("help").stdout == run("--help").stdout
    assert misused("help", "inspekt") == "No such command 'inspekt'. Did you mean 'inspect'?"


def test_help_of_every_command_needs_click_alone(bare: Path) -> None:
    code = f"""
import sys
from sae_runtime.cli import main
for name in {LEAVES}:
    main([*name.split(), "--help"], prog_name="sae-runtime", standalone_mode=False)
assert not {{"numpy", "torch", "onnx", "onnxruntime", "pyarrow", "tqdm"}} & set(sys.modules)
"""
    done = in_bare(bare, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Example:") == len(LEAVES)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sae-runtime tr", {"train"}),
        ("sae-runtime export", {"export", "export-model", "export-triton"}),
        ("sae-runtime train --allo", {"--allocation"}),
        ("sae-runtime extract b --rule ba", {"batch"}),
        ("sae-runtime features s", {"show", "search"}),
        ("sae-runtime features find m --poo", {"--pool"}),
    ],
)
def test_completion_needs_click_alone(bare: Path, words: str, expected: set[str]) -> None:
    env = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    code = "from sae_runtime.cli import main; main(prog_name='sae-runtime')"
    done = in_bare(bare, code, **env, _SAE_RUNTIME_COMPLETE="bash_complete")
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_a_shell(shell: str) -> None:
    result = run("completion", shell)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"_SAE_RUNTIME_COMPLETE={shell}_complete" in result.stdout
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in misused("completion", "tcsh")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("inspekt", "No such command 'inspekt'. Did you mean 'inspect'?"),
        ("Inspect", "No such command 'Inspect'. Did you mean 'inspect'?"),
        ("host", "No such command 'host'."),
        ("list", "No such command 'list'."),
    ],
)
def test_a_mistyped_command_gets_a_suggestion(name: str, said: str) -> None:
    assert misused(name) == said
