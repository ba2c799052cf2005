"""Cost of a step of BABF on two CVs as a function of the size of its grid.

    python python/benchmarks/babf_2d.py [--output docs/babf-2d.json]
    python python/benchmarks/babf_2d.py --table docs/babf-2d.json

A particle moves for 100 000 steps on a landscape of some 20 kT with its bias (babf_2d.cpp, the code
of the plugin without PLUMED). The columns are: a step without a solution for A (median); a solution
for A (median) and the number of steps between two solutions; the mean over all steps of the run,
the first of which have more solutions; the time to write a state as text, and its size. Times are
processor times on one core. Of three runs the fastest one counts, because other processes may use
the machine.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from plumed_cv.common.files import write_text
from plumed_cv.setup.tools import cxx_compiler

BINS = (25, 50, 100, 150, 200)
STEPS = 100_000
REPETITIONS = 3


def main() -> None:
    """Measure and print, or print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--table", type=Path, help="print the numbers of this JSON file")
    arguments = parser.parse_args()
    rows = json.loads(arguments.table.read_text()) if arguments.table else measure()
    if arguments.output:
        write_text(arguments.output, json.dumps(rows, indent=1) + "\n")
    show(rows)


def measure() -> list[dict[str, float]]:
    """Return the times for every grid."""
    source = Path(__file__).with_suffix(".cpp")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "babf_2d")
        flags = "-std=c++17 -O3 -DNDEBUG -fopenmp-simd -fno-math-errno -fno-trapping-math"
        subprocess.run([cxx_compiler(), *flags.split(), str(source), "-o", program], check=True)
        for periodic in (1, 0):
            for bins in BINS:
                command = [program, str(bins), str(periodic), str(STEPS)]
                runs = [
                    json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
                    for _ in range(REPETITIONS)
                ]
                best = min(runs, key=lambda run: float(run["mean"]))
                rows.append({"bins": bins, "periodic": periodic, **best})
    return rows


def show(rows: list[dict[str, float]]) -> None:
    """Print a table in Markdown."""
    print(
        "| bins | CVs | step without solution (us) | solution (ms) | every so many steps "
        "| step on average (us) | state as text (ms) | (MB) |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        kind = "periodic" if row["periodic"] else "bounded"
        print(
            f"| {row['bins']} x {row['bins']} | {kind} | {row['without']:.1f} "
            f"| {row['solution'] / 1e3:.2f} | {row['stride']} | {row['mean']:.1f} "
            f"| {row['state'] / 1e3:.0f} | {row['state_bytes'] / 1e6:.1f} |"
        )


if __name__ == "__main__":
    main()
