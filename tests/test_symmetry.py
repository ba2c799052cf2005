"""Symmetry of processes whose groups are known."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from plumed_cv import cv
from plumed_cv.cv import symmetry
from plumed_cv.paths.path import EnergyPath


def vacancy_hop(repeat: int = 3, shift: np.ndarray | None = None) -> cv.CollectiveVariable:
    """The linear CV of a vacancy's hop in a bcc crystal, unrelaxed."""
    crystal = bulk("Fe", "bcc", a=2.9, cubic=True).repeat(repeat)
    crystal.positions += 0.0 if shift is None else shift
    neighbour = int(np.argsort(crystal.get_distances(0, range(len(crystal)), mic=True))[1])
    start, end = crystal.copy(), crystal.copy()
    end.positions[neighbour] = crystal.positions[0]
    del start[0], end[0]
    return cv.linear(start.symbols, start.cell.array, start.positions, end.positions)


@pytest.mark.parametrize("shift", [None, np.array([0.3, -7.1, 2.2])])
def test_vacancy_hop_has_twelve_operations(shift: np.ndarray | None) -> None:
    variable = vacancy_hop(shift=shift)
    found = symmetry.find_operations(variable)
    assert len(found) == 12  # -3m about <111>
    assert sum(operation.reverses for operation in found) == 6
    assert not found[0].reverses
    np.testing.assert_array_equal(found[0].image, np.arange(variable.n_atoms))
    for operation in found:
        np.testing.assert_allclose(operation.rotation @ operation.rotation.T, np.eye(3), atol=1e-9)
        for state in (0, 1):
            turned = operation.turn(variable.end_displacements[state]) + operation.offset
            target = variable.end_displacements[1 - state if operation.reverses else state]
            apart = turned - target
            apart -= np.rint(apart / variable.reference_cell[0, 0]) * variable.reference_cell[0, 0]
            np.testing.assert_allclose(apart - apart[:1], 0.0, atol=1e-6)


def test_an_unequal_end_state_breaks_the_reversal() -> None:
    variable = vacancy_hop()
    end = variable.reference_positions + variable.end_displacements[1]
    far = int(np.linalg.norm(variable.end_displacements[1], axis=1).argmin())
    end[far] += [0.2, 0.0, 0.0]
    start = variable.reference_positions
    broken = cv.linear(variable.species, variable.reference_cell, start, end)
    assert not any(operation.reverses for operation in symmetry.find_operations(broken))


def test_species_count() -> None:
    variable = vacancy_hop()
    images = np.stack([operation.image for operation in symmetry.find_operations(variable)])
    orbits = np.array([len(np.unique(image)) for image in images.T])
    alone = list(variable.species)
    alone[int(orbits.argmax())] = "Cr"
    start = variable.reference_positions
    end = start + variable.end_displacements[1]
    alloy = cv.linear(alone, variable.reference_cell, start, end)
    assert len(symmetry.find_operations(alloy)) == 12 // orbits.max()


def test_no_cell_no_operations() -> None:
    end = np.array([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    free = cv.linear(["H", "H"], np.zeros((3, 3)), np.diag([1.0, 1.0, 1.0])[:2], end)
    assert len(symmetry.find_operations(free)) == 1


def bent(height: float) -> EnergyPath:
    """A hop along x that bends towards y on its way, in a cubic cell."""
    images = []
    for x in np.linspace(0.0, 1.0, 9):
        hop = [4.0 + 2.0 * x, 5.0 + height * np.sin(np.pi * x), 5.0]
        atoms = Atoms("FeCr", positions=[hop, [0.0, 0.0, 0.0]], cell=[10.0] * 3, pbc=True)
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((2, 3)))
        images.append(atoms)
    return EnergyPath(tuple(images))


def test_a_path_may_break_the_symmetry_of_its_ends() -> None:
    assert len(symmetry.find_path_operations(bent(0.0))) == 16
    # What is left to a bend towards y: the mirror across z, and the mirror across x that reverses.
    assert len(symmetry.find_path_operations(bent(0.5))) == 4
