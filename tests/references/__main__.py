"""Write docs/reference/cli.md and api.md anew: `make references`."""

from references import api, cli
from references.hook import ROOT

if __name__ == "__main__":
    for name, made in (("cli", cli), ("api", api)):
        (ROOT / "docs/reference" / f"{name}.md").write_text(made.page())
