"""The vacancy example for several seeds and both first CVs: table and picture of the README.

    python python/vacancy_seeds.py RUNS            # run (or go on), then print and draw
    python python/vacancy_seeds.py --draw          # print and draw from the committed data

The results go to docs/vacancy-fe.json and docs/vacancy-fe.png. A run takes minutes on one core.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from plumed_cv import babf, config, workflow
from plumed_cv.files import replacing, write_text

DOCS = Path(__file__).resolve().parent.parent / "docs"
DATA = DOCS / "vacancy-fe.json"


def run_all(root: Path, seeds: list[int]) -> None:
    """Run the packaged example for all seeds with both first CVs; write the data file."""
    example = root / "vacancy-fe"
    if not example.exists():
        command = [sys.executable, "-m", "plumed_cv.cli", "init", "vacancy-fe", str(example)]
        subprocess.run(command, check=True)
    base = config.load(example / "vacancy.toml")
    runs: list[dict[str, Any]] = []
    for start in ("linear", "path"):
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
            profiles = []
            for part in result["iterations"]:
                fes = babf.read_fes(folder / f"iteration-{part['iteration']}" / "fes.dat")
                columns = {"xi": fes.xi, "A_eV": fes.A, "A_error_eV": fes.A_error}
                profiles.append({k: np.round(v, 5).tolist() for k, v in columns.items()})
            runs.append(
                {
                    "start": start,
                    "seed": seed,
                    "wall_s": round(json.loads(wall.read_text())),
                    "result": result,
                    "profiles": profiles,
                }
            )
            DOCS.mkdir(exist_ok=True)
            write_text(DATA, json.dumps(runs, indent=1).replace("NaN", "null"))
            print(f"{start}, seed {seed}: done", file=sys.stderr)


def print_table(runs: list[dict[str, Any]]) -> None:
    """Print every iteration of every run, then what the first CVs cost and give."""
    print("| first CV | seed | iteration | CV | barrier (eV) | flux barrier (eV) ", end="")
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
            f"A(1)-A(0) RMS {np.sqrt(np.mean(delta**2)):.3f} eV"
        )


def draw(run: dict[str, Any], output: Path) -> None:
    """Draw the profiles of all iterations of one run with their error bands."""
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    parts = run["result"]["iterations"]
    colours = plt.colormaps["viridis"](np.linspace(0.75, 0.0, max(len(parts), 2)))
    for part, profile, colour in zip(parts, run["profiles"], colours, strict=False):
        xi, A, error = (np.array(profile[k], dtype=float) for k in ("xi", "A_eV", "A_error_eV"))
        words = workflow.in_words(part, "barrier")
        label = f"iteration {part['iteration']} ({part['kind']} CV): {words}"
        axes.plot(xi, A, color=colour, label=label)
        axes.fill_between(xi, A - error, A + error, color=colour, alpha=0.25, linewidth=0)
    axes.set_xlabel(r"collective variable $\xi$")
    axes.set_ylabel("free energy (eV)")
    axes.set_title(f"Vacancy in iron, {run['result']['temperature_K']:g} K, seed {run['seed']}")
    axes.margins(x=0)
    axes.legend(fontsize="small", loc="lower center")
    with replacing(output) as temporary:
        figure.savefig(temporary, dpi=130)


def main() -> None:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="folder for the runs")
    parser.add_argument("--draw", action="store_true", help="only print and draw the data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    if not arguments.draw:
        if arguments.runs is None:
            parser.error("give a folder for the runs, or --draw")
        run_all(arguments.runs.absolute(), arguments.seeds)
    runs = json.loads(DATA.read_text())
    print_table(runs)
    default = config.CV().start
    draw(next(run for run in runs if run["start"] == default), DOCS / "vacancy-fe.png")


if __name__ == "__main__":
    main()
