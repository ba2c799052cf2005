"""Hop of a vacancy in a free monolayer of gold: the numbers of docs/monolayers.md.

`python -m python.monolayer run FOLDER` builds the layer, runs `plumed-cv run` and `plumed-cv
harmonic` in the folder (ten minutes on one core) and writes docs/monolayers.json. `python -m
python.monolayer` prints the numbers of that file. The potential is Au_u3.eam of LAMMPS.
"""

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from python import worked_case

DATA = Path(__file__).parents[1] / "docs/monolayers.json"
NEIGHBOURS_A = 2.74  # distance; the potential has its minimum at 2.67 and is unstable there
INPUT = """
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = 300.0

[engine]
name = "lammps"
potential = ["pair_style eam", "pair_coeff 1 1 Au_u3.eam"]

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
    """A vacancy in a triangular layer of 8 x 8 sites, before and after a neighbour hops into it."""
    cell = NEIGHBOURS_A * np.array([[1.0, 0.0, 0.0], [0.5, 0.75**0.5, 0.0], [0.0, 0.0, 5.0]])
    initial: Atoms = Atoms("Au", cell=cell, pbc=(True, True, False)).repeat((8, 8, 1))
    final = initial.copy()
    vacancy, neighbour = 27, 35
    final.positions[neighbour] = initial.positions[vacancy]
    del initial[vacancy], final[vacancy]
    return initial, final


def run(folder: Path, steps: int = 400_000) -> dict[str, Any]:
    """Run the example in a folder; return the numbers of the page."""
    worked_case.prepare(folder, end_states(), INPUT.format(steps=steps), "layer.toml")
    return worked_case.run_crystal(folder, "layer.toml")


if __name__ == "__main__":
    worked_case.main(__doc__, DATA, run, worked_case.show_crystal)
