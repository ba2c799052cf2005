"""Processes and potentials that nothing was tuned for, each from an input file alone.

    python -m python.other_processes RUNS         # run (or go on) in this folder, then print
    python -m python.other_processes              # print from the committed data

A vacancy in tungsten (embedded atoms) and in tantalum (a machine-learned SNAP potential), and the
<110> dumbbell in iron. Each gets end states and an input of a dozen lines, and is run like any
user's by `plumed-cv run`. Results go to docs/other-processes.json. About ten minutes on one core,
most of them for SNAP.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk

from plumed_cv import workflow
from plumed_cv.files import write_text
from python.zero_kelvin import systems

DATA = Path(__file__).resolve().parent.parent / "docs" / "other-processes.json"

INPUT = """[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = {temperature_K}

[engine]
potential = {potential}

[sampling]
steps = {steps}
timestep_fs = 2.0
deviation_limit_A = {limit_A}
"""


def vacancy(symbol: str, lattice_A: float, repeats: int) -> tuple[Atoms, Atoms]:
    """A vacancy in a bcc crystal before and after a nearest neighbour has moved into it."""
    crystal = bulk(symbol, "bcc", a=lattice_A, cubic=True).repeat(repeats)
    middle = int(np.argmin(np.linalg.norm(crystal.positions - crystal.cell.sum(0) / 2, axis=1)))
    distances = crystal.get_distances(middle, range(len(crystal)), mic=True)
    distances[middle] = np.inf
    neighbour = int(distances.argmin())
    initial, final = crystal.copy(), crystal.copy()
    final.positions[neighbour] = crystal.positions[middle]
    del initial[middle]
    del final[middle]
    return initial, final


PROCESSES: dict[str, dict[str, Any]] = {
    "vacancy in W": {
        "ends": lambda: vacancy("W", 3.165, 4),
        "potential": ["pair_style eam/alloy", "pair_coeff * * W_zhou.eam.alloy W"],
        "temperature_K": 1000.0,
        "steps": 150_000,
        "limit_A": 3.5,
    },
    "<110> dumbbell in Fe": {
        "ends": systems.dumbbell,
        "potential": systems.POTENTIAL,
        "temperature_K": 300.0,
        "steps": 150_000,
        "limit_A": 1.75,  # another jump of a dumbbell moves atoms by no more than 1 A
    },
    "vacancy in Ta, SNAP": {
        "ends": lambda: vacancy("Ta", 3.316, 3),
        "potential": [
            "pair_style hybrid/overlay zbl 4.0 4.8 snap",
            "pair_coeff 1 1 zbl 73 73",
            "pair_coeff * * snap Ta06A.snapcoeff Ta06A.snapparam Ta",
        ],
        "temperature_K": 600.0,
        "steps": 30_000,
        "limit_A": 2.5,
    },
}


def run(name: str, root: Path) -> dict[str, Any]:
    """Write the input of a process into a folder of its own and run it by the command line."""
    process = PROCESSES[name]
    folder = root / "".join(c if c.isalnum() else "-" for c in name)
    folder.mkdir(parents=True, exist_ok=True)
    for state, atoms in zip(("initial", "final"), process["ends"](), strict=True):
        file = folder / f"{state}.xyz"
        if not file.exists():
            atoms.write(file, format="extxyz")
    write_text(
        folder / "input.toml",
        INPUT.format(**process | {"potential": json.dumps(list(process["potential"]))}),
    )
    command = [sys.executable, "-m", "plumed_cv.cli", "run", "input.toml", "--json"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return {"atoms": len(process["ends"]()[0]), "result": result}


def print_table(data: dict[str, Any]) -> None:
    """Print what each process's run found."""
    print(
        "| process | atoms | T (K) | steps an iteration | iterations | barrier at 0 K (eV) ", end=""
    )
    print("| barrier (eV) | flux barrier (eV) | A(1) - A(0) (eV) | 1 - cos | restarts | ended by |")
    print("|" + " --- |" * 12)
    for name, found in data.items():
        result = found["result"]
        last = result["iterations"][-1]
        words = [workflow.in_words(result, n).removesuffix(" eV") for n in workflow.RESULTS]
        cells = [name, found["atoms"], f"{result['temperature_K']:g}", last["md_steps"]]
        cells += [len(result["iterations"]), f"{result['energy_barrier_0K_eV']:.4f}", *words]
        cells += [f"{last['similarity']:.3f}", last["restarts"], result["stopped_by"]]
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", help="folder for the runs; none: only print")
    parser.add_argument("--only", nargs="+", default=list(PROCESSES), choices=list(PROCESSES))
    arguments = parser.parse_args()
    data = json.loads(DATA.read_text()) if DATA.exists() else {}
    if arguments.runs is not None:
        for name in arguments.only:
            data[name] = run(name, arguments.runs.absolute())
            write_text(DATA, json.dumps(data, indent=1))
    print_table(data)


if __name__ == "__main__":
    main()
