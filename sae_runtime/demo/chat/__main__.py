"""`make demo-chat` calls it: python -m sae_runtime.demo.chat MODEL TEXTS -o OUT."""

from pathlib import Path

import click

from sae_runtime.demo.chat import run


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("texts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(model: Path, texts: Path, output: Path) -> None:
    """Run the demo into a folder."""
    run(model, texts, output)


if __name__ == "__main__":
    main()
