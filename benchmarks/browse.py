"""What a site costs: seconds, processor time, peak memory, its size, its files and the largest one.

Each site is written by a process of its own. A made-up store of many features is one of the stores unless --features
is 0; it is kept in the folder, as the sites are.

    python benchmarks/browse.py /tmp/sites store-a store-b --features 131072
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from large_store import write_large_store

_CLI = "from sae_runtime.cli import main; main()"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where sites are written")
    parser.add_argument("stores", type=Path, nargs="*", help="feature stores, of each one a site, and one of all")
    parser.add_argument("--features", type=int, default=131_072, help="of a made-up store; 0: none is made")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    sites = [[store] for store in given.stores] + ([given.stores] if len(given.stores) > 1 else [])
    if given.features:
        made = given.folder / f"store-{given.features}"
        if not made.exists():
            begin = time.perf_counter()
            write_large_store(made, given.features)
            print(f"made a store of {given.features:,} features in {time.perf_counter() - begin:.0f} s")
        sites.append([made])
    print(f"{'stores':<30} {'seconds':>8} {'CPU s':>7} {'MiB at most':>11} {'MB':>8} {'files':>7} {'largest, kB':>11}")
    for number, stores in enumerate(sites):
        print(_row(stores, given.folder / f"site-{number}"), flush=True)


def _row(stores: list[Path], site: Path) -> str:
    seconds, busy, peak = _written(stores, site)
    sizes = [path.stat().st_size for path in site.rglob("*") if path.is_file()]
    name = ", ".join(store.name for store in stores)
    largest = max(sizes) / 1e3
    figures = (
        f"{seconds:8.1f} {busy:7.1f} {peak / 2**20:11,.0f} {sum(sizes) / 1e6:8,.1f} {len(sizes):7,} {largest:11,.0f}"
    )
    return f"{name:<30} {figures}"


def _written(stores: list[Path], site: Path) -> tuple[float, float, int]:
    """Seconds, processor time, and peak memory in bytes, of the process that writes a site."""
    command = [sys.executable, "-c", _CLI, "browse", *map(str, stores), "-o", str(site), "--force", "-q"]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        sys.exit(f"browse ended with {os.waitstatus_to_exitcode(status)}")
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
