"""The harmonic limit of the vacancy's rate and flux barrier, from Hessians at 0 K.

    python -m python.references.harmonic RUNS                    # both cells
    python -m python.references.harmonic RUNS --cells paper

The results go to docs/references/harmonic.json. `plumed_cv.rates.harmonic` has the formulas.

The potential in the paper's cell is harmonic for displacements of a few mA only. The nearest
neighbours are 2.4987 A apart. The potential is a sum of terms (r_k - r)^3, each of which ends at an
r_k. Therefore its second derivative has a kink at 2.5 A, and differences over 0.01 A give another
Hessian than those over 0.001 A.

The path has two maxima, which are images of each other. Each is a dividing surface with the given
flux barrier. The highest flux barrier along the path is at one of them, not at the minimum between
them.
"""

import argparse
from pathlib import Path

import numpy as np
from ase import units

from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.path import EnergyPath
from plumed_cv.rates.harmonic import compute_flux_barrier, log_ratio
from plumed_cv.rates.stationary import find_saddle, find_stationary_point
from python.references import common
from python.zero_kelvin.systems import POTENTIAL


def limits(data: dict[str, float], temperature_K: float) -> dict[str, float]:
    """Harmonic flux barriers, eV, of a cell in the data file: best plane and linear CV."""
    kT = units.kB * temperature_K
    return {
        "flux_barrier_eV": compute_flux_barrier(data["saddle_eV"], data["log_ratio"], kT),
        "linear_flux_barrier_eV": compute_flux_barrier(
            data["saddle_eV"], data["log_ratio_linear"], kT
        ),
    }


def attempt_frequency_per_s(ln_ratio: float, mass_amu: float) -> float:
    """Vineyard's prefactor, 1/s, for atoms of one mass: prod(nu at minimum)/prod'(at saddle)."""
    return float(np.exp(0.5 * ln_ratio) / (2 * np.pi * mass_amu**0.5) * units.fs * 1e15)


def analyse(path: EnergyPath, cell_A: float) -> dict[str, object]:
    """Harmonic results of a path for the data file."""
    cell = path.cell
    with LammpsEngine(POTENTIAL, path.images[0]) as engine:
        minimum = find_stationary_point(engine, path.images[0].positions, cell)
        saddle = find_saddle(engine, path)
        middle = path.images[0].positions + path.spline(0.5)
        well = find_stationary_point(engine, middle, cell)
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
