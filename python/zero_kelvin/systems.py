"""The five processes in bcc iron of the paper's Sec. 4.1, and their minimum energy paths at 0 K.

    python python/zero_kelvin/systems.py                    # all of them, into zero-kelvin/
    python python/zero_kelvin/systems.py vacancy --dir DIR  # DIR/vacancy.xyz

Existing paths are kept. All systems have Mendelev's potential and its lattice parameter at 0 K.
Structures are given in units of this parameter along the cubic axes, unless stated otherwise, and
are then relaxed.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.lattice.cubic import BodyCenteredCubic
from numpy.typing import ArrayLike
from rich.console import Console

from plumed_cv.cv import energy
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.band import Progress
from plumed_cv.paths.neb import find_minimum_energy_path
from plumed_cv.paths.path import EnergyPath, load_path
from plumed_cv.structures.frame import Array

POTENTIAL = ("pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe")
LATTICE_A = 2.85532  # the potential's at 0 K
BURGERS_A = LATTICE_A * 3**0.5 / 2
VALLEYS_A = LATTICE_A * (2 / 3) ** 0.5  # between Peierls valleys, along <112>
PLANES_A = LATTICE_A / 2**0.5  # between {110} planes

HALF = 0.27  # from the middle of a <110> dumbbell to its atoms, in units of <110>


@dataclass(frozen=True)
class System:
    """A process.

    Attributes
    ----------
    states
        Builds the minima it passes, two or more, not relaxed: the same atoms in the same order.
    n_images
        Images of the path from one minimum to the next, both included.
    symmetric
        Whether a symmetry of the crystal takes the process into its reverse.
    interpolation
        The first guess of the path, see `find_minimum_energy_path`.
    potential
        LAMMPS's lines for the potential.
    """

    states: Callable[[], tuple[Atoms, ...]]
    n_images: int
    symmetric: bool
    interpolation: Literal["idpp", "linear"] = "idpp"
    potential: tuple[str, ...] = POTENTIAL

    def path(self, progress: Progress = lambda fmax, stage: None) -> EnergyPath:
        """Find the minimum energy path through all minima."""
        states = self.states()
        images: list[Atoms] = []
        with LammpsEngine(self.potential, states[0]) as engine:
            for final in states[1:]:
                initial = images.pop() if images else states[0]
                leg = find_minimum_energy_path(
                    initial,
                    final,
                    engine.calculator,
                    n_images=self.n_images,
                    progress=progress,
                    interpolation=self.interpolation,
                )
                images += leg.images
        return EnergyPath(tuple(images))


def vacancy() -> tuple[Atoms, Atoms]:
    """Build a vacancy before and after a neighbour has moved into it: 127 atoms."""
    site, neighbour = np.full(3, 1.0), np.full(3, 1.5)
    sites = [site, neighbour]
    return with_defect(4, sites, [neighbour]), with_defect(4, sites, [site])


def dumbbell() -> tuple[Atoms, Atoms]:
    """Build a <110> dumbbell before and after a jump to the nearest site: 129 atoms."""
    sites, before, after = dumbbell_jump((1, 1, 1), (1, 1, 0), (0.5, 0.5, 0.5), (0, 1, 1))
    return with_defect(4, sites, before), with_defect(4, sites, after)


def di_interstitial() -> tuple[Atoms, Atoms]:
    """Build two <110> dumbbells, and the pair of parallel neighbours they form: 130 atoms.

    One dumbbell stays. The other jumps from a second neighbour of it to a first neighbour, at
    right angles to the axis that both then have: the most stable di-interstitial.
    """
    here, axis = np.array([1.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0])
    sites, before, after = dumbbell_jump((1, 1, 0), (1, 1, 0), (0.5, 0.5, 0.5), axis)
    stays = [here - HALF * axis, here + HALF * axis]
    sites = [here, *sites]
    return with_defect(4, sites, stays + before), with_defect(4, sites, stays + after)


def cluster() -> tuple[Atoms, Atoms]:
    """Build the C15 di-interstitial and the triangular one it turns into: 1026 atoms.

    In the unit of the C15 Laves phase twelve atoms take the place of ten around a lattice site:
    of four first neighbours that form a tetrahedron and of the six second neighbours. Each of the
    twelve sits halfway between one of the four and one of the six. In the triangular configuration
    three atoms share one of the four sites, in the {111} plane across the threefold axis, and all
    other sites are occupied. The axis here is [111]; it turns each row below into three.
    """
    centre = np.full(3, 4.0)
    tetrahedron = [p for p in itertools.product((0.5, -0.5), repeat=3) if np.prod(p) > 0]
    octahedron = [*np.eye(3), *-np.eye(3)]
    moves = (
        # from halfway between ...   to
        ((0.75, 0.25, 0.25), (0.87, 0.315, 0.315)),  # the shared site, and turned around it
        ((0.75, -0.25, -0.25), (1.0, 0.0, 0.0)),
        ((0.25, -0.75, -0.25), (0.5, -0.5, -0.5)),
        ((0.25, -0.25, -0.75), (0.0, 0.0, -1.0)),
    )
    rows = [[np.roll(p, turn) for p in move] for move in moves for turn in range(3)]
    sites = [centre + p for p in (*tetrahedron, *octahedron)]
    return (
        with_defect(8, sites, [centre + before for before, _ in rows]),
        with_defect(8, sites, [centre + after for _, after in rows]),
    )


def screw_dislocations(along: int = 17, across: int = 9) -> tuple[Atoms, Atoms, Atoms]:
    """Build two screw dislocations, of which one and then the other glides.

    By default these are 2754 atoms.

    The dislocations are along x with Burgers vectors +1/2<111> and -1/2<111>, two of them long,
    in their easy cores, and glide along y in a {110} plane to the next Peierls valley. The cell is
    periodic, by default 51 valleys by 27 planes. Each dislocation is surrounded by four of the
    other sign half a cell away (a quadrupole), so that the forces between them cancel. The cell has
    the mean plastic strain of the first and the last state, which are mirror images of each other.
    Halfway between two valleys this potential has another, shallow one: each glide has two humps.

    Atoms move along the line, by the angles around all dislocations of the periodic arrangement.
    Those along a row add up to the phase of a sine, and rows far away only to a shear, which is
    made to be that of the cell.

    Parameters
    ----------
    along, across
        Size of the cell along the glide and across the glide plane, in units of three valleys and
        of three planes. Both are odd.
    """
    crystal = crystal_of_dislocations(along, across)
    points = crystal.positions[:, 1] + 1j * crystal.positions[:, 2]
    period, row = crystal.cell[1, 1], complex(*crystal.cell[2, 1:])
    tilt = -0.5  # of the third vector along the line, in Burgers vectors

    def heights(plus: complex, minus: complex) -> Array:
        turns = sum(
            sign * np.angle(np.sin(np.pi * (points - core - n * row) / period)) / (2 * np.pi)
            for sign, core in ((1, plus), (-1, minus))
            for n in range(-4, 5)
        )
        shear = tilt - (plus - minus).real / period
        return np.asarray(turns + shear * points.imag / row.imag)

    # Three neighbouring rows of atoms enclose a core, upright ones of one sign, inverted ones of
    # the other; with the signs exchanged these would be hard cores.
    plus = complex(VALLEYS_A / 2, PLANES_A / 3)
    minus = complex((3 * along + 1) // 2 * VALLEYS_A, 2 * PLANES_A / 3)
    states: list[Atoms] = []
    before = np.zeros(len(crystal))
    for cores in (
        (plus, minus),
        (plus + VALLEYS_A, minus),
        (plus + VALLEYS_A, minus + VALLEYS_A),
    ):
        u = heights(*cores)
        if states:
            u -= np.rint(u - before)  # the nearest of all equivalent places
        before = u
        state = crystal.copy()
        state.positions[:, 0] += BURGERS_A * u
        state.cell[2, 0] += BURGERS_A * tilt
        states.append(state)
    return states[0], states[1], states[2]


def crystal_of_dislocations(along: int = 17, across: int = 9) -> Atoms:
    """Build the crystal without them: x along [111], y along [1-21], z across (10-1).

    Parameters
    ----------
    along, across
        As for `screw_dislocations`.
    """
    unit = BodyCenteredCubic(
        directions=[[1, 1, 1], [1, -2, 1], [2, -1, -1]],
        symbol="Fe",
        latticeconstant=LATTICE_A,
        pbc=True,
    )
    crystal: Atoms = unit.repeat((2, along, across))
    # half of the second vector between rows of dislocations
    crystal.cell[2] += (along - across) // 2 * unit.cell[1]
    return crystal


def with_defect(repeats: int, sites: Sequence[ArrayLike], atoms: Sequence[ArrayLike]) -> Atoms:
    """Build a cube of `repeats`^3 cells with `atoms`, shape (n, 3), in the place of `sites`.

    Atoms come last and in their order. Places are in lattice parameters.
    """
    crystal: Atoms = bulk("Fe", "bcc", a=LATTICE_A, cubic=True).repeat(repeats)
    distances = crystal.positions[None] - LATTICE_A * np.array(sites)[:, None]
    taken = np.linalg.norm(distances, axis=2).argmin(axis=1)
    del crystal[taken]
    crystal += Atoms(f"Fe{len(atoms)}", positions=LATTICE_A * np.array(atoms))
    return crystal


def dumbbell_jump(
    site: ArrayLike, axis: ArrayLike, vector: ArrayLike, new_axis: ArrayLike
) -> tuple[list[Array], list[Array], list[Array]]:
    """Translate a dumbbell to the nearest site and rotate it by 60 degrees.

    Parameters
    ----------
    site, axis
        The dumbbell, with `axis` along one of <110>.
    vector, new_axis
        The jump, one of 1/2 <111>, and the axis after it. Both axes have the jump's direction.

    Returns
    -------
    tuple
        The two sites, and the places of three atoms before and after: of the one that stays, of
        the one that goes, and of the one it joins.
    """
    old, new = np.asarray(site, dtype=float), np.asarray(site) + np.asarray(vector)
    half, new_half = HALF * np.asarray(axis), HALF * np.asarray(new_axis)
    return (
        [old, new],
        [old - half, old + half, new],
        [old, new - new_half, new + new_half],
    )


SYSTEMS = {
    "vacancy": System(vacancy, 61, symmetric=True),
    "dumbbell": System(dumbbell, 41, symmetric=True),
    "di-interstitial": System(di_interstitial, 41, symmetric=False),
    "cluster": System(cluster, 41, symmetric=False),
    "dislocations": System(screw_dislocations, 49, symmetric=True, interpolation="linear"),
}


def asymmetry(path: EnergyPath) -> float:
    """Return the largest difference between E(lambda) and E(1 - lambda), eV."""
    profile = energy.interpolate_images(path)
    back = np.interp(1.0 - profile.parameter, profile.parameter, profile.energy)
    return float(np.abs(profile.energy - back).max())


def build(name: str, directory: Path) -> EnergyPath:
    """Read the path of a system, or find and write it with a progress bar."""
    file = directory / f"{name}.xyz"
    if file.exists():
        return load_path(file)
    began = time.monotonic()
    largest = 0.0
    with Console(stderr=True).status(name) as status:

        def progress(fmax: float, stage: str) -> None:
            nonlocal largest
            largest = fmax
            status.update(f"{name}: {stage}, {fmax:.4f} eV/A, {time.monotonic() - began:.0f} s")

        path = SYSTEMS[name].path(progress)
    path.images[0].info.update(largest_force=largest, seconds=time.monotonic() - began)
    path.save(file)
    return path


def main() -> None:
    """Find the paths and print a table of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--dir", type=Path, default=Path("zero-kelvin"), help="folder of the paths")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in SYSTEMS:
            parser.error(f"{name}: the systems are {', '.join(SYSTEMS)}")
    arguments.dir.mkdir(parents=True, exist_ok=True)
    print("| system | atoms | images | barrier (eV) | end point (eV) ", end="")
    print("| largest force (eV/A) | barrier from forces (eV) ", end="")
    print("| asymmetry (eV) | wall time (s) |")
    print("|" + " --- |" * 9)
    for name in arguments.names or SYSTEMS:
        path = build(name, arguments.dir)
        profile = energy.along_path(path)
        info = path.images[0].info
        cells = [name, len(path.species), len(path.images), f"{path.barrier:.5f}"]
        cells += [f"{path.energies[-1]:.5f}", f"{info['largest_force']:.1e}"]
        cells += [f"{profile.barrier:.5f}"]
        cells += [f"{asymmetry(path):.1e}" if SYSTEMS[name].symmetric else ""]
        cells += [f"{info['seconds']:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
