"""sae-runtime export-triton."""

from pathlib import Path

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import WHOLE, Command, from_config
from sae_runtime.serve.policy import Policy

_ENDS = 2**31  # Triton's numbers have 32 bits


@click.command("export-triton", cls=Command, example="sae-runtime export-triton sae model -o repository")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(["onnx", "python"]),
    help="onnx: the bundle's graphs as they are; python: the answers of `serve`; may be repeated [both]",
)
@click.option(
    "--operation", "operations", multiple=True, help="encode, steer_onnx, features, ...; may be repeated [all]"
)
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", help="where Triton runs the models")
@click.option("--instances", type=WHOLE, default=1, help="how often Triton loads each model")
@click.option("--threads", type=WHOLE, help="threads of an operator [all cores]")
@click.option(
    "--max-batch", type=WHOLE, default=4096, help="rows up to which Triton merges requests; 0: it merges none"
)
@click.option(
    "--delay", type=WHOLE, default=500, help="microseconds for which a request waits for others to merge with"
)
@from_config(Policy, "policy")
@common.output("the repository, a folder")
@common.running("force", "json")
def command(
    paths: tuple[str, ...],
    backends: tuple[str, ...],
    operations: tuple[str, ...],
    device: str,
    instances: int,
    threads: int | None,
    max_batch: int,
    delay: int,
    policy: Policy,
    output: Path,
    run: Run,
) -> None:
    """Write a model repository for Triton.

    A PATH is a bundle or a deployed model, also as NAME=PATH or NAME@VERSION=PATH. A model of Triton is one operation
    of it: NAME.encode, NAME.features, ... by the Python backend, and NAME.encode_onnx, NAME.steer_onnx, ... by the ONNX
    backend. The repository holds copies of all that it needs, so it can be moved; the Python backend also needs
    sae-runtime in Triton's Python. It is checked by the rules of Triton's backends. With bounds for edits the graphs
    for steering are left out, since a graph keeps none.
    """
    from sae_runtime.bundle.files import check_free
    from sae_runtime.exports.graphs.external import without_defaults
    from sae_runtime.serve.catalogue import open_all
    from sae_runtime.serve.triton.config import ModelConfig
    from sae_runtime.serve.triton.planning import ONNX, PYTHON, TritonOptions, plan
    from sae_runtime.serve.triton.repository import foreign, write_repository

    limits = {"--instances": (instances, 1, 1024), "--max-batch": (max_batch, 0, _ENDS), "--delay": (delay, 0, _ENDS)}
    for option, (value, least, end) in limits.items():
        if not least <= value < end:
            raise ValueError(f"{option} is a whole number from {least} to {end - 1:,}, got {value:,}")
    check_free(output, force=run.force, kind="folder", foreign=foreign)
    names = {"onnx": ONNX, "python": PYTHON}
    options = TritonOptions(
        backends=tuple(names[name] for name in backends or names),
        device=device.upper(),
        instances=instances,
        threads=threads,
        max_batch=max_batch,
        delay=delay,
        policy=policy,
    )
    loaded = open_all(paths, threads=threads)
    planned = plan(loaded, options, without_defaults, operations)
    write_repository(output, planned, force=run.force)
    configs: dict[str, ModelConfig] = {one.config.name: one.config for one in planned}
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    lines: list[tuple[str, object]] = [("repository", f"{output}, {size / 1e6:,.1f} MB")]
    for name, config in configs.items():
        merged = f"merges up to {config.max_batch_size:,} rows" if config.max_batch_size else "merges nothing"
        lines.append(("model", f"{name}, {config.backend}, {merged}"))
    run.show({"path": output, "bytes": size, "models": list(configs)}, lines)
    if device == "gpu" and ONNX in options.backends:
        common.warn(
            "the ONNX backend rounds by TF32 on a GPU, which moves features over their thresholds; start tritonserver "
            "with NVIDIA_TF32_OVERRIDE=0"
        )
