"""Snapshots of earlier iterations in the mean force along the last collective variable.

Snapshots that were sampled with a bias along another variable, xi', are not in equilibrium at fixed
xi, because the bias favours some of them. A weight corrects for this,

    w = exp(-A'(xi')/kT) / rho(xi') ,

with the free energy A' along xi' and the density rho of the snapshots. For a constant bias it is
exp(+bias/kT). For a bias that changed in time it is that of the whole run. It is valid for any bias
as long as all other coordinates were in equilibrium at fixed xi', which the mean force along xi'
assumes as well.

Weights differ only as far as the two variables differ at fixed xi. If a few snapshots would
dominate a bin, the bin is not used.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from plumed_cv.freeenergy.estimator import State
from plumed_cv.freeenergy.grids import Grid
from plumed_cv.freeenergy.sums import Earlier, profiles_without_each
from plumed_cv.structures.frame import Array

EVEN = 0.5  # least effective number of snapshots in a bin, relative to their number
FEWEST = 5.0  # least effective number of snapshots in a bin
FEWEST_BLOCKS = 4  # least number of blocks with snapshots in the bin, for an error


class Snapshots(NamedTuple):
    """Snapshots of a block.

    Attributes
    ----------
    biased
        The variable along which they were sampled, (M,).
    xi
        The variable of the mean force, (M,).
    mean_force_eV
        The term of the mean force from `meanforce.compute_instantaneous`, (M,).
    """

    biased: Array
    xi: Array
    mean_force_eV: Array


def reweight(
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
        The nodes along the variable of the mean force.
    blocks, mean_force, walkers
        Those of the earlier iteration, as for `estimate_profile`.
    snapshots
        Snapshots of each block.

    Returns
    -------
    Earlier
        Without sums if no bin has snapshots that count.

    Notes
    -----
    In the sums, the snapshots of a bin count as (sum w)^2/sum w^2 samples. The weights depend on
    all blocks, through A' and rho. The part of a block is therefore the change of the sums without
    it, and the error of the jackknife includes both contributions. The parts add up to the sums. To
    first order in the change by a block, the way of dividing does not matter.
    """
    n = len(grid.nodes)
    biased, xi, force = (np.concatenate(column) for column in zip(*snapshots, strict=True))
    block = np.repeat(np.arange(len(blocks)), [len(part.xi) for part in snapshots])
    # Samples count less while the bias was rough, as in the mean force itself.
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
    """Return the weight of each snapshot, (M,), zero where A is unknown.

    Parameters
    ----------
    state
        It gives the grid along the variable of the bias, and the temperature.
    A
        Free energy along it, (n,), eV.
    biased
        Its value in each snapshot, (M,), within the grid.
    trust
        Weight of each snapshot; zero for those that are omitted.
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
    """Return the ratio of two arrays, zero where the denominator is zero."""
    return np.divide(one, other, out=np.zeros_like(one), where=other > 0)
