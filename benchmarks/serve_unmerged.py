"""`sae-runtime serve` that merges no requests, to compare with; options are those of the command."""

import functools
import sys
from typing import Any

from sae_runtime.cli import main
from sae_runtime.serve import sharing


def alone(kind: Any) -> None:
    """Let this kind of sharing share nothing, as where its trial fails."""
    made = kind.__init__

    @functools.wraps(made)
    def init(self: Any, *given: Any, merges: bool, **named: Any) -> None:
        made(self, *given, merges=False, **named)

    kind.__init__ = init


if __name__ == "__main__":
    for kind in (sharing.Encoding, sharing.Decoding, sharing.Steering):
        alone(kind)
    sys.argv[1:1] = ["serve"]
    main()
