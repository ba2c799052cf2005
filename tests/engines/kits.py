"""The crystal of all engine tests, each engine for it, and the independent reference.

The crystal is a Lennard-Jones one of two masses in a triclinic cell, in every engine's own code.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from plumed_cv.engines import Engine
from plumed_cv.engines.ase import AseEngine
from plumed_cv.engines.gromacs import GromacsEngine
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.engines.lammps_program import LammpsProgram
from tests.conftest import unavailable

Array = NDArray[np.float64]

EPSILON, SIGMA, CUTOFF = 0.0103, 3.40, 7.0  # eV, angstrom; the energy is shifted to 0 at the cutoff
KJ_MOL = units.kJ / units.mol
PLUMED_UNITS = "UNITS LENGTH=A ENERGY=eV TIME=fs\n"
SCRIPTS = Path(__file__).parents[2] / "python"
STILL = 1e-20  # K: no noise


def crystal(seed: int = 0) -> Atoms:
    """108 atoms of argon and krypton on an fcc lattice, displaced, in a sheared cell."""
    rng = np.random.default_rng(seed)
    atoms: Atoms = bulk("Ar", cubic=True, a=5.4) * (3, 3, 3)
    cell = atoms.cell.array.copy()
    cell[1, 0], cell[2, 0], cell[2, 1] = 2.1, -1.3, 1.7
    atoms.set_cell(cell, scale_atoms=True)
    atoms.symbols[1::3] = "Kr"
    atoms.positions += rng.normal(scale=0.1, size=(len(atoms), 3))
    return atoms


def gas(cell: float = 40.0) -> Atoms:
    """Four atoms far from each other, in the middle of a box."""
    corners = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
    return Atoms("ArKrArKr", 12.0 + 16.0 * corners, cell=[cell] * 3, pbc=True)


def cluster() -> Atoms:
    """13 atoms without periodic boundaries."""
    atoms = crystal()
    near = np.argsort(np.linalg.norm(atoms.positions - atoms.cell.array.sum(axis=0) / 2, axis=1))
    atoms = atoms[np.sort(near[:13])]
    atoms.pbc = False
    atoms.cell = np.zeros((3, 3))
    return atoms


def reference(atoms: Atoms) -> tuple[float, Array, Array]:
    """Energy, forces and stress (xx yy zz yz xz xy), from a list of pairs."""
    first, _, length, vector = neighbor_list("ijdD", atoms, CUTOFF)
    power, edge = (SIGMA / length) ** 6, (SIGMA / CUTOFF) ** 6
    energy = float((2 * EPSILON * (power**2 - power - edge**2 + edge)).sum())  # pairs come twice
    slope = -24 * EPSILON * (2 * power**2 - power) / length
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, first, (slope / length)[:, None] * vector)
    stress = 0.5 * np.einsum("p,pa,pb->ab", slope / length, vector, vector)
    return (
        energy,
        forces,
        (stress / (atoms.cell.volume or 1.0))[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]],
    )


@dataclass(frozen=True)
class Kit:
    """An engine, and in what it may differ from the others.

    Attributes
    ----------
    make
        Opens the engine for atoms, with the energy of the pairs, in a folder for its files.
    digits
        Relative precision of its forces.
    skips_start
        Whether `count_start` works.
    hands_kt
        Whether PLUMED learns the temperature.
    hands_energy
        Whether PLUMED can be given the energy.
    overshoot
        Largest number of steps after PLUMED's stop.
    follows
        Whether it has `follow`, and dynamics without a thermostat.
    starts_for_each
        Whether `follow` is made of runs.
    clusters
        "NOPBC" where PLUMED's actions need that without periodic boundaries, None where there are
        no such systems.
    records
        Whether it records forces while it runs.
    """

    make: Callable[[Atoms, float, Path], Engine]
    digits: float = 1e-11
    skips_start: bool = True
    hands_kt: bool = True
    hands_energy: bool = True
    overshoot: int = 0
    follows: bool = True
    starts_for_each: bool = False
    clusters: str | None = ""
    records: bool = False


def lammps_commands(epsilon: float) -> list[str]:
    return [
        f"pair_style lj/cut {CUTOFF}",
        f"pair_coeff * * {epsilon} {SIGMA}",
        "pair_modify shift yes",
    ]


@lru_cache
def script_output(name: str, *arguments: str) -> str:
    """Return the path that a script of python/ prints: of an engine that it builds or fetches."""
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 and "Traceback" not in done.stderr:
        unavailable(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def lammps_program(atoms: Atoms, epsilon: float, folder: Path) -> Engine:
    plugin = Path(script_output("lammps_fix_plumed.py"))
    program = str(Path(sys.executable).with_name("lmp"))
    commands = lammps_commands(epsilon)
    return LammpsProgram(program, commands, atoms, species=("Ar", "Kr"), plugin=plugin)


def gromacs(atoms: Atoms, epsilon: float, folder: Path, program: str = "--double") -> Engine:
    top = ["[ defaults ]", "1 2 no 1.0 1.0", "[ atomtypes ]"]
    for symbol, number, mass in (("Ar", 18, 39.948), ("Kr", 36, 83.798)):
        top.append(f"{symbol} {number} {mass} 0 A {SIGMA / 10} {epsilon / KJ_MOL:.17g}")
    top += ["[ moleculetype ]", "crystal 0", "[ atoms ]"]
    names = list(atoms.symbols)
    top += [f"{k} {name} 1 CRY {name} {k} 0" for k, name in enumerate(names, 1)]
    top += ["[ system ]", "crystal", "[ molecules ]", "crystal 1", ""]
    (folder / "crystal.top").write_text("\n".join(top))
    rows = [
        f"{1:5d}{'CRY':<5s}{name:>5s}{k % 100000:5d}{x:8.3f}{y:8.3f}{z:8.3f}"
        for k, (name, (x, y, z)) in enumerate(zip(names, atoms.positions / 10, strict=True), 1)
    ]
    c = atoms.cell.array / 10
    box = [c[k] for k in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))]
    end = " ".join(f"{value:.5f}" for value in box)
    (folder / "crystal.gro").write_text("\n".join(["crystal", f"{len(names)}", *rows, end, ""]))
    (folder / "crystal.mdp").write_text(
        f"""
; what the user says of the forces, and something of the dynamics, which is ours
Integrator   = md
dt           = 17
ref_t        = 1000
Gen-vel      = yes
cutoff-scheme= Verlet
verlet-buffer-tolerance = -1  ; the tests' temperatures are no measure of their velocities
rlist        = 0.76
nstlist      = 10
vdw-modifier = Potential-shift
rvdw         = {CUTOFF / 10}
rcoulomb     = {CUTOFF / 10}
comm-mode    = none
"""
    )
    return GromacsEngine(
        "crystal.mdp",
        "crystal.top",
        "crystal.gro",
        atoms,
        directory=folder,
        program=script_output("gromacs.py", *([program] if program else [])),
    )


def ase(atoms: Atoms, epsilon: float, folder: Path) -> Engine:
    arguments = {"sigma": SIGMA, "epsilon": epsilon, "rc": CUTOFF}
    return AseEngine("ase.calculators.lj.LennardJones", atoms, arguments=arguments)


def ase_batch(atoms: Atoms, epsilon: float, folder: Path) -> Engine:
    arguments = {"sigma": SIGMA, "epsilon": epsilon, "rc": CUTOFF}
    where = Path(__file__).parent
    return AseEngine("together.Pairs", atoms, arguments=arguments, batch=4, directory=where)


KITS = {
    "lammps": Kit(
        lambda a, e, f: LammpsEngine(lammps_commands(e), a, species=("Ar", "Kr")), records=True
    ),
    "lammps-program": Kit(
        lammps_program, skips_start=False, hands_kt=False, starts_for_each=True, clusters="NOPBC"
    ),
    "ase": Kit(ase, records=True),
    "ase-batch": Kit(ase_batch, records=True),
    "gromacs-double": Kit(gromacs, hands_energy=False, overshoot=100, follows=False, clusters=None),
}


def columns(path: Path) -> Array:
    return np.loadtxt(path, ndmin=2)
