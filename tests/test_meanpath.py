"""The mean path of known curves: exact without noise, and symmetric if required."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from plumed_cv import cv
from plumed_cv.common.errors import UserError
from plumed_cv.cv import meanpath, pca, symmetry

N_ATOMS = 40
SIGMA = 0.07


def curve(s: np.ndarray) -> np.ndarray:
    """Two of forty atoms go round a half circle, one after the other; shape (M, N, 3)."""
    u = np.zeros((len(s), N_ATOMS, 3))
    u[:, 0, 0] = 1.0 - np.cos(np.pi * s)
    u[:, 0, 1] = np.sin(np.pi * s)
    u[:, 1, 2] = 0.4 * np.sin(np.pi * s) ** 2
    u -= u.mean(axis=1, keepdims=True)
    return u


def noisy(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Structures at random places with isotropic noise."""
    rng = np.random.default_rng(seed)
    s = rng.uniform(-0.1, 1.1, size=n)
    noise = rng.normal(scale=SIGMA, size=(n, N_ATOMS, 3))
    return s, curve(s) + noise - noise.mean(axis=1, keepdims=True)


def test_a_smooth_path_without_noise_comes_back() -> None:
    s = np.linspace(0.0, 1.0, 500)
    path = meanpath.fit(curve(s), s, n_functions=16)
    s = s[(s > path.first) & (s < path.last)]
    np.testing.assert_allclose(path.points(s), curve(s).reshape(len(s), -1), atol=2e-6)
    h = 1e-5
    slope = (path.points(s[1:-1] + h) - path.points(s[1:-1] - h)) / (2 * h)
    np.testing.assert_allclose(path.tangents(s[1:-1]), slope, atol=1e-6)
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(3 * N_ATOMS, 4)))[0].T
    np.testing.assert_allclose(path.points(s, axes), path.points(s) @ axes.T, atol=1e-12)


def test_lengths_are_those_of_the_curve() -> None:
    s = np.linspace(-0.2, 1.0, 600)
    u = np.zeros((600, 3, 3))
    u[:, 0, 0], u[:, 0, 1] = np.cos(np.pi * s), np.sin(np.pi * s)
    path = meanpath.fit(u, s, n_functions=16)
    np.testing.assert_allclose(path.lengths(s), np.pi * s, atol=1e-5)


def test_beyond_its_ends_the_path_is_straight() -> None:
    s = np.linspace(-0.2, 1.1, 600)
    u = np.zeros((600, 3, 3))
    u[:, 0, 0], u[:, 0, 1] = np.cos(np.pi * s), np.sin(np.pi * s)
    path = meanpath.fit(u, s, n_functions=16)
    assert (path.first, path.last) == pytest.approx((-0.2 + 0.03 * 1.3, 1.1 - 0.03 * 1.3))
    for end, step in ((path.first, -0.3), (path.last, 0.4)):
        places = end + step * np.array([0.0, 0.5, 1.0])
        points, tangents = path.points(places), path.tangents(places)
        np.testing.assert_allclose(tangents, tangents[[0, 0, 0]], rtol=1e-12)
        straight = points[0] + (places - end)[:, None] * tangents[0]
        np.testing.assert_allclose(points, straight, atol=1e-12)
        np.testing.assert_allclose(path.lengths(places), np.pi * places, atol=1e-5)


def test_moments_are_those_of_the_points() -> None:
    s, u = noisy(800, seed=1)
    path = meanpath.fit(u, s)
    scaled = (2.0 * s - path.lower - path.upper) / (path.upper - path.lower)
    points = np.polynomial.legendre.legval(scaled, path.coefficients).T
    inside = (s > path.first) & (s < path.last)
    np.testing.assert_allclose(path.points(s)[inside], points[inside], atol=1e-12)
    mean, modes = path.moments()
    np.testing.assert_allclose(mean, points.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(modes.T @ modes, np.cov(points.T, bias=True), atol=1e-12)


def test_shrinkage_removes_most_of_the_regressions_error() -> None:
    s, u = noisy(4000, seed=2)
    path = meanpath.fit(u, s, n_functions=16)
    np.testing.assert_allclose(path.noise.mean(), SIGMA**2, rtol=0.03)
    basis = np.polynomial.legendre.legvander(2 * s - 1, 15)
    plain = basis @ np.linalg.lstsq(basis, u.reshape(4000, -1))[0]
    truth = curve(s).reshape(4000, -1)
    error, unshrunk = (float(np.mean((p - truth) ** 2)) for p in (path.points(s), plain))
    # Least squares: sigma^2 L / M, with a spread of 3 % (117 x 16 numbers).
    assert unshrunk == pytest.approx(SIGMA**2 * 16 / 4000, rel=0.15)
    assert error < 0.35 * unshrunk  # 2 of 40 atoms move; the mean of all is not shrunk


def test_components_of_the_mean_path_are_less_tilted_than_pca() -> None:
    s, u = noisy(2000, seed=3)
    exact = pca.fit(curve(s), 3).components
    mean_path = pca.fit_mean_path(u, s, 3)[0].components
    plain = pca.fit(u, 3).components
    lost = [3.0 - np.linalg.norm(exact @ found.T) ** 2 for found in (mean_path, plain)]
    assert lost[0] < 0.5 * lost[1]


def swapped_pair() -> tuple[cv.CollectiveVariable, np.ndarray]:
    """An atom that hops along x through an empty cubic cell with a spectator; its linear CV."""
    cell = 10.0 * np.eye(3)
    start = np.array([[4.0, 5.0, 5.0], [0.0, 0.0, 0.0]])
    end = np.array([[6.0, 5.0, 5.0], [0.0, 0.0, 0.0]])
    return cv.linear(["Fe", "Cr"], cell, start, end), cell


def test_symmetry_is_as_good_as_more_data() -> None:
    line, _ = swapped_pair()
    operations = symmetry.find_operations(line)
    assert len(operations) == 16  # 4/mmm about the hop's axis, half of it reversing
    rng = np.random.default_rng(5)
    s = rng.uniform(0.0, 0.8, size=400)  # the symmetry supplies the part that was not sampled
    u = rng.normal(scale=0.05, size=(400, 2, 3))
    u[:, 0, 0] += 2.0 * s
    u -= u.mean(axis=1, keepdims=True)
    path = meanpath.fit(u, s, operations)
    places = np.linspace(0.0, 1.0, 21)
    points = path.points(places).reshape(21, 2, 3)
    np.testing.assert_allclose(points[:, :, 1:], 0.0, atol=1e-12)  # fourfold axis
    np.testing.assert_allclose(points[:, 0, 0] + points[::-1, 0, 0], 1.0, atol=1e-10)
    np.testing.assert_allclose(points[:, 0, 0], places, atol=0.03)


def test_smooth_functions_have_the_kernel_of_their_length() -> None:
    x = np.linspace(-1.0, 1.0, 400)
    basis = np.polynomial.legendre.legvander(x, 31)
    triangle = np.linalg.qr(basis)[1]
    between = meanpath._smooth(triangle)
    assert between.shape == (len(meanpath._LENGTHS), 31, 31)
    modes = np.linalg.solve(triangle.T, basis.T).T[:, 1:]
    covariance = modes @ between[9] @ modes.T  # of what is not the same everywhere
    variance = np.diag(covariance)
    differences = variance[:, None] + variance - 2.0 * covariance
    stretched = np.arcsin(meanpath._STRETCH * x) / np.arcsin(meanpath._STRETCH) / 2.0
    apart = 7**0.5 * abs(stretched[:, None] - stretched) / meanpath._LENGTHS[9]
    kernel = (1 + apart + 0.4 * apart**2 + apart**3 / 15) * np.exp(-apart)
    ratio = differences[0, -1] / (1.0 - kernel[0, -1])
    np.testing.assert_allclose(differences, ratio * (1.0 - kernel), atol=1e-3 * ratio)


def test_a_smooth_path_needs_no_choice_of_functions() -> None:
    """The path of 48 polynomials has as little noise as that of 16: smoothness is estimated."""
    line = cv.linear(["Fe"] * N_ATOMS, np.zeros((3, 3)), *atoms_apart())
    s = np.linspace(0.0, 1.0, 2000)
    noise = np.random.default_rng(6).normal(scale=SIGMA, size=(2000, N_ATOMS, 3))
    u = curve(s) + noise - noise.mean(axis=1, keepdims=True)
    truth = curve(s).reshape(2000, -1)
    few, many = (
        float(np.mean((meanpath.fit(u, s, at_rest=line, n_functions=n).points(s) - truth) ** 2))
        for n in (16, None)
    )
    assert len(meanpath.fit(u, s, at_rest=line).coefficients) == 48
    assert many < 1.3 * few  # three times as many polynomials, and three times the noise of each
    assert many < 0.2 * SIGMA**2 * 16 / 2000


def atoms_apart() -> tuple[np.ndarray, np.ndarray]:
    """The ends of `curve`, of atoms in a row without neighbours."""
    row = np.zeros((N_ATOMS, 3))
    row[:, 0] = 100.0 * np.arange(N_ATOMS)
    ends = curve(np.array([0.0, 1.0]))
    return row + ends[0], row + ends[1]


def test_bad_data() -> None:
    s, u = noisy(200, seed=4)
    with pytest.raises(UserError, match="at least 24 structures, not 20"):
        meanpath.fit(u[:20], s[:20])
    with pytest.raises(UserError, match="at one position"):
        meanpath.fit(u, np.full(200, 0.3))
    with pytest.raises(UserError, match="too few positions"):
        meanpath.fit(u, np.repeat([0.0, 1.0], 100))
    with pytest.raises(UserError, match="one finite position"):
        meanpath.fit(u, np.full(200, np.nan))
    u[3, 2, 1] = np.nan
    with pytest.raises(UserError, match="NaN"):
        meanpath.fit(u, s)
    with pytest.raises(UserError, match="from 1 to 5"):
        pca.fit_mean_path(*noisy(200, seed=4)[::-1], 16)


def test_few_functions_keep_the_iterations_stable() -> None:
    # The atom moves along x over a barrier of 24 kT, with a soft mode of 0.17 A across, along y:
    # the mean path is the x axis, whatever the first collective variable. But an isosurface that is
    # tilted where the energy is steep has its mean off the axis, and what varies fast in that comes
    # back magnified in the next iteration (docs/theory.md).
    few, many = (tilt_after_iterations(n_functions) for n_functions in (None, 16))
    assert few < 0.06  # seeds 0 to 9: 0.027 to 0.037
    assert many > 0.3  # 0.53 to 0.80


@pytest.mark.parametrize("jumps", [1, 2, 3, 4, 6])
def test_functions_follow_the_length_of_a_chain_of_jumps(jumps: int) -> None:
    """Atoms jump one after the other, by 2.5 A each: loss of barrier 1 - cos^2 of the tangents.

    With 6 functions it is 0.0085, 0.040, 0.16 and 0.33 for 2, 3, 4 and 6 jumps; with the number by
    the length it is 0.0022 at most.
    """
    n_functions = meanpath.functions_for(2.5 * jumps)
    assert n_functions == 2 + 4 * jumps
    rng = np.random.default_rng(0)
    s = rng.uniform(-0.1, 1.1, size=10_000)
    u = chain(s, jumps) + rng.normal(scale=SIGMA, size=(len(s), jumps + 8, 3))
    u -= u.mean(axis=1, keepdims=True)
    places = np.linspace(0.03, 0.97, 400)
    true = chain(places, jumps)
    true -= true.mean(axis=1, keepdims=True)
    true = np.gradient(true, places, axis=0).reshape(400, -1)
    found = meanpath.fit(u, s, n_functions=n_functions).tangents(places)
    cosine2 = (true * found).sum(axis=1) ** 2 / (true**2).sum(axis=1) / (found**2).sum(axis=1)
    assert np.mean(1.0 - cosine2) < 0.004


def chain(s: np.ndarray, jumps: int) -> np.ndarray:
    """Displacements of atoms that jump along x one after the other, with rounded corners."""
    u = np.zeros((len(s), jumps + 8, 3))
    for offset in np.linspace(-0.25, 0.25, 11):
        along = jumps * np.clip(s + offset / jumps, 0.0, 1.0)
        u[:, :jumps, 0] += 2.5 / 11 * np.clip(along[:, None] - np.arange(jumps), 0.0, 1.0)
    return u


def test_a_path_of_any_length_has_six_functions_at_least_and_48_at_most() -> None:
    assert [meanpath.functions_for(length) for length in (0.5, 2.63, 100.0)] == [6, 6, 48]


def test_functions_by_length_keep_the_iterations_of_two_jumps_stable() -> None:
    few, many = (tilt_after_iterations(n, jumps=2) for n in (meanpath.functions_for(5.0), 26))
    assert few < 0.1  # seeds 0 and 1: 0.060 and 0.061
    assert many > 0.3  # 0.84 and 0.60


def tilt_after_iterations(n_functions: int | None, seed: int = 0, jumps: int = 1) -> float:
    """Mean 1 - cos between the mean path and the x axis after six iterations of sampling and fit.

    Sampling is exact, with a bias that makes the distribution of the collective variable even.
    """
    rng = np.random.default_rng(seed)
    length, variance = 2.5, 0.03
    end, bins = length * jumps, 100 * jumps
    along = np.linspace(-0.35, end + 0.35, 320 * jumps + 1)
    x, y = np.meshgrid(along, np.linspace(-1.0, 1.0, 121))
    grid = np.stack([x.ravel(), y.ravel()], axis=1)
    weight = np.exp(-24.0 * np.sin(np.pi * grid[:, 0] / length) ** 2)
    weight *= np.exp(-(grid[:, 1] ** 2) / (2.0 * variance))
    xi = grid @ [1.0, 0.15] / end
    for _ in range(6):
        place = np.floor((xi + 0.1 / jumps) * bins).astype(int)
        inside, place = (place >= 0) & (place < bins + 20), place.clip(0, bins + 19)
        weight_of_bin = np.bincount(place, weight, minlength=bins + 20)
        even = np.where(inside, weight / weight_of_bin[place], 0)
        sample = rng.choice(len(grid), 15_000 * jumps, p=even / even.sum())
        u = np.zeros((len(sample), 1, 3))
        u[:, 0, :2] = grid[sample]
        path = meanpath.fit(u, xi[sample], n_functions=n_functions)
        s = np.linspace(path.lower, path.upper, 480 * jumps + 1)
        points, tangents = path.points(s)[:, :2], path.tangents(s)[:, :2]
        _, nearest = cKDTree(points).query(grid)
        along = np.einsum("mi,mi->m", grid - points[nearest], tangents[nearest])
        xi = s[nearest] + along / (tangents[nearest] ** 2).sum(axis=1)
    inside = (s > 0.0) & (s < 1.0)
    cosine = tangents[:, 0] / np.linalg.norm(tangents, axis=1)
    return float(np.mean(1.0 - cosine[inside]))
