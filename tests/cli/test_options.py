from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from sae_runtime.cli.options import Command, from_config


def _option(help: str, **settings: Any) -> Any:
    metadata = {"help": help} | ({"choices": settings.pop("choices")} if "choices" in settings else {})
    return field(metadata=metadata, **settings)


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = _option("steps to take")
    text: tuple[Path, ...] = _option("files to read")
    rate: float = _option("size of a step", default=0.5)
    limit: int | None = _option("where to stop", default=None)
    mode: str = _option("how to go", default="slow", choices=("slow", "fast"))
    keep_all: bool = _option("keep it all", default=False)
    names: tuple[str, ...] = _option("what to call it", default_factory=lambda: ("a", "b"))

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")


Go = Callable[..., Config]


@pytest.fixture
def group() -> click.Group:
    @click.group(context_settings={"auto_envvar_prefix": "SAE_RUNTIME", "show_default": True})
    def main() -> None:
        pass

    @main.command("walk", cls=Command, example="main walk --steps 3")
    @from_config(Config)
    @click.option("--verbose", is_flag=True)
    def walk(verbose: bool, config: Config) -> None:
        seen.append(config)

    @main.command("run", cls=Command, example="main run")
    def other() -> None:
        pass

    return main


seen: list[Config] = []


def invoke(group: click.Group, *arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(group, ["walk", *arguments], prog_name="main", env=env)


def made(group: click.Group, *arguments: str, env: dict[str, str] | None = None) -> Config:
    """The config that a run builds."""
    seen.clear()
    result = invoke(group, *arguments, env=env)
    assert result.exit_code == 0, result.output
    (config,) = seen
    return config


def misused(group: click.Group, *arguments: str, env: dict[str, str] | None = None) -> str:
    result = invoke(group, *arguments, env=env)
    assert result.exit_code == 2
    return " ".join(result.stderr.partition("\nError: ")[2].split())


NEEDED = ("--steps", "3", "--text", "a.txt")


def test_defaults_are_those_of_the_fields(group: click.Group) -> None:
    assert made(group, *NEEDED) == Config(steps=3, text=(Path("a.txt"),))


def test_every_kind_of_field(group: click.Group) -> None:
    given = ("--rate", "2", "--limit", "7", "--mode", "fast", "--keep-all", "--names", "x", "--text", "b c.txt")
    config = made(group, *NEEDED, *given)
    assert config == Config(
        steps=3,
        text=(Path("a.txt"), Path("b c.txt")),
        rate=2.0,
        limit=7,
        mode="fast",
        keep_all=True,
        names=("x",),
    )
    assert type(config.rate) is float
    assert made(group, *NEEDED, "--no-keep-all").keep_all is False


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7),
        ("2e6", 2_000_000),
        ("10M", 10_000_000),
        ("500k", 500_000),
        ("1.5K", 1500),
        ("2B", 2 * 10**9),
        ("-1", -1),
    ],
)
def test_whole_numbers_as_people_write_them(group: click.Group, text: str, number: int) -> None:
    assert made(group, *NEEDED, "--limit", text).limit == number


@pytest.mark.parametrize(
    "text", ["1.5", "2e-1", "1.0005k", "M", "", "nan", "inf", "1e400", "1e999999999", "0x10", "ten"]
)
def test_other_texts_are_no_whole_numbers(group: click.Group, text: str) -> None:
    said = misused(group, *NEEDED, "--limit", text)
    assert said == f"Invalid value for '--limit': {text!r} is not a whole number, such as 2048, 500k, 10M or 2e6."


def test_help(group: click.Group) -> None:
    text = " ".join(invoke(group, "--help").output.split())
    for part in (
        "--steps INTEGER steps to take [required]",
        "--text PATH files to read; may be repeated [required]",
        "--rate FLOAT size of a step [default: 0.5]",
        "--limit INTEGER where to stop --mode",
        "--mode [slow|fast] how to go [default: slow]",
        "--keep-all / --no-keep-all keep it all [default: no-keep-all]",
        "--names TEXT what to call it; may be repeated [default: a, b]",
        "--config FILE TOML file; its table [walk] holds settings",
    ):
        assert part in text


def test_wrong_values(group: click.Group) -> None:
    assert misused(group, "--text", "a") == "Missing option '--steps'."
    assert misused(group, "--steps", "3") == "Missing option '--text'."
    assert misused(group, *NEEDED, "--limit", "x") == (
        "Invalid value for '--limit': 'x' is not a whole number, such as 2048, 500k, 10M or 2e6."
    )
    assert misused(group, *NEEDED, "--mode", "x") == "Invalid value for '--mode': 'x' is not one of 'slow', 'fast'."
    error = invoke(group, "--steps", "0", "--text", "a").exception
    assert isinstance(error, ValueError) and str(error) == "steps must be >= 1, got 0"


def test_a_type_without_option() -> None:
    @dataclass
    class Odd:
        table: dict[str, int]

    with pytest.raises(TypeError, match=r"table has type dict\[str, int\], for which there is no option"):
        from_config(Odd)(lambda: None)


def test_flag_before_environment_before_file_before_default(group: click.Group, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[walk]\nsteps = 10\nrate = 1\nlimit = 30\ntext = ["f.txt"]\n[run]\n')
    env = {"SAE_RUNTIME_WALK_STEPS": "20", "SAE_RUNTIME_WALK_RATE": "2"}
    config = made(group, "--config", str(file), "--rate", "3", env=env)
    assert config == Config(steps=20, text=(Path("f.txt"),), rate=3.0, limit=30)
    assert made(group, "--config", str(file), "--text", "g.txt").text == (Path("g.txt"),)
    assert made(group, *NEEDED, env=env).rate == 2.0
    assert made(group, env=env | {"SAE_RUNTIME_WALK_CONFIG": str(file)}).limit == 30


def test_every_kind_of_field_from_a_file(group: click.Group, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        '[walk]\nsteps = 3\ntext = ["a.txt", "b.txt"]\nmode = "fast"\nkeep_all = true\nnames = []\nverbose = true\n'
    )
    config = made(group, "--config", str(file))
    text = (Path("a.txt"), Path("b.txt"))
    assert config == Config(steps=3, text=text, mode="fast", keep_all=True, names=())
    assert made(group, "--config", str(file), "--no-keep-all").keep_all is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[walk", "{file} is not readable TOML (Expected"),
        ("[wlak]\nsteps = 3", "{file}: wlak is not the table of a command, expected [run], [walk]."),
        ("steps = 3", "{file}: steps is not the table of a command, expected [run], [walk]."),
        ("walk = 3", "{file}: walk is not the table of a command, expected [run], [walk]."),
        (
            "[walk]\nstep = 3",
            "{file}: step in [walk] is no setting, expected steps, text, rate, limit, mode, keep_all, names, verbose.",
        ),
        ("[walk]\nconfig = 'x'", "{file}: config in [walk] is no setting, expected steps, "),
        ("[walk]\ntext = 'a.txt'", "{file}: text in [walk] must be a list of strings or numbers, got 'a.txt'."),
        ("[walk]\ntext = [['a.txt']]", "{file}: text in [walk] must be a list of strings or numbers, got [['a.txt']]."),
        ("[walk]\nsteps = [3]", "{file}: steps in [walk] must be a string or a number, got [3]."),
        ("[walk]\nsteps = true", "{file}: steps in [walk] must be a string or a number, got True."),
        ("[walk]\nkeep_all = 'yes'", "{file}: keep_all in [walk] must be true or false, got 'yes'."),
    ],
)
def test_wrong_files(group: click.Group, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    said = misused(group, *NEEDED, "--config", str(file))
    assert said.startswith("Invalid value for '--config': " + message.format(file=file))


def test_wrong_values_in_a_file(group: click.Group, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[walk]\nlimit = 'x'\n")
    assert misused(group, *NEEDED, "--config", str(file)).startswith("Invalid value for '--limit': 'x' is not a whole")
    file.write_bytes(b"\xff")
    assert "run.toml is not readable TOML ('utf-8' codec" in misused(group, *NEEDED, "--config", str(file))
    assert "nowhere.toml' does not exist." in misused(group, *NEEDED, "--config", str(tmp_path / "nowhere.toml"))


def test_a_command_of_an_inner_group_has_a_table_inside_the_groups(group: click.Group, tmp_path: Path) -> None:
    tops: list[int] = []

    @group.group("far")
    def far() -> None:
        pass

    @far.command("jump", cls=Command, example="main far jump", group="far")
    @click.option("--top", type=int, default=1)
    def jump(top: int) -> None:
        tops.append(top)

    file = tmp_path / "run.toml"
    file.write_text("[walk]\nsteps = 3\n[far.jump]\ntop = 4\n")
    call = ["far", "jump", "--config", str(file)]
    for arguments, env in ((call, {}), (call, {"SAE_RUNTIME_FAR_JUMP_TOP": "5"}), ([*call, "--top", "6"], {})):
        assert CliRunner().invoke(group, arguments, env=env).exit_code == 0
    assert tops == [4, 5, 6]
    assert "its table [far.jump] holds" in " ".join(CliRunner().invoke(group, ["far", "jump", "--help"]).stdout.split())
    for text, message in (
        ("[far]\ntop = 4", "far.top is not the table of a command, expected [far.jump]."),
        ("[far.hop]\ntop = 4", "far.hop is not the table of a command, expected [far.jump]."),
        ("far = 4", "far is not the table of a command, expected [far], [run], [walk]."),
        ("[jump]\ntop = 4", "jump is not the table of a command, expected [far], [run], [walk]."),
        ("[far.jump]\ntpo = 4", "tpo in [far.jump] is no setting, expected top."),
    ):
        file.write_text(text)
        said = CliRunner().invoke(group, call, prog_name="main")
        assert said.exit_code == 2 and f"{file}: {message}" in said.stderr
