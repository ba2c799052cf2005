"""The number of noisy structures that a path needs."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from plumed_cv.cv.localisation import N_STRUCTURES, structures_for
from plumed_cv.paths.path import EnergyPath


def moving(n_moving: int, n_atoms: int, length: float = 2.0) -> EnergyPath:
    """Pairs of atoms of a cube of 200 angstrom move apart equally; the others are at rest."""
    direction = np.zeros((n_atoms, 3))
    direction[:n_moving, 0] = (-1.0) ** np.arange(n_moving) / n_moving**0.5
    images = []
    for s in (0.0, 0.5, 1.0):
        positions = s * length * direction
        positions[:, 1] += np.arange(n_atoms)
        atoms = Atoms(f"Fe{n_atoms}", positions, cell=200.0 * np.eye(3), pbc=True)
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros_like(positions))
        images.append(atoms)
    return EnergyPath(tuple(images))


def test_the_ratio_of_noise_to_path_is_that_of_the_fewest_structures() -> None:
    """98 % of the motion of 100 equal atoms is that of 98 of them."""
    for variance, length in ((0.005, 2.0), (0.01, 2.0), (0.005, 1.0)):
        number = structures_for(moving(100, 150, length), variance)
        assert number > N_STRUCTURES
        ratio = 98 * variance / length**2 / number
        assert ratio == pytest.approx(0.025 / N_STRUCTURES, rel=0.02)


def test_atoms_at_rest_need_no_more_structures() -> None:
    assert structures_for(moving(2, 150), 0.005) == N_STRUCTURES
    assert structures_for(moving(100, 150), 0.005) == structures_for(moving(100, 110), 0.005)


def test_structures_need_at_most_a_gigabyte() -> None:
    memory = structures_for(moving(100, 150), 1000.0) * 150 * 3 * np.dtype(np.float32).itemsize
    assert memory == pytest.approx(1e9, rel=1e-5)
