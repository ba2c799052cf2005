"""Hop of an atom on a free icosahedron of 13 atoms: the numbers of docs/clusters.md.

`python -m python.clusters run FOLDER` builds the cluster, runs `plumed-cv run` and `plumed-cv
harmonic` in the folder (a minute on one core) and writes docs/clusters.json. `python -m
python.clusters` prints the numbers of that file.
"""

from pathlib import Path
from typing import Any

from ase import Atoms
from ase.cluster import Icosahedron

from plumed_cv import input_file, workflow
from plumed_cv.common.numbers import with_error
from python import worked_case

DATA = Path(__file__).parents[1] / "docs/clusters.json"
# Copper as Lennard-Jones particles: Halicioglu and Pound, Phys. Status Solidi A 30, 619 (1975).
INPUT = """
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = 400.0

[engine]
name = "lammps"
potential = ["pair_style lj/cut 15.0", "pair_coeff * * 0.409 2.338"]
{alignment}
[path]
images = 9

[sampling]
steps = {steps}
timestep_fs = 2.0
plumed = \"\"\"
d1: DISTANCE ATOMS=4,14 NOPBC
d2: DISTANCE ATOMS=5,14 NOPBC
UPPER_WALLS ARG=d1,d2 AT=3.0,3.0 KAPPA=20.0,20.0
\"\"\"

[iteration]
maximum = 2

[rate]
enabled = false
"""


def end_states() -> tuple[Atoms, Atoms]:
    """An atom above one face of the icosahedron, and above the face beyond the edge 4-5."""
    core = Icosahedron("Cu", 2, latticeconstant=3.6)
    ends = []
    for face in ((3, 4, 5), (3, 4, 7)):
        outward = core.positions[list(face)].mean(axis=0) - core.positions[0]
        height = 1.0 + 2.1 / (outward @ outward) ** 0.5
        ends.append(Atoms("Cu14", [*core.positions, core.positions[0] + height * outward]))
    return ends[0], ends[1]


def prepare(folder: Path, steps: int = 60_000) -> None:
    """Write the structures and the two inputs."""
    aligned = INPUT.format(steps=steps, alignment='\n[cv]\nalignment = "optimal"\n')
    worked_case.prepare(folder, end_states(), aligned, "cluster.toml")
    (folder / "path.toml").write_text(INPUT.format(steps=steps, alignment=""))


def run(folder: Path, steps: int = 60_000) -> dict[str, Any]:
    """Run the example in a folder; return the numbers of the page."""
    prepare(folder, steps)
    given = input_file.load(folder / "path.toml")
    found = workflow.compute_harmonic(given, folder / "harmonic")
    result = workflow.run(input_file.load(folder / "cluster.toml"), folder / "run")
    names = ["kind", "crossings", "delta_F_eV", "delta_F_error_eV"]
    names += ["flux_barrier_eV", "flux_barrier_error_eV"]
    return {
        "iterations": [{key: part[key] for key in names} for part in result["iterations"]],
        "tst_rate_per_s": result["tst_rate_per_s"],
        "tst_rate_error_per_s": result["tst_rate_error_per_s"],
        "barrier_0K_eV": found["barrier_eV"],
        "harmonic_flux_barrier_eV": found["rates"][0]["flux_barrier_eV"],
        "harmonic_rate_per_s": found["rates"][0]["rate_per_s"],
    }


def show(found: dict[str, Any]) -> None:
    """Print the numbers of the page."""
    worked_case.show_zero_kelvin(found)
    for number, part in enumerate(found["iterations"], 1):
        worked_case.show_iteration(number, part)
        value = with_error(part["delta_F_eV"], part["delta_F_error_eV"], "eV")
        print(f"    difference of the states {value}, {part['crossings']} crossings")
    print(f"harmonic rate: {found['harmonic_rate_per_s']:.2e} 1/s")
    print(f"rate: {found['tst_rate_per_s']:.2e} 1/s +- {found['tst_rate_error_per_s']:.1e} 1/s")


if __name__ == "__main__":
    worked_case.main(__doc__, DATA, run, show)
