"""Hop and exchange of an adatom on Cu(100) with two fixed layers: the numbers of docs/surfaces.md.

`python -m python.surfaces run FOLDER` builds the slab, runs `plumed-cv run` and `plumed-cv
harmonic` for both events in the folder (an hour on one core) and writes docs/surfaces.json.
`python -m python.surfaces` prints the numbers of that file. The potential is Cu_mishin1.eam.alloy
of LAMMPS.
"""

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc100
from ase.constraints import FixAtoms

from python import worked_case

DATA = Path(__file__).parents[1] / "docs/surfaces.json"
TEMPERATURES_K = {"hop": (500.0,), "exchange": (500.0, 300.0, 100.0)}
LATTICE_A = 3.615
INPUT = """
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = {temperature_K}

[engine]
name = "lammps"
potential = ["pair_style eam/alloy", "pair_coeff * * Cu_mishin1.eam.alloy Cu"]

[sampling]
steps = {steps}
timestep_fs = 2.0
"""


def end_states(event: str = "hop") -> tuple[Atoms, Atoms]:
    """An adatom on Cu(100), two of four layers fixed, before and after an event."""
    initial = fcc100("Cu", size=(4, 4, 4), a=LATTICE_A, vacuum=6.0)
    add_adsorbate(initial, "Cu", 1.7, "hollow")
    initial.info.clear()
    initial.pbc = (True, True, False)
    initial.set_constraint(FixAtoms([atom.index for atom in initial if atom.tag >= 3]))
    final = initial.copy()
    spacing = LATTICE_A / 2**0.5
    if event == "hop":
        final.positions[-1, 0] += spacing
    else:
        below = initial.positions[-1, :2] + 0.5 * spacing
        tops = [atom.index for atom in initial if atom.tag == 1]
        partner = min(tops, key=lambda k: np.linalg.norm(initial.positions[k, :2] - below))
        final.positions[-1] = initial.positions[partner]
        final.positions[partner] = initial.positions[-1] + [spacing, spacing, 0.0]
    return initial, final


def run_event(folder: Path, event: str, text: str) -> dict[str, Any]:
    """Run an event by an input in a folder; return its numbers."""
    worked_case.prepare(folder, end_states(event), text, "surface.toml")
    return worked_case.run_crystal(folder, "surface.toml")


def run(folder: Path) -> dict[str, Any]:
    """Run the example in a folder; return the numbers of the page."""
    found: dict[str, Any] = {}
    for event, temperatures in TEMPERATURES_K.items():
        for kelvin in temperatures:
            name = f"{event}-{kelvin:g}K"
            text = INPUT.format(steps=400_000, temperature_K=kelvin)
            found[name] = run_event(folder / name, event, text)
    return found


def show(found: dict[str, Any]) -> None:
    """Print what `run` has found: a column for each event, and the last run at each temperature."""
    hop, exchange = found["hop-500K"], found["exchange-500K"]
    print("| quantity | hop | exchange |\n| --- | --- | --- |")
    for words, key in (
        ("barrier at 0 K", "barrier_0K_eV"),
        ("flux barrier by harmonic theory", "harmonic_flux_barrier_eV"),
    ):
        print(f"| {words} | {hop[key]:.3f} eV | {exchange[key]:.3f} eV |")
    for words, part in (("linear CV", 0), ("last learned CV", -1)):
        cells = [worked_case.flux_barrier(each["iterations"][part]) for each in (hop, exchange)]
        print(f"| flux barrier, {words} | {cells[0]} | {cells[1]} |")
    print(f"| rate by harmonic theory | {hop['harmonic_rate_per_s']:.2e} 1/s ", end="")
    print(f"| {exchange['harmonic_rate_per_s']:.2e} 1/s |")
    for words, cells in (
        ("rate of transition state theory", [worked_case.tst_rate(x) for x in (hop, exchange)]),
        ("transmission coefficient", [worked_case.kappa(x) for x in (hop, exchange)]),
    ):
        print(f"| {words} | {cells[0]} | {cells[1]} |")
    print("\n| T (K) | flux barrier of the exchange | harmonic | iterations |")
    print("| --- | --- | --- | --- |")
    for kelvin in sorted(TEMPERATURES_K["exchange"]):
        one = found[f"exchange-{kelvin:g}K"]
        print(f"| {kelvin:g} | {worked_case.flux_barrier(one['iterations'][-1])} ", end="")
        print(f"| {one['harmonic_flux_barrier_eV']:.3f} eV | {len(one['iterations'])} |")


if __name__ == "__main__":
    worked_case.main(__doc__, DATA, run, show)
