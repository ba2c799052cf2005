"""The structures of python/zero_kelvin are the named defects, and a path between them."""

import dataclasses

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list
from ase.optimize import FIRE

from plumed_cv.cv import energy
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.structures import check_end_states
from plumed_cv.structures.frame import Array
from python.zero_kelvin import systems
from python.zero_kelvin.systems import LATTICE_A, SYSTEMS

ATOMS = {
    "vacancy": 127,
    "dumbbell": 129,
    "di-interstitial": 130,
    "cluster": 1026,
    "dislocations": 2754,
}


def relaxed(atoms: Atoms) -> Atoms:
    with LammpsEngine(systems.POTENTIAL, atoms) as engine:
        atoms.calc = engine.calculator()
        assert FIRE(atoms, logfile=None).run(fmax=1e-2, steps=500)
        atoms.get_potential_energy()
        atoms.calc = None
    return atoms


def dumbbells(atoms: Atoms) -> Array:
    """Unit vectors between the atoms that share a lattice site, two each, shape (n, 3)."""
    fractions = atoms.positions * 2 / LATTICE_A
    # Sites have three even or three odd coordinates in half lattice parameters.
    even, odd = 2 * np.rint(fractions / 2), 2 * np.rint((fractions - 1) / 2) + 1
    off = [np.linalg.norm(fractions - sites, axis=1) for sites in (even, odd)]
    nearest = np.where((off[0] < off[1])[:, None], even, odd)
    sites, which, occupation = np.unique(
        nearest % np.rint(atoms.cell.lengths() * 2 / LATTICE_A),
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    pairs = [np.flatnonzero(which == site) for site in np.flatnonzero(occupation == 2)]
    assert len(atoms) == len(sites) + len(pairs)
    vectors = np.array([atoms.get_distance(a, b, mic=True, vector=True) for a, b in pairs])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def burgers_content(atoms: Atoms, crystal: Atoms) -> list[tuple[int, Array, Array]]:
    """Burgers vector, place and share of each side of the cores, from circuits around three rows.

    Sides are the steps of the displacement along the line, in Burgers vectors, taken to the
    nearest of equivalent values.
    """
    u = (atoms.positions - crystal.positions)[:, 0] / systems.BURGERS_A
    tilt = atoms.cell[2, 0] / systems.BURGERS_A
    layer = crystal.positions[:, 0] < systems.BURGERS_A * (1 - 1e-6)
    rows, u = crystal.positions[layer, 1:], u[layer]
    cell = crystal.cell.array[1:, 1:]
    upright = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
    inverted = np.array([[0.0, 0.0], [0.5, 1.0], [-0.5, 1.0]])

    def at(points: Array) -> Array:
        """The displacement of the rows at these points, periodic images following the cell."""
        shifts = points[:, None] - rows
        images = np.rint(shifts @ np.linalg.inv(cell))
        distances = np.linalg.norm(shifts - images @ cell, axis=2)
        index = distances.argmin(axis=1)
        assert distances.min(axis=1).max() < 1e-6
        return np.asarray(u[index] + tilt * images[np.arange(len(points)), index, 1])

    found = []
    for triangle in (upright, inverted):  # anticlockwise
        offsets = triangle * [systems.VALLEYS_A, systems.PLANES_A]
        heights = np.stack([at(rows + offset) for offset in offsets])
        steps = np.roll(heights, -1, axis=0) - heights
        steps -= np.rint(steps)
        content = np.rint(steps.sum(axis=0)).astype(int)
        for i in np.flatnonzero(content):
            found.append((int(content[i]), rows[i] + offsets.mean(axis=0), steps[:, i]))
    return sorted(found, key=lambda core: -core[0])


@pytest.mark.parametrize("name", SYSTEMS)
def test_states_have_the_same_atoms_apart_from_each_other(name: str) -> None:
    states = SYSTEMS[name].states()
    for state in states:
        assert len(state) == ATOMS[name]
        check_end_states(states[0], state)
        assert len(neighbor_list("d", state, 1.3)) == 0


def test_vacancy_moves_by_one_neighbour_distance() -> None:
    initial, final = systems.vacancy()
    moves = np.linalg.norm(final.positions - initial.positions, axis=1)
    assert np.count_nonzero(moves) == 1
    assert moves.max() == pytest.approx(LATTICE_A * 3**0.5 / 2)


def test_dumbbell_turns_by_sixty_degrees() -> None:
    axes = [dumbbells(relaxed(state)) for state in systems.dumbbell()]
    for axis, expected in zip(axes, ([1, 1, 0], [0, 1, 1]), strict=True):
        assert axis.shape == (1, 3)
        np.testing.assert_allclose(np.abs(axis[0]), np.array(expected) / 2**0.5, atol=1e-3)


def test_two_dumbbells_become_parallel() -> None:
    initial, final = (dumbbells(relaxed(state)) for state in systems.di_interstitial())
    assert initial.shape == final.shape == (2, 3)
    assert abs(initial[0] @ initial[1]) == pytest.approx(0.5, abs=0.1)
    np.testing.assert_allclose(np.abs(final), np.array([[0, 1, 1]] * 2) / 2**0.5, atol=5e-3)


def test_cluster_has_the_polyhedra_of_the_laves_phase() -> None:
    c15, triangular = (relaxed(state) for state in systems.cluster())
    centre = np.full(3, 4 * LATTICE_A)

    def neighbours(atoms: Atoms, point: Array) -> Array:
        distances = np.linalg.norm(atoms.positions - point, axis=1)
        near = atoms.positions[(distances > 0.1) & (distances < 1.05 * LATTICE_A)]
        return np.asarray(near - point)

    # The centre has the Z16 polyhedron, each of the twelve atoms that were put in an icosahedron.
    around = neighbours(c15, centre)
    assert len(around) == 16
    twelve = around[np.argsort(np.linalg.norm(around, axis=1))[4:]]
    assert {len(neighbours(c15, centre + atom)) for atom in twelve} == {12}

    # Three atoms at the corners of a triangle around the axis, all as far from the shared site.
    site = np.full(3, 4.5 * LATTICE_A)
    distances = np.linalg.norm(triangular.positions - site, axis=1)
    three = triangular.positions[np.argsort(distances)[:3]] - site
    assert np.sort(distances)[3] > 0.8 * LATTICE_A
    np.testing.assert_allclose(np.linalg.norm(three, axis=1), 0.457 * LATTICE_A, atol=0.01)
    np.testing.assert_allclose(three @ np.ones(3), 0.0, atol=0.05)


def test_dislocations_glide_one_after_the_other_with_easy_cores() -> None:
    crystal = systems.crystal_of_dislocations()
    cores = [burgers_content(relaxed(s), crystal) for s in systems.screw_dislocations()]
    for state in cores:
        assert [burgers for burgers, _, _ in state] == [1, -1]
        for burgers, _, sides in state:  # compact: the same on all sides
            np.testing.assert_allclose(sides, burgers / 3, atol=0.02)
    first, second, third = (np.array([place for _, place, _ in state]) for state in cores)
    valley = [systems.VALLEYS_A, 0.0]
    np.testing.assert_allclose(second - first, [valley, [0.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(third - second, [[0.0, 0.0], valley], atol=1e-6)


@pytest.mark.slow
def test_path_of_the_dumbbell() -> None:
    path = dataclasses.replace(SYSTEMS["dumbbell"], n_images=15).path()
    # Fu et al. found 0.3 eV as well, from first principles.
    assert path.barrier == pytest.approx(0.3007, abs=2e-4)
    assert systems.asymmetry(path) < 1e-4
    assert energy.along_path(path).barrier == pytest.approx(path.barrier, rel=5e-3)
