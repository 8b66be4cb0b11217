"""sae-runtime export-model."""

from pathlib import Path

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import Command


@click.command("export-model", cls=Command, example="sae-runtime export-model gpt2 -o model/host.onnx")
@click.argument("model")
@click.option(
    "--cache/--no-cache",
    default=True,
    help="let a causal language model take and give keys and values, for generation",
)
@click.option("--dtype", type=click.Choice(("float32", "float16")), default="float32", help="type of the weights")
@common.output("graph to write, .onnx; its weights go into a file beside it")
@common.running("force", "json")
def command(model: str, cache: bool, dtype: str, output: Path, run: Run) -> None:
    """Export a transformers model as an ONNX graph.

    MODEL is a transformers folder or a name of the Hugging Face Hub. Batch and sequence are dynamic. Every node keeps
    the name of its module, by which `splice` finds a hook. The graph is compared with torch before it is written.
    """
    from sae_runtime.bundle.extras import require
    from sae_runtime.bundle.files import check_free

    require("host")
    check_free(output, force=run.force)  # before the model is loaded
    import torch

    from sae_runtime.exports.export_model import export_model
    from sae_runtime.train.harvest.host_model import load_host_model

    _, loaded = load_host_model(model, "cpu", head=True)
    path = export_model(loaded.to(getattr(torch, dtype)), output, cache=cache, force=run.force)
    data = path.with_name(path.name + ".data")
    kind, parameters = type(loaded).__name__, sum(parameter.numel() for parameter in loaded.parameters())
    result = {"graph": path, "data": data, "model": kind, "parameters": parameters, "dtype": dtype}
    lines = [
        ("graph", path),
        ("weights", f"{data.name}, {data.stat().st_size:,} bytes"),
        ("model", f"{kind}, {parameters:,} parameters in {dtype}"),
    ]
    run.show(result, lines)
