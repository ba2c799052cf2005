"""The vacancy in iron at 100, 300 and 500 K, as Fig. 7 of the paper: profiles of all iterations.

    python python/finite_temperature.py RUNS      # run (or continue) in this folder, then print
    python python/finite_temperature.py           # print and draw from the committed data

The input is the packaged example with the paper's numbers of steps per iteration: 1e5, 5e5 and 1e6.
The time step is 1 fs as in the paper, except at 100 K. Results and profiles are written to
docs/finite-temperature.json, the figure to docs/finite-temperature.png. The reference values are
those of python/references. The runs take about a quarter of an hour on one core.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from plumed_cv import freeenergy, input_file, workflow
from plumed_cv.common.files import replacing, write_text

DOCS = Path(__file__).resolve().parent.parent / "docs"
DATA = DOCS / "finite-temperature.json"
STEPS = {100: 100_000, 300: 500_000, 500: 1_000_000}
TIMESTEP_FS = {100: 3.0}  # elsewhere 1 fs as in the paper; 100 ps at 100 K are too short
REFERENCES = {"umbrella": "umbrella sampling, linear CV", "pafi": "hyperplanes of the path"}


def run_all(root: Path, seeds: list[int], temperatures_K: list[int]) -> None:
    """Run the example at all temperatures; write the data file after each run."""
    example = root / "vacancy-fe"
    if not example.exists():
        root.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "plumed_cv.cli", "init", "vacancy-fe", str(example)]
        subprocess.run(command, check=True)
    base = input_file.load(example / "vacancy.toml")
    data = json.loads(DATA.read_text()) if DATA.exists() else {}
    for seed in seeds:
        for temperature_K in temperatures_K:
            timestep_fs = TIMESTEP_FS.get(temperature_K, 1.0)
            sampling = {"steps": STEPS[temperature_K], "timestep_fs": timestep_fs}
            settings = base.model_copy(
                update={
                    "system": base.system.model_copy(
                        update={"temperature_K": float(temperature_K)}
                    ),
                    "sampling": base.sampling.model_copy(update=sampling),
                    "iteration": base.iteration.model_copy(update={"seed": seed}),
                }
            )
            folder = root / f"{temperature_K}K-{seed}"
            result = workflow.run(settings, folder)
            data[f"{temperature_K}K-{seed}"] = {
                "temperature_K": temperature_K,
                "seed": seed,
                "result": {key: each for key, each in result.items() if key != "rate"},
                "profiles": [
                    profile_of(folder / f"iteration-{n}" / "fes.dat")
                    for n in range(1, len(result["iterations"]) + 1)
                ],
            }
            write_text(DATA, json.dumps(data, indent=1))
            print(f"{temperature_K} K, seed {seed}: done", file=sys.stderr)


def profile_of(file: Path) -> dict[str, list[float | None]]:
    """A profile and its error in meV, rounded, as JSON takes it."""
    profile = freeenergy.read_fes(file)
    columns = {"xi": profile.xi, "A_meV": 1e3 * profile.A, "A_error_meV": 1e3 * profile.A_error}
    return {
        name: [round(float(v), 3) if np.isfinite(v) else None for v in values]
        for name, values in columns.items()
    }


def references(temperature_K: int) -> dict[str, dict[str, Any]]:
    """What the committed references say of the example's cell at a temperature.

    Their barriers are taken as means over both halves of the profile, which symmetry makes equal.
    """
    found = {}
    for name in REFERENCES:
        file = DOCS / "references" / f"{name}.json"
        result = json.loads(file.read_text()).get(f"paper-{temperature_K}K")
        if result is not None:
            found[name] = result
    return found


def print_table(data: dict[str, Any]) -> None:
    """Print every iteration, and the references below those of their temperature."""
    print(
        "| T (K) | seed | iteration | CV | flux barrier (eV) | barrier (eV) | A(1) - A(0) (eV) ",
        end="",
    )
    print("| rate (1/s) | 1 - cos | restarts | MD steps | sampling (s) |")
    print("|" + " --- |" * 12)
    for temperature_K in STEPS:
        for run in data.values():
            if run["temperature_K"] != temperature_K:
                continue
            for part in run["result"]["iterations"]:
                # Runs of earlier versions have A(1) - A(0) under the name of delta F.
                between = "A1_minus_A0" if "A1_minus_A0_eV" in part else "delta_F"
                names = ("flux_barrier", "barrier", between)
                words = [workflow.in_words(part, name).removesuffix(" eV") for name in names]
                rate, error = part["tst_rate_per_s"], part["tst_rate_error_per_s"]
                rates = "" if rate is None or error is None else f"{rate:.2g} ± {error:.1g}"
                cells = [temperature_K, run["seed"], part["iteration"], part["kind"], *words, rates]
                cells += [f"{part['similarity']:.3f}", part["restarts"], part["md_steps"]]
                cells += [round(part["seconds_sampling"])]
                print("| " + " | ".join(map(str, cells)) + " |")
        for name, result in references(temperature_K).items():
            barrier, flux, delta = (
                f"{result[f'{key}_eV']:.4f} ± {result[f'{key}_error_eV']:.4f}"
                if f"{key}_eV" in result
                else ""
                for key in ("symmetric_barrier", "symmetric_flux_barrier", "delta_F")
            )
            cells = [temperature_K, "", "", REFERENCES[name], flux, barrier, delta]
            cells += [f"{result['rate_per_s']:.2g}", "", "", result["steps"], ""]
            print("| " + " | ".join(map(str, cells)) + " |")


def draw(data: dict[str, Any]) -> None:
    """Draw the profiles of all iterations of the first seed at each temperature, with one error."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, len(STEPS))
    for axes, (temperature_K, steps) in zip(panels, STEPS.items(), strict=True):
        runs = [run for run in data.values() if run["temperature_K"] == temperature_K]
        for n, profile in enumerate(runs[0]["profiles"] if runs else [], start=1):
            xi, A, error = (np.array(profile[k], dtype=float) for k in profile)
            kind = runs[0]["result"]["iterations"][n - 1]["kind"]
            (line,) = axes.plot(xi, A, label=f"{n} ({kind} CV)")
            axes.fill_between(xi, A - error, A + error, color=line.get_color(), alpha=0.3, lw=0)
        umbrella = references(temperature_K).get("umbrella")
        if umbrella is not None:
            xi, A = (np.array(umbrella[k], dtype=float) for k in ("xi", "A_eV"))
            axes.plot(xi, 1e3 * A, "k--", lw=0.9, label="umbrella sampling, linear CV")
        axes.set_xlim(-0.1, 1.1)
        axes.set_title(f"{temperature_K} K, {steps:,} steps an iteration", fontsize="medium")
        axes.set_xlabel(r"collective variable $\xi$")
        axes.legend(fontsize="x-small", loc="lower center")
    panels[0].set_ylabel("free energy (meV)")
    with replacing(DOCS / "finite-temperature.png") as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def main() -> None:
    """Run, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", help="folder for the runs; none: only print")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--temperatures", type=int, nargs="+", default=list(STEPS), help="K")
    arguments = parser.parse_args()
    if arguments.runs is not None:
        run_all(arguments.runs.absolute(), arguments.seeds, arguments.temperatures)
    data = json.loads(DATA.read_text())
    print_table(data)
    draw(data)


if __name__ == "__main__":
    main()
