"""Snapshots of earlier iterations in the mean force along the last collective variable.

Snapshots that were sampled with a bias along another variable, xi', are not in equilibrium at fixed
xi: what the bias favours comes too often. A weight puts that right,

    w = exp(-A'(xi')/kT) / rho(xi') ,

with the free energy A' along xi' and the density rho of the snapshots. It is exp(+bias/kT) of a
bias at rest. Of a bias that changed in time it is that of all of it together, and it holds whatever
the bias did, as long as all other coordinates were in equilibrium at fixed xi': what the mean force
along xi' takes for granted as well.

Weights differ only as far as the two variables do at fixed xi. Where a few snapshots would count
for all, nothing is taken.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from plumed_cv.freeenergy.estimator import Grid, State
from plumed_cv.freeenergy.profiles import Earlier, profiles_without_each
from plumed_cv.structures.frame import Array

EVEN = 0.5  # least effective number of a bin's snapshots, as a share of their number
FEWEST = 5.0  # and in itself
FEWEST_BLOCKS = 4  # that have snapshots in the bin, for an error


class Snapshots(NamedTuple):
    """Snapshots of a block.

    Attributes
    ----------
    biased
        The variable that they were sampled along, (M,).
    xi
        The variable that the mean force is wanted of, (M,).
    mean_force_eV
        What `meanforce.instantaneous` says of it, (M,).
    """

    biased: Array
    xi: Array
    mean_force_eV: Array


def reweighted(
    grid: Grid,
    blocks: Sequence[State],
    mean_force: Sequence[Array],
    snapshots: Sequence[Snapshots],
    walkers: Sequence[int] | None = None,
) -> Earlier:
    """Return the sums that an earlier iteration adds to the mean force along another variable.

    Parameters
    ----------
    grid
        The nodes along the variable that the mean force is wanted of.
    blocks, mean_force, walkers
        Those of the earlier iteration, as `profile` takes them.
    snapshots
        Of each block.

    Returns
    -------
    Earlier
        With no sums if no bin has snapshots that count.

    Notes
    -----
    In the sums a bin's snapshots together have the effective number (sum w)^2/sum w^2 of samples.
    The weights depend on all blocks, through A' and rho. So a block's part of the sums is what
    they lose without it: the jackknife's error has both contributions. Parts are such that
    they add up, and to first order in what a block changes it does not matter how.
    """
    n = len(grid.nodes)
    biased, xi, force = (np.concatenate(column) for column in zip(*snapshots, strict=True))
    block = np.repeat(np.arange(len(blocks)), [len(part.xi) for part in snapshots])
    # Less while the bias was rough, as in the mean force itself.
    trust = np.array([part.sums[2].sum() / max(1, part.steps) for part in blocks])[block]
    bins = grid.bin(xi)
    usable = (bins >= 0) & (blocks[0].grid.bin(biased) >= 0) & (trust > 0)
    biased, xi, force, trust = (column[usable] for column in (biased, xi, force, trust))
    block, bins = block[usable], bins[usable]

    def sums(*values: Array) -> Array:
        return np.array([np.bincount(bins, value, minlength=n) for value in values])

    A, rests = profiles_without_each(blocks, mean_force)
    weight = _weights(blocks[0], A, biased, trust)
    total, squares = sums(weight, weight**2)
    number, number_squares = sums(trust, trust**2)
    present = np.zeros((len(blocks), n), dtype=bool)
    present[block[weight > 0], bins[weight > 0]] = True
    used = (present.sum(axis=0) >= FEWEST_BLOCKS) & (total**2 >= FEWEST * squares)
    used &= total**2 * number_squares >= EVEN * number**2 * squares
    if not used.any():
        return Earlier([], [], 0)
    scale = _ratio(total, sums(weight**2 / trust)[0]) * used
    weight = weight * scale[bins]
    numbers, forces = sums(weight, weight * force)
    parts = []
    for b, without in enumerate(rests):
        others = np.where(block == b, 0.0, trust)
        other = _weights(blocks[0], without, biased, others)
        mean = _ratio(*sums(other * force, other))
        own = sums(np.where(block == b, weight, 0.0))[0]
        parts.append(np.array([own, forces - mean * (numbers - own)]) * used)
    missing = forces - np.sum([of_force for _, of_force in parts], axis=0)
    for part in parts:
        part[1] += missing * _ratio(part[0], numbers)
    counted = int(np.count_nonzero(weight))
    return Earlier(parts, [len(parts)] if walkers is None else list(walkers), counted)


def _weights(state: State, A: Array, biased: Array, trust: Array) -> Array:
    """Return the weight of each snapshot, (M,), zero where A is not known there.

    Parameters
    ----------
    state
        Gives the grid along the variable of the bias, and the temperature.
    A
        Free energy along it, (n,), eV.
    biased
        Its value in each snapshot, (M,), within the grid.
    trust
        How much each snapshot counts; zero for those that are left out.
    """
    grid = state.grid
    place = grid.bin(biased)
    density = np.bincount(place, trust, minlength=len(grid.nodes))
    known = np.isfinite(A) & (density > 0)
    counts = known[place] & (trust > 0)
    found = np.zeros(len(biased))
    if counts.any():
        period = grid.maximum - grid.minimum if grid.periodic else None
        height = np.interp(biased[counts], grid.nodes[known], A[known], period=period)
        exponent = -height / state.kT_eV - np.log(density[place[counts]])
        found[counts] = trust[counts] * np.exp(exponent - exponent.max())
    return found


def _ratio(one: Array, other: Array) -> Array:
    """Return one over the other, zero where the other is."""
    return np.divide(one, other, out=np.zeros_like(one), where=other > 0)
