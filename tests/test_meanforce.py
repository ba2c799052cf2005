"""The mean force from forces on atoms: identities that hold exactly, files, mistakes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plumed_cv import cv, freeenergy
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable
from plumed_cv.freeenergy import meanforce
from plumed_cv.freeenergy.basins import find
from plumed_cv.freeenergy.perturbation import Curves, Estimator, Sample
from tests.frozen import double_well

KT = 0.025


def variable(activation: str = "tanh", n_latent: int = 1) -> CollectiveVariable:
    """A curved variable of three components of five atoms."""
    rng = np.random.default_rng(5)
    return cv.random_model(rng, 5, 3, (6, 6), n_latent=n_latent, activation=activation)


def harmonic(model: CollectiveVariable, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Structures of a crystal of springs in equilibrium, independent, and the forces on them."""
    rng = np.random.default_rng(1)
    size = 3 * model.n_atoms
    stiffness = rng.normal(size=(size, size))
    stiffness = stiffness @ stiffness.T / size + 0.5 * np.eye(size)  # eV/A^2
    u = rng.multivariate_normal(np.zeros(size), KT * np.linalg.inv(stiffness), n)
    forces = -u @ stiffness
    # Springs that do not see the atoms' mean displacement: the frame has none.
    u, forces = u.reshape(n, -1, 3), forces.reshape(n, -1, 3)
    return u, forces


@pytest.mark.parametrize("activation", ["tanh", "elu", "softplus", "silu"])
def test_the_mean_of_test_functions_is_that_of_their_slopes(activation: str) -> None:
    """<phi(xi) A'(xi)> = kT <phi'(xi)> for every phi that vanishes at the ends: no histogram.

    Three phi, 100 000 independent structures: each beyond four errors once in 16 000 times.
    """
    model = variable(activation)
    u, forces = harmonic(model, 100_000)
    xi, along = meanforce.compute_instantaneous(model, u, forces, KT)
    without = along + KT * model.flow_divergence(model.components(u))
    off = []
    for wave in (1, 2, 3):
        scaled = wave * np.pi * (xi - xi.min()) / np.ptp(xi)
        phi, slope = np.sin(scaled), wave * np.pi / np.ptp(xi) * np.cos(scaled)
        difference = phi * along - KT * slope
        error = difference.std() / len(xi) ** 0.5
        assert abs(difference.mean()) < 4.0 * error
        off.append(abs((phi * without - KT * slope).mean()) / error)
    assert max(off) > 8.0  # the test can tell: it needs the divergence


def test_a_variable_of_some_atoms_needs_the_forces_on_those_alone() -> None:
    """The same identity for a variable of three of the atoms, with the drift of these three.

    Three phi, 100 000 independent structures: each beyond four errors once in 16 000 times.
    """
    u, forces = harmonic(variable(), 100_000)
    chosen = [0, 2, 3]
    model = cv.random_model(np.random.default_rng(6), len(chosen), 3, (6, 6), activation="tanh")
    u, forces = u[:, chosen] - u[:, chosen].mean(axis=1, keepdims=True), forces[:, chosen]
    xi, along = meanforce.compute_instantaneous(model, u, forces, KT)
    for wave in (1, 2, 3):
        scaled = wave * np.pi * (xi - xi.min()) / np.ptp(xi)
        phi, slope = np.sin(scaled), wave * np.pi / np.ptp(xi) * np.cos(scaled)
        difference = phi * along - KT * slope
        assert abs(difference.mean()) < 4.0 * difference.std() / len(xi) ** 0.5


def test_a_bias_along_the_variable_changes_nothing() -> None:
    """Structures drawn with other weights for each xi have the same mean force in each bin."""
    model = variable()
    u, forces = harmonic(model, 40_000)
    xi, along = meanforce.compute_instantaneous(model, u, forces, KT)
    low, high = np.quantile(xi, [0.05, 0.95]).tolist()
    grid = freeenergy.Grid(low, high, 10)
    chosen = np.random.default_rng(2).uniform(size=len(xi)) < 1 / (1 + np.exp(2 * xi / xi.std()))
    means = []
    for part in (np.full(len(xi), True), chosen):
        number, total = freeenergy.bin_samples(grid, xi[part], along[part])
        means.append(total / number)
    number, _ = freeenergy.bin_samples(grid, xi[chosen], along[chosen])
    spread = along.std() / number**0.5
    # Eleven bins within 4.5 errors: off once in 13 000 times.
    assert np.all(np.abs(means[1] - means[0]) < 4.5 * spread)


def test_the_profile_is_the_integral_of_the_mean_force() -> None:
    """Exact means in the bins of a known profile with two barriers, as narrow as cold ones."""
    grid = freeenergy.Grid(-0.2, 1.2, 140)
    n, x = len(grid.nodes), grid.nodes

    def known(xi: np.ndarray) -> np.ndarray:
        dip = 0.12 * np.exp(-(((xi - 0.5) / 0.09) ** 2))
        return 0.67 * np.sin(np.pi * xi) ** 2 - dip + 0.1 * xi

    A, half = known(x), grid.spacing / 2.0
    slope = (known(x + half) - known(x - half)) / grid.spacing
    sums = np.array([np.full(n, 8.0), np.zeros(n), np.full(n, 8.0), np.zeros(n)])
    state = freeenergy.State(
        ("xi",), (grid,), KT, (KT / grid.spacing**2,), 0.0, 0, np.zeros(n), 8 * n, sums
    )
    exact = np.array([np.full(n, 3.0), 3.0 * slope])
    profile = freeenergy.estimate_profile([state] * 8, mean_force=[exact] * 8)
    # The trapezoidal rule alone would be off by 0.6 meV.
    inside = slice(2, n - 2)
    np.testing.assert_allclose((profile.A - profile.A[20])[inside], (A - A[20])[inside], atol=5e-5)
    # The local cubic that histograms need would be 2 meV lower.
    assert profile.barrier.value == pytest.approx(A[20:120].max() - A[:70].min(), abs=5e-5)
    assert profile.barrier.error == pytest.approx(0.0, abs=1e-12)
    assert np.ptp(freeenergy.estimate_profile([state] * 8).A) < 0.01  # the histogram is flat

    # Bins that were visited between two snapshots only, and bins that never were.
    some = exact.copy()
    some[:, 60:63] = 0.0
    between = freeenergy.estimate_profile([state] * 8, mean_force=[some] * 8)
    np.testing.assert_allclose(between.A - between.A[20], A - A[20], atol=2e-3)
    gone = replace(state, sums=state.sums * (np.abs(np.arange(n) - 61) > 1))
    holes = freeenergy.estimate_profile([gone] * 8, mean_force=[some] * 8)
    assert np.isnan(holes.A[60:63]).all()
    assert np.isfinite(holes.A[63:]).all()
    # Across a short gap the mean force joins the parts: the flat A_k does not set their height.
    visited = (np.arange(n) != 60) & (np.arange(n) != 61)
    short = replace(state, sums=state.sums * visited)
    joined = freeenergy.estimate_profile([short] * 8, mean_force=[exact * visited] * 8)
    assert np.isnan(joined.A[60:62]).all()
    np.testing.assert_allclose((joined.A - joined.A[20])[visited], (A - A[20])[visited], atol=2e-3)
    with pytest.raises(UserError, match="8 blocks need as many sums"):
        freeenergy.estimate_profile([state] * 8, mean_force=[exact] * 7)


def test_sums_add_up_and_files_keep_every_bit(tmp_path: Path) -> None:
    model = variable()
    xi, along = meanforce.compute_instantaneous(model, *harmonic(model, 100), KT)
    grid = freeenergy.Grid(-1.0, 1.0, 20)
    parts = [freeenergy.bin_samples(grid, xi[k::2], along[k::2]) for k in (0, 1)]
    np.testing.assert_allclose(sum(parts), freeenergy.bin_samples(grid, xi, along), rtol=1e-12)
    file = tmp_path / "mean-force.dat"
    meanforce.write(file, xi, along)
    for found, expected in zip(meanforce.read(file), (xi, along), strict=True):
        np.testing.assert_array_equal(found, expected)
    meanforce.write(file, xi[:0], along[:0])
    assert len(meanforce.read(file)[0]) == 0


def test_what_it_cannot_do_it_says(tmp_path: Path) -> None:
    model = variable()
    u, forces = harmonic(model, 3)
    for other in (variable("relu"), variable(n_latent=2)):
        assert not meanforce.is_known(other)
        with pytest.raises(UserError, match="an activation other than relu"):
            meanforce.compute_instantaneous(other, u, forces, KT)
    with pytest.raises(UserError, match=r"must be \(M, 5, 3\)"):
        meanforce.compute_instantaneous(model, u, forces[:2], KT)
    file = tmp_path / "mean-force.dat"
    with pytest.raises(UserError, match="cannot be read"):
        meanforce.read(file)
    file.write_text("#! FIELDS time xi\n")
    with pytest.raises(UserError, match="not a table of mean forces"):
        meanforce.read(file)
    file.write_text("#! FIELDS xi mean_force_eV\n0.1 nan\n")
    with pytest.raises(UserError, match="not a number"):
        meanforce.read(file)


def test_atoms_of_a_mean_force(tmp_path: Path) -> None:
    file = tmp_path / "atoms.npz"
    file.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"atoms.npz: cannot be read \("):
        meanforce.read_atoms(file, 4)
    u = np.zeros((3, 4, 3))
    meanforce.write_atoms(file, u, u)
    assert meanforce.read_atoms(file, 4)[0].shape == u.shape
    with pytest.raises(UserError, match=r"values of shape \(3, 4, 3\), .* the CV has 5 atoms"):
        meanforce.read_atoms(file, 5)
    meanforce.write_atoms(file, u, np.inf * np.ones_like(u))
    with pytest.raises(UserError, match="or some that are not numbers"):
        meanforce.read_atoms(file, 4)


def test_difference_of_two_potentials_is_integrated_as_a_profile_is() -> None:
    """The forces differ by cos 4 xi. The trapezoidal rule alone is off by 0.004."""
    grid = freeenergy.Grid(-0.6, 1.6, 36)
    U = double_well(8.0)(grid.nodes)
    basins = find(grid, U, (0.0, 1.0), KT)
    assert basins is not None
    xi = np.linspace(-0.6, 1.6, 20_000)
    forces = np.stack([np.zeros_like(xi), np.cos(4 * xi)])
    sample = Sample(xi, np.ones_like(xi), np.zeros_like(forces), forces)
    T = Estimator(Curves(grid, KT, U, U, basins), [sample], 1).first_order()
    inner = slice(3, -3)
    off = T[inner] - np.sin(4 * grid.nodes[inner]) / 4
    assert np.ptp(off) < 1e-4
