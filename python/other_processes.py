"""Processes and potentials for which nothing was tuned, each from an input file alone.

    python -m python.other_processes RUNS         # run (or continue) in this folder, then print
    python -m python.other_processes              # print from the committed data

A vacancy in tungsten (embedded atoms) and in tantalum (a machine-learned SNAP potential), the
<110> dumbbell in iron, and vacancies in crystals that are not bcc, cubic or pure: copper, magnesium
and Ni3Al. Each gets end states and an input of a dozen lines, and is run like any user's by
`plumed-cv run`, with the default of every key that concerns the process. The flux barriers are
compared with the harmonic limit, and the barrier at 0 K with the published one where there is one.
Results go to docs/other-processes.json. About an hour on one core.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk

from plumed_cv import workflow
from plumed_cv.common.files import write_text
from plumed_cv.common.numbers import error_of_factor, scientific, with_error
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.neb import find_minimum_energy_path
from plumed_cv.paths.path import EnergyPath, load_path
from plumed_cv.rates import harmonic, stationary
from plumed_cv.structures import orient
from python.zero_kelvin import systems

_OF_ITERATION = ("md_steps", "restarts", "flux_barrier_eV", "flux_barrier_error_eV")
_OF_RUN = (
    *("temperature_K", "cv_atoms", "energy_barrier_0K_eV", "converged"),
    *("flux_barrier_eV", "flux_barrier_error_eV", "barrier_eV", "barrier_error_eV"),
    *("delta_F_eV", "delta_F_error_eV", "transmission", "transmission_error"),
    *("rate_per_s", "rate_error_factor"),
)

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
"""


def vacancy(
    crystal: Atoms, symbol: str | None = None, along: tuple[float, float, float] | None = None
) -> tuple[Atoms, Atoms]:
    """A vacancy in a crystal before and after a neighbour of the same element has moved into it.

    Parameters
    ----------
    crystal
        The perfect crystal.
    symbol
        Element that is missing; needed where there are several.
    along
        Direction that the jump is nearest to, if the neighbours are not all alike.
    """
    crystal = orient(crystal)
    alike = np.array(crystal.get_chemical_symbols()) == (symbol or crystal.symbols[0])
    from_middle = np.linalg.norm(crystal.positions - crystal.cell.sum(0) / 2, axis=1)
    site = int(np.where(alike, from_middle, np.inf).argmin())
    vectors = crystal.get_distances(site, range(len(crystal)), mic=True, vector=True)
    distances = np.linalg.norm(vectors, axis=1)
    distances[~alike] = np.inf
    distances[site] = np.inf
    neighbour = int(distances.argmin())
    if along is not None:
        near = distances < 1.1 * distances[neighbour]
        cosines = vectors @ along / np.where(near, distances, np.inf)
        neighbour = int(cosines.argmax())
    initial, final = crystal.copy(), crystal.copy()
    final.positions[neighbour] = crystal.positions[site]
    del initial[site]
    del final[site]
    return initial, final


def ni3al() -> Atoms:
    """Ni3Al, L1_2, with the lattice parameter of its potential at 0 K."""
    corners = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    cell = Atoms("AlNi3", cell=3.5677 * np.eye(3), scaled_positions=corners, pbc=True)
    crystal: Atoms = cell.repeat((3, 3, 3))
    return crystal


# Lattice parameters are those of the potentials at 0 K, Mg's the lowest energy in a and c.
PROCESSES: dict[str, dict[str, Any]] = {
    "vacancy in W": {
        "ends": lambda: vacancy(bulk("W", "bcc", a=3.165, cubic=True).repeat(4)),
        "potential": ["pair_style eam/alloy", "pair_coeff * * W_zhou.eam.alloy W"],
        "temperature_K": 1000.0,
        "steps": 150_000,
    },
    "<110> dumbbell in Fe": {
        "ends": systems.dumbbell,
        "potential": systems.POTENTIAL,
        "temperature_K": 300.0,
        "steps": 150_000,
    },
    "vacancy in Ta, SNAP": {
        "ends": lambda: vacancy(bulk("Ta", "bcc", a=3.316, cubic=True).repeat(3)),
        "potential": [
            "pair_style hybrid/overlay zbl 4.0 4.8 snap",
            "pair_coeff 1 1 zbl 73 73",
            "pair_coeff * * snap Ta06A.snapcoeff Ta06A.snapparam Ta",
        ],
        "temperature_K": 600.0,
        "steps": 30_000,
    },
    "vacancy in Cu, fcc": {  # on the primitive axes: a rhombohedron, with all three tilts
        "ends": lambda: vacancy(bulk("Cu", "fcc", a=3.6149).repeat(5)),
        "potential": ["pair_style eam/alloy", "pair_coeff * * Cu_mishin1.eam.alloy Cu"],
        "temperature_K": 300.0,
        "steps": 200_000,
        "larger": lambda: vacancy(bulk("Cu", "fcc", a=3.6149).repeat(8)),
        "published_eV": 0.69,  # Mishin et al., Phys. Rev. B 63, 224106 (2001)
    },
    "vacancy in Mg, hcp": {  # a jump in the basal plane; primitive axes
        "ends": lambda: vacancy(
            bulk("Mg", "hcp", a=3.1842, c=5.1844).repeat((4, 4, 3)), along=(1.0, 0.0, 0.0)
        ),
        "potential": ["pair_style eam/fs", "pair_coeff * * Mg_mm.eam.fs Mg"],
        "temperature_K": 300.0,
        "steps": 200_000,
    },
    "Ni vacancy in Ni3Al": {
        "ends": lambda: vacancy(ni3al(), "Ni"),
        "potential": ["pair_style eam/alloy", "pair_coeff * * NiAlH_jea.eam.alloy Al Ni"],
        "temperature_K": 600.0,
        "steps": 150_000,
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
    parts = [{key: part[key] for key in _OF_ITERATION} for part in result["iterations"]]
    found: dict[str, Any] = {key: result[key] for key in _OF_RUN}
    found |= {"atoms": len(process["ends"]()[0]), "iterations": parts}
    path = load_path(folder / "run" / "path.xyz")
    found["harmonic_flux_barrier_eV"] = harmonic_limit(
        path, process["potential"], process["temperature_K"]
    )
    if "larger" in process:
        initial, final = process["larger"]()
        with LammpsEngine(process["potential"], initial) as engine:
            path = find_minimum_energy_path(initial, final, engine.calculator, n_images=11)
        found["larger"] = {"atoms": len(initial), "energy_barrier_0K_eV": path.barrier}
    return found


def harmonic_limit(path: EnergyPath, potential: list[str], temperature_K: float) -> float:
    """Flux barrier in the harmonic limit, eV, at the highest image of a path."""
    with LammpsEngine(potential, path.images[0]) as engine:
        minimum = stationary.find_stationary_point(engine, path.images[0].positions, path.cell)
        saddle = stationary.find_saddle(engine, path)
    ratio = harmonic.log_ratio(minimum, saddle)
    kT = units.kB * temperature_K
    return harmonic.compute_flux_barrier(saddle.energy_eV - minimum.energy_eV, ratio, kT)


def read_data() -> dict[str, Any]:
    """The committed results, in the order of `PROCESSES`."""
    data: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    return {name: data[name] for name in PROCESSES if name in data}


def print_table(data: dict[str, Any]) -> None:
    """Print the result of each process."""
    columns = ["process", "atoms", "CV's atoms", "T (K)", "steps an iteration", "iterations"]
    columns += ["flux barrier (eV)", "barrier (eV)", "delta F (eV)", "stops", "κ", "k (1/s)"]
    columns += ["all checks passed"]
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    for name, found in data.items():
        last, k = found["iterations"][-1], found["rate_per_s"]
        words = [workflow.in_words(found, n).removesuffix(" eV") for n in workflow.RESULTS]
        cells = [name, found["atoms"], found["cv_atoms"], f"{found['temperature_K']:g}"]
        cells += [last["md_steps"], len(found["iterations"]), *words]
        cells += [sum(part["restarts"] for part in found["iterations"])]
        cells += [with_error(found["transmission"], found["transmission_error"], "").strip()]
        cells += [scientific(k, error_of_factor(k, found["rate_error_factor"]), "").strip()]
        cells += ["yes" if found["converged"] else "no"]
        print("| " + " | ".join(map(str, cells)) + " |")


def print_comparison(data: dict[str, Any]) -> None:
    """Print the harmonic limits and the barriers at 0 K."""
    print("| process | flux barrier of each iteration (eV) | harmonic limit (eV) ", end="")
    print("| barrier at 0 K (eV), atoms | published (eV) |")
    print("|" + " --- |" * 5)
    for name, found in data.items():
        sizes = [(found["energy_barrier_0K_eV"], found["atoms"])]
        if larger := found.get("larger"):
            sizes.append((larger["energy_barrier_0K_eV"], larger["atoms"]))
        parts = [workflow.in_words(part, "flux_barrier") for part in found["iterations"]]
        cells = [name, ", ".join(part.removesuffix(" eV") for part in parts)]
        cells += [f"{found['harmonic_flux_barrier_eV']:.3f}"]
        cells += [", ".join(f"{barrier:.4f} ({atoms})" for barrier, atoms in sizes)]
        cells += [str(PROCESSES[name].get("published_eV", ""))]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", help="folder for the runs; none: only print")
    parser.add_argument("--only", nargs="+", default=list(PROCESSES), choices=list(PROCESSES))
    arguments = parser.parse_args()
    data = read_data()
    if arguments.runs is not None:
        for name in arguments.only:
            found = run(name, arguments.runs.absolute())
            data = read_data() | {name: found}  # others may have written meanwhile
            write_text(DATA, json.dumps(data, indent=1))
    print_table(data)
    print()
    print_comparison(data)


if __name__ == "__main__":
    main()
