"""Rates by transmission coefficients, for the defects for which `hops` counts hops.

    python -m python.references.transmission RUNS --cases cu-1000K  # runs what is missing
    python -m python.references.transmission RUNS --cases fe-700K --steps 1000000 --error 0.06
    python -m python.references.transmission                        # the table of docs/rates.md

Each case is one folder of RUNS with an input of `plumed-cv run`. A run is one iteration along the
linear CV. Its rate of transition state theory may be poor, because the rate itself does not depend
on the CV. Hops are those that `hops` counts as not undone within 1 ps (k_lasting), because the
trajectories have the same residence time.
"""

import argparse
import json
from pathlib import Path

from plumed_cv import input_file, workflow
from plumed_cv.common.files import read_json, write_text
from plumed_cv.common.numbers import error_of_factor, scientific
from python.references import flux, hops
from python.references.defects import CASES, Case

DATA = Path(__file__).parents[2] / "docs" / "transmission.json"
_KEPT = (
    *("tst_rate_per_s", "tst_rate_error_per_s", "transmission", "transmission_error"),
    *("rate_per_s", "rate_error_factor", "md_steps"),
)
DEFECTS = (
    *("fe-1000K", "fe-850K", "fe-700K", "fe-dumbbell-500K", "fe-dumbbell-400K"),
    *("cu-1000K", "al-850K"),
)

_INPUT = """
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = {case.temperature_K}
[engine]
potential = {potential}
[sampling]
steps = {steps}
timestep_fs = {case.timestep_fs}
friction_per_ps = 1.0
ramp = 0.2
[iteration]
minimum = 1
maximum = 1
"""


def write(case: Case, folder: Path, steps: int) -> Path:
    """Write end states and input of a defect; returns the input."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, atoms in zip(("initial", "final"), case.end_states(), strict=True):
        atoms.write(folder / f"{name}.xyz", format="extxyz")
    potential = json.dumps(list(case.potential))
    file = folder / "input.toml"
    file.write_text(_INPUT.format(case=case, potential=potential, steps=steps))
    return file


def compute(name: str, runs: Path, steps: int, error: float) -> None:
    """Run one case, and its rate with a relative error of the transmission coefficient."""
    settings = input_file.load(write(CASES[name], runs / name, steps))
    workflow.run(settings, runs / name / "run")
    workflow.transmission.compute_rate(runs / name / "run", error=error)


def collect(runs: Path) -> None:
    """Put the rates of the cases that are in a folder into docs/transmission.json."""
    found = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    for name in DEFECTS:
        file = runs / name / "run" / "result.json"
        result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if result.get("rate_per_s") is None:
            continue
        found[name] = {key: result[key] for key in _KEPT} | {
            "shots": sum(step["shots"] for step in result["rate"]["steps"]),
            "md_steps_of_shots": result["rate"]["md_steps"],
        }
    write_text(DATA, json.dumps(found, indent=1) + "\n")


def print_table() -> None:
    """Print the results in docs/transmission.json with the counted hops."""
    counted = hops.read()
    print("| case | k_TST (1/s) | κ | k (1/s) | counted, k_lasting (1/s) ", end="")
    print("| MD steps, sampling | shots | MD steps, shots |")
    print("|" + " --- |" * 8)
    for name, found in json.loads(DATA.read_text(encoding="utf-8")).items():
        rate, factor = found["rate_per_s"], found["rate_error_factor"]
        cells = [
            name,
            scientific(found["tst_rate_per_s"], found["tst_rate_error_per_s"], "").strip(),
            f"{found['transmission']:.2f} ± {found['transmission_error']:.2f}",
            scientific(rate, error_of_factor(rate, factor), "").strip(),
            _counted(name, counted),
            f"{found['md_steps']:,}",
            f"{found['shots']}",
            f"{found['md_steps_of_shots']:,}",
        ]
        print(f"| {' | '.join(cells)} |")


def _counted(name: str, every: dict[str, hops.Found]) -> str:
    """The rate of the hops of a case that were not undone, and their number; "" if none is known.

    Iron at 1000 K has more of them in the data of `flux`.
    """
    if name in flux.CASES:
        rate = flux.lasting(name, read_json(flux.DATA)[name]["plain"])
    elif name in every:
        case, found = CASES[name], every[name]
        rate = hops.lasting(case, found, hops.find_counted_hops(case, found)[0])
    else:
        return ""
    return f"{scientific(rate.per_s, rate.error_per_s, '').strip()} ({rate.number})"


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?")
    parser.add_argument("--cases", nargs="*", default=[], choices=DEFECTS)
    parser.add_argument("--steps", type=int, default=250_000)
    parser.add_argument("--error", type=float, default=0.1, help="of kappa, relative, 0.1")
    given = parser.parse_args()
    if given.runs is not None:
        for name in given.cases:
            compute(name, given.runs, given.steps, given.error)
        collect(given.runs)
    print_table()


if __name__ == "__main__":
    main()
