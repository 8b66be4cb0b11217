"""What shows a fault is kept: a file with the part, the seed, and all that makes the fault come back."""

import json
from collections.abc import Mapping
from pathlib import Path

KEPT = "faults"


def keep(folder: Path, part: str, **evidence: object) -> Path:
    """Write evidence as JSON into a new file below the folder of a campaign."""
    home = folder / KEPT
    home.mkdir(parents=True, exist_ok=True)
    path = home / f"{part}-{len(list(home.glob(f'{part}-*.json'))):04}.json"
    path.write_text(json.dumps(evidence, indent=1, default=str) + "\n")
    return path


def told(counts: Mapping[str, int], folder: Path) -> str:
    """What a test says of the faults of a part: the first few that were kept."""
    files = sorted((folder / KEPT).glob("*.json"))
    return f"{dict(counts)}\n" + "\n".join(file.read_text() for file in files[:3])
