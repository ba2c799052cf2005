"""The harmonic limit of the vacancy's rate and flux barrier, from Hessians at 0 K.

    python -m python.references.harmonic RUNS                    # both cells
    python -m python.references.harmonic RUNS --cells paper

The results go to docs/references/harmonic.json. With energies V0 + x.H0.x / 2 around the minimum
and V1 + x.H1.x / 2 around the saddle point, both without the three translations, the integral over
the basin is exp(-V0/kT) (2 pi kT)^(M/2) / sqrt(det H0), and that over a plane through the saddle
point with unit normal n is exp(-V1/kT) (2 pi kT)^((M-1)/2) / sqrt(det H1 n.H1^-1.n). The flux
barrier of this plane, with lengths in angstrom, is

    F = V1 - V0 + kT/2 ln(2 pi kT) - kT/2 ln( det H0 / (det H1 n.H1^-1.n) ).

It is highest, and the flux the lowest, when n is the unstable mode; then det H1 n.H1^-1.n is the
product of the positive eigenvalues and the rate is that of Vineyard, J. Phys. Chem. Solids 3, 121
(1957): with one mass for all atoms Euclidean and mass-weighted surfaces are the same.

The paper's cell is harmonic for a few mA only. Its nearest neighbours are 2.4987 A apart, and at
2.5 A the potential, a sum of terms (r_k - r)^3 that each end at an r_k, has a bend in its second
derivative: differences over 0.01 A already give another Hessian than those over 0.001 A.

The path has two humps, images of each other. Each is a dividing surface with the flux barrier
above; the highest one along the path is at one of them, not at the well between.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import units

from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures.frame import Array
from python.references import common
from python.zero_kelvin.systems import POTENTIAL

STEP_A = 0.001  # of the differences; at 0.01 the sum of the logarithms is off by up to 2
NEWTON_STEPS = 4


@dataclass(frozen=True)
class Expansion:
    """A stationary point: energy (eV), positions (N, 3) and Hessian (3N, 3N), eV/angstrom^2."""

    energy_eV: float
    positions: Array
    hessian: Array

    def modes(self) -> tuple[Array, Array]:
        """Eigenvalues, (3N-3,), eV/angstrom^2, and modes in columns, without translations."""
        n = len(self.hessian) // 3
        shifts = np.tile(np.eye(3), (n, 1)) / np.sqrt(n)
        # Far above all others, so that the translations are the last ones.
        lifted = self.hessian + 1e6 * shifts @ shifts.T
        values, vectors = np.linalg.eigh(lifted)
        return values[:-3], vectors[:, :-3]


def hessian(engine: LammpsEngine, positions: Array, cell: Array) -> Array:
    """Hessian by central differences of forces, symmetrised, (3N, 3N), eV/angstrom^2."""
    rows = []
    with common.progress_bar() as progress:
        for k in progress.track(range(positions.size), description="Hessian"):
            shift = np.zeros(positions.shape)
            shift.flat[k] = STEP_A
            forces = [engine.evaluate(positions + sign * shift, cell)[1] for sign in (1, -1)]
            rows.append((forces[1] - forces[0]).ravel() / (2 * STEP_A))
    H = np.array(rows)
    return 0.5 * (H + H.T)


def expansion(engine: LammpsEngine, positions: Array, cell: Array) -> Expansion:
    """Expand the energy around the stationary point that Newton's method finds from here."""
    H = hessian(engine, positions, cell)
    values, modes = Expansion(0.0, positions, H).modes()
    for _ in range(NEWTON_STEPS):
        forces = engine.evaluate(positions, cell)[1].ravel()
        positions = positions + (modes @ (modes.T @ forces / values)).reshape(-1, 3)
    energy, forces, _ = engine.evaluate(positions, cell)
    if np.abs(forces).max() > 1e-6:
        raise RuntimeError(f"no stationary point: a force of {np.abs(forces).max():.1e} eV/A left")
    return Expansion(energy, positions, hessian(engine, positions, cell))


def log_ratio(minimum: Expansion, saddle: Expansion, normal: Array | None = None) -> float:
    """ln( det H0 / (det H1 n.H1^-1.n) ), lengths in angstrom and energies in eV.

    Parameters
    ----------
    minimum, saddle
        H0 and H1.
    normal
        n, shape (N, 3), of any length; the unstable mode by default.
    """
    values0, _ = minimum.modes()
    values1, modes1 = saddle.modes()
    if values0[0] <= 0 or values1[0] >= 0 or values1[1] <= 0:
        raise ValueError(
            f"a minimum and a saddle point are needed, not {values0[:2]}, {values1[:2]}"
        )
    n = modes1[:, 0] if normal is None else normal.ravel() / np.linalg.norm(normal)
    compliance = float(np.sum((modes1.T @ n) ** 2 / values1))
    if compliance >= 0:
        raise ValueError("the plane does not separate the two sides of the saddle point")
    return float(np.log(values0).sum() - np.log(np.abs(values1)).sum() - np.log(-compliance))


def flux_barrier(delta_E_eV: float, ln_ratio: float, kT_eV: float) -> float:
    """Harmonic flux barrier, eV, from the energy of the saddle point and `log_ratio`."""
    return float(delta_E_eV + 0.5 * kT_eV * (np.log(2 * np.pi * kT_eV) - ln_ratio))


def limits(data: dict[str, float], temperature_K: float) -> dict[str, float]:
    """Harmonic flux barriers, eV, of a cell in the data file: best plane and linear CV."""
    kT = units.kB * temperature_K
    return {
        "flux_barrier_eV": flux_barrier(data["saddle_eV"], data["log_ratio"], kT),
        "linear_flux_barrier_eV": flux_barrier(data["saddle_eV"], data["log_ratio_linear"], kT),
    }


def attempt_frequency_per_s(ln_ratio: float, mass_amu: float) -> float:
    """Vineyard's prefactor, 1/s, for atoms of one mass: prod(nu at minimum)/prod'(at saddle)."""
    return float(np.exp(0.5 * ln_ratio) / (2 * np.pi * mass_amu**0.5) * units.fs * 1e15)


def analyse(path: EnergyPath, cell_A: float) -> dict[str, object]:
    """Harmonic results of a path for the data file."""
    cell = path.cell
    with LammpsEngine(POTENTIAL, path.images[0]) as engine:
        minimum = expansion(engine, path.images[0].positions, cell)
        top = path.images[int(path.energies.argmax())].positions
        saddle = expansion(engine, top, cell)
        middle = path.images[0].positions + path.spline(0.5)
        well = expansion(engine, middle, cell)
    ends = path.displacements[-1]
    u = saddle.positions - path.images[0].positions
    mode = saddle.modes()[1][:, 0].reshape(-1, 3)
    delta = saddle.energy_eV - minimum.energy_eV
    ratio, ratio_linear = log_ratio(minimum, saddle), log_ratio(minimum, saddle, ends)
    mass = float(path.images[0].get_masses()[0])
    return {
        "cell_A": cell_A,
        "saddle_eV": round(delta, 6),
        "well_eV": round(well.energy_eV - minimum.energy_eV, 6),
        "saddle_xi": round(float(np.sum(u * ends) / np.sum(ends**2)), 4),
        "log_ratio": round(ratio, 5),
        "log_ratio_linear": round(ratio_linear, 5),
        "unstable_eV_per_A2": round(float(saddle.modes()[0][0]), 5),
        "softest_of_minimum_eV_per_A2": round(float(minimum.modes()[0][0]), 5),
        "overlap_of_mode_and_line": round(
            float(np.abs(np.sum(mode * ends)) / np.linalg.norm(ends)), 4
        ),
        "attempt_frequency_per_s": float(f"{attempt_frequency_per_s(ratio, mass):.4g}"),
    }


def main() -> None:
    """Expand both cells."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of the runs, made if absent")
    parser.add_argument("--cells", nargs="+", default=list(common.CELLS_A), choices=common.CELLS_A)
    arguments = parser.parse_args()
    for cell in arguments.cells:
        path = common.minimum_path(cell, arguments.runs.absolute())
        result = analyse(path, common.CELLS_A[cell])
        common.write_data("harmonic", cell, result)
        print(cell, result)


if __name__ == "__main__":
    main()
