"""Variance of thermal motion, and the number of structures that average it out."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from plumed_cv.common.errors import UserError
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.noise import N_STRUCTURES, structures_for, thermal_variance
from plumed_cv.paths.path import EnergyPath
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


def hop(n_atoms: int) -> EnergyPath:
    """One atom of a cube of 40 angstrom moves by 2 angstrom; the others are at rest."""
    images = []
    for x in (0.0, 1.0, 2.0):
        positions = np.zeros((n_atoms, 3))
        positions[1:, 1] = np.arange(1, n_atoms)
        positions[0, 0] = x
        atoms = Atoms(f"Fe{n_atoms}", positions, cell=40.0 * np.eye(3), pbc=True)
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros_like(positions))
        images.append(atoms)
    return EnergyPath(tuple(images))


def test_more_structures_for_more_atoms_and_more_noise() -> None:
    """The mean of the structures has the same noise, relative to the path, whatever the process."""
    assert structures_for(hop(10), 0.005) == N_STRUCTURES
    length2 = 4.0 * 9.0 / 10.0  # the mean displacement is subtracted
    for variance in (0.1, 0.2):
        number = structures_for(hop(10), variance)
        assert 10 * variance / number == pytest.approx(0.1 * length2 / N_STRUCTURES, rel=1e-4)


def test_structures_need_at_most_a_gigabyte() -> None:
    memory = structures_for(hop(30), 1000.0) * 30 * 3 * np.dtype(np.float32).itemsize
    assert memory == pytest.approx(1e9, rel=1e-6)
