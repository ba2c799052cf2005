"""The elastic prior: networks with the symmetry of space, and fields recovered from noise."""

import numpy as np
import pytest
from ase.build import bulk
from scipy.spatial.transform import Rotation

from plumed_cv import cv
from plumed_cv.cv import elastic, meanpath

CRYSTAL = bulk("Fe", "bcc", a=2.855, cubic=True).repeat(3)
POSITIONS, CELL = CRYSTAL.positions, CRYSTAL.cell.array
N = len(POSITIONS)
SIGMA2 = 1e-4
FALLING = np.diag(0.25 ** np.arange(4))  # as the variances of the modes of `field` do
FALLING *= 4.0 / np.trace(FALLING)
BETWEEN = np.stack([np.eye(4), FALLING, FALLING[::-1, ::-1]])


def field() -> np.ndarray:
    """Four modes of the response of the crystal to forces between an atom and its neighbours."""
    rng = np.random.default_rng(1)
    distances = CRYSTAL.get_distances(0, range(N), mic=True)
    near = np.flatnonzero(distances < 2.6)
    forces = np.zeros((4, N, 3))
    forces[:, near] = rng.normal(size=(4, len(near), 3)) * 0.5 ** np.arange(4)[:, None, None]
    forces -= forces.mean(axis=1, keepdims=True)
    dense = elastic.stiffness(POSITIONS, CELL).toarray()
    return np.linalg.solve(dense, forces.reshape(4, -1).T).T.reshape(4, N, 3)


def noisy(modes: np.ndarray, variance: float = SIGMA2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    raw = modes + rng.normal(scale=variance**0.5, size=modes.shape)
    return raw - raw.mean(axis=1, keepdims=True), np.full(N, variance)


def test_springs_are_symmetric_stable_and_turn_with_the_crystal() -> None:
    stiffness = elastic.stiffness(POSITIONS, CELL).toarray()
    np.testing.assert_allclose(stiffness, stiffness.T, atol=1e-14)
    values = np.linalg.eigvalsh(stiffness)
    # Translations cost next to nothing, everything else at least a hundredth of a spring.
    assert values[:3] == pytest.approx(1e-4)
    assert values[3] > 0.01
    turn = Rotation.from_euler("xyz", [0.3, 1.0, 2.0]).as_matrix()
    turned = elastic.stiffness(POSITIONS @ turn + [5.0, -40.0, 1.0], CELL @ turn).toarray()
    every = np.kron(np.eye(N), turn)
    np.testing.assert_allclose(turned, every.T @ stiffness @ every, atol=1e-9)


def test_atoms_without_neighbours_are_held() -> None:
    far = np.array([[0.0, 0.0, 0.0], [500.0, 0.0, 0.0]])
    stiffness = elastic.stiffness(far, np.zeros((3, 3))).toarray()
    np.testing.assert_allclose(stiffness, 1e-4 * np.eye(6))


def test_response_is_that_of_the_dense_matrix() -> None:
    stiffness = elastic.stiffness(POSITIONS, CELL)
    sites = np.array([3, 17, 40])
    projector = np.eye(3 * N) - np.kron(np.full((N, N), 1.0 / N), np.eye(3))
    dense = projector @ np.linalg.inv(stiffness.toarray()) @ projector
    columns = (3 * sites[:, None] + np.arange(3)).ravel()
    response = elastic._response(stiffness, sites, "removed")
    np.testing.assert_allclose(response, dense[:, columns], atol=1e-9)


def test_elastic_fields_are_told_from_noise() -> None:
    truth = field()
    raw, noise = noisy(truth)
    atomwise = meanpath._shrunk(raw, noise)
    found = elastic.shrink(raw, noise, atomwise, elastic.stiffness(POSITIONS, CELL), BETWEEN)
    error, before = (float(np.sum((u - truth) ** 2)) for u in (found, atomwise))
    assert error < 0.6 * before
    np.testing.assert_allclose(found.mean(axis=1), 0.0, atol=1e-12)


def test_the_likeliest_covariance_of_the_modes_is_taken() -> None:
    raw, noise = noisy(field())
    guess = meanpath._shrunk(raw, noise)
    springs = elastic.stiffness(POSITIONS, CELL)
    chosen, right, wrong = (
        elastic.shrink(raw, noise, guess, springs, between)
        for between in (BETWEEN, BETWEEN[1:2], BETWEEN[2:])
    )
    np.testing.assert_array_equal(chosen, right)
    errors = [float(np.sum((u - field()) ** 2)) for u in (right, wrong)]
    assert errors[0] < errors[1]


def test_little_noise_changes_nothing() -> None:
    raw, noise = noisy(field(), 1e-14)
    found = elastic.shrink(raw, noise, raw, elastic.stiffness(POSITIONS, CELL), BETWEEN)
    np.testing.assert_allclose(found, raw, atol=1e-6)


def test_result_does_not_depend_on_the_order_of_atoms() -> None:
    raw, noise = noisy(field())
    found = elastic.shrink(raw, noise, raw, elastic.stiffness(POSITIONS, CELL), BETWEEN)
    order = np.random.default_rng(3).permutation(N)
    springs = elastic.stiffness(POSITIONS[order], CELL)
    again = elastic.shrink(raw[:, order], noise[order], raw[:, order], springs, BETWEEN)
    np.testing.assert_allclose(again, found[:, order], atol=1e-8)


def test_few_sites_carry_a_local_field(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = field()
    raw, noise = noisy(truth)
    springs = elastic.stiffness(POSITIONS, CELL)
    guess = meanpath._shrunk(raw, noise)
    whole = elastic.shrink(raw, noise, guess, springs, BETWEEN)
    monkeypatch.setattr(elastic, "MOST_SITES", 15)
    few = elastic.shrink(raw, noise, guess, springs, BETWEEN)
    errors = [float(np.sum((u - truth) ** 2)) for u in (few, whole)]
    assert errors[0] < 1.2 * errors[1]
    equal = np.array([1.0, 3.0, 2.0, 2.0 * (1 + 1e-12), 2.0])
    monkeypatch.setattr(elastic, "MOST_SITES", 2)
    assert elastic._strongest(equal).tolist() == [1, 2, 3, 4]


def test_the_mean_path_at_rest_uses_it() -> None:
    """The path passes through the ends and is more accurate than without the prior."""
    step = field()[0] * 3.0
    variable = cv.linear(["Fe"] * N, CELL, POSITIONS, POSITIONS + step)
    rng = np.random.default_rng(4)
    s = np.linspace(0.0, 1.0, 1000)
    truth = s[:, None, None] * step + np.sin(np.pi * s)[:, None, None] * field()[1]
    noise = rng.normal(scale=0.07, size=truth.shape)
    u = truth + noise - noise.mean(axis=1, keepdims=True)
    errors = [
        float(np.mean((meanpath.fit(u, s, at_rest=known).points(s) - truth.reshape(1000, -1)) ** 2))
        for known in (variable, None)
    ]
    assert errors[0] < 0.7 * errors[1]
    ends = meanpath.fit(u, s, at_rest=variable).points(np.array([0.0, 1.0]))
    np.testing.assert_allclose(ends.reshape(2, N, 3), variable.end_displacements, atol=0.01)
