"""Time of `plumed-cv discover` with one job and with several.

    python python/benchmarks/searches.py [--quick] [--output docs/searches.json]
    python python/benchmarks/searches.py --table docs/searches.json

The case is the adatom on Cu(100) of `python/discovery.py`. Each search is done in turn with one
job and with several, because the machine may be shared. The script prints the median of the times
and the fastest one, which other processes disturb least, and the load of the machine just before
each command: the number of processes that want a core, which should be 0. It compares the
searches of all commands byte by byte.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from plumed_cv.setup.tools import n_cores
from python.discovery import CASES, prepare

CASE = "adatom on Cu(100)"
JOBS = (1, 2)


def main() -> None:
    """Measure and print, or print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few searches, once")
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--table", type=Path, help="print the numbers of this JSON file")
    arguments = parser.parse_args()
    if arguments.table:
        results = json.loads(arguments.table.read_text(encoding="utf-8"))
    else:
        results = measure(*(4, 1) if arguments.quick else (1000, 3))
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    show(results)


def measure(searches: int, rounds: int) -> dict[str, Any]:
    """Time the command with each number of jobs, in turn.

    Parameters
    ----------
    searches
        Number of searches at most.
    rounds
        How often.

    Returns
    -------
    dict
        Seconds and loads for each number of jobs, the number of searches and the cores.
    """
    seconds: dict[str, list[float]] = {str(jobs): [] for jobs in JOBS}
    loads: dict[str, list[float]] = {str(jobs): [] for jobs in JOBS}
    found: set[bytes] = set()
    with tempfile.TemporaryDirectory() as name:
        for k in range(rounds):
            for jobs in JOBS:
                structure, given, catalogue = prepare(CASE, Path(name) / f"{k}-{jobs}")
                words = [sys.executable, "-m", "plumed_cv.cli", "discover", str(structure)]
                words += ["-i", str(given), "-o", str(catalogue)]
                words += ["--max-barrier", str(CASES[CASE].max_barrier_eV)]
                words += ["--searches", str(searches), "--jobs", str(jobs)]
                loads[str(jobs)].append(os.getloadavg()[0])
                began = time.perf_counter()
                done = subprocess.run(words, capture_output=True, text=True, check=False)
                seconds[str(jobs)].append(time.perf_counter() - began)
                file = catalogue / "search" / "searches.jsonl"
                if not file.exists():
                    sys.exit(done.stderr)
                found.add(file.read_bytes())
    return {
        "case": CASE,
        "cores": n_cores(),
        "seconds": seconds,
        "loads": loads,
        "searches": len(next(iter(found)).splitlines()),
        "different_results": len(found) - 1,
    }


def show(results: dict[str, Any]) -> None:
    """Print the table of docs/discover.md."""
    print("| jobs | time, median (s) | fastest (s) | load before |")
    print("|" + " --- |" * 4)
    for jobs, seconds in results["seconds"].items():
        loads = ", ".join(f"{load:.1f}" for load in results["loads"][jobs])
        print(f"| {jobs} | {median(seconds):.0f} | {min(seconds):.0f} | {loads} |")
    one, *_, most = results["seconds"].values()
    print(
        f"\n{results['case']}, {results['searches']} searches, {results['cores']} cores: "
        f"{median(one) / median(most):.2f} times as fast (median), {min(one) / min(most):.2f} "
        f"times (fastest); {results['different_results']} results differ."
    )


if __name__ == "__main__":
    main()
