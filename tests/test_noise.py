"""Variance of thermal motion from the stiffness of a minimum."""

import numpy as np
import pytest
from ase import units
from ase.build import bulk

from plumed_cv.common.errors import UserError
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.noise import thermal_variance
from plumed_cv.structures import cell_of

IRON = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]
NOBODY = np.zeros(0, dtype=np.int64)


def test_springs_of_one_stiffness() -> None:
    """Forces at the minimum are subtracted, and fixed atoms do not count."""
    positions = np.random.default_rng(1).normal(size=(20, 3))
    held = np.arange(5)

    def forces(structures: np.ndarray) -> np.ndarray:
        found = 0.3 - 4.0 * (structures - positions)
        found[:, held] *= 100.0
        return found

    variance = thermal_variance(positions, held, forces, 0.02)
    assert variance == pytest.approx(1.8 * 0.02 / 4.0)
    with pytest.raises(UserError, match=r"stiffness of -4 eV/A\^2.*path\.noise_A2"):
        thermal_variance(positions, NOBODY, lambda x: 4.0 * (x - positions), 0.02)


def test_iron_at_300_kelvin() -> None:
    """The paper uses a variance of 0.005 A^2; 0.0044 is measured."""
    atoms = bulk("Fe", cubic=True, a=2.8553) * (3, 3, 3)
    cell = cell_of(atoms)
    with LammpsEngine(IRON, atoms) as engine:
        variance = thermal_variance(
            atoms.positions, NOBODY, lambda x: engine.forces(x, cell), units.kB * 300.0
        )
    assert variance == pytest.approx(0.005, rel=0.05)
