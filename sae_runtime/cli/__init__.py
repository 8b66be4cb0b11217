"""The command `sae-runtime`. Each subcommand is a module of its name, imported when it is called.

A command's module imports what it works with inside its function: help and completion need click alone.
"""

import click

from sae_runtime.cli.group import Group

GROUPS = {
    "Fit": {
        "harvest": "Keep a model's activations on text.",
        "train": "Fit sparse autoencoders on activations, or on a model as it runs.",
        "calibrate": "Fit the threshold of a bundle to a mean L0.",
        "evaluate": "Measure what a bundle explains, and what a model loses.",
        "report": "Show what bundles explain on one HTML page.",
    },
    "Convert": {
        "convert": "Make a bundle of another library's checkpoint.",
        "export": "Put ONNX graphs into a bundle.",
        "inspect": "Check a bundle or a deployed model and say what it is.",
    },
    "Deploy": {
        "export-model": "Export a transformers model as an ONNX graph.",
        "splice": "Put SAEs into a host model's ONNX graph.",
        "export-triton": "Write a model repository for Triton.",
        "push": "Send a bundle or a deployed model to the Hugging Face Hub.",
    },
    "Use": {
        "extract": "Write the features of texts, or of activations, to a folder.",
        "features": "Read features: of a deployed model on text, or of a corpus.",
        "steer": "Edit features of activations, or of a deployed model on text.",
        "browse": "Write a site to look at features in a web browser, or open one.",
        "serve": "Serve bundles and deployed models to many callers, by HTTP.",
    },
    "About": {
        "demo": "Do all of it on a small real model.",
        "doctor": "Say what works on this machine, or whether a spliced MODEL works.",
        "completion": "Print the script that completes commands in a shell.",
        "help": "Show the help of a command.",
    },
}
"""The commands in the order of the work; the line of each is the first line of its own help."""

COMMANDS = {name: line for commands in GROUPS.values() for name, line in commands.items()}


@click.command(
    cls=Group,
    groups=GROUPS,
    context_settings={"auto_envvar_prefix": "SAE_RUNTIME", "help_option_names": ["-h", "--help"], "show_default": True},
    epilog="An option is taken from the command line, else from the environment (SAE_RUNTIME_TRAIN_K for train --k), "
    "else from the command's table in the TOML file of --config, else it has its default.",
)
@click.version_option(
    None, "-V", "--version", package_name="sae-runtime", message="%(prog)s %(version)s", allow_from_autoenv=False
)
def main() -> None:
    """Fit sparse autoencoders, export them to ONNX, read and steer features with onnxruntime."""
