"""sae-runtime export-model."""

from pathlib import Path

import click

from sae_runtime.bundle.files import check_free
from sae_runtime.cli.common import force_option, json_option, output_option, show
from sae_runtime.cli.options import Command


@click.command("export-model", cls=Command)
@click.option("--model", required=True, help="transformers folder or hub name")
@click.option(
    "--cache/--no-cache",
    default=True,
    help="let a causal language model take and give keys and values, for generation",
)
@click.option("--dtype", type=click.Choice(("float32", "float16")), default="float32", help="type of the weights")
@output_option("graph to write, .onnx; its weights go into a file beside it")
@force_option
@json_option
def command(model: str, cache: bool, dtype: str, output: Path, force: bool, json: bool) -> None:
    """Export a transformers model as an ONNX graph.

    Batch and sequence are dynamic. Every node keeps the name of its module, by which `splice` finds a hook. The graph
    is compared with torch before it takes its name.
    """
    check_free(output, force=force)  # before the model is loaded
    import torch

    from sae_runtime.exports.export_model import export_model
    from sae_runtime.train.harvest.host_model import load_host_model

    _, loaded = load_host_model(model, "cpu", head=True)
    path = export_model(loaded.to(getattr(torch, dtype)), output, cache=cache, force=force)
    data = path.with_name(path.name + ".data")
    parameters = sum(parameter.numel() for parameter in loaded.parameters())
    result = {"graph": path, "data": data, "model": type(loaded).__name__, "parameters": parameters, "dtype": dtype}
    lines = [
        ("graph", path),
        ("weights", f"{data.name}, {data.stat().st_size:,} bytes"),
        ("model", f"{type(loaded).__name__}, {parameters:,} parameters in {dtype}"),
    ]
    show(result, lines, json=json)
