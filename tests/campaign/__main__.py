"""python -m campaign SECONDS [FOLDER] [--seed N] [--part NAME]: run the campaign, and print its table as Markdown.

The parts are the modules here that have `run`. The time is divided among them. The exit code is 1 where a fault was
found; FOLDER/PART/faults then holds what shows it.
"""

import argparse
import importlib
import pkgutil
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import campaign
from campaign.commands import COMMANDS, benches

SHARES = {"bundles": 5, "faults": 5, "kills": 2}  # of the time; the others have 1
OF_COMMANDS = {"faults", "kills", "full_disks"}  # they share what `benches` makes ready, within the time of all


def parts() -> dict[str, Any]:
    """The `run` of each part, by its name."""
    names = (module.name for module in pkgutil.iter_modules(campaign.__path__) if not module.name.startswith("_"))
    modules = {name: importlib.import_module(f"campaign.{name}") for name in names if not name.startswith("test_")}
    return {name: module.run for name, module in modules.items() if hasattr(module, "run")}


def row(part: str, counts: Mapping[str, int], seconds: float) -> str:
    """A part as a row of the table."""
    outcomes = ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items()) if name not in ("tried", "faults"))
    return f"| {part.replace('_', ' ')} | {counts['tried']:,} | {outcomes} | {counts['faults']:,} | {seconds:.0f} |"


def main() -> int:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m campaign")
    parser.add_argument("seconds", type=float)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", action="append")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="campaign-"))
    chosen = {name: run for name, run in parts().items() if asked.part is None or name in asked.part}
    whole = sum(SHARES.get(name, 1) for name in chosen)
    seconds = asked.seconds
    libraries = ("numpy", "onnxruntime", "onnx", "torch", "safetensors", "pyarrow")
    sys.stdout.write(
        f"{time.strftime('%Y-%m-%d')}, seed {asked.seed}, {asked.seconds:g} seconds; "
        f"Python {platform.python_version()}, "
        f"{', '.join(f'{name} {version(name)}' for name in libraries)}; {platform.system()} {platform.machine()}\n\n"
        "| part | tried | outcomes | faults | seconds |\n|---|---|---|---|---|\n"
    )
    faults = 0
    if OF_COMMANDS & set(chosen):
        begin = time.monotonic()
        benches(folder, tuple(COMMANDS))
        seconds = max(seconds - (time.monotonic() - begin), 0)
    for name, run in chosen.items():
        begin = time.monotonic()
        counts = run(seconds * SHARES.get(name, 1) / whole, folder / name, asked.seed)
        faults += counts["faults"]
        sys.stdout.write(row(name, counts, time.monotonic() - begin) + "\n")
        sys.stdout.flush()
    for kept in sorted(folder.glob("*/faults/*.json")):
        sys.stdout.write(f"\n{kept}\n{kept.read_text()}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
