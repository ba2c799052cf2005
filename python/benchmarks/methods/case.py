"""The process that `efficiency` compares methods on, its true profile, and reading a barrier.

All methods bias the linear CV of the vacancy in iron (the packaged example). They have the same
Langevin dynamics of the engine, the same start in the reactant and the same analysis.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import units
from scipy.interpolate import PchipInterpolator

from plumed_cv import cv, freeenergy
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import Dynamics
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures.frame import Array
from python.references import common
from python.zero_kelvin.systems import POTENTIAL

CASE = "paper-300K"
BUDGETS = (100_000, 500_000)  # steps in total
DYNAMICS = Dynamics(300.0, timestep_fs=1.0, friction_per_ps=1.0)
KT = float(units.kB * DYNAMICS.temperature_K)
GRID = freeenergy.Grid(-0.1, 1.1, 120)
STRIDE = 10  # steps between lines of a COLVAR


@dataclass(frozen=True)
class Setup:
    """Data that all runs share.

    Attributes
    ----------
    path
        Minimum energy path from the reactant to the product.
    model
        File of the linear CV.
    prior
        Profile file of the energy along the path, for BABF.
    reference
        Profile file of the truth, for BABF.
    """

    path: EnergyPath
    model: Path
    prior: Path
    reference: Path

    @classmethod
    def make(cls, path: EnergyPath, folder: Path) -> "Setup":
        """Write the files into `folder`."""
        names = ("cv.safetensors", "prior.dat", "reference.dat")
        setup = cls(path, *(folder / name for name in names))
        ends = [path.images[k].positions for k in (0, -1)]
        linear = cv.linear(path.species, path.cell, *ends)
        linear.save(setup.model)
        freeenergy.write_prior(setup.prior, GRID, GRID.nodes, interpolate_energy(linear, path))
        freeenergy.write_prior(setup.reference, GRID, GRID.nodes, read_true_profile())
        return setup

    def engine(self) -> LammpsEngine:
        """Open the engine."""
        return LammpsEngine(POTENTIAL, self.path.images[0])


@dataclass(frozen=True)
class Result:
    """Result of a method after a budget: eV, NaN if it gives none.

    `deviation_A` is the greatest distance from the line between the end states that was seen, and
    `us_per_step` the processor's time.
    """

    barrier_eV: float
    delta_F_eV: float
    barrier_error_eV: float
    delta_F_error_eV: float
    deviation_A: float
    us_per_step: float = np.nan


def interpolate_energy(model: CollectiveVariable, path: EnergyPath) -> Array:
    """Energy of the path at the nodes of `GRID`, eV, (n,); a parabola beyond its ends."""
    xi = model.encode(model.components(path.displacements))[:, 0]
    inside = PchipInterpolator(xi, path.energies)(np.clip(GRID.nodes, xi[0], xi[-1]))
    stiffness = [
        (path.energies[b] - path.energies[a]) / (xi[b] - xi[a]) ** 2 for a, b in ((0, 1), (-1, -2))
    ]
    below, above = np.minimum(GRID.nodes - xi[0], 0), np.maximum(GRID.nodes - xi[-1], 0)
    return np.asarray(inside + stiffness[0] * below**2 + stiffness[1] * above**2)


def analyse_profile(A_eV: Array) -> freeenergy.Profile:
    """The package's analysis of a profile at the nodes of `GRID`, eV, NaN where unknown.

    A histogram of that profile, as from a run without bias, gives it back.
    """
    known = np.isfinite(A_eV)
    count = np.where(known, np.exp(-(A_eV - np.nanmin(A_eV, initial=np.inf)) / KT), 0.0)
    sums = np.array([count, np.zeros_like(count), count, np.zeros_like(count)])
    state = freeenergy.State(
        ("ae.node-0",), (GRID,), KT, (1.0,), 0.0, 0, np.zeros_like(count), 1, sums
    )
    return freeenergy.estimate_profile([state])


def read_barrier(A_eV: Array, deviation_A: float) -> Result:
    """Barrier and difference of a profile at the nodes of `GRID`, without errors."""
    found = analyse_profile(A_eV)
    barrier, delta = found.barrier.value, found.A1_minus_A0.value
    return Result(barrier, delta, np.nan, np.nan, deviation_A)


def read_truth() -> tuple[float, float]:
    """Barrier of the reference, read like all others, and its standard error, eV."""
    error = common.read_data("umbrella")[CASE]["symmetric_barrier_error_eV"]
    return analyse_profile(read_true_profile()).barrier.value, error


def read_true_profile() -> Array:
    """The reference at the nodes of `GRID`, eV, (n,)."""
    data = common.read_data("umbrella")[CASE]
    A = np.array(data["symmetric_A_eV"], dtype=float)
    return np.asarray(np.interp(GRID.nodes, data["xi"], A))
