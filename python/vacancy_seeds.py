"""Several seeds of the vacancy example: the table of docs/results.md and the README's picture.

    python python/vacancy_seeds.py RUNS            # run (or continue) in this folder, then print
    python python/vacancy_seeds.py                 # print from the committed data

The results go to docs/vacancy-fe.json, and the picture of the default CV's first seed to
docs/vacancy-fe.png. A run takes minutes on one core.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from plumed_cv import input_file, workflow
from plumed_cv.common.files import write_text

DOCS = Path(__file__).resolve().parent.parent / "docs"
DATA = DOCS / "vacancy-fe.json"


def run_all(root: Path, starts: list[str], seeds: list[int]) -> None:
    """Run the packaged example for all seeds with both first CVs; write the data file."""
    example = root / "vacancy-fe"
    if not example.exists():
        root.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "plumed_cv.cli", "init", "vacancy-fe", str(example)]
        subprocess.run(command, check=True)
    base = input_file.load(example / "vacancy.toml")
    runs: list[dict[str, Any]] = []
    for start in starts:
        for seed in seeds:
            settings = base.model_copy(
                update={
                    "cv": base.cv.model_copy(update={"start": start}),
                    "iteration": base.iteration.model_copy(update={"seed": seed}),
                }
            )
            folder = root / f"{start}-{seed}"
            began = time.monotonic()
            result = workflow.run(settings, folder)
            wall = folder / "wall_s.json"  # of the first time; a later one only reads results
            if not wall.exists():
                write_text(wall, json.dumps(time.monotonic() - began))
            runs.append(
                {
                    "start": start,
                    "seed": seed,
                    "wall_s": round(json.loads(wall.read_text())),
                    "result": {key: each for key, each in result.items() if key != "rate"},
                }
            )
            DOCS.mkdir(exist_ok=True)
            write_text(DATA, json.dumps(runs, indent=1))
            if (start, seed) == (input_file.CV().start, seeds[0]):
                shutil.copyfile(folder / "profiles.png", DOCS / "vacancy-fe.png")
            print(f"{start}, seed {seed}: done", file=sys.stderr)


def print_table(runs: list[dict[str, Any]]) -> None:
    """Print every iteration of every run, then steps and results for both first CVs."""
    print("| first CV | seed | iteration | CV | flux barrier (eV) | barrier (eV) ", end="")
    print("| A(1) - A(0) (eV) | 1 - cos | MD steps | sampling (s) | wall time of run (s) |")
    print("|" + " --- |" * 11)
    for run in runs:
        parts = run["result"]["iterations"]
        for part in parts:
            words = [workflow.in_words(part, n).removesuffix(" eV") for n in workflow.RESULTS]
            wall = str(run["wall_s"]) if part is parts[-1] else ""
            cells = [run["start"], run["seed"], part["iteration"], part["kind"], *words]
            cells += [f"{part['similarity']:.3f}", part["md_steps"]]
            cells += [round(part["seconds_sampling"]), wall]
            print("| " + " | ".join(map(str, cells)) + " |")
    print()
    for start in ("linear", "path"):
        chosen = [run["result"] for run in runs if run["start"] == start]
        if not chosen:
            continue
        flux = np.array([result["flux_barrier_eV"] or np.nan for result in chosen])
        delta = np.array([result["delta_F_eV"] for result in chosen])
        iterations = np.mean([len(result["iterations"]) for result in chosen])
        print(
            f"{start}: {len(chosen)} runs, {iterations:.1f} iterations on average; flux barrier "
            f"{np.nanmean(flux):.3f} eV, spread {np.nanstd(flux, ddof=1):.3f} eV; "
            f"delta F RMS {np.sqrt(np.mean(delta**2)):.3f} eV"
        )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="folder for the runs; none: only print")
    parser.add_argument("--starts", nargs="+", default=["linear", "path"], help="first CVs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    if arguments.runs is not None:
        run_all(arguments.runs.absolute(), arguments.starts, arguments.seeds)
    print_table(json.loads(DATA.read_text()))


if __name__ == "__main__":
    main()
