"""The flux barrier of CVs of any form."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import constants

from plumed_cv.common.errors import UserError
from plumed_cv.freeenergy import (
    Grid,
    estimate_flux,
    estimate_profile,
)
from tests.frozen import KT, WIDE, Array, Frozen, correlated_blocks, double_well


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


def test_depths_of_both_states_and_a_low_barrier_behind_the_product() -> None:
    """Behind the product the energy rises by 1.3 kT only, and falls again to another minimum.

    On the left, the grid ends far above the reactant. The heights have errors of 0.2 kT, so the
    tolerance is six of them.
    """
    well = double_well(8.0)

    def potential(x: Array) -> Array:
        behind = 1.3 * KT * np.sin(np.pi * (x - 1.0) / 0.4) ** 2
        return np.asarray(np.where(x < 1.0, well(x), behind))

    system = Frozen(Grid(-0.35, 1.4, 70), potential, potential)
    series = correlated_blocks(system, np.random.default_rng(3), 20, 3000, 0.0)
    parts, ones = [system.state(x) for x in series], [np.ones_like(x) for x in series]
    found = estimate_flux(parts, series, ones, ones)
    assert found.depths_kT[0] > 20.0
    assert found.depths_kT[1:3] == pytest.approx([8.0, 8.0], abs=1.2)
    assert found.depths_kT[3] < 2.0
    assert "only" in str(found.note)
    assert "above the minimum of the product" in str(found.note)
    assert np.isnan(found.populations[-1].value)
