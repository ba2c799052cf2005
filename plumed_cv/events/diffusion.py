"""Diffusion coefficients of a random walk on a network of sites, without a simulation.

A defect that jumps from site i with the rates k_ij and has the populations p_i moves, at long
times, with the tensor

    D = 1/2 sum_ij p_i k_ij (x_ij + g_j - g_i) (x_ij + g_j - g_i)^T ,

in which x_ij is the vector of the jump and the g make D smallest (they solve a system of linear
equations, one for each site of the primitive cell). If every site is a centre of inversion, the g
are zero. A jump that leads to a dead end does not contribute, and this formula knows it.

An atom that moves by exchange with a vacancy, a *tracer*, often goes back with the same vacancy.
The same formula holds for the pair of both: the states are then the positions of the vacancy
relative to the tracer, in a periodic cell of N sites with one vacancy. The correlation factor
follows for N to infinity by extrapolation in 1/N.

Rates are in 1/s, lengths in angstrom, diffusion coefficients in angstrom^2/s.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import coo_array
from scipy.sparse.linalg import cg

from plumed_cv.common.errors import UserError
from plumed_cv.common.threads import one_thread
from plumed_cv.events.network import Ints, Network
from plumed_cv.structures.frame import Array

_FEWEST_CELLS = 3  # so that the images of a jump differ
_STATES = (8_000, 40_000)  # numbers of states of the pairs from which is extrapolated


@dataclass(frozen=True)
class Walk:
    """All jumps in the primitive cell, forward and reverse, with their fluxes.

    Attributes
    ----------
    initial, final
        Sites, shape (m,).
    steps
        Vectors, shape (m, 3), angstrom.
    flux
        Number of jumps per second in equilibrium, of one defect in the primitive cell, shape (m,).
    populations
        Probability of each site, shape (n,).
    """

    initial: Ints
    final: Ints
    steps: Array
    flux: Array
    populations: Array


def combine_rates(network: Network, rates_per_s: ArrayLike, free_energies_kT: ArrayLike) -> Walk:
    """Combine a network with rates.

    Parameters
    ----------
    network
        Sites and jumps.
    rates_per_s
        Rate of one forward jump of each class, shape (number of classes,). The reverse rates follow
        from detailed balance.
    free_energies_kT
        Free energy of one site of each kind in units of kT, shape (number of kinds,).
    """
    weights = np.exp(-np.asarray(free_energies_kT, dtype=float))[network.sites.kinds]
    populations = weights / weights.sum()
    parts = []
    for jump, rate in zip(network.jumps, np.asarray(rates_per_s, dtype=float), strict=True):
        flux = rate * populations[jump.initial]
        parts.append((jump.initial, jump.final, jump.steps, flux))
        if not jump.reverse_is_own:
            parts.append((jump.final, jump.initial, -jump.steps, flux))
    initial, final, steps, flux = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Walk(initial, final, steps, flux, populations)


def compute_diffusivity(found: Walk) -> Array:
    """Return the diffusion tensor of one defect, shape (3, 3), angstrom^2/s."""
    return _tensor(len(found.populations), found.initial, found.final, found.steps, found.flux)


@one_thread()
def compute_correlation_factors(network: Network, found: Walk) -> Array:
    """Return the ratio of the diffusion tensor of a tracer to that without correlation.

    Parameters
    ----------
    network, found
        A vacancy on its sites, and its walk.

    Returns
    -------
    Array
        Shape (3, 3): the matrix F with D_tracer = c F D, where c is the number of vacancies per
        site and D the tensor of the vacancy. For a cubic crystal it is the correlation factor times
        the unit matrix.

    Raises
    ------
    UserError
        If the vacancy does not move along all three directions.
    """
    own = compute_diffusivity(found)
    if np.linalg.eigvalsh(own).min() < 1e-9 * np.trace(own):
        raise UserError(
            "The vacancy does not move along all three directions, so the correlation factor is "
            "not defined along each; use the diffusion coefficient of the vacancy."
        )
    n = len(found.populations)
    sizes = _sizes_for(n)
    tracer = [_of_tracer(network, found, size) for size in sizes]
    inverse = [1.0 / (n * size**3) for size in sizes]
    # Linear in 1/N, to N = infinity.
    limit = (tracer[1] * inverse[0] - tracer[0] * inverse[1]) / (inverse[0] - inverse[1])
    return np.asarray(limit @ np.linalg.inv(own))


def _sizes_for(n: int) -> tuple[int, int]:
    """Numbers of cells along each vector, from which is extrapolated; n sites in a cell.

    They differ also where the fewest cells have more states than `_STATES`.
    """
    small, large = (max(_FEWEST_CELLS, int((states / n**2) ** (1 / 3))) for states in _STATES)
    return small, max(large, small + 1)


def _of_tracer(network: Network, found: Walk, size: int) -> Array:
    """Diffusion tensor of a tracer times the number of atoms, with one vacancy in a periodic cell.

    Parameters
    ----------
    network, found
        A vacancy on its sites, and its walk.
    size
        Number of primitive cells along each vector.
    """
    n = len(found.populations)
    places = network.sites.positions
    hops = np.round(
        found.steps @ np.linalg.inv(network.cell) - (places[found.final] - places[found.initial])
    ).astype(np.int64)
    # State (s, v, cell): the tracer is on site s of cell 0, the vacancy on site v of a cell.
    state = np.arange(n * n * size**3).reshape(n, n, size, size, size)
    begins, ends, moves, flux = [], [], [], []
    for a, b, hop, step, per_s in zip(
        found.initial, found.final, hops, found.steps, found.flux, strict=True
    ):
        back = tuple(-hop % size)
        for s in range(n):
            begin = state[s, a].ravel()
            end = np.roll(state[s, b], tuple(-hop), axis=(0, 1, 2)).ravel().copy()
            move = np.zeros((size**3, 3))
            if b == s:  # from this cell the vacancy comes to where the tracer is
                hit = np.ravel_multi_index(back, (size,) * 3)
                end[hit] = state[a, s][tuple(hop % size)]
                move[hit] = -step
            kept = begin != state[s, s, 0, 0, 0]  # no vacancy where the tracer is
            begins.append(begin[kept])
            ends.append(end[kept])
            moves.append(move[kept])
            flux.append(np.full(int(kept.sum()), per_s))
    # The weight of a state is the population of the vacancy's site. The sum of the weights is then
    # n size^3 - 1, the number of atoms, by which the coefficient of one tracer would be divided.
    return _tensor(
        state.size,
        np.concatenate(begins),
        np.concatenate(ends),
        np.concatenate(moves),
        np.concatenate(flux),
    )


def _tensor(states: int, initial: Ints, final: Ints, steps: Array, flux: Array) -> Array:
    """Return 1/2 sum of flux times the squares of the steps, with the g of the module's formula."""
    # d/dg of the sum: the graph Laplacian with the fluxes as weights times g equals the mean step.
    weights = coo_array((flux, (initial, final)), shape=(states, states)).tocsr()
    weights = 0.5 * (weights + weights.T)  # equal by detailed balance
    degrees = np.asarray(weights.sum(axis=1)).ravel()
    bias = np.zeros((states, 3))
    np.add.at(bias, initial, flux[:, None] * steps)
    g = np.zeros((states, 3))
    scale = np.abs(bias).max()
    if scale > 1e-12 * (flux[:, None] * np.abs(steps)).max():
        diagonal = np.where(degrees > 0, degrees, 1.0)
        laplacian = (
            coo_array(
                (diagonal, (np.arange(states), np.arange(states))), shape=(states, states)
            ).tocsr()
            - weights
        )
        precondition = coo_array(
            (1.0 / diagonal, (np.arange(states), np.arange(states))), shape=(states, states)
        ).tocsr()
        for axis in range(3):
            if np.abs(bias[:, axis]).max() > 1e-12 * scale:
                g[:, axis], failed = cg(
                    laplacian, bias[:, axis], rtol=1e-10, maxiter=20_000, M=precondition
                )
                assert not failed
    moved = steps + g[final] - g[initial]
    return np.asarray(0.5 * np.einsum("k,ka,kb->ab", flux, moved, moved))
