"""sae-runtime push."""

import dataclasses

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import Command


@click.command("push", cls=Command, example="sae-runtime push sae owner/name --dry-run")
@click.argument("source", metavar="BUNDLE_OR_MODEL")
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--path", "folder", default="", help="folder in the repository [its root]")
@click.option("--private", is_flag=True, help="make a private repository; one that is there must be private")
@click.option("--create/--no-create", default=True, help="make the repository, and the branch, if it is not there")
@click.option("--revision", metavar="BRANCH", help="branch that gets the commit [the main one]")
@click.option("--message", help="message of the commit")
@click.option("--licence", metavar="TEXT", help="licence for model cards that state none, such as mit or apache-2.0")
@click.option("--dry-run", is_flag=True, help="say what would be sent; send nothing, and ask nobody")
@common.running("quiet", "json")
def command(
    source: str,
    repository: str,
    folder: str,
    private: bool,
    create: bool,
    revision: str | None,
    message: str | None,
    licence: str | None,
    dry_run: bool,
    run: Run,
) -> None:
    """Send a bundle or a deployed model to the Hugging Face Hub.

    BUNDLE_OR_MODEL is a bundle, a folder of bundles as `train` writes it for several k, or what `splice` wrote. It is
    checked as `load` checks it. Only its own files are sent, in one commit, with a model card that names the
    repository; the files here stay as they are. A model card that somebody edited on the Hub stays too. The token is
    that of `hf auth login`, or HF_TOKEN.
    """
    from sae_runtime.publishing import push

    made = push(
        source,
        repository,
        folder=folder.strip("/"),
        private=private,
        create=create,
        revision=revision,
        message=message,
        licence=licence,
        dry_run=dry_run,
        progress=not (run.quiet or run.json),
    )
    lines: list[tuple[str, object]] = [
        ("" if number else "files", f"{size:>14,} bytes  {name}")
        for number, (name, size) in enumerate(made.files.items())
    ]
    lines.append(("size", f"{made.size:,} bytes in {common.plural(len(made.files), 'file')}"))
    lines += [("kept", f"{name}, which somebody edited on the Hub") for name in made.kept]
    lines += [("removed", f"{name}, of an older bundle there") for name in made.removed]
    lines.append(("commit", made.commit) if made.commit else ("sent", "nothing: --dry-run"))
    opens = {"model": [("load_model", made.reference)]}.get(made.kind, [("load", one) for one in made.bundles])
    lines += [(label if not number else "", reference) for number, (label, reference) in enumerate(opens)]
    run.show(dataclasses.asdict(made) | {"size": made.size}, lines)
