"""Displacement frame: changes to which it is invariant, and changes that it shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from plumed_cv.common.errors import UserError
from plumed_cv.structures.frame import Array, align, displacements

CELL = np.array([[9.0, 0.0, 0.0], [2.0, 10.0, 0.0], [-1.5, 2.5, 11.0]])


def crystal(seed: int) -> tuple[np.random.Generator, Array, Array]:
    """Random reference positions and small displacements without a mean."""
    rng = np.random.default_rng(seed)
    reference = rng.uniform(size=(12, 3)) @ CELL
    u = rng.normal(scale=0.3, size=(12, 3))
    return rng, reference, u - u.mean(axis=0)


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_lattice_shifts_and_rigid_drift_change_nothing(seed: int) -> None:
    rng, reference, u = crystal(seed)
    shifts = rng.integers(-3, 4, size=(12, 3)) @ CELL
    drift = rng.uniform(-30, 30, size=3)
    found = displacements(reference + u + shifts + drift, CELL, reference, CELL)
    np.testing.assert_allclose(found, u, atol=1e-12)


def test_reference_follows_the_cell() -> None:
    _, reference, u = crystal(1)
    strain = np.eye(3) + np.array([[0.02, 0.01, 0.0], [0.0, -0.03, 0.02], [0.01, 0.0, 0.05]])
    found = displacements((reference + u) @ strain, CELL @ strain, reference, CELL)
    np.testing.assert_allclose(found, u @ strain, atol=1e-12)


def test_many_structures_are_as_one_by_one() -> None:
    rng, reference, _ = crystal(2)
    many = reference + rng.normal(scale=0.1, size=(5, 12, 3))
    together = displacements(many, CELL, reference, CELL)
    for structure, u in zip(many, together, strict=True):
        np.testing.assert_array_equal(displacements(structure, CELL, reference, CELL), u)


def test_without_a_cell_nothing_is_wrapped() -> None:
    _, reference, u = crystal(3)
    zero = np.zeros((3, 3))
    far = 100.0 * u
    np.testing.assert_allclose(
        displacements(reference + far, zero, reference, zero), far, atol=1e-11
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r, c: (r[:-1], c), "11 atoms and the reference 12"),
        (lambda r, c: (r * np.nan, c), "NaN"),
        (lambda r, c: (r, np.zeros((3, 3))), "no lattice vector there"),
        (lambda r, c: (r, c * [[1], [1], [0]]), "no lattice vector there"),
        (lambda r, c: (r, c * np.inf), "finite lattice vectors"),
    ],
)
def test_bad_input_is_one_sentence(change, sentence: str) -> None:  # type: ignore[no-untyped-def]
    _, reference, _ = crystal(4)
    with np.errstate(invalid="ignore"):
        positions, cell = change(reference, CELL)
    with pytest.raises(UserError, match=sentence):
        displacements(positions, cell, reference, CELL)


def test_the_best_fit_is_scipys() -> None:
    rng = np.random.default_rng(11)
    reference = rng.normal(size=(8, 3)) * 2.0
    turns = Rotation.random(6, random_state=5)
    structures = (reference + rng.normal(scale=0.5, size=(6, 8, 3))) @ turns.as_matrix() + 7.0
    structures[-1, :, 0] *= -1.0  # a mirror image: the best fit is a rotation all the same
    u, rotations = align(structures, np.zeros((3, 3)), reference)
    centre = reference - reference.mean(axis=0)
    for structure, displacement, rotation in zip(structures, u, rotations, strict=True):
        centred = structure - structure.mean(axis=0)
        best, _ = Rotation.align_vectors(centre, centred)
        np.testing.assert_allclose(rotation, best.as_matrix(), atol=1e-7)
        np.testing.assert_allclose(displacement, best.apply(centred) - centre, atol=1e-6)
        # The condition of Eckart, exact at the best fit.
        np.testing.assert_allclose(np.cross(centre, displacement).sum(axis=0), 0.0, atol=1e-11)


def test_no_best_fit_on_a_line() -> None:
    line = np.outer(np.arange(5.0), [1.0, 2.0, -1.0])
    with pytest.raises(UserError, match="is not unique"):
        align(line, np.zeros((3, 3)), line)
    three = np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [0.5, 1.0, 0.0]])
    u, _ = align(three[:, [1, 2, 0]], np.zeros((3, 3)), three)  # a plane is enough
    np.testing.assert_allclose(u, 0.0, atol=1e-12)
