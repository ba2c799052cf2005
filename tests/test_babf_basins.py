"""Basins, steps and rates of processes on one CV, against quadrature of the density itself.

A process is a potential of one length x (angstrom) of a particle of mass m; the CV is any growing
function of x. What is true follows from exp(-U/kT) alone, by quadrature in x: populations, fluxes
through points, and the rate as an inverse mean current. The estimates get the same numbers of
samples in every bin that an endless run under a given bias would have, or random ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import constants
from scipy.integrate import quad

from plumed_cv.common.errors import UserError
from plumed_cv.freeenergy import Estimate, Flux, Grid, State, estimate_flux, estimate_profile
from plumed_cv.freeenergy.barriers import highest_of
from plumed_cv.freeenergy.basins import find
from tests.frozen import KT, Frozen

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

MASS = 20.0
THERMAL = 1e10 * np.sqrt(KT * constants.eV / (2 * np.pi * MASS * constants.atomic_mass))  # A/s


def gaussians(places: list[float], depths_kT: list[float], widths: list[float]) -> Function:
    """Wells in a flat potential between walls at -0.5 and 1.5, in units of the process, eV."""

    def U(x: Array) -> Array:  # noqa: N802
        wells = [
            -depth * np.exp(-(((x - place) / width) ** 2) / 2)
            for place, depth, width in zip(places, depths_kT, widths, strict=True)
        ]
        return KT * np.asarray(sum(wells) + (np.abs(x - 0.5) / 0.8) ** 12)

    return U


GRID = Grid(-0.25, 1.25, 150)


@dataclass
class Process:
    """A potential along a path of some length, seen through a CV."""

    potential: Function  # of x/length
    length_A: float = 3.0
    stretch: float = 0.0  # xi = y + stretch sin(2 pi y) of y = x/length
    grid: Grid = GRID
    states: tuple[float, float] = (0.0, 1.0)

    def xi(self, y: Array) -> Array:
        return np.asarray(y + self.stretch * np.sin(2 * np.pi * y))

    def y(self, xi: Array) -> Array:
        fine = np.linspace(-0.6, 1.6, 40001)
        return np.interp(xi, self.xi(fine), fine)

    def gradnorm(self, xi: Array) -> Array:
        slope = 1 + 2 * np.pi * self.stretch * np.cos(2 * np.pi * self.y(xi))
        return np.asarray(slope / self.length_A)

    def free_energy(self, xi: Array) -> Array:
        """Profile of xi: minus kT ln of its density."""
        return np.asarray(self.potential(self.y(xi)) + KT * np.log(self.gradnorm(xi)))

    def system(self) -> Frozen:
        return Frozen(self.grid, self.free_energy, self.free_energy)

    def exact(self) -> tuple[list[State], list[Array]]:
        """One block with the sums of the density itself, and points for the mean gradients."""
        return [self.system().exact()], [np.linspace(-0.249, 1.249, 4001)]

    def flux(self, blocks: list[State], series: list[Array], **options: object) -> Flux:
        norms = [self.gradnorm(xi) for xi in series]
        return estimate_flux(
            blocks,
            series,
            norms,
            [norm**2 / MASS for norm in norms],
            self.states,
            **options,  # type: ignore[arg-type]
        )

    def population(self, low: float, high: float) -> float:
        """The integral of exp(-U/kT) over x, angstrom; bounds in units of the length."""
        value, _ = quad(
            lambda y: np.exp(-self.potential(np.array(y)) / KT), low, high, epsrel=1e-9, limit=400
        )
        return float(value) * self.length_A

    def current(self, y: float) -> float:
        """The number of particles that pass y in one direction per second, times the integral."""
        return float(THERMAL * np.exp(-self.potential(np.array(y)) / KT))


def tops(process: Process, between: list[tuple[float, float]]) -> list[float]:
    """Positions of the highest potential within intervals."""
    found = []
    for low, high in between:
        y = np.linspace(low, high, 20001)
        found.append(float(y[np.argmax(process.potential(y))]))
    return found


THREE = gaussians([0.0, 0.45, 1.0], [12.0, 9.0, 13.5], [0.09, 0.07, 0.1])


@pytest.mark.parametrize("stretch", [0.0, 0.06, -0.06])
def test_three_wells(stretch: float) -> None:
    """All numbers of both steps and of the whole, whatever the scale of the CV.

    The grid of 150 bins costs at most 0.06 kT where the CV is compressed to 0.6.
    """
    process = Process(THREE, stretch=stretch)
    found = process.flux(*process.exact())
    first, second = tops(process, [(0.0, 0.45), (0.45, 1.0)])
    reactant, middle, product = (
        process.population(*ends) for ends in ((-0.5, first), (first, second), (second, 1.5))
    )
    assert [step.surface for step in found.steps] == pytest.approx(
        list(process.xi(np.array([first, second]))), abs=0.03
    )
    wells = process.xi(np.array([0.0, 0.45, 1.0]))
    assert [step.reactant for step in found.steps] == pytest.approx(list(wells[:2]), abs=0.02)
    assert [step.product for step in found.steps] == pytest.approx(list(wells[1:]), abs=0.02)
    total = reactant + middle + product
    expected = np.array([reactant, middle, product]) / total
    got = np.array([each.value for each in found.populations])
    assert np.log(got / expected) == pytest.approx(np.zeros(3), abs=0.06)
    assert got.sum() == pytest.approx(1.0)
    currents = [process.current(first), process.current(second)]
    for step, current, before, behind in zip(
        found.steps, currents, (reactant, middle), (middle, product), strict=True
    ):
        for barrier, rate, population in (
            (step.flux_barrier, step.rate_per_s, before),
            (step.reverse_flux_barrier, step.reverse_rate_per_s, behind),
        ):
            F = -KT * np.log(current / THERMAL / population)
            assert barrier.value == pytest.approx(F, abs=0.06 * KT)
            assert np.log(rate.value * population / current) == pytest.approx(0.0, abs=0.06)
            assert rate.unit == "1/s"
    # The rate of the whole: one that leaves the reactant goes over both barriers, and back.
    k1, k2 = currents[0] / reactant, currents[1] / middle
    back = currents[0] / middle
    steady = k1 * k2 / (back + k2)  # of the two rate equations, with the middle steady
    assert np.log(found.rate_per_s.value / steady) == pytest.approx(0.0, abs=0.06)
    # The highest barrier is over the reactant's basin alone.
    F = -KT * np.log(min(currents) / THERMAL / reactant)
    assert found.barrier.value == pytest.approx(F, abs=0.06 * KT)
    lower = currents.index(min(currents))
    assert found.surface == found.steps[lower].surface
    h_eV_s = constants.h / constants.eV
    assert found.activation.value == pytest.approx(
        -KT * np.log(h_eV_s * steady / KT), abs=0.06 * KT
    )
    of_profile = estimate_profile(process.exact()[0], basins=found.basins)
    expected_dF = -KT * np.log(product / reactant)
    assert of_profile.delta_F.value == pytest.approx(expected_dF, abs=0.06 * KT)


@pytest.mark.parametrize("stretch", [0.12, -0.12])
def test_a_compressed_cv_takes_nothing_off_the_flux_barrier_of_a_histogram(stretch: float) -> None:
    """A fit over 0.08 would lower the maximum by 0.4 kT, or raise the wells by 1 kT."""
    process = Process(
        lambda y: 16 * 20 * KT * (y * (1 - y)) ** 2, stretch=stretch, grid=Grid(-0.25, 1.25, 300)
    )
    found = process.flux(*process.exact())
    population = process.population(-0.5, 0.5)
    expected = -KT * np.log(process.current(0.5) / THERMAL / population)
    assert found.barrier.value == pytest.approx(expected, abs=0.05 * KT)


@pytest.mark.parametrize("stretch", [0.0, 0.06, -0.06])
def test_states_are_basins_whatever_the_scale_of_the_cv(stretch: float) -> None:
    """A symmetric process has no difference, an asymmetric one that of its populations."""
    for depths, widths in (([9.0, 9.0], [0.1, 0.1]), ([9.0, 10.0], [0.15, 0.08])):
        process = Process(gaussians([0.0, 1.0], depths, widths), stretch=stretch)
        (top,) = tops(process, [(0.05, 0.95)])
        expected = -KT * np.log(process.population(top, 1.5) / process.population(-0.5, top))
        found = estimate_profile(process.exact()[0])
        assert found.delta_F.value == pytest.approx(expected, abs=0.04 * KT)
        if depths[0] == depths[1]:
            assert found.delta_F.value == pytest.approx(0.0, abs=1e-3 * KT)
        one_step = process.flux(*process.exact())
        assert len(one_step.steps) == 1
        assert one_step.barrier.value == pytest.approx(one_step.steps[0].flux_barrier.value)
        assert one_step.rate_per_s.value == pytest.approx(one_step.steps[0].rate_per_s.value)


def test_basins_with_a_vanishing_share() -> None:
    """At low temperature others have 1e17 or 1e20 times more: the numbers are as exact."""
    U = gaussians([0.0, 0.45, 1.0], [52.0, 7.0, 12.0], [0.12, 0.07, 0.1])
    process = Process(U, grid=Grid(-0.3, 1.25, 620))
    found = process.flux(*process.exact())
    first, second = tops(process, [(0.2, 0.45), (0.45, 0.8)])
    reactant, middle, product = (
        process.population(*ends) for ends in ((-0.5, first), (first, second), (second, 1.5))
    )
    assert product < 1e-17 * reactant
    got = np.array([each.value for each in found.populations])
    expected = np.array([reactant, middle, product]) / reactant
    assert np.log(got / expected) == pytest.approx(np.zeros(3), abs=0.02)
    F = -KT * np.log(process.current(second) / THERMAL / middle)
    assert found.steps[1].flux_barrier.value == pytest.approx(F, abs=0.02 * KT)
    of_profile = estimate_profile(process.exact()[0], basins=found.basins)
    expected_dF = -KT * np.log(product / reactant)
    assert of_profile.delta_F.value == pytest.approx(expected_dF, abs=0.02 * KT)


def test_a_basin_of_few_bins_is_refused() -> None:
    """A CV that hardly changes in the reactant has its whole population in a few bins."""
    process = Process(gaussians([0.0, 1.0], [12.0, 12.0], [0.04, 0.1]), grid=Grid(-0.3, 1.2, 75))
    with pytest.raises(UserError, match="the grid is too coarse: the reactant occupies 2"):
        process.flux(*process.exact())
    process = Process(process.potential, grid=Grid(-0.3, 1.2, 300))
    (top,) = tops(process, [(0.2, 0.8)])
    population = process.population(-0.5, top)
    expected = -KT * np.log(process.current(top) / THERMAL / population)
    assert process.flux(*process.exact()).barrier.value == pytest.approx(expected, abs=0.1 * KT)


def test_an_asymmetric_scale_alone_makes_a_difference_of_a_at_points() -> None:
    """xi is steep around one state and flat around the other: this changes A(1)-A(0) only."""
    U = gaussians([0.0, 1.0], [9.0, 9.0], [0.1, 0.1])
    fine = np.linspace(-0.6, 1.6, 20001)
    slope = 1 + 0.6 * np.tanh(3 * (fine - 0.5))
    scale = np.concatenate([[0.0], np.cumsum(0.5 * (slope[1:] + slope[:-1]) * np.diff(fine))])
    zero, one = np.interp([0.0, 1.0], fine, scale)
    xi, slope = (scale - zero) / (one - zero), slope / (one - zero)
    grid = Grid(float(np.interp(-0.25, fine, xi)), float(np.interp(1.25, fine, xi)), 200)

    def A(x: Array) -> Array:  # noqa: N802
        return np.asarray(U(np.interp(x, xi, fine)) + KT * np.log(np.interp(x, xi, slope)))

    found = estimate_profile([Frozen(grid, A, A).exact()])
    assert abs(found.A1_minus_A0.value) > 0.5 * KT
    assert found.delta_F.value == pytest.approx(0.0, abs=0.03 * KT)


def test_a_basin_behind_the_reactant_is_not_the_reactant() -> None:
    """A periodic process: the well at -1 is deeper and does not belong to it."""
    places, depths, widths = [-1.0, 0.0, 1.0, 2.0], [12.0, 9.0, 9.0, 12.0], [0.1] * 4

    def wide(x: Array) -> Array:
        wells = [
            -depth * np.exp(-(((x - place) / width) ** 2) / 2)
            for place, depth, width in zip(places, depths, widths, strict=True)
        ]
        return KT * np.asarray(sum(wells) + (np.abs(x - 0.5) / 2.2) ** 16)

    process = Process(wide, grid=Grid(-1.6, 2.6, 210))
    system = process.system()
    found = process.flux([system.exact()], [np.linspace(-1.59, 2.59, 4001)])
    population = process.population(-0.5, 0.5)  # the flat tops beside it hold next to nothing
    expected = -KT * np.log(process.current(0.5) / THERMAL / population)
    assert found.barrier.value == pytest.approx(expected, abs=0.05 * KT)
    assert len(found.steps) == 1
    assert estimate_profile([system.exact()]).delta_F.value == pytest.approx(0.0, abs=0.01 * KT)


def test_reversed_states_are_the_reversed_process() -> None:
    forward = Process(THREE)
    back = Process(THREE, states=(1.0, 0.0))
    one, other = forward.flux(*forward.exact()), back.flux(*back.exact())
    assert len(other.steps) == 2
    for step, mirrored in zip(one.steps, reversed(other.steps), strict=True):
        assert step.flux_barrier.value == pytest.approx(mirrored.reverse_flux_barrier.value)
        assert step.rate_per_s.value == pytest.approx(mirrored.reverse_rate_per_s.value)
        assert step.surface == mirrored.surface
    both = [estimate_profile(p.exact()[0], p.states) for p in (forward, back)]
    assert both[0].delta_F.value == pytest.approx(-both[1].delta_F.value)
    assert both[0].A1_minus_A0.value == pytest.approx(-both[1].A1_minus_A0.value)


def test_shallow_dips_and_noise_are_no_basins() -> None:
    """A basin is 2 kT deep on both sides; samples of a flat maximum make none in 40 runs.

    Ten blocks of 500 samples in 75 bins: a bin knows its A to 0.12 kT, and steps add up to some
    1 kT over the top.
    """
    for depth, number in ((1.7, 1), (2.6, 2)):
        process = Process(gaussians([0.0, 0.5, 1.0], [10.0, depth, 10.0], [0.08, 0.06, 0.08]))
        assert len(process.flux(*process.exact()).steps) == number
    rng = np.random.default_rng(12)
    flat = Process(gaussians([0.0, 1.0], [8.0, 8.0], [0.08, 0.08]), grid=Grid(-0.25, 1.25, 75))
    system = flat.system()
    for _ in range(40):
        series = [system.sample(rng, 500) for _ in range(10)]
        assert len(flat.flux([system.state(x) for x in series], series).steps) == 1


def test_a_basin_that_blocks_disagree_about_is_none() -> None:
    """Half of the blocks have a minimum of 7 kT: its depth is less than three errors."""
    dip = Process(gaussians([0.0, 0.5, 1.0], [10.0, 7.0, 10.0], [0.08, 0.06, 0.08]))
    none = Process(gaussians([0.0, 1.0], [10.0, 10.0], [0.08, 0.08]))
    points = [np.linspace(-0.249, 1.249, 2001)] * 6
    deep, flat = dip.exact()[0][0], none.exact()[0][0]
    assert len(dip.flux([deep] * 6, points).steps) == 2
    together = dip.flux([deep + flat], points[:1])
    assert len(together.steps) == 2  # of one block no error is known
    assert len(dip.flux([deep, flat] * 3, points).steps) == 1


@pytest.mark.parametrize("two_steps", [False, True])
def test_errors_of_flux_and_differences_hold_the_truth(two_steps: bool) -> None:
    """60 runs of 16 blocks of 600 independent samples: 95 % within two errors of what they should.

    Each number is checked by its mean square deviation in units of its error: that of 60 runs is
    known to 20 %, and the errors are up to 10 % too large; 0.45 to 1.8 is four of these away.
    """
    rng = np.random.default_rng(13)
    middle = 6.0 if two_steps else 0.5
    process = Process(
        gaussians([0.0, 0.5, 1.0], [7.0, middle, 8.0], [0.1, 0.08, 0.1]), grid=Grid(-0.25, 1.25, 60)
    )
    system = process.system()
    truth = process.flux([system.exact()], [np.linspace(-0.249, 1.249, 4001)])
    exact = estimate_profile([system.exact()], basins=truth.basins)
    assert len(truth.steps) == 1 + two_steps
    off = []
    for _ in range(60):
        series = [system.sample(rng, 600) for _ in range(16)]
        blocks = [system.state(x) for x in series]
        found = process.flux(blocks, series)
        assert len(found.steps) == len(truth.steps)
        of_profile = estimate_profile(blocks, basins=found.basins)
        pairs = [
            (found.activation, truth.activation),
            (of_profile.delta_F, exact.delta_F),
            (found.steps[-1].reverse_flux_barrier, truth.steps[-1].reverse_flux_barrier),
            (found.populations[0], truth.populations[0]),
        ]
        off.append([(one.value - other.value) / one.error for one, other in pairs])
        assert found.rate_per_s.error / found.rate_per_s.value == pytest.approx(
            found.activation.error / KT
        )
    squares = np.mean(np.square(off), axis=0)
    assert (squares > 0.45).all()
    assert (squares < 1.8).all()


def test_the_end_nodes_themselves_need_no_samples() -> None:
    """The wells are at 0.1 and 0.9, without samples beyond 0.98: basins are still complete."""
    U = gaussians([0.1, 0.9], [14.0, 14.0], [0.05, 0.05])
    process = Process(U, grid=Grid(-0.1, 1.1, 120))
    system = process.system()
    points = np.linspace(-0.03, 1.03, 4001)
    inside = (system.x > -0.035) & (system.x < 0.985)
    state = system.state(system.x[inside], system.density[inside])
    found = estimate_profile([state])
    assert np.isnan(found.A1_minus_A0.value)
    (top,) = tops(process, [(0.2, 0.8)])
    assert found.delta_F.value == pytest.approx(0.0, abs=0.02 * KT)
    of_flux = process.flux([state], [points])
    expected = -KT * np.log(process.current(top) / THERMAL / process.population(-0.5, top))
    assert of_flux.barrier.value == pytest.approx(expected, abs=0.05 * KT)
    assert np.isfinite(found.barrier.value)


def test_what_is_not_known_is_not_said() -> None:
    process = Process(THREE)
    system = process.system()
    points = [np.linspace(-0.249, 1.249, 4001)]

    def seen(keep: NDArray[np.bool_]) -> State:
        return system.state(system.x[keep], system.density[keep])

    x = system.x
    # Up to behind the intermediate, whose basin is no product.
    short = [seen(x < 0.75)]
    assert np.isnan(process.flux(short, points).barrier.value)
    assert process.flux(short, points).steps == ()
    assert np.isnan(
        [estimate_profile(short).barrier.value, estimate_profile(short).delta_F.value]
    ).all()
    # Both states, but not the top.
    gap = [seen((x < 0.15) | (x > 0.35))]
    assert np.isnan(process.flux(gap, points).rate_per_s.value)
    # A product of which the grid has one side only: rates forward, but no population.
    half = Process(THREE, grid=Grid(-0.25, 1.0, 125))
    cut = half.flux([half.system().exact()], points)
    assert np.isfinite([step.rate_per_s.value for step in cut.steps]).all()
    assert np.isnan([each.value for each in cut.populations]).all()
    assert np.isnan(cut.steps[-1].reverse_rate_per_s.value)
    assert cut.note is not None
    assert "the grid ends at 1, only 0.0 kT above the minimum of the product" in cut.note
    assert process.flux([system.exact()], points).note is None
    narrow = Process(gaussians([0.0, 1.0], [12.0, 13.5], [0.09, 0.05]), grid=Grid(-0.25, 1.25, 60))
    coarse = narrow.flux([narrow.system().exact()], points)
    assert np.isfinite(coarse.rate_per_s.value)
    assert np.isnan(coarse.populations[-1].value)
    assert "the product occupies 2.2 bins of the grid (4 at least)" in str(coarse.note)
    assert np.isnan(estimate_profile([half.system().exact()]).delta_F.value)
    cut_off = Process(THREE, grid=Grid(0.0, 1.25, 125))
    with pytest.raises(UserError, match="begin the grid further out"):
        cut_off.flux([cut_off.system().exact()], points)


def test_basins_of_a_circle_are_cut_where_nothing_was_seen() -> None:
    """A torsion that cannot pass from 2.1 to 2.9: basins continue across the domain's end."""
    grid = Grid(-np.pi, np.pi, 120, periodic=True)

    def U(x: Array) -> Array:  # noqa: N802
        forbidden = (x > 2.1) & (x < 2.9)
        around = np.where(x > 2.5, x - 2 * np.pi, x)
        return np.asarray(KT * np.where(forbidden, 200.0, 3.5 * np.cos(2 * x) + 0.8 * around))

    system = Frozen(grid, U, lambda x: 0.0 * x)
    seen = system.density > 1e-60
    state = system.state(system.x[seen], system.density[seen])
    inside = U(system.x[seen])
    for states in ((-1.7, 1.4), (1.4, -1.7)):
        found = estimate_profile([state], states)
        known = np.isfinite(found.A)
        off = found.A[known] - np.interp(found.xi[known], system.x[seen], inside)
        # The bins at the edges of the region are cut by it.
        inner = np.abs(np.abs(found.xi[known] - 2.5) - 0.4) > 2 * grid.spacing
        assert np.ptp(off[inner]) < 0.03 * KT
        A_k = (found.A_k[known] - found.A[known])[inner]
        assert np.ptp(A_k) < 0.6 * KT
        reactant, _ = quad(lambda x: np.exp(-U(np.array(x)) / KT), -np.pi, 0.0, limit=200)
        behind, _ = quad(lambda x: np.exp(-U(np.array(x)) / KT), 2.9, np.pi, limit=200)
        product, _ = quad(lambda x: np.exp(-U(np.array(x)) / KT), 0.0, 2.1, limit=200)
        expected = -KT * np.log(product / (reactant + behind))
        sign = 1 if states[1] > states[0] else -1
        assert found.delta_F.value == pytest.approx(sign * expected, abs=0.05 * KT)
    basins = find(grid, found.A, (-1.7, 1.4), KT)
    assert basins is not None
    assert basins.whole == (True, True)


def test_estimates_in_words() -> None:
    process = Process(THREE)
    blocks, series = process.exact()
    found = process.flux(blocks * 2, series * 2)
    assert str(found.rate_per_s).endswith("1/s")
    assert "e+" in str(found.rate_per_s)
    assert str(found.barrier).endswith("± 0.000 eV")
    assert str(found.populations[0]).count(" ") == 2


def test_thehighest_of_barriers_that_are_alike_is_uncertain() -> None:
    """Compared with random independent barriers; the error of a single one does not change."""
    found = Estimate(0.30, 0.001)
    rng = np.random.default_rng(5)
    for values, errors in (
        ([0.30, 0.29], [0.001, 0.02]),
        ([0.30, 0.10], [0.002, 0.02]),
        ([0.28, 0.30, 0.299], [0.01, 0.005, 0.0001]),
    ):
        drawn = rng.normal(values, errors, size=(400_000, len(values))).max(axis=1)
        expected = np.sqrt(np.mean((drawn - 0.30) ** 2))
        error = highest_of(found, np.array(values), np.array(errors)).error
        assert error == pytest.approx(expected, rel=0.02)  # draws: 0.3 %
    assert highest_of(found, np.array([0.30]), np.array([0.002])) == found
    assert highest_of(found, np.array([0.30, np.nan]), np.array([0.002, np.nan])) == found
