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

from plumed_cv import input_file, workflow
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
    folder.mkdir(parents=True, exist_ok=True)
    for name, atoms in zip(("initial", "final"), end_states(), strict=True):
        atoms.write(folder / f"{name}.xyz")
    (folder / "surface.toml").write_text(INPUT.format(steps=steps))
    given = input_file.load(folder / "surface.toml")
    result = workflow.run(given, folder / "run")
    found = workflow.compare_harmonic(folder / "run")
    return {
        "iterations": [
            {key: part[key] for key in ("kind", "flux_barrier_eV", "flux_barrier_error_eV")}
            for part in result["iterations"]
        ],
        "multiplicity": result["multiplicity"],
        "tst_rate_per_s": result["tst_rate_per_s"],
        "tst_rate_error_per_s": result["tst_rate_error_per_s"],
        "barrier_0K_eV": found["barrier_eV"],
        "harmonic_flux_barrier_eV": found["rates"][0]["flux_barrier_eV"],
        "harmonic_rate_per_s": found["rates"][0]["rate_per_s"],
        "cv_atoms": result["cv_atoms"],
    }


def show(found: dict[str, Any]) -> None:
    """Print the numbers of the page."""
    worked_case.show_zero_kelvin(found)
    for number, part in enumerate(found["iterations"], 1):
        worked_case.show_iteration(number, part)
    print(f"harmonic rate: {found['harmonic_rate_per_s']:.2e} 1/s")
    print(f"rate of one event: {found['tst_rate_per_s']:.2e} 1/s", end="")
    print(f" +- {found['tst_rate_error_per_s']:.1e} 1/s; {found['multiplicity']} equivalent events")


if __name__ == "__main__":
    worked_case.main(__doc__, DATA, run, show)
