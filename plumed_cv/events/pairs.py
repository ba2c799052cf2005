"""Pairs of a solute atom and a vacancy, and the jumps of the vacancy near the solute.

A state of a pair is a row of five integers: the site of the solute, in cell 0, and the site and the
cell of the vacancy. States that the space group of the crystal maps onto each other are of one
kind. Kind 0 is a vacancy far from the solute.

Pairs up to a range are *near*. All jumps of the vacancy from near pairs have rates of their own:

    exchange    of the vacancy with the solute (w2 of the five-frequency model of fcc)
    pair        with another atom: from a near pair to a near one (w1), or away (w3, and back, w4)

All others have the rate of the vacancy alone (w0), but for the factor that detailed balance demands
(`diffusion.compute_solute_diffusivity`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from plumed_cv.common.errors import UserError
from plumed_cv.events.network import Crystal, Ints, JumpClass, Network, find_images
from plumed_cv.structures.frame import Array

_SAME_A = 0.02  # pairs whose distances differ by less are in one shell

Row = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class PairJump(JumpClass):
    """All jumps of one class from near pairs; the states are pairs, shape (m, 5).

    Attributes
    ----------
    exchanges
        Whether the vacancy exchanges with the solute. After this the solute is on the site of the
        vacancy, which is then in cell 0.
    """

    exchanges: bool


@dataclass(frozen=True)
class Pairs:
    """A solute and a vacancy near each other.

    Attributes
    ----------
    solute
        Element of the solute.
    states
        All states of a near pair, and those that one jump reaches from them, shape (n, 5).
    kinds
        Kind of each state, from 1, by distance, shape (n,).
    energies_eV
        Potential energy of each kind relative to kind 0, relaxed, shape (kinds + 1,).
    jumps
        One for each class.
    """

    solute: str
    states: Ints
    kinds: Ints
    energies_eV: Array
    jumps: tuple[PairJump, ...]

    @property
    def number_of_kinds(self) -> int:
        """Number of kinds of pairs, without kind 0."""
        return int(self.kinds.max())

    def kinds_of(self, jump: PairJump) -> tuple[int, int]:
        """Kinds of the initial and of the final state of a jump."""
        a, b = (self._kind(ends[0]) for ends in (jump.initial, jump.final))
        return a, b

    @property
    def references(self) -> tuple[int, ...]:
        """Kinds whose free energy is taken from their energy: the farthest ones.

        There is one for each group of kinds that jumps connect, and most often one in all.
        """
        group = np.arange(self.number_of_kinds + 1)
        for jump in self.jumps:
            a, b = (group[kind] for kind in self.kinds_of(jump))
            group[group == b] = a
        return tuple(int(np.flatnonzero(group == each).max()) for each in np.unique(group[1:]))

    def _kind(self, state: Ints) -> int:
        return int(self.kinds[(self.states == state).all(axis=1)][0])


def find_pairs(
    crystal: Crystal, network: Network, solute: str, range_A: float | None = None
) -> Pairs:
    """Find the states of a pair and the jumps from near pairs that differ by symmetry.

    Parameters
    ----------
    crystal, network
        The crystal and the jumps of its vacancy, whose sites are of one kind.
    solute
        Element of the solute, which is on one of the sites.
    range_A
        Largest distance of near pairs; that of the longest jump if None.

    Returns
    -------
    Pairs
        The energies are zero.

    Raises
    ------
    UserError
        If the sites are of several kinds, or the range is shorter than a jump.
    """
    if network.sites.number_of_kinds > 1:
        raise UserError(
            "The vacancy has sites of several kinds; a solute is possible only if all sites are of "
            "one kind."
        )
    longest = max(jump.length_A for jump in network.jumps)
    reach = longest if range_A is None else range_A
    if reach < longest - _SAME_A:
        raise UserError(
            f"--solute-range {reach:g}: must be at least the length of a jump, {longest:.2f} A."
        )
    near = _states_within(network, reach + _SAME_A)
    ways = dict.fromkeys(way for state in near for way in _jumps_from(network, state))
    operations = list(zip(crystal.rotations, *find_images(crystal, network.sites), strict=True))
    jumps = [_with_steps(network, *each) for each in _classes(ways, operations)]
    jumps.sort(
        key=lambda jump: (
            not jump.exchanges,
            *(round(_distance(network, ends[0]), 2) for ends in (jump.initial, jump.final)),
        )
    )
    states, kinds = _kinds(network, [*near, *(way[1] for way in ways)], operations)
    energies = np.zeros(int(kinds.max()) + 1)
    return Pairs(solute, states, kinds, energies, tuple(jumps))


def find_farthest(network: Network, pairs: Pairs) -> float:
    """Return the largest distance of solute and vacancy in all pairs, angstrom."""
    return max(_distance(network, state) for state in pairs.states)


_Way = tuple[Row, Row, bool]  # initial state, final state, whether both exchange
_Operation = tuple[Ints, Ints, Ints]


def _vector(network: Network, state: Sequence[int] | Ints) -> Array:
    """Vector from the solute to the vacancy, angstrom."""
    s, v, *cell = (int(n) for n in state)
    places = network.sites.positions
    return np.asarray((places[v] + cell - places[s]) @ network.cell)


def _distance(network: Network, state: Sequence[int] | Ints) -> float:
    return float(np.linalg.norm(_vector(network, state)))


def _states_within(network: Network, range_A: float) -> list[Row]:
    widths = 1.0 / np.linalg.norm(np.linalg.inv(network.cell), axis=0)
    most = np.ceil(range_A / widths).astype(int) + 1
    cells = np.stack(
        np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij"), axis=-1
    ).reshape(-1, 3)
    sites = range(len(network.sites))
    found = [(s, v, *cell) for s in sites for v in sites for cell in cells.tolist()]
    return [state for state in found if 1e-3 < _distance(network, state) < range_A]


def _jumps_from(network: Network, state: Row) -> Iterator[_Way]:
    """Yield all jumps of the vacancy from a state of a pair."""
    s, v, *cell = state
    places = network.sites.positions
    for jump in network.jumps:
        for initial, final, steps in jump.iterate_ways():
            for k in np.flatnonzero(initial == v):
                to = int(final[k])
                by = np.round(steps[k] @ np.linalg.inv(network.cell) - (places[to] - places[v]))
                i, j, m = (int(a + b) for a, b in zip(cell, by, strict=True))
                if (to, i, j, m) == (s, 0, 0, 0):
                    yield state, (v, s, -cell[0], -cell[1], -cell[2]), True
                else:
                    yield state, (s, to, i, j, m), False


def _image(state: Row, operation: _Operation) -> Row:
    rotation, images, cells = operation
    s, v, *cell = state
    i, j, k = (int(n) for n in rotation @ np.array(cell) + cells[v] - cells[s])
    return int(images[s]), int(images[v]), i, j, k


def _classes(
    ways: dict[_Way, None], operations: Sequence[_Operation]
) -> Iterator[tuple[list[_Way], bool]]:
    """Yield the jumps of each class, and whether the reverse jumps belong to it."""
    left = dict(ways)
    while left:
        begin, end, exchanges = next(iter(left))
        found = dict.fromkeys(
            (_image(begin, each), _image(end, each), exchanges) for each in operations
        )
        own = (end, begin, exchanges) in found
        for a, b, _ in found:
            left.pop((a, b, exchanges), None)
            left.pop((b, a, exchanges), None)
        yield list(found), own


def _with_steps(network: Network, ways: list[_Way], own: bool) -> PairJump:
    exchanges = ways[0][2]
    initial, final = (np.array([way[k] for way in ways], dtype=np.int64) for k in (0, 1))
    start = np.array([_vector(network, state) for state in initial])
    # After an exchange the vacancy is where the solute was.
    end = np.zeros_like(start) if exchanges else np.array([_vector(network, x) for x in final])
    return PairJump(initial, final, end - start, own, exchanges)


def _kinds(
    network: Network, states: Sequence[Row], operations: Sequence[_Operation]
) -> tuple[Ints, Ints]:
    """Return all different states, by distance, and their kinds, from 1."""
    left = dict.fromkeys(sorted(states, key=lambda state: round(_distance(network, state), 3)))
    found: list[Row] = []
    kinds: list[int] = []
    while left:
        images = dict.fromkeys(_image(next(iter(left)), each) for each in operations)
        found += images
        kinds += [kinds[-1] + 1 if kinds else 1] * len(images)
        for each in images:
            left.pop(each, None)
    return np.array(found, dtype=np.int64), np.array(kinds, dtype=np.int64)
