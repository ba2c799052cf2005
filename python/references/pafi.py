r"""Free energy of the hyperplanes along a path, by LAMMPS's `fix pafi`.

    python -m python.references.pafi RUNS                          # every case, along the MEP
    python -m python.references.pafi RUNS --cases paper-300K --blocks 12
    python -m python.references.pafi RUNS --cases paper-300K --path line   # the linear CV's planes

Each case is run block by block. A block is one piece of every plane, which continues the piece of
the plane in the previous block. Existing pieces in RUNS are not run again, so that a stopped
command can be continued. The results are written to docs/references/pafi.json (pafi-line.json for
the line). If a piece ends far from the path, after another jump, it is run again from the path.

The path X(s) is a spline through the images of the minimum energy path; s is its length and t =
X'/|X'| its tangent. Beyond its ends it is continued as a straight line. Dynamics within the
hyperplane (x - X).t = 0 (Swinburne and Marinica, Phys. Rev. Lett. 120, 135503 (2018)) gives
averages <...>_s over the plane. The quantities needed here follow with

    Z(s) = int dx delta((x - X).t) exp(-V/kT)

the integral over the plane, Euclidean in all coordinates. If s increases, the argument of delta
changes by -psi |X'| ds, where psi = 1 - (x - X).t' / |X'|. This converts the derivative of the
delta function into t.grad delta. Because t.t' = 0, integration by parts gives

    dF/ds = -kT d ln Z/ds = |X'| <psi t.grad V>_s.

There is no further term: unlike a density in s, Z has no factor |grad s|. The region behind plane
s* is (x - X(s*)).t(s*) < 0. The integral over it is the integral over the region that the planes
sweep on their way from far before the path, where everything is ahead of them. A point x behind the
plane is passed forward (psi > 0) once more than backward (psi < 0), so that

    int_{behind s*} dx exp(-V/kT) = int_{-inf}^{s*} ds Z(s) |X'| <psi>_s

also where planes of a curved path cross each other. The flux barrier of plane s* is defined as for
any surface, by the ratio of the integral over it and the integral behind it,

    F_flux(s*) = -kT ln( Z(s*) * 1 angstrom / int_{-inf}^{s*} ds Z(s) |X'| <psi>_s ),

and does not depend on the scale of s. Before the start of the path the planes are parallel, psi =
1.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from plumed_cv.common.files import replacing
from plumed_cv.engines import draw_velocities
from plumed_cv.engines.lammps_library import import_lammps
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures.frame import Array, displacements
from python.references import common
from python.references.common import Case
from python.zero_kelvin.systems import POTENTIAL

PLANES = 31  # on the path, ends included
BEFORE = 4  # planes before its start, at the same distance from each other
STEPS = 5_000
EQUILIBRATION_STEPS = 2_500
AVERAGED_STEPS = 100  # of each line of output
PARTS = 2  # of a block, that errors come from: 5 ps each, where forces forget within 1 ps
FINE = 50  # points between planes for integrals

FIELDS = [f"d_{kind}{axis}" for kind in ("u", "n", "dn") for axis in "xyz"]


@dataclass(frozen=True)
class Curve:
    """A path X(s) through images, by length in angstrom, straight beyond its ends.

    Attributes
    ----------
    nodes_A
        Length up to each image, shape (K,).
    images
        Displacements from the first one, shape (K, N, 3), angstrom.
    """

    nodes_A: Array
    images: Array

    @classmethod
    def through(cls, images: Array) -> "Curve":
        """The path through images, shape (K, N, 3), angstrom."""
        steps = np.linalg.norm(np.diff(images, axis=0), axis=(1, 2))
        return cls(np.concatenate([[0.0], np.cumsum(steps)]), images)

    @property
    def length(self) -> float:
        """Length, angstrom."""
        return float(self.nodes_A[-1])

    def plane(self, s: float) -> tuple[Array, Array, Array, float]:
        """X (angstrom), t, t' / |X'| (1/angstrom), all (N, 3), and |X'| at s."""
        # Natural: no curvature at the ends, where the straight lines begin.
        spline = CubicSpline(self.nodes_A, self.images, bc_type="natural")
        inside = float(np.clip(s, 0, self.length))
        X, first, second = (spline(inside, k) for k in range(3))
        X = X + (s - inside) * first
        speed = float(np.linalg.norm(first))
        t = first / speed
        turn = (second - np.sum(second * t) * t) / speed
        if s != inside:
            turn = np.zeros_like(turn)
        return X, t, turn / speed, speed


class HyperplaneDynamics:
    """LAMMPS with `fix pafi` for the atoms of a path.

    Parameters
    ----------
    path
        The structures.
    case
        Temperature and dynamics.
    """

    def __init__(self, path: EnergyPath, case: Case) -> None:
        lammps = import_lammps()
        folder = Path(lammps.__file__).parent / "share/lammps/potentials"
        os.environ.setdefault("LAMMPS_POTENTIALS", str(folder))
        self._lammps = lammps.lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
        self._case = case
        self._reference = path.images[0].positions
        self._masses = path.images[0].get_masses()
        self._cell = path.cell
        edge = float(path.cell[0, 0])
        n = len(self._reference)
        self._do(
            "units metal",
            "atom_modify map array sort 0 0",
            "boundary p p p",
            f"region box block 0 {edge!r} 0 {edge!r} 0 {edge!r}",
            "create_box 1 box",
        )
        self._lammps.create_atoms(
            n, list(range(1, n + 1)), [1] * n, (self._reference % edge).ravel().tolist()
        )
        self._do(
            f"mass 1 {float(self._masses[0])!r}",
            "neighbor 1.0 bin",
            "neigh_modify every 1 delay 0 check yes",
            *POTENTIAL,
            f"mass 1 {float(self._masses[0])!r}",
            f"timestep {1e-3 * case.dynamics.timestep_fs!r}",
            f"fix fields all property/atom {' '.join(FIELDS)}",
            f"compute path all property/atom {' '.join(FIELDS)}",
            "thermo_modify lost error norm no",
            "run 0 post no",
        )

    def run(
        self,
        plane: tuple[Array, Array, Array, float],
        start: tuple[Array, Array],
        n_steps: int,
        seed: int,
        output: Path,
    ) -> tuple[Array, tuple[Array, Array]]:
        """Run within a plane of `Curve`.

        Parameters
        ----------
        plane
            As `Curve.plane` gives it.
        start
            Displacements, angstrom, and velocities, angstrom/ps, shape (N, 3) each.
        n_steps
            Number of steps.
        seed
            For the thermostat.
        output
            File for what LAMMPS writes.

        Returns
        -------
        (n, 3), ((N, 3), (N, 3))
            Means over `AVERAGED_STEPS` steps of psi t.force (eV/angstrom), of psi, and of the
            distance from the plane (angstrom); and displacements and velocities at the end.
        """
        X, t, turn, _ = plane
        columns = np.concatenate([self._reference + X, t, turn], axis=1)
        for name, column in zip(FIELDS, columns.T, strict=True):
            self._lammps.numpy.extract_atom(name)[: len(column)] = column
        edge = self._cell[0, 0]
        self._lammps.numpy.extract_atom("x")[: len(X)] = (self._reference + start[0]) % edge
        self._lammps.numpy.extract_atom("v")[: len(X)] = start[1]
        dynamics = self._case.dynamics
        self._do(
            "reset_timestep 0",
            f"fix plane all pafi path {dynamics.temperature_K} {1 / dynamics.friction_per_ps!r} "
            f"{seed % 899_999_999 + 1} overdamped no com yes",
            f"fix output all ave/time 1 {AVERAGED_STEPS} {AVERAGED_STEPS} "
            f'f_plane[1] f_plane[3] f_plane[4] file "{output}"',
            f"run {n_steps} post no",
            "unfix output",
            "unfix plane",
        )
        x = np.array(self._lammps.numpy.extract_atom("x")[: len(X)])
        v = np.array(self._lammps.numpy.extract_atom("v")[: len(X)])
        u = displacements(x, self._cell, self._reference, self._cell)
        return np.loadtxt(output)[:, 1:], (u, v)

    def thermal_velocities(self, seed: int) -> Array:
        """Velocities of the Maxwell-Boltzmann distribution, angstrom/ps, (N, 3)."""
        rng = np.random.default_rng(seed)
        return 1e3 * draw_velocities(rng, self._masses, self._case.temperature_K)

    def _do(self, *commands: str) -> None:
        for command in commands:
            self._lammps.command(command)


def images_of(path: EnergyPath, kind: str) -> Array:
    """Displacements of the images of the path: "mep", or "line" from end to end."""
    u = path.displacements
    return u if kind == "mep" else np.linspace(0.0, 1.0, 3)[:, None, None] * u[-1]


def places(length_A: float) -> Array:
    """Positions of the planes along the path, angstrom, shape (BEFORE + PLANES,)."""
    return np.asarray(np.arange(-BEFORE, PLANES) * (length_A / (PLANES - 1)))


def sample(case: Case, runs: Path, kind: str, n_blocks: int) -> None:
    """Run those of the first `n_blocks` blocks of a case that are missing."""
    path = common.minimum_path(case.cell, runs)
    curve = Curve.through(images_of(path, kind))
    folder = _folder(case, runs, kind)
    folder.mkdir(exist_ok=True)
    at = places(curve.length)
    todo = [
        (block, k)
        for block in range(n_blocks)
        for k in range(len(at))
        if not _file(folder, block, k).exists()
    ]
    if not todo:
        return
    dynamics = HyperplaneDynamics(path, case)
    identity = (list(common.CELLS_A).index(case.cell), case.temperature_K)
    with common.progress_bar() as progress:
        for block, k in progress.track(todo, description=f"{case.name} {kind}"):
            plane = curve.plane(at[k])
            before = _file(folder, block - 1, k)
            restarts = 0
            while True:
                number = common.seed(*identity, block, k, ["mep", "line"].index(kind), restarts)
                fresh = block == 0 or restarts > 0
                if fresh:
                    start = (_in_plane(path, plane), dynamics.thermal_velocities(number))
                else:
                    with np.load(before) as file:
                        start = (file["displacements"], file["velocities"])
                skipped = EQUILIBRATION_STEPS if fresh else 0
                averages, (u, v) = dynamics.run(
                    plane, start, skipped + STEPS, number, folder / "averages"
                )
                if np.linalg.norm(u - plane[0]) < common.DEVIATION_LIMIT_A:
                    break
                restarts += 1
            with replacing(_file(folder, block, k)) as temporary:
                np.savez(
                    temporary,
                    averages=averages[-(STEPS // AVERAGED_STEPS) :],
                    restarts=restarts,
                    displacements=u,
                    velocities=v,
                )


def _folder(case: Case, runs: Path, kind: str) -> Path:
    return runs / f"pafi-{kind}-{case.name}"


def _file(folder: Path, block: int, k: int) -> Path:
    return folder / f"{block:03d}-{k:02d}.npz"


def _in_plane(path: EnergyPath, plane: tuple[Array, Array, Array, float]) -> Array:
    """Displacements in a plane, from where the minimum energy path crosses it; (N, 3)."""
    X, t, _, _ = plane
    fine = path.spline(np.linspace(0.0, 1.0, 1001))
    distances = np.tensordot(fine - X, t, 2)
    u = fine[np.abs(distances).argmin()]
    return np.asarray(u - np.sum((u - X) * t) * t)


def fine(s_A: Array) -> Array:
    """Points along a path, `FINE` from plane to plane, (m,), angstrom."""
    return np.linspace(s_A[0], s_A[-1], FINE * (len(s_A) - 1) + 1)


def integrals(
    s_A: Array,
    gradient_eV_A: Array,
    weight: Array,
    kT_eV: float,
) -> tuple[Array, Array]:
    """Integrate mean forces along a path to F(s) and to the flux barriers of its planes.

    Parameters
    ----------
    s_A
        Even planes along the path, shape (n,), angstrom, from where the reactant is no more
        visited.
    gradient_eV_A
        dF/ds = |X'| <psi t.grad V>, shape (n,), eV/angstrom.
    weight
        |X'| <psi>, shape (n,).
    kT_eV
        Thermal energy, eV.

    Returns
    -------
    F, F_flux
        At `fine(s_A)`, shape (m,): eV (zero at its lowest point), eV.
    """
    s = fine(s_A)
    F = CubicSpline(s_A, gradient_eV_A).antiderivative()(s)
    F -= F.min()
    w = CubicSpline(s_A, weight)(s)
    # The weight belongs to the basin's integral only, so here as part of its profile.
    basin = common.basin_integral(s, F - kT_eV * np.log(w), kT_eV)
    with np.errstate(divide="ignore"):
        return F, F + kT_eV * np.log(basin)


def analyse(case: Case, runs: Path, kind: str) -> dict[str, Any]:
    """Profile and flux barrier of a case with errors, for the data file."""
    path = common.minimum_path(case.cell, runs)
    curve = Curve.through(images_of(path, kind))
    at, kT = places(curve.length), case.thermal_energy
    speeds = np.array([curve.plane(s)[3] for s in at])
    folder = _folder(case, runs, kind)
    smallest_psi, distance, n_blocks = np.inf, 0.0, 0
    pieces: list[list[Array]] = [[] for _ in at]
    while all(_file(folder, n_blocks, k).exists() for k in range(len(at))):
        for k in range(len(at)):
            with np.load(_file(folder, n_blocks, k)) as file:
                averages = file["averages"]
            smallest_psi = min(smallest_psi, float(averages[:, 1].min()))
            distance = max(distance, float(averages[:, 2].max()))
            for part in np.array_split(averages, PARTS):
                force, psi, _ = part.mean(axis=0)
                pieces[k].append(speeds[k] * np.array([-force, psi]))
        n_blocks += 1

    s = fine(at)
    n_fine = len(s)
    start = FINE * BEFORE

    def estimate(some: Sequence[Sequence[Array]]) -> Array:
        gradient, weight = np.transpose([np.mean(part, axis=0) for part in some])
        both = gradient.copy(), weight.copy()
        on = slice(BEFORE, None)
        both[0][on] = 0.5 * (gradient[on] - gradient[on][::-1])
        both[1][on] = 0.5 * (weight[on] + weight[on][::-1])
        F, flux = integrals(at, gradient, weight, kT)
        F_s, flux_s = integrals(at, *both, kT)
        delta = F[-1] - F[start]
        return np.concatenate([F, F_s, flux, flux_s, gradient, weight, [delta]])

    value, error = estimate(pieces), common.jackknife(pieces, estimate)
    parts, errors = ([x[k * n_fine : (k + 1) * n_fine] for k in range(4)] for x in (value, error))
    at_planes = slice(None, None, FINE)
    surface, surface_s = (start + int(np.argmax(parts[k][start:])) for k in (2, 3))
    mass = float(path.images[0].get_masses()[0])
    return {
        "cell_A": common.CELLS_A[case.cell],
        "temperature_K": case.temperature_K,
        "path": kind,
        "length_A": round(curve.length, 6),
        "timestep_fs": common.TIMESTEP_FS,
        "friction_per_ps": common.FRICTION_PER_PS,
        "planes": len(at),
        "blocks": n_blocks,
        "steps": n_blocks * len(at) * STEPS,
        "smallest_psi": round(smallest_psi, 3),
        "largest_distance_A": float(f"{distance:.1g}"),
        "delta_F_eV": round(float(value[-1]), 5),
        "delta_F_error_eV": round(float(error[-1]), 5),
        "flux_barrier_eV": round(float(parts[2][surface]), 5),
        "flux_barrier_error_eV": round(float(errors[2][surface]), 5),
        "surface": round(float(s[surface] / curve.length), 3),
        "symmetric_flux_barrier_eV": round(float(parts[3][surface_s]), 5),
        "symmetric_flux_barrier_error_eV": round(float(errors[3][surface_s]), 5),
        "symmetric_surface": round(float(s[surface_s] / curve.length), 3),
        "rate_per_s": float(f"{common.rate_per_s(float(parts[3][surface_s]), kT, mass):.4g}"),
        "s_A": common.rounded(at),
        "F_eV": common.rounded(parts[0][at_planes]),
        "F_error_eV": common.rounded(errors[0][at_planes]),
        "symmetric_F_eV": common.rounded(parts[1][at_planes]),
        "symmetric_F_error_eV": common.rounded(errors[1][at_planes]),
        "gradient_eV_per_A": common.rounded(value[4 * n_fine :][: len(at)]),
        "gradient_error_eV_per_A": common.rounded(error[4 * n_fine :][: len(at)]),
        "weight": common.rounded(value[4 * n_fine + len(at) : -1]),
    }


def main() -> None:
    """Run and analyse."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of the runs, made if absent")
    common.add_cases(parser)
    parser.add_argument("--blocks", type=int, default=6, help="blocks of each case (default: 6)")
    parser.add_argument("--path", choices=["mep", "line"], default="mep")
    arguments = parser.parse_args()
    for case in arguments.cases:
        sample(case, arguments.runs.absolute(), arguments.path, arguments.blocks)
        result = analyse(case, arguments.runs.absolute(), arguments.path)
        common.write_data("pafi" if arguments.path == "mep" else "pafi-line", case.name, result)
        print(f"{case.name}: {common.in_words(result)}")


if __name__ == "__main__":
    main()
