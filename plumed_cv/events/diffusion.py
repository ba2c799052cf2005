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

A *solute* is a tracer near which the vacancy has other rates and other free energies (`pairs`).

Rates are in 1/s, lengths in angstrom, diffusion coefficients in angstrom^2/s.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.linalg import cg

from plumed_cv.common.errors import UserError
from plumed_cv.common.threads import one_thread
from plumed_cv.events.network import Ints, Network
from plumed_cv.events.pairs import Pairs
from plumed_cv.structures.frame import Array

_FEWEST_CELLS = 3  # so that the images of a jump differ
STATES = (8_000, 40_000)  # numbers of states of the pairs from which is extrapolated
FEW_STATES = (500, 1_500)  # exact to 1e-3, for derivatives


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
        parts += [(*way, flux) for way in jump.iterate_ways()]
    initial, final, steps, flux = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Walk(initial, final, steps, flux, populations)


def compute_diffusivity(found: Walk) -> Array:
    """Return the diffusion tensor of one defect, shape (3, 3), angstrom^2/s."""
    return _tensor(len(found.populations), found.initial, found.final, found.steps, found.flux)


@one_thread()
def compute_correlation_factors(
    network: Network, found: Walk, states: tuple[int, int] = STATES
) -> Array:
    """Return the ratio of the diffusion tensor of a tracer to that without correlation.

    Parameters
    ----------
    network, found
        A vacancy on its sites, and its walk.
    states
        Numbers of states of the pairs in the two cells from which is extrapolated.

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
    sizes = _sizes_for(len(found.populations), states)
    limit = _extrapolated(found, sizes, [_of_tracer(network, found, size) for size in sizes])
    return np.asarray(limit @ np.linalg.inv(own))


@one_thread()
def compute_solute_diffusivity(
    network: Network,
    found: Walk,
    pairs: Pairs,
    rates_per_s: ArrayLike,
    free_energies_kT: ArrayLike,
    states: tuple[int, int] = STATES,
) -> tuple[Array, Array]:
    """Return the diffusion tensor of a solute that moves by exchange with a vacancy.

    A jump between two states that are not near has the rate of the vacancy alone times
    exp((F - F') / 2 kT), where F and F' are the free energies of the initial and of the final state
    relative to a vacancy far from the solute.

    Parameters
    ----------
    network, found
        A vacancy on its sites, and its walk far from solutes.
    pairs
        The states of a pair and their jumps.
    rates_per_s
        Rate of one forward jump of each class of `pairs`, shape (number of classes,).
    free_energies_kT
        Free energy of each kind of pair in units of kT, shape (kinds + 1,). The first one is that
        of a vacancy far from the solute, zero.
    states
        As for `compute_correlation_factors`.

    Returns
    -------
    tensor, uncorrelated
        Shapes (3, 3), angstrom^2/s: D_solute = c tensor, where c is the number of vacancies per
        site far from solutes; and the same for exchanges without memory.
    """
    # A vacancy that leaves a pair does not come to the pair with the next image.
    fewest = 2 * int(np.abs(pairs.states[:, 2:]).max()) + 2
    sizes = _sizes_for(len(found.populations), states, max(fewest, _FEWEST_CELLS))
    rates, energies = (
        np.asarray(values, dtype=float) for values in (rates_per_s, free_energies_kT)
    )
    both = [_of_solute(network, found, pairs, rates, energies, size) for size in sizes]
    limit = _extrapolated(found, sizes, [tensor for tensor, _ in both])
    return limit, both[1][1]


def _sizes_for(n: int, states: tuple[int, int], fewest: int = _FEWEST_CELLS) -> tuple[int, int]:
    """Numbers of cells along each vector, from which is extrapolated; n sites in a cell.

    They differ also where the fewest cells have more states.
    """
    small, large = (max(fewest, int((number / n**2) ** (1 / 3))) for number in states)
    return small, max(large, small + 1)


def _extrapolated(found: Walk, sizes: tuple[int, int], tensors: list[Array]) -> Array:
    """Extrapolate linearly in 1/N, to N = infinity."""
    small, large = (1.0 / (len(found.populations) * size**3) for size in sizes)
    return np.asarray((tensors[1] * small - tensors[0] * large) / (small - large))


@dataclass(frozen=True)
class _Cell:
    """All jumps of a vacancy and one marked atom in a periodic cell.

    Attributes
    ----------
    states
        Numbers of the states, shape (n, n, size, size, size): the marked atom is on site s of cell
        0, the vacancy on site v of a cell.
    begins, ends, moves
        States before and after, shape (jumps of the walk, n, size^3), and the vector of the marked
        atom, shape (..., 3), angstrom.
    exist
        Whether the jump does: there is no vacancy where the atom is.
    """

    states: Ints
    begins: Ints
    ends: Ints
    moves: Array
    exist: NDArray[np.bool_]

    def tensor(self, flux: Array) -> Array:
        """Diffusion tensor for the flux of each jump, times the sum of the weights of the states.

        With weights that are populations of the site of the vacancy, this sum is the number of
        atoms, by which the coefficient of one tracer would be divided.
        """
        kept = self.exist
        return _tensor(
            self.states.size, self.begins[kept], self.ends[kept], self.moves[kept], flux[kept]
        )


def _cell_of(network: Network, found: Walk, size: int) -> _Cell:
    n = len(found.populations)
    hops = _hops(network, found.initial, found.final, found.steps)
    state = np.arange(n * n * size**3).reshape(n, n, size, size, size)
    shape = (len(found.initial), n, size**3)
    begins, ends = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    moves, exist = np.zeros((*shape, 3)), np.ones(shape, dtype=bool)
    for k, (a, b, hop, step) in enumerate(
        zip(found.initial, found.final, hops, found.steps, strict=True)
    ):
        for s in range(n):
            begins[k, s] = state[s, a].ravel()
            ends[k, s] = np.roll(state[s, b], tuple(-hop), axis=(0, 1, 2)).ravel()
            if b == s:  # from this cell the vacancy comes to where the marked atom is
                hit = np.ravel_multi_index(tuple(-hop % size), (size,) * 3)
                ends[k, s, hit] = state[a, s][tuple(hop % size)]
                moves[k, s, hit] = -step
            exist[k, s] = begins[k, s] != state[s, s, 0, 0, 0]
    return _Cell(state, begins, ends, moves, exist)


def _hops(network: Network, initial: Ints, final: Ints, steps: Array) -> Ints:
    """Cells that jumps with these vectors cross, shape (m, 3)."""
    places = network.sites.positions
    across = steps @ np.linalg.inv(network.cell) - (places[final] - places[initial])
    return np.round(across).astype(np.int64)


def _of_tracer(network: Network, found: Walk, size: int) -> Array:
    """Diffusion tensor of a tracer times the number of atoms, with one vacancy in a periodic cell.

    Parameters
    ----------
    network, found
        A vacancy on its sites, and its walk.
    size
        Number of primitive cells along each vector.
    """
    cell = _cell_of(network, found, size)
    return cell.tensor(np.broadcast_to(found.flux[:, None, None], cell.begins.shape))


def _of_solute(
    network: Network, found: Walk, pairs: Pairs, rates: Array, energies_kT: Array, size: int
) -> tuple[Array, Array]:
    """Both tensors of a solute in a periodic cell."""
    cell = _cell_of(network, found, size)
    of_states = np.zeros(cell.states.size)
    s, v, *where = pairs.states.T
    of_states[cell.states[s, v, *(x % size for x in where)]] = energies_kT[pairs.kinds]
    mean = 0.5 * (of_states[cell.begins] + of_states[cell.ends])
    flux = found.flux[:, None, None] * np.exp(-mean)
    hops = _hops(network, found.initial, found.final, found.steps)
    walks = {
        (int(a), int(b), *map(int, hop)): k
        for k, (a, b, hop) in enumerate(zip(found.initial, found.final, hops, strict=True))
    }
    exchanges = 0
    for jump, rate in zip(pairs.jumps, rates, strict=True):
        kind = pairs.kinds_of(jump)[0]
        for initial, final, steps in jump.iterate_ways():
            # The site to which the vacancy goes; after an exchange, it is that of the solute.
            to = initial[:, 0] if jump.exchanges else final[:, 1]
            crossed = _hops(network, initial[:, 1], to, steps)
            for (solute, at, *place), b, hop in zip(initial.tolist(), to, crossed, strict=True):
                k = walks[at, int(b), *map(int, hop)]
                number = np.ravel_multi_index(tuple(np.array(place) % size), (size,) * 3)
                flux[k, solute, number] = rate * found.populations[at] * np.exp(-energies_kT[kind])
                exchanges += jump.exchanges
    assert exchanges == np.count_nonzero(cell.moves[cell.exist].any(axis=1))
    moved = 0.5 * np.einsum(
        "k,ka,kb->ab", flux[cell.exist], cell.moves[cell.exist], cell.moves[cell.exist]
    )
    return cell.tensor(flux), moved


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
