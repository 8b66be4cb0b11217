"""sae-runtime steer."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sae_runtime.bundle.disk_errors import naming
from sae_runtime.cli import common, texts
from sae_runtime.cli.common import Run
from sae_runtime.cli.edits import HINT, edits, found
from sae_runtime.cli.options import WHOLE, Command

if TYPE_CHECKING:
    from sae_runtime.core.edits import Edit
    from sae_runtime.model import Model

_OF_MODEL = ("document", "text_field", "sae", "gate")
_OF_KIND = {
    "vectors": ("among", "nearest"),
    "text": ("max_new_tokens", "chat", "temperature", "seed"),
}  # options that count for one kind of model
_GATES = ("all", "text", "prompt", "last_prompt", "generated", "answer")  # those of core.gates that are words


@click.command(
    "steer", cls=Command, example="sae-runtime steer sae --activations acts --set 12=8.0 --ablate 7 -o steered.npy"
)
@click.argument("place", metavar="BUNDLE|MODEL")
@click.option("--activations", type=common.PATH, help=f"of a BUNDLE: {common.ACTIVATIONS}")
@texts.texts("of a MODEL: a text")
@edits
@common.output("of a BUNDLE: file to write, float32: .npy, or .safetensors", required=False)
@common.any_source
@texts.sae
@click.option("--gate", type=click.Choice(_GATES), default="all", help="of a MODEL: the tokens that are edited")
@click.option("--among", multiple=True, type=common.PATH, help=f"show the nearest of these texts: {texts.FILES}")
@click.option("--nearest", type=click.IntRange(min=1), default=5, help="how many of them")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=60, help="the most tokens of an answer")
@click.option("--chat", is_flag=True, help="give a text as a message to the model's chat template")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, help="of the answer; 0: the likeliest tokens")
@click.option("--seed", type=WHOLE, default=0, help="of the answer's random numbers")
@common.session
@common.running("force", "quiet", "json")
def command(
    place: str,
    activations: Path | None,
    output: Path | None,
    edits: list["Edit"],
    any_source: bool,
    session: dict[str, Any],
    run: Run,
    **of_texts: Any,
) -> None:
    """Edit features of activations, or of a deployed model on text.

    Of a BUNDLE, --activations are edited and written to OUTPUT. Of a MODEL, which is what `splice` leaves, --text shows
    what the edits move: the nearest of other texts (--among), the answer of a language model, or how far each output
    is from what it was.

    FEATURE is a feature's number, or its label in the bundle's labels.jsonl. Every option that names one may be
    repeated; a feature takes one edit. All else in the activations stays, the part that the SAE cannot explain too. An
    x before a number makes it a multiple of the feature's largest activation, which the bundle keeps. An .npy of
    activations may have any shape [..., d_in].
    """
    listed = of_texts.pop("texts")
    if bool(listed) == (activations is not None):
        raise click.UsageError("Give --activations of a BUNDLE, or --text or --text-file of a MODEL.")
    if not edits:
        raise click.UsageError(HINT)
    if activations is None:
        if output is not None:
            raise click.UsageError("With --text, what moved is printed, and -o writes nothing; leave it out.")
        _refuse(["any_source"], "counts for --activations")
        _steer_model(place, listed, edits, session, run, **of_texts)
        return
    _refuse([*_OF_MODEL, *(name for names in _OF_KIND.values() for name in names)], "counts for --text of a MODEL")
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    _steer_activations(place, activations, output, edits, any_source, session, run)


def _refuse(options: Iterable[str], why: str) -> None:
    """Refuse options that would change nothing, where one is set."""
    context = click.get_current_context()
    for name in options:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} {why}; leave it out.")


def _steer_activations(
    bundle: str,
    activations: Path,
    output: Path,
    edits: list["Edit"],
    any_source: bool,
    session: dict[str, Any],
    run: Run,
) -> None:
    from sae_runtime.activations.stored import check_source
    from sae_runtime.bundle.folder import MANIFEST
    from sae_runtime.bundle.hub import local
    from sae_runtime.bundle.outputs import Output
    from sae_runtime.core.edits import edit_arrays
    from sae_runtime.extraction.steered import any_rank, steer_rows
    from sae_runtime.sae import load

    if output.suffix not in (".npy", ".safetensors"):
        raise ValueError(f"the output must be an .npy or a .safetensors file, got {output}")
    folder = local(bundle)
    if not (folder / MANIFEST).is_file() and any(folder.glob("*.onnx")):
        inside = next((f", such as {one.parent}" for one in sorted(folder.glob(f"*/{MANIFEST}"))), "")
        raise ValueError(f"{bundle} is a deployed model; give it --text, or name a bundle{inside}")
    Output(path=output, kind="file", force=run.force, inputs={"bundle": folder, "activations": activations}).check()
    rows, shape = any_rank(activations)
    sae = load(folder, **session)
    plain = sae.resolved(edits)
    edit_arrays([plain], sae.d_sae)  # refuses an edit before the first token is read
    check_source(rows, sae.manifest, any_source=any_source)
    steer_rows(sae, rows, plain, output, shape=shape, **run.options)
    lines = [
        ("activations", output),
        ("shape", " x ".join(map(str, shape))),
        ("edits", f"{common.plural(len(edits), 'feature')} on {common.plural(len(rows), 'token')}"),
        *found(edits, plain),
    ]
    run.show(
        {"activations": output, "shape": shape, "edits": len(edits), "features": [edit.feature for edit in plain]},
        lines,
    )


def _steer_model(
    place: str,
    listed: list[str],
    edits: list["Edit"],
    session: dict[str, Any],
    run: Run,
    *,
    sae: str | None,
    gate: str,
    among: tuple[Path, ...],
    nearest: int,
    max_new_tokens: int,
    chat: bool,
    temperature: float,
    seed: int,
) -> None:
    from sae_runtime.cli.moved import Steering, show
    from sae_runtime.model import load_model

    model = load_model(place, **session)
    for kind, options in _OF_KIND.items():
        if kind != model.kind:
            _refuse(options, f"counts for models that give {kind}, and {model.layout.graph} does not")
    name = _edited(model, sae)
    plain = model.saes[name].resolved(edits)
    steering = Steering(
        model=model,
        texts=listed,
        edits={name: plain},
        gate=gate,
        among=[str(one.content) for one in texts.read(among, "line", "text")],
        nearest=nearest,
        chat=chat,
        most=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    if run.json:
        result = {"model": place, "kind": model.kind, "sae": name, "features": [edit.feature for edit in plain]}
        run.show(result | {"texts": list(steering.moved())}, [])
        return
    where = f"{name}, {model.saes[name].hook}"
    heading = [("model", place), ("edits", f"{common.plural(len(edits), 'feature')} of {where}"), *found(edits, plain)]
    with naming("standard output"):
        show(steering, lambda: run.show({}, heading))


def _edited(model: "Model", sae: str | None) -> str:
    """The SAE whose features are edited."""
    names = [name for name, one in model.saes.items() if one.edits]
    if sae in names or (sae is None and len(names) == 1):
        return sae or names[0]
    if not names:
        raise ValueError(
            f"{model.layout.graph} has no SAE that takes edits; put one in: sae-runtime splice {model.layout.graph} "
            "--sae BUNDLE"
        )
    asked = "" if sae is None else f", not of {sae!r}"
    raise ValueError(f"the model takes edits of {', '.join(names)}{asked}; name one of them by --sae")
