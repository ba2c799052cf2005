"""Sums over the samples of runs, and the profiles along one CV that follow from them.

The sums of a block of a run are those of its state and, if it is known, those of the mean force of
the atoms in its snapshots. They are added and left out as a whole: see `jackknife`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.freeenergy.basins import SMOOTHING
from plumed_cv.freeenergy.estimator import UNSAMPLED, State, check_same_estimator
from plumed_cv.freeenergy.grids import Grid, integrate_steps_on_line
from plumed_cv.structures.frame import Array

BRIDGED = 2  # bins without samples, of 0.01 by default; the mean force does not change much there


@dataclass(frozen=True, eq=False)
class Earlier:
    """Contribution of earlier iterations to the mean force of the atoms: see `pooling`.

    Attributes
    ----------
    sums
        Sums of each of their blocks, (2, n), as from `bin_samples` for snapshots of the last
        iteration.
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
            "those of freeenergy.bin_samples on their grid"
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
    atoms if `sums` contains it. The mean force of the atoms is interpolated in bins without
    snapshots, also across up to `BRIDGED` bins that were never visited. A is NaN in bins that were
    never visited. Each connected range of visited bins is computed separately, and A_k gives its
    height relative to the others: the mean of A over its samples is that of A_k. The error of
    closure around a circle is noise. It is distributed where the uncertainty is largest, according
    to the errors of the steps: in A_k to nodes without samples, in A only if all bins were visited.

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
    A_k, _ = integrate_steps_on_line(
        grid,
        0.5 * grid.spacing * (derivative + np.roll(derivative, -1)),
        trust * np.roll(trust, -1) / (trust + np.roll(trust, -1)),
    )
    if not visited.any() or (atoms and not atoms[0].any()):
        return A_k, np.full(n, np.nan)
    if atoms:
        steps, known = steps_of_mean_force(grid, atoms[0], atoms[1], visited)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            mean_force = state.kappa_eV * offset / count
            of_histogram = -kT * np.log(np.roll(count, -1) / count)
        steps = of_histogram + 0.5 * grid.spacing * (mean_force + np.roll(mean_force, -1))
        known = visited
    both = known & np.roll(known, -1)
    number = np.maximum(count, UNSAMPLED * count[visited].mean()) if atoms else count
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(both, number * np.roll(number, -1) / (number + np.roll(number, -1)), 0.0)
    A, part = integrate_steps_on_line(grid, np.where(both, steps, 0.0), weights)
    samples = np.bincount(part, count)
    with np.errstate(invalid="ignore"):
        above = np.bincount(part, count * (A_k - A)) / samples
    return A_k, np.where(visited, A + above[part], np.nan)


def steps_of_mean_force(
    grid: Grid, number: Array, force: Array, visited: NDArray[np.bool_] | None = None
) -> tuple[Array, NDArray[np.bool_]]:
    """Return the integral of a mean force from each node to the next, and which nodes are known.

    Parameters
    ----------
    grid
        The nodes.
    number, force
        Number of samples in the bin of each node, and the sum of their mean forces, (n,), as from
        `bin_samples`. There is one sample at least.
    visited
        Bins in which the mean force is interpolated although they contain no samples, (n,).

    Returns
    -------
    (n,), (n,)
        The steps, eV, of which the last one belongs to a circle; and whether a node has samples,
        was visited, or is in a short gap between such nodes.
    """
    seen = number > 0
    period = grid.maximum - grid.minimum if grid.periodic else None
    means = force[seen] / number[seen]
    mean_force = np.interp(grid.nodes, grid.nodes[seen], means, period=period)
    known = _bridged(seen if visited is None else visited | seen, grid.periodic)
    steps = 0.5 * grid.spacing * (mean_force + np.roll(mean_force, -1))
    return steps - _curvature_of_steps(grid, mean_force, known), known


def _curvature_of_steps(grid: Grid, mean_force: Array, known: NDArray[np.bool_]) -> Array:
    """Return what the trapezoidal rule adds to each step of A, (n,), eV.

    The mean force f of a bin is an average over the bin, f + h^2 f''/24, and the trapezoidal rule
    between the midpoints has the error h^3 f''/12: together h^3 f''/8. Where one of the four bins
    around a step is unknown, f'' is too, and the result is 0.
    """
    before, after, last = np.roll(mean_force, 1), np.roll(mean_force, -1), np.roll(mean_force, -2)
    all_known = known & np.roll(known, 1) & np.roll(known, -1) & np.roll(known, -2)
    if not grid.periodic:
        all_known[[0, -2, -1]] = False
    second = (last - after - mean_force + before) / 2.0  # h^2 f''
    return np.where(all_known, 0.125 * grid.spacing * second, 0.0)


def _bridged(known: NDArray[np.bool_], periodic: bool) -> NDArray[np.bool_]:
    """Add the bins of short gaps between known ones, (n,)."""
    at, n = np.flatnonzero(known), len(known)
    ends = list(pairwise(at))
    if periodic and len(at):
        ends.append((at[-1], at[0] + n))
    filled = known.copy()
    for one, other in ends:
        if other - one <= BRIDGED + 1:
            filled[np.arange(one, other) % n] = True
    return filled


def smooth_profile(
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


def bin_samples(grid: Grid, xi: ArrayLike, *values: Array) -> Array:
    """Return (1 + v, n): the number of samples in the bin of each node, and sums of `values`.

    Such sums of several runs can be added. With the `values` of `meanforce.compute_instantaneous`
    they are the mean force for `estimate_profile` and `estimate_flux`, one for each block.
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
        If there is no block, or if `check_same_estimator` refuses them.
    """
    if not blocks:
        raise UserError("a profile needs at least one state or block of a run")
    for one, other in pairwise(blocks):
        check_same_estimator(one, other)
