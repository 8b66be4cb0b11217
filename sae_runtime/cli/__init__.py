"""The command `sae-runtime`. Each subcommand is a module of its name, imported when it is called for."""

import importlib

import click

# In the order of the work; the line of each is the first line of its own help.
COMMANDS = {
    "harvest": "Keep a model's activations on text.",
    "train": "Fit sparse autoencoders on activations, or on a model at work.",
    "calibrate": "Fit the threshold of a bundle to a mean L0.",
    "convert": "Make a bundle of another library's checkpoint, or the reverse.",
    "export": "Put ONNX graphs into a bundle.",
    "inspect": "Check a bundle and say what it is.",
    "evaluate": "Measure what a bundle explains, and what a model loses.",
    "report": "Show what bundles explain on one HTML page.",
    "extract": "Write the features of activations to a file.",
    "steer": "Edit features of activations.",
    "export-model": "Export a transformers model as an ONNX graph.",
    "splice": "Put SAEs into a host model's ONNX graph.",
    "doctor": "Say what works on this machine.",
    "demo": "Do all of it on a small real model.",
}

_INTERRUPTED = "interrupted; nothing was left half written"


class _Failure(click.ClickException):
    """Ends the program with one line on stderr and exit code 1."""

    def show(self, file: object = None) -> None:
        click.echo(self.message, err=True)


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"sae_runtime.cli.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader of our output left: click ends quietly
        except (KeyboardInterrupt, click.Abort):
            raise _Failure(_INTERRUPTED) from None
        except Exception as error:
            # Python 3.11 wraps one that comes while a class is made.
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise _Failure(_INTERRUPTED) from None
            if not isinstance(error, ValueError | OSError | ImportError | MemoryError | EOFError):
                raise
            raise _Failure(f"error: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    """What an exception says, on one line."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"out of memory{f' ({text})' if text else ''}"
    return text or type(error).__name__


@click.command(
    cls=_Lazy,
    context_settings={"auto_envvar_prefix": "SAE_RUNTIME", "help_option_names": ["-h", "--help"], "show_default": True},
    epilog="An option is taken from the command line, else from the environment (SAE_RUNTIME_TRAIN_K for train --k), "
    "else from the command's table in the TOML file of --config, else it has its default.",
)
@click.version_option(package_name="sae-runtime", message="%(prog)s %(version)s", allow_from_autoenv=False)
def main() -> None:
    """Fit sparse autoencoders, export them to ONNX, read and steer features with onnxruntime."""
