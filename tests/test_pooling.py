"""Snapshots of an earlier iteration in the mean force: values and errors."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2

from plumed_cv import freeenergy
from plumed_cv.common.errors import UserError
from plumed_cv.freeenergy import Earlier, Grid, State, pooling
from plumed_cv.freeenergy.pooling import Snapshots
from plumed_cv.workflow import earlier as earlier_file
from tests.frozen import KT

Array = NDArray[np.float64]

HEIGHT, STIFFNESS, SHEAR = 0.3, 2.0, 0.5  # eV, eV/A^2, 1
GRID = Grid(-0.1, 1.1, 60)
BLOCKS = 20
DIFFERENCE = 0.05  # A(1) - A(0) along s, eV


def slope(s: Array) -> Array:
    """dU/ds of a hump between two wells."""
    return HEIGHT * np.pi * np.sin(2 * np.pi * s) + DIFFERENCE


def profile_of(s: Array) -> Array:
    return HEIGHT * np.sin(np.pi * s) ** 2 + DIFFERENCE * s


class Plane:
    """V = U(s) + k/2 (y - c s)^2 and a variable s + tilt y, on points that are drawn from."""

    def __init__(self, tilt: float) -> None:
        s, y = np.linspace(-0.3, 1.3, 641), np.linspace(-0.7, 1.3, 401)
        self.s, self.y = (part.ravel() for part in np.meshgrid(s, y, indexing="ij"))
        self.tilt = tilt
        self.xi = self.along(self.s, self.y)
        self.energy = profile_of(self.s) + 0.5 * STIFFNESS * (self.y - SHEAR * self.s) ** 2
        inside = (self.xi > GRID.minimum) & (self.xi < GRID.maximum)
        self.bin = np.where(inside, GRID.bin(self.xi), -1)
        free = np.exp(-self.energy / KT) * inside
        self.rho = np.bincount(self.bin[inside], free[inside], minlength=len(GRID.nodes))
        self.free = free

    def along(self, s: Array, y: Array) -> Array:
        """The variable, 0 and 1 where the path y = c s has s = 0 and 1."""
        return np.asarray((s + self.tilt * y) / (1 + self.tilt * SHEAR))

    def mean_force(self, s: Array, y: Array) -> Array:
        """grad V along grad xi/|grad xi|^2: the gradient does not bend."""
        across = STIFFNESS * (y - SHEAR * s)
        along_s, along_y = slope(s) - SHEAR * across, across
        return (along_s + self.tilt * along_y) * (1 + self.tilt * SHEAR) / (1 + self.tilt**2)

    def draw(self, rng: np.random.Generator, number: int, slant: float) -> tuple[Array, Array]:
        """Points under a bias along the variable that leaves a density exp(slant xi)."""
        wanted = np.exp(slant * GRID.nodes) / self.rho
        weight = np.where(self.bin >= 0, self.free * wanted[self.bin], 0.0)
        chosen = rng.choice(len(weight), number, p=weight / weight.sum())
        return self.s[chosen], self.y[chosen]


EARLIER, LAST = Plane(0.15), Plane(0.0)


def state_of(xi: Array) -> State:
    """A block of given samples."""
    count = freeenergy.bin_samples(GRID, xi)[0]
    sums = np.array([count, np.zeros_like(count), count, np.zeros_like(count)])
    kappa = KT / GRID.spacing**2
    return State(("xi",), (GRID,), KT, (kappa,), 0.0, 0, np.zeros(len(count)), len(xi), sums)


def sampled(rng: np.random.Generator, plane: Plane, number: int) -> list[tuple[Array, Array]]:
    """Blocks of points; the bias changes from one to the next."""
    return [plane.draw(rng, number, slant) for slant in np.linspace(-2.0, 1.0, BLOCKS)]


def sums_along(plane: Plane, parts: list[tuple[Array, Array]]) -> tuple[list[State], list[Array]]:
    states = [state_of(plane.along(*part)) for part in parts]
    forces = [freeenergy.bin_samples(GRID, plane.along(*p), plane.mean_force(*p)) for p in parts]
    return states, forces


def reweighted(parts: list[tuple[Array, Array]]) -> Earlier:
    snapshots = [Snapshots(EARLIER.along(*p), LAST.along(*p), LAST.mean_force(*p)) for p in parts]
    return pooling.reweight(GRID, *sums_along(EARLIER, parts), snapshots)


def test_earlier_snapshots_lower_the_error_and_keep_the_value() -> None:
    """12 repetitions: chi^2 within what 999 of 1000 sets have, the mean within four of its errors.

    Without weights the barrier is off by more than ten.
    """
    deviations, naive, gains = [], [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        own, forces = sums_along(LAST, sampled(rng, LAST, 40))
        parts = sampled(rng, EARLIER, 200)
        earlier = reweighted(parts)
        assert earlier.walkers == [BLOCKS]
        assert 0.9 * 200 * BLOCKS < earlier.snapshots <= 200 * BLOCKS
        alone = freeenergy.estimate_profile(own, mean_force=forces).A1_minus_A0
        found = freeenergy.estimate_profile(own, mean_force=forces, earlier=earlier).A1_minus_A0
        deviations.append((found.value - DIFFERENCE) / found.error)
        gains.append(alone.error / found.error)
        plain = [freeenergy.bin_samples(GRID, LAST.along(*p), LAST.mean_force(*p)) for p in parts]
        wrong = Earlier(plain, [BLOCKS], 1)
        other = freeenergy.estimate_profile(own, mean_force=forces, earlier=wrong).barrier
        right = freeenergy.estimate_profile(own, mean_force=forces, earlier=earlier).barrier
        naive.append((other.value - right.value) / other.error)
    low, high = chi2.ppf([0.0005, 0.9995], 12) / 12
    assert low < np.mean(np.square(deviations)) < high
    assert abs(np.mean(deviations)) < 4 / 12**0.5
    assert np.median(gains) > 1.6
    assert abs(np.mean(naive)) > 10 / 12**0.5


def test_sums_are_those_of_the_mean_force() -> None:
    parts = sampled(np.random.default_rng(1), EARLIER, 100)
    earlier = reweighted(parts)
    numbers, forces = np.sum(earlier.sums, axis=0)
    assert (np.array(earlier.sums)[:, 0] >= 0).all()
    used = numbers > 0
    # A bin's effective number never exceeds its number.
    xi = np.concatenate([LAST.along(*part) for part in parts])
    assert (numbers <= freeenergy.bin_samples(GRID, xi)[0] * (1 + 1e-9)).all()
    error = 0.5 / numbers[used] ** 0.5
    exact = slope(GRID.nodes[used])
    assert np.mean((forces[used] / numbers[used] - exact) ** 2 / error**2) < 2.0


def test_where_a_few_snapshots_would_count_for_all_nothing_is_taken() -> None:
    """CVs at 31 degrees: weights differ by e^3 on the slopes, and little at the maximum."""
    far = Plane(0.6)
    rng = np.random.default_rng(2)
    parts = sampled(rng, far, 200)
    snapshots = [Snapshots(far.along(*p), LAST.along(*p), LAST.mean_force(*p)) for p in parts]
    earlier = pooling.reweight(GRID, *sums_along(far, parts), snapshots)
    numbers, forces = np.sum(earlier.sums, axis=0)
    used = numbers > 0
    assert not used[np.abs(GRID.nodes - 0.25) < 0.06].any()
    assert used[np.abs(GRID.nodes - 0.5) < 0.05].any()
    assert (forces[~used] == 0).all()
    # Where it is taken it is right: chi^2 of the bins, which share the weights' errors.
    error = (0.1 / numbers[used]) ** 0.5
    off = forces[used] / numbers[used] - slope(GRID.nodes[used])
    assert np.mean((off / error) ** 2) < 2.0


def test_nothing_earlier_changes_nothing() -> None:
    own, forces = sums_along(LAST, sampled(np.random.default_rng(3), LAST, 40))
    alone = freeenergy.estimate_profile(own, mean_force=forces)
    nothing = freeenergy.estimate_profile(own, mean_force=forces, earlier=Earlier([], [], 0))
    np.testing.assert_array_equal(alone.A, nothing.A)
    assert alone.barrier == nothing.barrier


def test_a_block_without_snapshots_is_no_obstacle() -> None:
    parts = sampled(np.random.default_rng(3), EARLIER, 100)
    parts[4] = (np.zeros(0), np.zeros(0))
    earlier = reweighted(parts)
    assert len(earlier.sums) == BLOCKS
    assert np.isfinite(earlier.sums).all()
    assert earlier.snapshots == pytest.approx(100 * (BLOCKS - 1), rel=0.1)


def test_files_keep_every_bit_and_say_what_is_wrong(tmp_path: Path) -> None:
    assert earlier_file.read(tmp_path) is None
    sums = list(np.random.default_rng(1).normal(size=(5, 2, 61)))
    earlier_file.write(tmp_path, Earlier(sums, [2, 3], 77), 61)
    found = earlier_file.read(tmp_path)
    assert found is not None
    np.testing.assert_array_equal(found.sums, sums)
    assert (found.walkers, found.snapshots) == ([2, 3], 77)
    file = tmp_path / earlier_file.NAME
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"nothing"):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"earlier.npz: cannot be read .*remove it and run"):
            earlier_file.read(tmp_path)
    earlier_file.write(tmp_path, Earlier([], [], 0), 61)
    assert earlier_file.read(tmp_path) is None
