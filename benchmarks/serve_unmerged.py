"""`sae-runtime serve` that merges no requests, to compare with; options are those of the command."""

import sys

from sae_runtime.cli import main
from sae_runtime.serve import bundle_operations
from sae_runtime.serve.merge_trial import NEVER

if __name__ == "__main__":
    bundle_operations.try_merging = lambda sae: NEVER  # type: ignore[attr-defined]  # as where the trial fails
    sys.argv[1:1] = ["serve"]
    main()
