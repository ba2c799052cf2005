"""Errors of profiles from blocks of bABF's sums."""

from dataclasses import replace

import numpy as np
import pytest

from plumed_cv.freeenergy import (
    Grid,
    State,
    estimate_profile,
)
from plumed_cv.freeenergy.jackknife import jackknife
from tests.frozen import KT, WIDE, Array, Frozen, correlated_blocks, double_well


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
