"""Free energies of other potentials from the snapshots of a run with one potential.

Snapshots of potential 0 give the difference D(xi) = A_k(xi) - A_0(xi) to another potential k. Its
first estimate is the mean force of the other forces in the same snapshots,

    T(xi) = int < -(f_k - f_0) . w >_xi dxi ,   w = grad xi / |grad xi|^2 .

It neglects that potential k would sample other structures at the same xi. This is an error of the
same order as T itself if the paths of the two potentials differ. The energies E_k - E_0 add what is
missing (Zwanzig, J. Chem. Phys. 22, 1420 (1954)),

    D(xi) = T(xi) - kT ln < exp(-(E_k - E_0 - T(xi))/kT) >_xi ,

which is exact for any function T. With this T the average hardly depends on xi, so that snapshots
within a window of xi can be averaged together. The weights exp(-(E_k - E_0 - T)/kT) must not be
concentrated on a few snapshots: their effective number is (sum w)^2/sum w^2. If it is too small,
the first two cumulants remain, mean - variance/(2 kT), which is exact for Gaussian energies.

A bias along xi does not change averages at one xi, nor does the profile A_0 enter D. Differences
between barriers of two potentials therefore have a much smaller error than the barriers.

K potentials, M snapshots, n nodes; energies in eV.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from plumed_cv.freeenergy.basins import Basins, highest
from plumed_cv.freeenergy.grids import Grid
from plumed_cv.freeenergy.jackknife import Estimate, jackknife
from plumed_cv.freeenergy.sums import steps_of_mean_force
from plumed_cv.structures.frame import Array

WINDOW = 0.05  # standard deviation of the window in xi, relative to the distance of the states
FEWEST = 30.0  # least effective number of snapshots in a window


class Sample(NamedTuple):
    """Snapshots of a block of the run, with energies and forces of every potential.

    Attributes
    ----------
    xi
        The variable, (M,).
    gradnorm
        |grad xi|, (M,), 1/angstrom.
    energy_eV
        Energies, (K, M); the first potential is the one of the run.
    mean_force_eV
        Terms of the mean force from `meanforce.compute_instantaneous`, (K, M).
    weight
        Weight of each snapshot of the block.
    """

    xi: Array
    gradnorm: Array
    energy_eV: Array
    mean_force_eV: Array
    weight: float = 1.0


class Curves(NamedTuple):
    """Curves of the run with its own potential.

    Attributes
    ----------
    grid
        The nodes.
    kT_eV
        Temperature, eV.
    A, F
        Profile, and -kT ln of the flux with |grad xi| through the surface of each node (`Flux.F`),
        (n,), eV, up to constants.
    basins
        Its basins.
    """

    grid: Grid
    kT_eV: float
    A: Array
    F: Array
    basins: Basins


@dataclass(frozen=True, eq=False)
class Difference:
    """One potential minus that of the run.

    Attributes
    ----------
    flux_barrier, delta_F
        Differences of these results, eV.
    along
        D at the nodes, zero at the minimum of the reactant, (n,), eV, and its standard error.
    along_error
        Standard error of `along`.
    """

    flux_barrier: Estimate
    delta_F: Estimate
    along: Array
    along_error: Array


@dataclass(frozen=True, eq=False)
class Member:
    """Differences of one of the other potentials from that of the run.

    Attributes
    ----------
    same_structures
        From T alone: the mean force of its forces in the structures of the run.
    second_order
        From the first two cumulants.
    reweighted
        From D.
    effective
        Least effective number of snapshots in a window between the states.
    share
        The same relative to the number of snapshots in the window.
    """

    same_structures: Difference
    second_order: Difference
    reweighted: Difference
    effective: float
    share: float

    @property
    def overlaps(self) -> bool:
        """Whether the reweighted difference can be trusted."""
        return self.effective >= FEWEST

    @property
    def best(self) -> Difference:
        """The reweighted difference where the overlap allows it, otherwise that of second order."""
        return self.reweighted if self.overlaps else self.second_order


@dataclass(frozen=True, eq=False)
class Committee:
    """Several potentials.

    Attributes
    ----------
    members
        The other potentials, (K - 1).
    spread
        Standard deviation of the flux barriers of all K potentials, with K - 1 in the denominator,
        eV. Its error contains that of the differences, and the spread/sqrt(2 (K - 1)) of a standard
        deviation of K normally distributed numbers.
    along
        The same of the profiles, each zero at the minimum of the reactant, (n,), eV.
    snapshots
        Number of snapshots that count.
    """

    members: tuple[Member, ...]
    spread: Estimate
    along: Array
    snapshots: int


def compare_potentials(
    curves: Curves, samples: Sequence[Sample], walkers: Sequence[int] | None = None
) -> Committee:
    """Return the differences between potentials, with the errors of `jackknife`.

    Parameters
    ----------
    curves
        The profile of the run. Its error is no part of the errors of the differences, because it
        changes them only to second order.
    samples
        Snapshots of each block of the run, in the order of time.
    walkers
        As for `estimate_profile`.
    """
    number, blocks = len(samples[0].energy_eV) - 1, range(len(samples))
    estimators = [Estimator(curves, samples, k) for k in range(1, number + 1)]
    overlaps = [each.overlap() for each in estimators]
    best = [2 if effective >= FEWEST else 1 for effective, _ in overlaps]
    n = len(curves.grid.nodes)

    def estimate(chosen: list[int]) -> Array:
        """The differences of each potential in three ways, (K - 1, 3, 2 + n), and the spread."""
        found = np.array([each.differences(chosen) for each in estimators])
        used = found[np.arange(number), best, 0]
        return np.append(found.ravel(), np.std(np.append(used, 0.0), ddof=1))

    parts = [[k] for k in blocks]
    weights = [part.weight * len(part.xi) for part in samples]
    value, error = jackknife(parts, weights, estimate, walkers)
    shape = (number, 3, 2 + n)
    values, errors = value[:-1].reshape(shape), error[:-1].reshape(shape)

    def difference(k: int, way: int) -> Difference:
        flux_barrier, delta_F = (
            Estimate(float(values[k, way, i]), float(errors[k, way, i])) for i in range(2)
        )
        return Difference(flux_barrier, delta_F, values[k, way, 2:], errors[k, way, 2:])

    spread = float(value[-1])
    of_few = spread / np.sqrt(2 * number)
    curves_of_all = np.concatenate([values[np.arange(number), best, 2:], np.zeros((1, n))])
    members = [
        Member(difference(k, 0), difference(k, 1), difference(k, 2), *overlaps[k])
        for k in range(number)
    ]
    return Committee(
        members=tuple(members),
        spread=Estimate(spread, float(np.hypot(error[-1], of_few))),
        along=np.std(curves_of_all, axis=0, ddof=1),
        snapshots=sum(len(part.xi) for part in samples),
    )


class Estimator:
    """Differences between one potential and that of the run from some blocks."""

    def __init__(
        self, curves: Curves, samples: Sequence[Sample], k: int, window: float = WINDOW
    ) -> None:
        self._curves, grid = curves, curves.grid
        along = curves.basins.along
        self._xi, self._gradnorm = (np.concatenate([part[i] for part in samples]) for i in range(2))
        self._energy, self._force = (
            np.concatenate([values[k] - values[0] for values in column])
            for column in zip(*(part[2:4] for part in samples), strict=True)
        )
        sizes = [len(part.xi) for part in samples]
        self._block = np.repeat(np.arange(len(samples)), sizes)
        self._weight = np.repeat([part.weight for part in samples], sizes)
        offset = (self._xi - grid.nodes[:, None]) / (window * along.length)
        self._window = np.exp(-0.5 * offset**2)  # (n, M)

    def overlap(self, T: Array | None = None) -> tuple[float, float]:
        """Return `Member.effective` and `Member.share`, with another T if one is given."""
        weight = self._window * self._weight
        above = self._energy - self._of_snapshots(self.first_order() if T is None else T)
        factor = np.exp(-(above - above.min()) / self._curves.kT_eV)
        effective, number = _effective(weight * factor), _effective(weight)
        worst = self._fewest(effective)
        return float(effective[worst]), float(effective[worst] / max(1.0, number[worst]))

    def fewest(self) -> float:
        """Return the least effective number of snapshots in a window between the states."""
        number = _effective(self._window * self._weight)
        return float(number[self._fewest(number)])

    def _fewest(self, effective: Array) -> int:
        basins = self._curves.basins
        between = basins.along.order[basins.minima[0] : basins.minima[-1] + 1]
        return int(between[int(np.argmin(effective[between]))])

    def differences(self, blocks: Sequence[int]) -> Array:
        """Return differences of flux barrier and delta F, and the curve, in three ways, (3, 2 + n).

        From T, from two cumulants, and from D.
        """
        return summarise(self._curves, self.along(blocks))

    def along(self, blocks: Sequence[int] | None = None, T: Array | None = None) -> Array:
        """Return what is added to A and to F in three ways, (3, 2, n), eV, up to constants.

        Parameters
        ----------
        blocks
            The blocks that count; all if None.
        T
            The function of the CV about which the energies are averaged; the integral of the mean
            force of the same blocks if None.
        """
        curves, kT = self._curves, self._curves.kT_eV
        weight = self._weight_of(blocks)
        if not weight.any():
            return np.full((3, 2, len(curves.grid.nodes)), np.nan)
        T = self.first_order(blocks) if T is None else T
        used = np.flatnonzero(weight)
        above = (self._energy - self._of_snapshots(T))[used]
        above -= above.min()
        window = self._window[:, used] * weight[used]

        def averages(weights: Array) -> tuple[Array, Array]:
            """Two cumulants, and -kT ln of the exponential average, (n,) each."""
            total = weights.sum(axis=1)
            mean = weights @ above / total
            variance = weights @ above**2 / total - mean**2
            variance /= 1.0 - (weights**2).sum(axis=1) / total**2  # of few snapshots
            return mean - variance / (2 * kT), -kT * np.log(weights @ np.exp(-above / kT) / total)

        with np.errstate(divide="ignore", invalid="ignore"):
            of_A, of_F = averages(window), averages(window * self._gradnorm[used])
        ways = [(T, T), *((T + a, T + f) for a, f in zip(of_A, of_F, strict=True))]
        return np.asarray(ways)

    def _weight_of(self, blocks: Sequence[int] | None) -> Array:
        return self._weight if blocks is None else self._weight * np.isin(self._block, blocks)

    def _of_snapshots(self, T: Array) -> Array:
        return np.asarray(np.interp(self._xi, self._curves.grid.nodes, T))

    def first_order(self, blocks: Sequence[int] | None = None) -> Array:
        """Return T at the nodes, (n,), eV, up to a constant."""
        weight = self._weight_of(blocks)
        grid = self._curves.grid
        bins = grid.bin(self._xi)
        counts = (bins >= 0) & (weight > 0)
        n = len(grid.nodes)
        number, force = (
            np.asarray(np.bincount(bins[counts], values[counts], n), dtype=float)
            for values in (weight, weight * self._force)
        )
        steps, _ = steps_of_mean_force(grid, number, force)
        return np.asarray(np.concatenate([[0.0], np.cumsum(steps[:-1])]))


def _effective(weights: Array) -> Array:
    """Return (sum w)^2/sum w^2 of each row, (n,); zero in a window without snapshots."""
    with np.errstate(invalid="ignore"):
        found = weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1)
    return np.asarray(np.nan_to_num(found))


def summarise(curves: Curves, ways: Array) -> Array:
    """Return differences of flux barrier and delta F, and D from the reactant on, eV.

    Parameters
    ----------
    curves
        The profile of the run.
    ways
        D, and the same of F, found in several ways, (w, 2, n), eV.

    Returns
    -------
    (w, 2 + n)
    """
    start = _summary(curves, curves.A, curves.F)
    zero = curves.basins.along.order[curves.basins.minima[0]]
    return np.array(
        [
            np.append(_summary(curves, curves.A + D, curves.F + W) - start, D - D[zero])
            for D, W in ways
        ]
    )


def _summary(curves: Curves, A: Array, F: Array) -> Array:
    """Return flux barrier and delta F, eV, of a profile with the basins of the run."""
    basins, kT = curves.basins, curves.kT_eV
    order = basins.along.order
    populations = basins.populations(A[order], kT)
    top = highest(F[order][basins.minima[0] : basins.minima[-1] + 1])
    delta = -kT * np.log(populations[-1] / populations[0]) if all(basins.whole) else np.nan
    return np.array([top + kT * np.log(populations[0]), delta])
