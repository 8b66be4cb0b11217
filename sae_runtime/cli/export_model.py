"""sae-runtime export-model."""

import re
from collections.abc import Sequence
from pathlib import Path

import click

from sae_runtime.bundle.transformer_lens import listed
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
@click.option(
    "--part",
    type=click.Choice(("encoder", "decoder", "text", "vision")),
    help="export one part: of an encoder and a decoder (the encoder if not given), or of a model of text and pictures",
)
@click.option("--image-size", type=click.IntRange(min=1), help="height and width of pictures; default: the config's")
@click.option("--dtype", type=click.Choice(("float32", "float16")), default="float32", help="type of the weights")
@common.output("graph to write, .onnx; its weights go into a file beside it")
@common.running("force", "json")
def command(
    model: str, cache: bool, part: str | None, image_size: int | None, dtype: str, output: Path, run: Run
) -> None:
    """Export a transformers model as an ONNX graph.

    MODEL is a transformers folder or a name of the Hugging Face Hub; its head is kept. Batch and sequence are dynamic.
    Every node keeps the name of its module, by which `splice` finds a hook. The graph is compared with torch before it
    is written. Tokenizer, configuration and the like are copied beside it.
    """
    from sae_runtime.bundle.extras import require
    from sae_runtime.bundle.files import check_free

    require("train", "export")
    check_free(output, force=run.force, kind="file")  # before the model is loaded
    import torch

    from sae_runtime.exports.export_model import export_model
    from sae_runtime.exports.model.form import default_part
    from sae_runtime.train.harvest.host_model import load_whole_model

    loaded = load_whole_model(model).to(getattr(torch, dtype))
    part = part or default_part(loaded)
    home = _folder_of(model)
    path = export_model(loaded, output, cache=cache, part=part, image=image_size, home=home, force=run.force)
    data = path.with_name(path.name + ".data")
    kind, parameters = type(loaded).__name__, sum(parameter.numel() for parameter in loaded.parameters())
    inputs, outputs = _names(path)
    result = {"graph": path, "data": data, "model": kind, "part": part, "parameters": parameters, "dtype": dtype}
    lines = [
        ("graph", path),
        ("weights", f"{data.name}, {data.stat().st_size:,} bytes"),
        ("model", f"{kind}, {parameters:,} parameters in {dtype}"),
        *([("part", f"the {part}; --part names another one")] if part else []),
        ("inputs", listed(inputs)),
        ("outputs", listed(outputs)),
    ]
    run.show(result | {"inputs": inputs, "outputs": outputs}, lines)


def _folder_of(model: str) -> Path | None:
    """The folder of a model with its tokenizer and configuration; those of the Hub are fetched."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    from sae_runtime.bundle.model_files import PATTERNS

    try:
        return Path(snapshot_download(model, allow_patterns=[*PATTERNS, "*/config.json"]))
    except Exception as error:  # its class depends on the release of huggingface_hub
        common.warn(f"the tokenizer of {model} was not fetched ({' '.join(str(error).split())[:200]})")
        return None


def _names(path: Path) -> tuple[list[str], list[str]]:
    """The inputs and outputs of a graph; keys and values of all layers have one name."""
    import onnx_ir as ir

    def names(values: Sequence[ir.Value]) -> list[str]:
        return list(dict.fromkeys(re.sub(r"^(past_key_values|present)\.\d+\.", r"\1.N.", str(v.name)) for v in values))

    graph = ir.load(path).graph
    return names(graph.inputs), names(graph.outputs)
