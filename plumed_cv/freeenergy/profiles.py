"""Free energy profiles and barriers along one CV, with errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from plumed_cv.common.display import axes_or_new, draw_band, table
from plumed_cv.common.errors import UserError
from plumed_cv.freeenergy.basins import SMOOTHING, Basins, find, highest, line
from plumed_cv.freeenergy.estimator import (
    NATURAL,
    UNSAMPLED,
    Grid,
    State,
    check_same_estimator,
    potential_on_line,
    unit_in_words,
)
from plumed_cv.freeenergy.jackknife import jackknife
from plumed_cv.structures.frame import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error in some unit; NaN where unknown."""

    value: float
    error: float
    unit: str = "eV"

    def __repr__(self) -> str:
        return f"Estimate({self})"

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return "unknown"
        # Rates, exp(-energy/kT), may have any magnitude.
        in_steps = self.unit in ("eV", NATURAL, "")
        value = f"{self.value:.3f}" if in_steps else f"{self.value:.2e}"
        error = f"{self.error:.3f}" if in_steps else f"{self.error:.1e}"
        error = error if np.isfinite(self.error) else "unknown"
        return f"{value} ± {error} {unit_in_words(self.unit)}".rstrip()

    def widened(self, factor: float) -> "Estimate":
        """Return the value with its error times a factor."""
        return replace(self, error=self.error * factor)


UNKNOWN = Estimate(np.nan, np.nan)
NOISE = 3.0  # smallest depth of a basin between the states, in errors


@dataclass(frozen=True, eq=False)
class Earlier:
    """Contribution of earlier iterations to the mean force of the atoms: see `pooling`.

    Attributes
    ----------
    sums
        Sums of each of their blocks, (2, n), as from `binned` for snapshots of the last iteration.
    walkers
        Number of blocks of each of their walkers.
    snapshots
        Number of snapshots that count.
    """

    sums: list[Array]
    walkers: list[int]
    snapshots: int

    def __add__(self, other: "Earlier") -> "Earlier":
        """Return the contributions of both."""
        return Earlier(
            [*self.sums, *other.sums],
            [*self.walkers, *other.walkers],
            self.snapshots + other.snapshots,
        )


@dataclass(frozen=True, eq=False)
class Profile:
    """Free energy along the CV, zero at the lowest node of the reactant's basin.

    Energies are in eV, or in natural units if `energy_unit` is "natural".

    Attributes
    ----------
    argument
        Name of the CV.
    grid
        The nodes.
    kT_eV
        Temperature, eV.
    states
        The CV in the reactant and in the product.
    A_k, A_k_error
        Profile smoothed by the spring (Eqs. 7, 8) and its standard error, (n,), eV.
    A, A_error
        Profile corrected for the finite spring constant, (n,), eV; NaN in bins without samples.
    count
        Weight of the samples in the bin around each node, (n,).
    barrier
        Highest A between the states minus the lowest A in the basin of the reactant, eV; NaN if one
        of the states was not reached. It depends on the scale of the CV: see `Flux`.
    delta_F
        -kT ln( P_product / P_reactant ), eV, with the populations of the two basins: the integrals
        of exp(-A/kT) up to the dividing surfaces. Also NaN if the profile rises by less than 2 kT
        before it ends in one of the basins, because part of the basin may be missing.
    A1_minus_A0
        A at the CV of the product minus A at the CV of the reactant, eV. It depends on the scale of
        the CV. In a symmetric process along a symmetric CV it is zero.
    energy_unit
        That of the states: "eV", or "natural" for runs with PLUMED's UNITS NATURAL.

    Notes
    -----
    For a histogram, barrier and A1_minus_A0 come from a local cubic fit to A, because the highest
    of many noisy bins is too high. The fit rounds off features sharper than its window. The
    integral of the mean force has hardly any noise between bins and is used directly, as are
    populations.
    """

    argument: str
    grid: Grid
    kT_eV: float
    states: tuple[float, float]
    A_k: Array
    A: Array
    A_k_error: Array
    A_error: Array
    count: Array
    barrier: Estimate
    delta_F: Estimate
    A1_minus_A0: Estimate
    energy_unit: str = "eV"

    def __repr__(self) -> str:
        return (
            f"Profile({self.argument} from {self.grid.minimum:g} to {self.grid.maximum:g}, "
            f"{len(self.xi)} nodes, kT = {self.kT_eV:.4f} {unit_in_words(self.energy_unit)}: "
            f"barrier {self.barrier}, "
            f"delta F {self.delta_F})"
        )

    @property
    def xi(self) -> Array:
        """The nodes, (n,)."""
        return self.grid.nodes

    def widened(self, factor: float) -> "Profile":
        """Return the profile with all errors times a factor."""
        return replace(
            self,
            A_k_error=self.A_k_error * factor,
            A_error=self.A_error * factor,
            barrier=self.barrier.widened(factor),
            delta_F=self.delta_F.widened(factor),
            A1_minus_A0=self.A1_minus_A0.widened(factor),
        )

    def plot(self, ax: "Axes | None" = None, **style: Any) -> "Axes":
        """Draw A with a band of one standard error.

        Parameters
        ----------
        ax
            Axes of matplotlib to draw on; those of a new figure if None.
        style
            As for `Axes.plot`: colour, label, ...

        Returns
        -------
        Axes
            With axis labels and units.
        """
        ax = axes_or_new(ax)
        draw_band(ax, self.xi, self.A, self.A_error, **style)
        ax.set_xlabel("collective variable ξ")
        ax.set_ylabel(f"free energy ({unit_in_words(self.energy_unit)})")
        return ax

    def to_dataframe(self) -> "DataFrame":
        """Return the nodes as a pandas table: A_eV, A_error_eV, A_k_eV, A_k_error_eV, count.

        The index is the CV. In natural units the columns are A_natural, ...

        Raises
        ------
        UserError
            If pandas is not installed.
        """
        columns = {
            self.argument: self.xi,
            f"A_{self.energy_unit}": self.A,
            f"A_error_{self.energy_unit}": self.A_error,
            f"A_k_{self.energy_unit}": self.A_k,
            f"A_k_error_{self.energy_unit}": self.A_k_error,
            "count": self.count,
        }
        return table(columns, index=self.argument)


def estimate_profile(
    blocks: Sequence[State],
    states: tuple[float, float] = (0.0, 1.0),
    mean_force: Sequence[Array] | None = None,
    *,
    walkers: Sequence[int] | None = None,
    basins: Basins | None = None,
    earlier: Earlier | None = None,
) -> Profile:
    """Return the free energy profile and its errors.

    Parameters
    ----------
    blocks
        Parts of the data in the order of time: differences of successive states of one run, or
        states of independent walkers, or both one after the other. One block gives no errors.
    states
        The CV in the reactant and in the product.
    mean_force
        For every block the result of `binned` for its snapshots, (2, n). A is then the integral of
        the mean force of the atoms, whose error is smaller than that of bABF's sums.
    walkers
        Number of blocks of each walker, one walker after the other. Blocks of different walkers are
        independent. By default all blocks belong to one run.
    basins
        Basins of `Flux`; by default they are determined from A.
    earlier
        Sums of earlier iterations for the mean force; they need `mean_force`.

    Returns
    -------
    Profile
        With the errors of `jackknife`. They are NaN if all samples of a bin come from one block.
        Those of differences between the states are also NaN if only one block reached a state.

    Raises
    ------
    UserError
        If there is no block, or blocks or `mean_force` belong to different estimators.
    """
    check_blocks(blocks)
    total = total_of(blocks)
    grid, kT, n = total.grid, total.kT_eV, len(total.grid.nodes)
    parts, weights, walkers = parts_of_data(blocks, mean_force, walkers, earlier)

    def smooth_of(A: Array) -> Array:
        return smoothed(grid, A, states) if mean_force is None else A

    def depths_of(some: Basins, sums: Array) -> Array:
        return some.depths(smooth_of(profiles_of(total, sums)[1])[some.along.order])

    of_all = profiles_of(total, np.sum(parts, axis=0))[1]
    if basins is None:
        W = smooth_of(of_all)
        basins = find(grid, W, states, kT)
        if basins is not None:
            basins = significant(basins, W, parts, weights, depths_of, walkers)
    origin = _origin(grid, of_all, states, basins)

    def estimate(sums: Array) -> Array:
        A_k, A = profiles_of(total, sums)
        smooth = smooth_of(A)
        summary = [
            *barrier_and_delta_F(A, smooth, basins, kT),
            difference_of(grid, smooth, states),
        ]
        tops = np.zeros(0) if basins is None else _tops(smooth, basins)
        return np.concatenate([A_k - A_k[origin], A - A[origin], summary, tops])

    value, error = jackknife(parts, weights, estimate, walkers)
    end = 2 * n + 3
    barrier, delta_F, difference = (
        Estimate(float(value[k]), float(error[k]), total.energy_unit) for k in range(2 * n, end)
    )
    barrier = highest_of(barrier, value[end:], error[end:])
    return Profile(
        argument=total.argument,
        grid=grid,
        kT_eV=kT,
        states=states,
        A_k=value[:n],
        A=value[n : 2 * n],
        A_k_error=error[:n],
        A_error=error[n : 2 * n],
        count=total.sums[2],
        barrier=barrier,
        delta_F=delta_F,
        A1_minus_A0=difference,
        energy_unit=total.energy_unit,
    )


def reweighted_profile(
    grid: Grid,
    kT_eV: float,
    xi_series: Sequence[ArrayLike],
    bias_series_eV: Sequence[ArrayLike],
    *,
    walkers: Sequence[int] | None = None,
) -> tuple[Array, Array]:
    """Return the free energy of a run with a constant bias, weighted by exp(bias/kT), and errors.

    Parameters
    ----------
    grid
        The nodes, each with a bin around it.
    kT_eV
        Temperature, eV.
    xi_series, bias_series_eV
        For every block of the run, in the order of time, its series of xi and of the bias, eV.
    walkers
        As for `estimate_profile`.

    Returns
    -------
    (n,), (n,)
        The profile, eV, zero on average over the visited bins and NaN elsewhere, and its errors.
    """
    top = max(float(np.max(np.asarray(bias))) for bias in bias_series_eV)
    histograms = [
        binned(grid, xi, np.exp((np.asarray(bias, dtype=float) - top) / kT_eV))[1]
        for xi, bias in zip(xi_series, bias_series_eV, strict=True)
    ]

    def estimate(histogram: Array) -> Array:
        with np.errstate(divide="ignore"):
            A = -kT_eV * np.log(histogram)
        A[np.isinf(A)] = np.nan
        return np.asarray(A - np.nanmean(A))

    return jackknife(histograms, [len(np.asarray(xi)) for xi in xi_series], estimate, walkers)


def profiles_without_each(
    blocks: Sequence[State], mean_force: Sequence[Array]
) -> tuple[Array, list[Array]]:
    """Return A of the mean force from all blocks, (n,), and without each, eV, up to constants.

    Parameters
    ----------
    blocks, mean_force
        As for `estimate_profile`.
    """
    parts, _, _ = parts_of_data(blocks, mean_force, None, None)
    total = total_of(blocks)
    rests = [
        np.sum([part for k, part in enumerate(parts) if k != without], axis=0)
        for without in range(len(parts))
    ]
    return profiles_of(total, np.sum(parts, axis=0))[1], [profiles_of(total, r)[1] for r in rests]


def parts_of_data(
    blocks: Sequence[State],
    mean_force: Sequence[Array] | None,
    walkers: Sequence[int] | None,
    earlier: Earlier | None,
) -> tuple[list[Array], list[float], list[int]]:
    """Return parts of the data for `profiles_of`, their weights, and those of each series.

    The sums of every block, (4, n), and below them, if given, its mean force, (6, n). Snapshots
    have the mean weight of the samples of their block, so that a jackknife estimate omits the same
    share of both. Parts of earlier iterations have only the mean force.
    """
    series = [len(blocks)] if walkers is None else list(walkers)
    weights = weights_of(blocks)
    if mean_force is None:
        return [block.sums for block in blocks], weights, series
    shape = (2, len(blocks[0].grid.nodes))
    if len(mean_force) != len(blocks) or any(part.shape != shape for part in mean_force):
        raise UserError(
            f"{len(blocks)} blocks need as many sums of the mean force, each of shape {shape}: "
            "those of freeenergy.binned on their grid"
        )
    parts = [
        np.concatenate([block.sums, part * (block.sums[2].sum() / max(1, block.steps))])
        for block, part in zip(blocks, mean_force, strict=True)
    ]
    if earlier is not None and earlier.sums:
        own = sum(float(part[4].sum()) for part in parts)
        of_snapshot = sum(weights) / own if own > 0 else 1.0
        weights += [of_snapshot * float(part[0].sum()) for part in earlier.sums]
        parts += [np.concatenate([np.zeros_like(blocks[0].sums), part]) for part in earlier.sums]
        series += earlier.walkers
    return parts, weights, series


def profiles_of(state: State, sums: Array) -> tuple[Array, Array]:
    """Return A_k and the corrected A, (n,) each, eV, up to constants.

    A_k is Eq. 7 without the prior if the bin of a node contains samples, and with the prior
    otherwise: P_j is never zero, but a mean over the tails of other bins has no meaning. A comes
    from -kT d ln rho/d xi + k (<z> - xi) between neighbouring bins, or from the mean force of the
    atoms if `sums` contains it. The mean force is interpolated in bins that were visited only
    between snapshots. A is NaN in bins that were never visited. Each connected range of visited
    bins is computed separately, and A_k gives its height relative to the others: the mean of A over
    its samples is that of A_k. The error of closure around a circle is noise. It is distributed
    where the uncertainty is largest, according to the errors of the steps: in A_k to nodes without
    samples, in A only if all bins were visited.

    Parameters
    ----------
    state
        Grid, temperature, spring and prior.
    sums
        Sums from `parts_of_data`, (4, n) or (6, n).
    """
    grid, kT = state.grid, state.kT_eV
    weight, force, count, offset, *atoms = sums
    n = len(grid.nodes)
    visited = count > 0
    derivative = state.prior.copy()
    weighed = visited & (weight > 0)  # a ramp begins with zero weight
    derivative[weighed] = force[weighed] / weight[weighed]
    least = UNSAMPLED * weight[weighed].mean() if weighed.any() else 1.0
    trust = np.where(weighed, np.maximum(weight, least), least)
    A_k, _ = potential_on_line(
        grid,
        0.5 * grid.spacing * (derivative + np.roll(derivative, -1)),
        trust * np.roll(trust, -1) / (trust + np.roll(trust, -1)),
    )
    if not visited.any() or (atoms and not atoms[0].any()):
        return A_k, np.full(n, np.nan)
    if atoms:
        seen = atoms[0] > 0
        period = grid.maximum - grid.minimum if grid.periodic else None
        means = atoms[1][seen] / atoms[0][seen]
        mean_force = np.interp(grid.nodes, grid.nodes[seen], means, period=period)
        of_histogram = np.zeros(n)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            mean_force = state.kappa_eV * offset / count
            of_histogram = -kT * np.log(np.roll(count, -1) / count)
    steps = of_histogram + 0.5 * grid.spacing * (mean_force + np.roll(mean_force, -1))
    both = visited & np.roll(visited, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(both, count * np.roll(count, -1) / (count + np.roll(count, -1)), 0.0)
    A, part = potential_on_line(grid, np.where(both, steps, 0.0), weights)
    samples = np.bincount(part, count)
    with np.errstate(invalid="ignore"):
        above = np.bincount(part, count * (A_k - A)) / samples
    return A_k, np.where(visited, A + above[part], np.nan)


def barrier_and_delta_F(  # noqa: N802
    A: Array, smooth: Array, basins: Basins | None, kT: float
) -> tuple[float, float]:
    """Return `Profile.barrier` and `Profile.delta_F`, eV, for one estimate of the profile.

    Parameters
    ----------
    A, smooth
        The profile without and with smoothing, (n,), eV, NaN where unknown.
    basins
        Basins of all data; a part may have seen less of them.
    kT
        Temperature, eV.
    """
    if basins is None:
        return np.nan, np.nan
    along = basins.along
    A, smooth = A[along.order], smooth[along.order]
    barrier = delta_F = np.nan
    ends = (basins.minima[0], basins.minima[-1])
    if top_is_known(smooth, basins, ends, (0.0, along.length), kT):
        between = (along.position >= 0.0) & (along.position <= along.length)
        bottom = -highest(-smooth[basins.first : basins.surfaces[0] + 1])
        barrier = highest(smooth[between]) - bottom
    if all(basins.whole) and along.reaches(np.isfinite(A), 0.0, along.length):
        populations = basins.populations(A, kT)
        if populations[0] > 0 and populations[-1] > 0:
            delta_F = float(-kT * np.log(populations[-1] / populations[0]))
    return barrier, delta_F


def _tops(smooth: Array, basins: Basins) -> Array:
    """Return the highest A between successive basins over the lowest in the reactant's, (b - 1,).

    Parameters
    ----------
    smooth
        The profile without noise, (n,), eV, NaN where unknown.
    basins
        Those of all data.
    """
    along = smooth[basins.along.order]
    bottom = -highest(-along[basins.first : basins.surfaces[0] + 1])
    tops = [highest(along[low : high + 1]) for low, high in pairwise(basins.minima)]
    return np.array(tops) - bottom


def highest_of(found: Estimate, values: Array, errors: Array) -> Estimate:
    """Return the highest of several barriers with its error.

    Which one is the highest is itself uncertain: another one may be, within its error. So the error
    is the root mean square distance, from the value found, of the highest of independent normally
    distributed numbers with these values and errors. Of a single barrier nothing changes.

    Parameters
    ----------
    found
        The highest, with the jackknife's error, which knows of the others only what they have been
        in this run.
    values, errors
        Of each barrier, (b - 1,), eV.
    """
    if len(values) < 2 or not np.isfinite([values, errors]).all() or not (errors > 0).all():
        return found
    ends = np.min(values - 8 * errors), np.max(values + 8 * errors)
    x = np.unique(
        np.concatenate(
            [
                np.linspace(*ends, 2001),
                *np.linspace(values - 8 * errors, values + 8 * errors, 401).T,
            ]
        )
    )
    below = np.prod(ndtr((x[:, None] - values) / errors), axis=1)
    middle = 0.5 * (x[1:] + x[:-1])
    square = float(np.sum((middle - found.value) ** 2 * np.diff(below)))
    return replace(found, error=square**0.5)


def difference_of(grid: Grid, A: Array, states: tuple[float, float]) -> float:
    """Return A at the CV of the product minus A at the CV of the reactant."""
    period = grid.maximum - grid.minimum if grid.periodic else None
    reactant, product = np.interp(states, grid.nodes, A, left=np.nan, right=np.nan, period=period)
    return float(product - reactant)


def top_is_known(
    W: Array, basins: Basins, ends: tuple[int, int], places: tuple[float, float], kT: float
) -> bool:
    """Whether a part of the data has sampled the top between two basins.

    It must have reached both basins, or the profile must fall by kT behind the top. If all data
    together have reached the product, a part need not have reached it.

    Parameters
    ----------
    W
        The profile of the part along the line, (n,), eV; NaN where unknown.
    basins
        Basins of all data.
    ends
        The nodes along the line between which the top is.
    places
        Positions that were to be reached.
    kT
        Temperature, eV.
    """
    known = np.isfinite(W)
    if basins.along.reaches(known, *places):
        return True
    span = W[ends[0] : ends[1] + 1]
    if not (basins.along.reaches(known, places[0], -np.inf) and np.isfinite(span).any()):
        return False
    top = int(np.nanargmax(span))
    return bool(span[top] - np.nanmin(span[top:]) >= kT)


def significant(
    basins: Basins,
    W: Array,
    parts: Sequence[Array],
    weights: Sequence[float],
    depths: Callable[[Basins, Array], Array],
    walkers: Sequence[int] | None,
) -> Basins:
    """Return the basins without basins between the states that may be noise.

    The remaining ones are deeper than 2 kT in all data, also by three of their errors.
    """
    W = W[basins.along.order]
    while len(basins.minima) > 2:
        depth, error = jackknife(parts, weights, partial(depths, basins), walkers)
        doubtful = np.flatnonzero(depth < NOISE * error)
        if not len(doubtful):
            break
        basins = basins.without(1 + int(doubtful[np.argmin(depth[doubtful])]), W)
    return basins


def _origin(grid: Grid, A: Array, states: tuple[float, float], basins: Basins | None) -> int:
    """Return the zero of profiles: the lowest known node of the reactant's basin."""
    along = line(grid, A, states) if basins is None else basins.along
    A = A[along.order]
    if not np.isfinite(A).any():
        return 0
    if basins is None:
        between = (along.position >= 0.0) & (along.position <= along.length) & np.isfinite(A)
        top = int(np.argmax(np.where(between, A, -np.inf))) if between.any() else len(A) - 1
        side = A[: top + 1]
    else:
        side = A[: basins.surfaces[0] + 1].copy()
        side[: basins.first] = np.nan
    lowest = np.nanargmin(side) if np.isfinite(side).any() else np.nanargmin(A)
    return int(along.order[lowest])


def smoothed(
    grid: Grid, A: Array, states: tuple[float, float], places: Array | None = None
) -> Array:
    """Return a local cubic fit to the nodes where A is known, (n,); NaN where it is not.

    Parameters
    ----------
    grid
        The nodes.
    A
        The profile, (n,).
    states
        The CV in the reactant and in the product. Half a window is `SMOOTHING` of their distance.
    places
        Positions of the nodes in any coordinate that increases with the CV, (n,) or, on a circle,
        (n + 1,), where the last one is the first after a turn. The CV itself by default.
    """
    n = len(A)
    even = grid.minimum + grid.spacing * np.arange(n + grid.periodic)
    at = even if places is None else places
    width = SMOOTHING * abs(float(np.diff(np.interp(states, even, at))[0]))
    known = np.isfinite(A)
    smooth = np.full_like(A, np.nan)
    turn = float(at[-1] - at[0]) if grid.periodic else 0.0
    smooth[known] = _smoother(at[:n][known].tobytes(), width, turn) @ A[known]
    return smooth


@lru_cache(maxsize=64)
def _smoother(places: bytes, width: float, turn: float) -> Array:
    """Return the linear map from values to local cubic fits (Savitzky and Golay), (m, m).

    Parameters
    ----------
    places
        Positions of the values, (m,).
    width
        Half of the window.
    turn
        The length of a circle, or 0.
    """
    at = np.frombuffer(places)
    matrix = np.eye(len(at))
    for row, place in enumerate(at):
        offset = at - place
        if turn:
            offset -= turn * np.round(offset / turn)
        near = np.flatnonzero(np.abs(offset) <= width * (1 + 1e-9))
        if len(near) > 4:  # four or fewer leave the value unchanged
            cubic = np.vander(offset[near] / width, 4, increasing=True)
            matrix[row] = 0.0
            matrix[row, near] = np.linalg.pinv(cubic)[0]
    return matrix


def binned(grid: Grid, xi: ArrayLike, *values: Array) -> Array:
    """Return (1 + v, n): the number of samples in the bin of each node, and sums of `values`.

    Such sums of several runs can be added. With the `values` of `meanforce.instantaneous` they are
    the mean force for `estimate_profile` and `estimate_flux`, one for each block.
    """
    j = grid.bin(np.asarray(xi, dtype=float))
    inside = j >= 0
    n = len(grid.nodes)
    number = np.bincount(j[inside], minlength=n)
    sums = [np.bincount(j[inside], value[inside], minlength=n) for value in values]
    return np.array([number, *sums])


def weights_of(blocks: Sequence[State]) -> list[float]:
    """Return the weight of the samples of each block."""
    return [float(block.sums[0].sum()) for block in blocks]


def total_of(blocks: Sequence[State]) -> State:
    """Return the state of all blocks together."""
    sums = np.sum([block.sums for block in blocks], axis=0)
    return replace(blocks[0], steps=sum(block.steps for block in blocks), sums=sums)


def check_blocks(blocks: Sequence[State]) -> None:
    """Refuse an empty list of blocks, and blocks of different estimators.

    Raises
    ------
    UserError
        If there is no block, or as for `check_same_estimator`.
    """
    if not blocks:
        raise UserError("a profile needs at least one state or block of a run")
    for one, other in pairwise(blocks):
        check_same_estimator(one, other)
