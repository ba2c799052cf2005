"""Hop of an adatom on Cu(100) with two fixed layers: the numbers of docs/surfaces.md.

`python -m python.surfaces run FOLDER` builds the slab, runs `plumed-cv run` and `plumed-cv
harmonic` in the folder (some ten minutes on one core) and writes docs/surfaces.json. `python -m
python.surfaces` prints the numbers of that file. The potential is Cu_mishin1.eam.alloy of LAMMPS.
"""

from pathlib import Path
from typing import Any

from ase import Atoms
from ase.build import add_adsorbate, fcc100
from ase.constraints import FixAtoms

from python import worked_case

DATA = Path(__file__).parents[1] / "docs/surfaces.json"
LATTICE_A = 3.615
INPUT = """
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = 500.0

[engine]
name = "lammps"
potential = ["pair_style eam/alloy", "pair_coeff * * Cu_mishin1.eam.alloy Cu"]

[path]
images = 9

[sampling]
steps = {steps}
timestep_fs = 2.0

[iteration]
maximum = 2

[rate]
enabled = false
"""


def end_states() -> tuple[Atoms, Atoms]:
    """An adatom in a hollow of Cu(100) and in the next one; two of four layers are fixed."""
    initial = fcc100("Cu", size=(4, 4, 4), a=LATTICE_A, vacuum=6.0)
    add_adsorbate(initial, "Cu", 1.7, "hollow")
    initial.info.clear()
    initial.pbc = (True, True, False)
    initial.set_constraint(FixAtoms([atom.index for atom in initial if atom.tag >= 3]))
    final = initial.copy()
    final.positions[-1, 0] += LATTICE_A / 2**0.5
    return initial, final


def run(folder: Path, steps: int = 100_000) -> dict[str, Any]:
    """Run the example in a folder; return the numbers of the page."""
    worked_case.prepare(folder, end_states(), INPUT.format(steps=steps), "surface.toml")
    return worked_case.run_crystal(folder, "surface.toml")


if __name__ == "__main__":
    worked_case.main(__doc__, DATA, run, worked_case.show_crystal)
