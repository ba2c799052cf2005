"""The reference calculations on systems with known answers, and their committed results."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from scipy.integrate import quad
from scipy.stats import special_ortho_group

from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.rates import harmonic as theory
from plumed_cv.rates.harmonic import Expansion
from plumed_cv.rates.stationary import find_stationary_point
from plumed_cv.structures.frame import Array
from python.references import common, defects, harmonic, integration, pafi, umbrella
from python.references.common import Case

KT = 0.026
CASES = [Case(cell, T) for cell in common.CELLS_A for T in common.TEMPERATURES_K]


def double_well(xi: Array) -> Array:
    """Minima at 0 and 1, 0.4 eV deep."""
    return np.asarray(6.4 * xi**2 * (1 - xi) ** 2)


def exact_flux_barrier(A: Callable[[Array], Array], surface: float, gradnorm: float) -> float:
    basin, _ = quad(lambda x: np.exp(-A(x) / KT), -0.4, surface, epsabs=1e-12)
    return float(A(np.array(surface)) + KT * np.log(basin / gradnorm))


def test_the_highest_flux_barrier_of_a_double_well_is_at_its_top() -> None:
    xi = np.linspace(-0.3, 1.3, 161)
    F = common.flux_barriers(xi, double_well(xi), 0.4, KT)
    between = (xi > 0) & (xi < 1)
    assert xi[between][F[between].argmax()] == pytest.approx(0.5)
    assert F[between].max() == pytest.approx(exact_flux_barrier(double_well, 0.5, 0.4), abs=1e-4)


def test_a_rate_is_that_of_a_harmonic_well_with_a_plane_anywhere() -> None:
    # One coordinate: rate = omega / 2 pi exp(-V(surface) / kT), whatever the form of the top.
    stiffness, mass, distance = 5.0, 55.845, 0.4
    x = np.linspace(-0.8, distance, 100_001)
    F = common.flux_barriers(x, 0.5 * stiffness * x**2, 1.0, KT)[-1]
    frequency = np.sqrt(stiffness / mass) / (2 * np.pi) * units.fs * 1e15
    expected = frequency * np.exp(-0.5 * stiffness * distance**2 / KT)
    assert common.rate_per_s(F, KT, mass) == pytest.approx(expected, rel=1e-4)


def windows(rng: np.random.Generator, n: int) -> list[Array]:
    """Independent samples of the double well under each restraint."""
    x = np.linspace(-0.4, 1.4, 20_001)
    samples = []
    for centre in umbrella.CENTRES:
        energy = double_well(x) + 0.5 * umbrella.KAPPA_EV * (x - centre) ** 2
        cumulative = np.cumsum(np.exp(-(energy - energy.min()) / KT))
        samples.append(np.interp(rng.uniform(size=n), cumulative / cumulative[-1], x))
    return samples


def test_umbrella_sampling_gives_a_double_well_back_within_its_errors() -> None:
    """Four errors are exceeded by chance once in 5000 seeds."""
    rng = np.random.default_rng(3)
    strata = [list(x.reshape(4, -1)) for x in windows(rng, 2400)]
    length = 2.4

    def estimate(some: Sequence[Sequence[Array]]) -> Array:
        rho = umbrella.density([np.concatenate(x) for x in some], KT)
        return umbrella.quantities(rho, KT, length, 65)[:3]

    value, error = estimate(strata), common.jackknife(strata, estimate)
    assert umbrella.NODES[65] == pytest.approx(0.5)
    exact = np.array([0.4, 0.0, exact_flux_barrier(double_well, 0.5, 1 / length)])
    assert (error < 0.004).all()
    assert (np.abs(value - exact) < 4 * error).all()
    assert (np.abs(value - exact) < 0.012).all()


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = np.random.default_rng(0).normal(size=20)
    error = common.jackknife([list(x)], lambda some: np.array([np.mean(some[0])]))
    assert error[0] == pytest.approx(x.std(ddof=1) / 20**0.5)
    two = common.jackknife(
        [list(x), list(x)], lambda some: np.array([np.mean(some[0]) - np.mean(some[1])])
    )
    assert two[0] == pytest.approx(2**0.5 * error[0])


def test_mean_of_runs_has_the_larger_of_spread_and_stated_errors() -> None:
    assert common.mean_of_runs([1.0, 1.0, 1.0, 1.0], [0.2] * 4) == pytest.approx((1.0, 0.1))
    value, error = common.mean_of_runs([1.0, 3.0], [0.1, 0.1])
    assert (value, error) == pytest.approx((2.0, 1.0))
    assert common.mean_of_runs([2.0], [0.3]) == pytest.approx((2.0, 0.3))


def expansions(rng: np.random.Generator) -> tuple[Expansion, Expansion]:
    """A minimum and a saddle point of three atoms, free to move as a whole."""
    n = 9
    shifts = np.tile(np.eye(3), (3, 1)) / 3**0.5
    inside = np.linalg.qr(np.hstack([shifts, rng.normal(size=(n, n - 3))]))[0][:, 3:]
    result = []
    for values in (rng.uniform(2, 9, n - 3), np.append(rng.uniform(2, 9, n - 4), -3.0)):
        modes = inside @ special_ortho_group.rvs(n - 3, random_state=rng)
        result.append(Expansion(0.0, np.zeros((3, 3)), (modes * values) @ modes.T))
    return result[0], result[1]


def test_harmonic_ratio_is_that_of_integrals_over_basin_and_plane() -> None:
    rng = np.random.default_rng(1)
    minimum, saddle = expansions(rng)
    values, modes = saddle.modes()
    basin, _ = minimum.modes()
    assert len(values) == 6
    tilted = modes[:, 0] + 0.2 * modes[:, 1] - 0.1 * modes[:, 4]
    for normal in (modes[:, 0], tilted):
        n = normal / np.linalg.norm(normal)
        plane = modes @ np.linalg.qr(np.column_stack([modes.T @ n, np.eye(6)]))[0][:, 1:]
        within = np.linalg.eigvalsh(plane.T @ saddle.hessian @ plane)
        expected = np.log(basin).sum() - np.log(within).sum()
        ratio = theory.log_ratio(minimum, saddle, normal.reshape(3, 3))
        assert ratio == pytest.approx(expected)
        # Gaussian integrals over five and six dimensions, lengths in angstrom.
        flux = (2 * np.pi * KT) ** 2.5 / np.sqrt(within.prod())
        inside = (2 * np.pi * KT) ** 3 / np.sqrt(basin.prod())
        F = theory.compute_flux_barrier(0.6, ratio, KT)
        assert pytest.approx(0.6 - KT * np.log(flux / inside)) == F
    best = theory.log_ratio(minimum, saddle)
    assert best < theory.log_ratio(minimum, saddle, tilted.reshape(3, 3))
    # The rate from the flux barrier is Vineyard's.
    F = theory.compute_flux_barrier(0.6, best, KT)
    rate = harmonic.attempt_frequency_per_s(best, 55.845) * np.exp(-0.6 / KT)
    assert common.rate_per_s(F, KT, 55.845) == pytest.approx(rate)


def test_harmonic_refuses_what_is_no_saddle_point_and_planes_along_its_path() -> None:
    minimum, saddle = expansions(np.random.default_rng(2))
    with pytest.raises(ValueError, match="saddle point"):
        theory.log_ratio(minimum, minimum)
    with pytest.raises(ValueError, match="separate"):
        theory.log_ratio(minimum, saddle, saddle.modes()[1][:, 1].reshape(3, 3))


RADIUS_A = 1.5


def ring(r: Array, angle: Array) -> Array:
    """A curved valley at about the radius, with two wells along it and a hump at angle 1; eV."""
    along = 0.3 * (1 - (angle - 1.0) ** 2 / 0.36) ** 2
    return np.asarray(along + (2.0 + angle) * (r - RADIUS_A - 0.05 * angle) ** 2)


def test_pafi_integrals_give_the_flux_barrier_of_radial_lines_of_a_curved_path() -> None:
    r = np.linspace(0.7, 2.4, 4001)
    weigh = np.gradient(r)
    s = np.linspace(-0.2, 1.3, 41) * RADIUS_A
    planes, gradient, weight, small = [], [], [], 1e-5
    for angle in s / RADIUS_A:
        boltzmann = np.exp(-ring(r, angle) / KT) * weigh
        slope = (ring(r, angle + small) - ring(r, angle - small)) / (2 * small) / r  # t.grad V
        psi = r / RADIUS_A  # 1 - (x - X).t', t' = -e_r / R
        planes.append(boltzmann.sum())
        gradient.append((psi * slope * boltzmann).sum() / boltzmann.sum())
        weight.append((psi * boltzmann).sum() / boltzmann.sum())
    fine = pafi.fine(s)
    F, flux = pafi.integrals(s, np.array(gradient), np.array(weight), KT)
    direct = -KT * np.log(planes)
    np.testing.assert_allclose(F[:: pafi.FINE], direct - F_minimum(direct, F), atol=2e-4)

    angles = np.linspace(-0.2, 1.0, 4001)
    density = [np.sum(r * np.exp(-ring(r, a) / KT) * weigh) for a in angles]
    basin = np.trapezoid(density, angles)
    top = np.sum(np.exp(-ring(r, np.array(1.0)) / KT) * weigh)
    found = flux[np.abs(fine / RADIUS_A - 1.0).argmin()]
    assert found == pytest.approx(-KT * np.log(top / basin), abs=3e-4)


def F_minimum(direct: Array, F: Array) -> float:  # noqa: N802
    """The constant between two profiles that differ by one."""
    return float(np.mean(direct - F[:: pafi.FINE]))


def test_a_path_has_unit_tangents_that_turn_as_its_planes_say() -> None:
    angles = np.linspace(0, 1.2, 25)
    images = np.zeros((25, 2, 3))
    images[:, 0, 0], images[:, 0, 1] = np.cos(angles), np.sin(angles)
    images[:, 1] = -images[:, 0]
    path = pafi.Curve.through(images - images[0])
    assert path.length == pytest.approx(1.2 * 2**0.5, rel=1e-3)
    h = 1e-4
    for s in (0.4, 0.9, 1.3):
        X, t, turn, speed = path.plane(s)
        ahead, behind = path.plane(s + h), path.plane(s - h)
        assert np.linalg.norm(t) == pytest.approx(1)
        assert np.sum(t * turn) == pytest.approx(0, abs=1e-12)
        np.testing.assert_allclose((ahead[0] - behind[0]) / (2 * h), speed * t, atol=1e-6)
        np.testing.assert_allclose((ahead[1] - behind[1]) / (2 * h), speed * turn, atol=1e-5)
    X, t, turn, speed = path.plane(-0.3)
    X0, t0, _, speed0 = path.plane(0.0)
    np.testing.assert_allclose(X, X0 - 0.3 * speed0 * t0)
    np.testing.assert_allclose(t, t0)
    assert not turn.any()


def difference(
    a: dict[str, float], b: dict[str, float], name: str = "symmetric_flux_barrier"
) -> tuple[float, float]:
    """The difference of two results and its error, eV."""
    errors = a[f"{name}_error_eV"], b[f"{name}_error_eV"]
    return a[f"{name}_eV"] - b[f"{name}_eV"], float(np.hypot(*errors))


@pytest.mark.committed
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_committed_umbrella_sampling_and_planes_agree(case: Case) -> None:
    """Planes of the path and of the linear CV differ as in the harmonic limit, within 4 meV.

    Four errors are few here: each has some ten degrees of freedom.
    """
    along = common.read_data("umbrella")[case.name]
    planes = common.read_data("pafi")[case.name]
    limit = harmonic.limits(common.read_data("harmonic")[case.cell], case.temperature_K)
    expected = limit["flux_barrier_eV"] - limit["linear_flux_barrier_eV"]
    found, error = difference(planes, along)
    assert abs(found - expected) < 4 * error + 0.004
    for result in (along, planes):
        assert result["symmetric_flux_barrier_error_eV"] < 0.005
        assert abs(result["delta_F_eV"]) < 4.5 * result["delta_F_error_eV"]


@pytest.mark.committed
def test_committed_planes_of_the_line_are_umbrella_sampling() -> None:
    """The same surfaces by two methods agree within their errors."""
    lines = common.read_data("pafi-line")
    assert lines
    for name, line in lines.items():
        found, error = difference(line, common.read_data("umbrella")[name])
        assert abs(found) < 4 * error


@pytest.mark.committed
@pytest.mark.parametrize("cell", common.CELLS_A)
def test_committed_results_approach_the_harmonic_limit(cell: str) -> None:
    """The anharmonic part grows faster than the temperature."""
    planes, expansion = common.read_data("pafi"), common.read_data("harmonic")[cell]
    off = {}
    for name, result in planes.items():
        case = common.case(name)
        if case.cell == cell:
            limit = harmonic.limits(expansion, case.temperature_K)["flux_barrier_eV"]
            off[case.temperature_K] = abs(result["symmetric_flux_barrier_eV"] - limit)
    coldest = min(off)
    assert off[coldest] < 0.8 * coldest / 300 * off[300] + 0.002
    assert off[100] < 0.025


@pytest.mark.slow  # half a minute
def test_integration_does_not_depend_on_the_harmonic_crystal() -> None:
    """With springs that are stiffer by a half, F - F_h is smaller by 3 (N - 1) kT ln(1.5) / 2.

    The odds of failing without a fault are 1e-4.
    """
    lines = ("pair_style eam/alloy", "pair_coeff * * Cu_mishin1.eam.alloy Cu")
    case = defects.Case("vacancy in Cu", "fcc", 3.615, 2, "Cu", lines, 200.0, 12)
    elements, sites = case.start()
    atoms = Atoms(elements, case.sites()[sites], cell=[case.edge_A] * 3, pbc=True)
    with LammpsEngine(case.potential, atoms) as engine:
        state = find_stationary_point(engine, atoms.positions, np.asarray(atoms.cell))
    found = []
    for factor in (1.0, 1.5):
        stiff = replace(state, hessian=factor * state.hessian)
        parts = integration.sample_differences(case, stiff, 200.0, 25.0)
        found.append(integration.integrate(parts))
    modes = 3 * (len(atoms) - 1)
    expected = 0.5 * modes * units.kB * 200.0 * np.log(1.5)
    error = np.hypot(found[0][1], found[1][1])
    assert error < 0.01 * expected
    assert abs(found[0][0] - found[1][0] - expected) < 4.0 * error
