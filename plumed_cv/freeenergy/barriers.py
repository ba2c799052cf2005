"""Heights and differences that are read from a profile along one CV."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
from scipy.special import ndtr

from plumed_cv.freeenergy.basins import Basins, highest, order_nodes
from plumed_cv.freeenergy.grids import Grid
from plumed_cv.freeenergy.jackknife import Estimate, jackknife
from plumed_cv.structures.frame import Array

NOISE = 3.0  # smallest depth of a basin between the states, in errors


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


def highest_tops(smooth: Array, basins: Basins) -> Array:
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


def keep_significant(
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


def origin_of(grid: Grid, A: Array, states: tuple[float, float], basins: Basins | None) -> int:
    """Return the zero of profiles: the lowest known node of the reactant's basin."""
    along = order_nodes(grid, A, states) if basins is None else basins.along
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
