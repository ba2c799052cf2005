"""Checks of structures that belong together: end states, order of the atoms, images of a path.

Lengths are in angstrom. N atoms.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from plumed_cv.common.errors import UserError
from plumed_cv.structures.atoms import LARGEST_MOVE_A, cell_of, drift_of, held_atoms
from plumed_cv.structures.frame import (
    Array,
    complete_cell,
    displacements,
    in_words,
    nearest_images,
    periodic_directions,
    reduce_lattice,
)

# An atom with a smaller displacement has not changed places: no two atoms are closer.
CLOSEST_A = 0.6

# A displacement stays below half of the cell by this length, so that no vibration exceeds half.
_VIBRATION_A = 1.0

# Another order of atoms is the intended one if it reduces the sum of squared displacements to less
# than this fraction. Two jumps of a vacancy around a triangle give 1/2, around a right angle 1.
_CLEARLY = 0.75
_MOST_TO_ASSIGN = 4000  # the memory of the assignment grows quadratically


def check_end_states(initial: Atoms, final: Atoms) -> None:
    """Refuse end states that do not belong to one system.

    Raises
    ------
    UserError
        If the structures differ in their atoms, the order of the elements, the cell or the fixed
        atoms.
    """
    if len(initial) != len(final):
        raise UserError(
            f"The initial state has {len(initial)} atoms and the final state {len(final)}; "
            "give two structures of the same atoms."
        )
    for index, (a, b) in enumerate(zip(initial.symbols, final.symbols, strict=True)):
        if a != b:
            raise UserError(
                f"Atom {index + 1} is {a} in the initial and {b} in the final state; both "
                "must list the same atoms in the same order, so write one of them again in the "
                "order of the other."
            )
    if (initial.pbc != final.pbc).any():
        raise UserError(
            "The initial and final states have different cells: one is periodic along "
            f"{in_words(initial.pbc)}, the other along {in_words(final.pbc)}; give both the same."
        )
    apart = np.abs(cell_of(initial) - cell_of(final))
    if not np.allclose(apart, 0.0, atol=1e-6):
        raise UserError(
            "The initial and final states have different cells, whose lattice vectors differ by up "
            f"to {apart.max():.3g} A; give both the same."
        )
    check_held(initial, final)


def check_held(initial: Atoms, final: Atoms) -> None:
    """Refuse end states in which other atoms are fixed, or fixed atoms are at other positions.

    Raises
    ------
    UserError
        If this is so, apart from a common drift.
    """
    held, after = held_atoms(initial), held_atoms(final)
    if not np.array_equal(held, after):
        raise UserError(
            f"The initial state has {len(held)} fixed atoms and the final state {len(after)}, or "
            "other atoms are fixed; fix the same atoms in both."
        )
    if not len(held):
        return
    cell = cell_of(initial)
    step = displacements(final.positions, cell, initial.positions, cell)[held]
    off = np.linalg.norm(step - step.mean(axis=0), axis=1)
    if off.max() > LARGEST_MOVE_A:
        raise UserError(
            f"Atom {held[off.argmax()] + 1} is fixed, but its position in the final state differs "
            f"by {off.max():.3f} A; give fixed atoms the same positions in both states."
        )


def check_atoms(atoms: Atoms, symbols: Sequence[str]) -> None:
    """Refuse a structure of other atoms than the end states.

    Parameters
    ----------
    atoms
        The structure.
    symbols
        Chemical symbols of all atoms of the end states, in their order.

    Raises
    ------
    UserError
        If it has another number of atoms, or elements in another order.
    """
    if len(atoms) != len(symbols):
        raise UserError(
            f"it has {len(atoms)} atoms, but the end states have {len(symbols)}; give structures "
            "of the same atoms"
        )
    for number, (a, b) in enumerate(zip(atoms.symbols, symbols, strict=True), 1):
        if a != b:
            raise UserError(
                f"its atom {number} is {a}, but {b} in the end states; give all of them the same "
                "order of atoms"
            )


def check_range(initial: Atoms, final: Atoms) -> None:
    """Refuse a process in which an atom moves by nearly half of the cell.

    Raises
    ------
    UserError
        If the displacement of an atom is within 1 angstrom of half the width of the cell. A
        vibration would then change its periodic image.
    """
    cell = cell_of(initial)
    if not cell.any():
        return
    u = displacements(final.positions, cell, initial.positions, cell, drift_of(initial))
    reduced = reduce_lattice(cell)
    with np.errstate(invalid="ignore"):
        room = (0.5 - np.abs(u @ reduced.inverse)) * reduced.widths
    room[np.linalg.norm(u, axis=1) < CLOSEST_A] = np.inf  # these atoms do not move
    atom, axis = np.unravel_index(int(room.argmin()), room.shape)
    if room[atom, axis] < _VIBRATION_A:
        raise UserError(
            f"Atom {atom + 1} moves by {np.linalg.norm(u[atom]):.2f} A, nearly half of the cell, "
            f"whose width along lattice vector {'abc'[axis]} is {reduced.widths[axis]:.2f} A; a "
            "larger displacement is not unique in a periodic cell, so repeat the structures along "
            f"{'abc'[axis]} before the defect is made."
        )


def check_order(initial: Atoms, final: Atoms, remedy: str) -> None:
    """Refuse end states if the second one seems to list the atoms in another order.

    Parameters
    ----------
    initial, final
        Structures of the same atoms in the same cell.
    remedy
        The end of the sentence: what the user can do.

    Raises
    ------
    UserError
        If atoms of one element are at the positions of other atoms: see `find_meant_order`.
    """
    if found := find_misplaced(initial, final):
        raise UserError(
            f"The final state seems to list {found.number} atoms in another order: its atom "
            f"{found.atom} is at the position of atom {found.place} of the initial state; {remedy}"
        )


class Misplaced(NamedTuple):
    """Atoms in another order: number, the first of them, and whose position it has (from 1)."""

    number: int
    atom: int
    place: int


def find_misplaced(before: Atoms, after: Atoms) -> Misplaced | None:
    """Atoms of `after` at positions of other atoms in `before`: see `find_meant_order`."""
    order = find_meant_order(before, after)
    wrong = np.flatnonzero(order != np.arange(len(order)))
    if not len(wrong):
        return None
    atom = int(wrong[0])
    return Misplaced(len(wrong), atom + 1, int(np.flatnonzero(order == atom)[0]) + 1)


def find_meant_order(before: Atoms, after: Atoms) -> NDArray[np.int64]:
    """Return the order of the atoms of `after` in which each is near its position in `before`.

    Parameters
    ----------
    before, after
        Structures of the same atoms in the same cell.

    Returns
    -------
    NDArray
        Shape (N,): `after[order]` has the order of `before`. Atoms of one element that have moved
        by more than 0.6 angstrom (apart from a drift) are exchanged if this makes the sum of the
        squared displacements clearly smaller (minimum-cost assignment). The result is
        0, 1, ... N - 1 if the order is right, or if more than 4000 atoms of an element have moved.
    """
    cell = cell_of(before)
    periodic = periodic_directions(cell)

    def nearest(shifts: Array) -> Array:
        return nearest_images(shifts, cell)

    shifts = after.positions - before.positions
    # The displacement of most atoms is the drift. A minority of shuffled atoms hardly changes the
    # circular mean. If most atoms are shuffled, there is hardly any drift.
    full = complete_cell(cell)
    fractions = shifts @ np.linalg.inv(full)
    phases = np.exp(2j * np.pi * fractions).mean(axis=0)
    around = np.angle(phases) / (2 * np.pi)
    drift = np.where(periodic, around, np.median(fractions, axis=0)) @ full
    symbols = np.array(before.symbols)
    found: list[tuple[float, NDArray[np.int64]]] = []
    for offset in (np.zeros(3), drift):
        squares = (nearest(shifts - offset) ** 2).sum(axis=1)
        order = np.arange(len(before))
        for element in dict.fromkeys(symbols.tolist()):
            far = np.flatnonzero((squares > CLOSEST_A**2) & (symbols == element))
            if not 2 <= len(far) <= _MOST_TO_ASSIGN:
                continue
            costs = np.empty((len(far), len(far)))
            for k, place in enumerate(before.positions[far]):
                costs[k] = (nearest(after.positions[far] - offset - place) ** 2).sum(axis=1)
            assigned = linear_sum_assignment(costs)[1]
            for cycle in _cycles(assigned):
                best = costs[cycle, assigned[cycle]].sum()
                if best < _CLEARLY * costs[cycle, cycle].sum():
                    order[far[cycle]] = far[assigned[cycle]]
        moves = nearest(after.positions[order] - before.positions - offset)
        found.append((float((moves**2).sum()), order))
    return min(found, key=lambda pair: pair[0])[1]


def _cycles(order: NDArray[np.int64]) -> Iterator[list[int]]:
    """Cycles of a permutation, without the atoms that it does not move."""
    seen = np.zeros(len(order), dtype=bool)
    for begin in range(len(order)):
        cycle, at = [], begin
        while not seen[at]:
            seen[at] = True
            cycle.append(at)
            at = int(order[at])
        if len(cycle) > 1:
            yield cycle
