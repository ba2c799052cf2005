"""The reference estimator and profiles with errors against analytic answers."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import constants
from typer.testing import CliRunner

from plumed_cv.cli import app
from plumed_cv.common.errors import UserError
from plumed_cv.freeenergy import (
    Estimator,
    Grid,
    State,
    blocks,
    estimate_flux,
    estimate_profile,
    prior_derivative,
    reweighted_profile,
    write_state,
)
from plumed_cv.freeenergy.jackknife import jackknife

Array = NDArray[np.float64]
KT = 0.02585


def double_well(height_kT: float) -> Callable[[Array], Array]:
    return lambda x: 16 * height_kT * KT * (x * (1 - x)) ** 2


@dataclass
class Frozen:
    """A one-dimensional system under a constant bias; exact results by quadrature."""

    grid: Grid
    potential: Callable[[Array], Array]
    bias_energy: Callable[[Array], Array]
    kappa_eV: float | None = None

    def __post_init__(self) -> None:
        prior = prior_derivative(self.grid, self.grid.nodes, self.bias_energy(self.grid.nodes))
        estimator = Estimator(self.grid, KT, kappa_eV=self.kappa_eV, tau=np.inf, prior=prior)
        self.empty = estimator.state
        fine = self.grid.spacing / 200
        margin = 0.0 if self.grid.periodic else 12 * self.grid.spacing
        low, high = self.grid.minimum - margin, self.grid.maximum + margin
        self.x = np.arange(low + fine / 2, high, fine)
        density = np.exp(-(self.potential(self.x) + self.bias(self.x)) / KT)
        self.density = density / density.sum()

    def _terms(self, x: Array) -> tuple[Array, Array]:
        distances = self.grid.nodes - x[:, None]
        if self.grid.periodic:
            length = self.grid.maximum - self.grid.minimum
            distances -= length * np.round(distances / length)
        exponents = (self.empty.energy() - 0.5 * self.empty.kappa_eV * distances**2) / KT
        return distances, exponents

    def bias(self, x: Array) -> Array:
        _, exponents = self._terms(x)
        highest = exponents.max(axis=1)
        total = np.exp(exponents - highest[:, None]).sum(axis=1)
        return np.asarray(-KT * (highest + np.log(total * self.grid.spacing)))

    def state(self, x: Array, weights: Array | None = None) -> State:
        """Return the sums of samples at x, of given weights or 1."""
        weights = np.ones(len(x)) if weights is None else weights
        distances, exponents = self._terms(x)
        P = np.exp(exponents - exponents.max(axis=1, keepdims=True))
        P /= P.sum(axis=1, keepdims=True)
        j = self.grid.bin(x)
        inside, n = j >= 0, len(self.grid.nodes)
        offset = weights * (P * distances).sum(axis=1)
        sums = np.array(
            [
                weights @ P,
                weights @ (P * self.empty.kappa_eV * distances),
                np.bincount(j[inside], weights[inside], minlength=n),
                np.bincount(j[inside], offset[inside], minlength=n),
            ]
        )
        return replace(self.empty, steps=len(x), sums=sums)

    def exact(self) -> State:
        return self.state(self.x, self.density)

    def sample(self, rng: np.random.Generator, number: int, sticky: float = 0.0) -> Array:
        """Draw a series that stays where it is with probability `sticky` at every step."""
        drawn = np.interp(rng.random(number), np.cumsum(self.density), self.x)
        moves = rng.random(number) >= sticky
        moves[0] = True
        return np.asarray(drawn[np.maximum.accumulate(np.where(moves, np.arange(number), 0))])


WIDE = Grid(-0.2, 1.2, 140)


@pytest.mark.parametrize("stiffness", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("height_kT", [5.0, 20.0])
def test_exact_sums_give_the_analytic_profile(stiffness: float, height_kT: float) -> None:
    """Without noise, the error is that of the grid: dz^2/8 times the change of A''."""
    U = double_well(height_kT)
    kappa = stiffness * KT / WIDE.spacing**2
    system = Frozen(WIDE, U, lambda x: 0.9 * U(x), kappa)
    found = estimate_profile([system.exact()])
    assert found.barrier.value == pytest.approx(height_kT * KT, abs=0.015 * KT)
    assert found.A1_minus_A0.value == pytest.approx(0.0, abs=1e-6 * KT)
    assert found.delta_F.value == pytest.approx(0.0, abs=1e-6 * KT)
    interior = slice(5, -5)
    deviation = found.A - U(found.xi)
    assert np.ptp(deviation[interior]) < 0.04 * KT
    # The end bins are half cut off by the wall.
    assert np.ptp(deviation) < 0.25 * KT
    # A_k is the convolution with the spring's Gaussian, up to and including the end nodes.
    x = np.linspace(-0.6, 1.6, 10001)
    spring = 0.5 * kappa * (x - WIDE.nodes[:, None]) ** 2
    convolved = -KT * np.log(np.exp(-(U(x) + spring) / KT).sum(axis=1))
    assert np.ptp(found.A_k - convolved) < 0.02 * KT


def test_exact_sums_on_a_periodic_cv() -> None:
    grid = Grid(-np.pi, np.pi, 100, periodic=True)

    def U(x: Array) -> Array:  # noqa: N802
        return np.asarray(KT * (5 * np.cos(x) + 2 * np.sin(2 * x)))

    found = estimate_profile([Frozen(grid, U, lambda x: 0.8 * U(x)).exact()], states=(-1.5, 1.5))
    assert np.ptp(found.A - U(found.xi)) < 0.02 * KT
    assert np.ptp(found.A_k - U(found.xi)) < 0.3 * KT


def test_a_gap_in_a_circle_takes_what_is_left_after_a_turn() -> None:
    """Half of a circle has samples and climbs by 5 kT: A climbs as they say, and falls elsewhere.

    Even steps all around, as on a circle where all is known, would leave half of it.
    """
    grid = Grid(0.0, 2.0, 40, periodic=True)
    sums = np.zeros((4, 40))
    sums[0, :20] = 500.0
    sums[1] = 5 * KT * sums[0]  # a slope of 5 kT
    kappa = KT / grid.spacing**2
    state = State(("xi",), (grid,), KT, (kappa,), 0.01, 0, np.zeros(40), 10000, sums)
    A = state.energy()
    assert A[0] == 0.0
    assert A[19] == pytest.approx(0.95 * 5 * KT, rel=1e-3)
    assert A[39] == pytest.approx(0.0, abs=0.5 * KT)
    frozen = replace(state, tau=np.inf, prior=state.derivative())
    assert frozen.energy()[19] == pytest.approx(0.5 * 0.95 * 5 * KT, rel=0.1)


def test_adaptive_estimator_fills_a_well() -> None:
    """Samples drawn from the present bias: Eq. 7 converges to the profile.

    20000 independent samples in 30 bins: an error of about 0.04 kT at a node, and a tolerance of
    four times that for 31 nodes.
    """
    rng = np.random.default_rng(1)
    grid = Grid(0.0, 1.0, 30)
    U = double_well(6.0)
    estimator = Estimator(grid, KT, ramp=4000)
    fine = np.linspace(-0.15, 1.15, 400)
    early = estimator.state
    for step in range(22000):
        if step % 200 == 0:
            now = Frozen(grid, U, lambda x: estimator.state.energy())
            total = np.exp(-(U(fine) + now.bias(fine)) / KT)
            cumulative = np.cumsum(total) / total.sum()
        estimator.learn(float(np.interp(rng.random(), cumulative, fine)))
        if step == 2000:
            early = estimator.state
    found = estimate_profile([estimator.state - early])
    deviation = found.A - U(found.xi)
    assert np.abs(deviation - deviation.mean())[1:-1].max() < 0.16 * KT


@pytest.mark.parametrize("periodic", [False, True])
def test_force_is_the_derivative_of_the_bias(periodic: bool) -> None:
    rng = np.random.default_rng(2)
    grid = Grid(-1.0, 2.0, 40, periodic)
    estimator = Estimator(grid, KT, ramp=30)
    for xi in rng.uniform(-1.02, 2.02, size=200):
        estimator.learn(xi)
    for xi in [-1.2, -1.0, 0.03, 1.99999, 2.1]:
        h = 1e-6
        slope = (estimator.evaluate(xi + h).bias_eV - estimator.evaluate(xi - h).bias_eV) / (2 * h)
        now = estimator.evaluate(xi)
        assert now.force_eV == pytest.approx(-slope, rel=1e-6, abs=1e-7)
        assert now.probability.sum() == pytest.approx(1.0, abs=1e-14)


def test_a_sample_far_outside_teaches_nothing() -> None:
    estimator = Estimator(Grid(0.0, 1.0, 50), KT)
    estimator.learn(5.0)
    assert estimator.state.steps == 1
    assert not estimator.state.sums.any()


def test_default_tau_is_the_weight_of_twenty_samples() -> None:
    grid = Grid(0.0, 1.0, 10)
    assert Estimator(grid, KT).state.tau == 20
    assert Estimator(grid, KT, ramp=100000).state.tau == pytest.approx(210e-5)
    assert Estimator(grid, KT, ramp=10).state.tau == pytest.approx(15.5)
    assert Estimator(grid, KT).state.kappa_eV == pytest.approx(100 * KT)


def test_states_add_and_subtract() -> None:
    rng = np.random.default_rng(3)
    estimator = Estimator(Grid(0.0, 1.0, 20), KT, ramp=50)
    states = [estimator.state]
    for _ in range(3):
        for xi in rng.uniform(0, 1, 40):
            estimator.learn(xi)
        states.append(estimator.state)
    first, second, third = blocks(states[1:])
    together = first + second + third
    assert together.steps == 120
    np.testing.assert_allclose(together.sums, states[-1].sums, rtol=1e-12, atol=1e-14)
    with pytest.raises(UserError, match="in their order"):
        _ = states[1] - states[2]
    with pytest.raises(UserError, match="differ in kT_eV"):
        _ = states[1] + replace(states[1], kT_eV=2 * KT)
    with pytest.raises(UserError, match="differ in grid"):
        estimate_profile([states[1], Estimator(Grid(0.0, 1.0, 21), KT).state])
    with pytest.raises(UserError, match="at least one state"):
        estimate_profile([])


def test_empty_bins_stay_empty() -> None:
    system = Frozen(WIDE, double_well(2.0), double_well(2.0))
    parts = [system.state(np.array([0.0, 0.01, 0.02])), system.state(np.array([0.3, 0.31, 0.01]))]
    found = estimate_profile(parts)
    visited = WIDE.bin(np.array([0.0, 0.01, 0.02, 0.3, 0.31]))
    assert set(np.flatnonzero(np.isfinite(found.A))) == set(visited)
    # Visited in both blocks; the others live by one block alone.
    assert np.isfinite(found.A_error[visited[1]])
    assert np.isnan(found.A_error[visited[3]])
    assert np.isnan([found.delta_F.value, found.A1_minus_A0.value]).all()
    assert np.isnan(found.barrier.value)  # the product was not reached: the top is not known


def test_fes_names_the_keys_for_a_cv_in_other_units(tmp_path: Path) -> None:
    """The states of a distance are at 2.5 and 3.5, not at 0 and 1."""
    system = Frozen(
        Grid(2.3, 3.7, 140),
        lambda x: double_well(3.0)(x - 2.5),
        lambda x: double_well(3.0)(x - 2.5),
    )
    rng = np.random.default_rng(2)
    states = [str(tmp_path / f"{k}.state") for k in range(8)]
    for state in states:
        write_state(Path(state), system.state(system.sample(rng, 20_000)))
    line = ["fes", *states, "--walkers", "-o", str(tmp_path / "fes.dat")]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    assert "not sampled from 0 to 1" in " ".join(done.stderr.split())
    assert "--reactant and --product" in " ".join(done.stderr.split())
    done = CliRunner().invoke(app, [*line, "--reactant", "2.5", "--product", "3.5", "--json"])
    assert done.stderr == ""
    # The histogram of 160 000 samples has some 0.02 kT.
    assert json.loads(done.stdout)["barrier_eV"] == pytest.approx(3.0 * KT, abs=0.2 * KT)


@pytest.mark.parametrize(("seen_to", "known"), [(0.8, True), (0.53, False)])
def test_a_barrier_has_an_error_if_one_block_alone_reached_the_product(
    seen_to: float, known: bool
) -> None:
    """The other blocks must have seen A fall by kT behind its maximum, here at 0.71."""
    system = Frozen(WIDE, double_well(3.0), double_well(3.0))
    rng = np.random.default_rng(3)
    series = [system.sample(rng, 20_000) for _ in range(8)]
    parts = [system.state(x[x < seen_to]) for x in series[:-1]]
    found = estimate_profile([*parts, system.state(series[-1])])
    differences = found.delta_F, found.A1_minus_A0
    assert np.isfinite([found.barrier.value, *(each.value for each in differences)]).all()
    assert np.isnan([each.error for each in differences]).all()
    assert np.isfinite(found.barrier.error) == known
    if known:  # its spread over 30 seeds is 0.014 kT
        assert found.barrier.value == pytest.approx(3.0 * KT, abs=0.06 * KT)
        assert 0.004 * KT < found.barrier.error < 0.03 * KT
    assert np.isnan(estimate_profile(parts).barrier.value)


def test_a_process_that_only_climbs_has_a_barrier() -> None:
    """A maximum at the product counts as a barrier if the product was reached."""
    system = Frozen(WIDE, lambda x: 4 * KT * np.abs(x), lambda x: 4 * KT * np.abs(x))
    rng = np.random.default_rng(2)
    found = estimate_profile([system.state(system.sample(rng, 20_000)) for _ in range(8)])
    # The local cubic rounds off the kink at 0; the histogram has some 0.02 kT.
    assert found.barrier.value == pytest.approx(4 * KT, abs=0.3 * KT)
    assert 0.0 < found.barrier.error < 0.1 * KT


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_errors_of_few_blocks_are_those_of_the_direct_jackknife(number: int) -> None:
    """All that is left is added up anew for every block left out; blocks of weights 1, 2, ...

    With n samples in all, n_k of them in block k, the error of a mean is the root of
    sum (n_k/n)^2 (mean_k - mean)^2 / (1 - sum (n_k/n)^2): for equal blocks the textbook's.
    """
    rng = np.random.default_rng(number)
    system = Frozen(Grid(-0.3, 1.3, 32), double_well(3.0), double_well(3.0))
    series = correlated_blocks(system, rng, number, 4000, 0.5)
    parts = [
        replace(block, sums=(k + 1) * block.sums)
        for k, block in enumerate(system.state(x) for x in series)
    ]
    found = estimate_profile(parts)
    origin = int(np.nanargmin(np.abs(found.A)))

    def estimate(some: list[State]) -> Array:
        one = estimate_profile(
            [replace(parts[0], sums=np.sum([part.sums for part in some], axis=0))]
        )
        values = [one.A_k - one.A_k[origin], one.A - one.A[origin]]
        return np.concatenate([*values, [one.barrier.value, one.A1_minus_A0.value]])

    value = estimate(parts)
    shares = np.arange(1, number + 1) / np.arange(1, number + 1).sum()
    error = np.full_like(value, np.nan)
    if number > 1:
        terms = [
            (1 - shares[k]) * (estimate(parts[:k] + parts[k + 1 :]) - value) for k in range(number)
        ]
        error = np.sqrt(np.sum(np.square(terms), axis=0) / (1 - np.sum(shares**2)))
    both = (found.barrier, found.A1_minus_A0)
    got = np.concatenate([found.A_k, found.A, [each.value for each in both]])
    np.testing.assert_allclose(got, value, rtol=1e-10, atol=1e-13)
    got = np.concatenate([found.A_k_error, found.A_error, [each.error for each in both]])
    np.testing.assert_allclose(got, error, rtol=1e-10, atol=1e-13)


def mean_of(sums: Array) -> Array:
    return np.asarray(sums[1:] / sums[0])


def autoregressive(rng: np.random.Generator, length: int, number: int, phi: float) -> Array:
    """Return (length, number) series of unit variance, stationary from their first value."""
    x = rng.normal(size=(length, number))
    for t in range(1, length):
        x[t] = phi * x[t - 1] + np.sqrt(1 - phi**2) * x[t]
    return x


@pytest.mark.parametrize(
    ("blocks_", "phi", "least", "most"),
    [
        (40, 0.0, 0.93, 0.985),
        (40, 0.5, 0.89, 0.95),
        (40, 0.8, 0.80, 0.88),
        (12, 0.0, 0.92, 0.985),
        (12, 0.5, 0.81, 0.89),
        (12, 0.8, 0.62, 0.73),
    ],
)
def test_two_errors_of_correlated_blocks_hold_the_truth(
    blocks_: int, phi: float, least: float, most: float
) -> None:
    """The mean of 40 or 12 blocks, each correlated by phi with the one before; 4000 series.

    95 % of a normal distribution are within two errors. Of 12 blocks of phi = 0.8, which hold as
    much as one and a half without correlation, nothing better can be said. The share of 4000 is
    known to 0.7 % at worst, and the bounds are four of these away from what it is: one seed in ten
    thousand would fail.
    """
    rng = np.random.default_rng(10)
    x = autoregressive(rng, blocks_, 4000, phi)
    parts = [np.concatenate([[1.0], row]) for row in x]
    value, error = jackknife(parts, [1.0] * blocks_, mean_of)
    np.testing.assert_allclose(value, x.mean(axis=0), atol=1e-12)
    held = np.mean(np.abs(value) < 2 * error)
    assert least < held < most
    # Not less than the standard error of a mean without correlations.
    assert (error >= x.std(axis=0, ddof=1) / blocks_**0.5 * (1 - 1e-9)).all()


def test_blocks_of_different_walkers_are_independent() -> None:
    """Walkers that differ from each other, but whose blocks do not change: no correlation in time.

    Three walkers of two blocks that say the same have the error of three independent numbers; of
    walkers with one block each there are no lags at all.
    """
    numbers = np.array([1.0, -2.0, 4.0, 0.5, 3.0, -1.0, 2.0])
    parts = [np.array([1.0, x]) for x in numbers]
    _, error = jackknife(parts, [1.0] * 7, mean_of, [1] * 7)
    assert error[0] == pytest.approx(numbers.std(ddof=1) / 7**0.5)
    rng = np.random.default_rng(11)
    # Every walker of 4 blocks has a level of its own; the next one begins where this one ends.
    x = np.repeat(autoregressive(rng, 10, 2000, 0.9), 4, axis=0) + rng.normal(size=(40, 2000))
    parts = [np.concatenate([[1.0], row]) for row in x]
    _, one_run = jackknife(parts, [1.0] * 40, mean_of)
    _, by_walker = jackknife(parts, [1.0] * 40, mean_of, [4] * 10)
    level_alone = x.reshape(10, 4, -1).mean(axis=1).std(axis=0, ddof=1) / 10**0.5
    # Ten numbers know their spread to a quarter; 2000 of them their mean to less than 1 %.
    assert np.mean(by_walker**2) == pytest.approx(np.mean(level_alone**2), rel=0.1)
    assert np.mean(one_run**2) > 1.5 * np.mean(by_walker**2)


def correlated_blocks(
    system: Frozen, rng: np.random.Generator, number: int, length: int, sticky: float
) -> list[Array]:
    return np.split(system.sample(rng, number * length, sticky), number)


def test_error_bars_cover_the_truth() -> None:
    """Over 150 runs the error bar must hold the truth as often as a standard error does.

    A run of 48 blocks of 120 samples, each of which stays for 20 steps on average: neighbouring
    blocks are correlated. One standard error covers 68 %, and as it is never less than that
    without correlations it is rather 72 %. The spread over 150 runs is 3.7 %: below 60 % or above
    88 % is met once in a thousand.
    """
    rng = np.random.default_rng(4)
    U = double_well(4.0)
    system = Frozen(Grid(-0.2, 1.2, 28), U, U)
    exact = estimate_profile([system.exact()])
    held = np.zeros(2)
    runs = 150
    node = 14
    for _ in range(runs):
        series = correlated_blocks(system, rng, 48, 120, 0.95)
        found = estimate_profile([system.state(x) for x in series])
        held += [
            abs(found.delta_F.value - exact.delta_F.value) < found.delta_F.error,
            abs((found.A - found.A[4])[node] - (exact.A - exact.A[4])[node])
            < np.hypot(found.A_error[node], found.A_error[4]),
        ]
    assert 0.60 < held[0] / runs < 0.88
    assert held[1] / runs > 0.60


def test_ramped_blocks_have_sensible_errors() -> None:
    """Weights that grow 20 times over the run: the error is still the spread over runs.

    Over 100 runs the mean of the squared errors is known to 14 % and the spread to 14 %: a factor
    of 1.5 in the standard deviation is more than four times that away.
    """
    rng = np.random.default_rng(5)
    U = double_well(3.0)
    system = Frozen(Grid(-0.3, 1.3, 16), U, U)
    found = [
        estimate_profile(
            [system.state(system.sample(rng, 200), np.full(200, (b + 1) / 20)) for b in range(20)]
        ).delta_F
        for _ in range(100)
    ]
    spread = np.std([f.value for f in found])
    error = np.sqrt(np.mean([f.error**2 for f in found]))
    assert 1 / 1.5 < error / spread < 1.8


def test_reweighting_and_mean_force_agree() -> None:
    """Two estimates from one frozen run, each with its error: 30 nodes within 4 errors.

    One node in 16000 would be further away; errors from 10 groups make that one in a few hundred.
    """
    rng = np.random.default_rng(6)
    U = double_well(5.0)
    system = Frozen(Grid(-0.2, 1.2, 28), U, lambda x: 0.8 * U(x))
    series = correlated_blocks(system, rng, 20, 4000, 0.5)
    found = estimate_profile([system.state(x) for x in series])
    A, error = reweighted_profile(system.grid, KT, series, [system.bias(x) for x in series])
    inner = slice(3, -3)
    difference = (found.A - A)[inner]
    difference -= difference.mean()
    tolerance = 4 * np.hypot(found.A_error, error)[inner] + 0.02 * KT  # bins of 0.05
    assert (np.abs(difference) < tolerance).all()
    j = system.grid.bin(system.x)
    truth = -KT * np.log(np.bincount(j[j >= 0], np.exp(-U(system.x) / KT)[j >= 0]))
    assert (np.abs((A - truth)[inner] - np.mean((A - truth)[inner])) < 4 * error[inner]).all()


def stretched(x: Array) -> Array:
    """Return another CV for the same surfaces: 0 to 0, 1 to 1, monotonic."""
    return np.asarray(x + 0.12 * np.sin(2 * np.pi * x))


def test_flux_barrier_does_not_depend_on_the_form_of_the_cv() -> None:
    """Both CVs give the analytic flux barrier and rate; their profiles' barriers differ by 2 kT.

    120000 independent samples in 140 bins: an error of 0.03 kT, and the grid takes 0.06 kT off
    where the CV is stretched four times: a tolerance of 0.15 kT is more than two errors away.
    """
    rng = np.random.default_rng(7)
    U = double_well(8.0)
    x = np.linspace(-0.6, 1.6, 200001)
    inside = np.exp(-U(x) / KT)
    basin = np.sum(inside[x < 0.5]) * (x[1] - x[0])
    expected = -KT * np.log(np.exp(-U(np.array(0.5)) / KT) / basin)
    mass_kg = 55.8 * constants.atomic_mass
    speed_A_per_s = 1e10 * np.sqrt(KT * constants.eV / (2 * np.pi * mass_kg))
    rate_per_s = speed_A_per_s * np.exp(-expected / KT)
    frequency_per_s = KT * constants.eV / constants.h

    def slope(s: Array) -> Array:
        return np.asarray(1 + 0.24 * np.pi * np.cos(2 * np.pi * np.interp(s, stretched(x), x)))

    def potential_of_stretched(s: Array) -> Array:
        return np.asarray(U(np.interp(s, stretched(x), x)) + KT * np.log(slope(s)))

    barriers = []
    cases: list[tuple[Callable[[Array], Array], Callable[[Array], Array]]] = [
        (U, np.ones_like),
        (potential_of_stretched, slope),
    ]
    for potential, gradnorm in cases:
        system = Frozen(WIDE, potential, potential)
        series = correlated_blocks(system, rng, 40, 3000, 0.0)
        parts = [system.state(s) for s in series]
        slopes = [gradnorm(s) for s in series]
        found = estimate_flux(parts, series, slopes, [slope**2 / 55.8 for slope in slopes])
        assert found.barrier.value == pytest.approx(expected, abs=0.15 * KT)
        assert 0.005 * KT < found.barrier.error < 0.08 * KT
        assert found.surface == pytest.approx(0.5, abs=0.03)  # of both CVs, by symmetry
        assert np.log(found.rate_per_s.value / rate_per_s) == pytest.approx(0, abs=0.15)
        assert found.rate_per_s.error / found.rate_per_s.value == pytest.approx(
            found.barrier.error / KT, rel=0.2
        )
        activation = -KT * np.log(found.rate_per_s.value / frequency_per_s)
        assert found.activation.value == pytest.approx(activation, abs=1e-6)
        barriers.append(estimate_profile(parts).barrier.value)
    assert abs(barriers[0] - barriers[1]) > 1.5 * KT


def test_flux_barrier_needs_the_whole_basin_and_matching_series() -> None:
    U = double_well(8.0)
    system = Frozen(Grid(0.0, 1.0, 40), U, U)
    series = [np.linspace(0.0, 1.0, 300)] * 3
    parts = [system.state(x) for x in series]
    with pytest.raises(UserError, match="begin the grid further out"):
        estimate_flux(parts, series, series, series)
    with pytest.raises(UserError, match="3 blocks need as many series"):
        estimate_flux(parts, series, series[:2], series)
