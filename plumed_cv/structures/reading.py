"""Reading structures, checking them, and rotating them as engines need them.

Lengths are in angstrom, energies in eV. N atoms.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.cell import Cell
from ase.constraints import FixAtoms, FixCartesian, FixScaled
from ase.io.formats import UnknownFileTypeError
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from plumed_cv.common.errors import UserError
from plumed_cv.structures import lammps_files
from plumed_cv.structures.frame import (
    Array,
    Drift,
    completed,
    displacements,
    in_words,
    lattice,
    nearest_images,
    periodic_directions,
)

# An atom with a smaller displacement has not changed places: no two atoms are closer.
CLOSEST_A = 0.6

# A displacement stays below half of the cell by this length, so that no vibration exceeds half.
_VIBRATION_A = 1.0

LARGEST_MOVE_A = 1e-3  # of a fixed atom between two structures

# Another order of atoms is the intended one if it reduces the sum of squared displacements to less
# than this fraction. Two jumps of a vacancy around a triangle give 1/2, around a right angle 1.
_CLEARLY = 0.75
_MOST_TO_ASSIGN = 4000  # the memory of the assignment grows quadratically


def read_structure(path: Path | str, species: Sequence[str] | None = None) -> Atoms:
    """Read the (last) structure of a file; see `read_structures`.

    Raises
    ------
    UserError
        As `read_structures`, and if there are fewer than two atoms or positions are not finite.
    """
    atoms: Atoms = read_structures(path, "-1:", species)[-1]
    if len(atoms) < 2 or not np.isfinite(atoms.positions).all():
        raise UserError(f"{path}: needs at least two atoms with finite positions.")
    return atoms


def read_structures(
    path: Path | str, index: str = ":", species: Sequence[str] | None = None
) -> list[Atoms]:
    """Read the structures of a file in any format of ASE, or of a LAMMPS data or dump file.

    Parameters
    ----------
    path
        The file. Its name may end in ASE's `@` and an index: `neb.traj@-9:` selects the last nine
        structures.
    index
        ASE's index of the structures if `path` contains none; all structures by default.
    species
        Chemical symbols of LAMMPS types 1, 2, ..., for data and dump files without elements.

    Returns
    -------
    list[Atoms]
        At least one structure.

    Raises
    ------
    UserError
        If the file is missing, cannot be read or contains no such structure, or if an energy,
        forces, magnetic moments or charges are not numbers.
    """
    file, own = split_index(path)
    reader = "ASE"
    try:
        chosen = _selection(index if own is None else own)
        kind = lammps_files.kind_of(file)
        if kind is not None:
            reader = f"the reader of LAMMPS {kind} files"
            images = lammps_files.read(file, kind, chosen, species)
        else:
            found = ase.io.read(file, chosen, do_not_split_by_at_sign=True)
            images = [found] if isinstance(found, Atoms) else list(found)
    except FileNotFoundError:
        raise UserError(f"{file}: the file does not exist.") from None
    except UserError as error:
        raise UserError(f"{path}: {str(error).rstrip('.')}.") from None
    except UnknownFileTypeError:
        raise UserError(
            f"{file}: neither ASE nor the readers of LAMMPS data and dump files know this format."
        ) from None
    except Exception as error:  # readers raise all exceptions of their parsers
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{path}: {reader} cannot read it as a structure ({what}).") from None
    if not images:
        raise UserError(f"{path}: contains no structure{' of that number' if own else ''}.")
    for atoms in images:
        if has_forces(atoms) and not _are_numbers(atoms):
            raise UserError(
                f"{path}: contains energies, forces, magnetic moments or charges that are not "
                "numbers."
            )
    return images


def iterate_structures(path: Path | str, symbols: Sequence[str]) -> Iterator[Atoms]:
    """Read the structures of a file one by one, if its format allows this.

    Parameters
    ----------
    path
        The file, as for `read_structures`.
    symbols
        Chemical symbols of all atoms in their order, for files that contain only LAMMPS types.

    Raises
    ------
    Exception
        All exceptions of the reader.
    """
    file, own = split_index(path)
    chosen = _selection(own or ":")
    kind = lammps_files.kind_of(file)
    if kind == "dump" and isinstance(chosen, slice):
        yield from lammps_files.iterate(file, chosen, symbols)
    elif kind is None and isinstance(chosen, slice):
        yield from ase.io.iread(file, chosen, do_not_split_by_at_sign=True)
    else:
        yield from read_structures(path)


def split_index(path: Path | str) -> tuple[Path, str | None]:
    """Split `neb.traj@-9:` into the file and ASE's index `-9:`; the index is None if missing."""
    name, at, index = str(path).rpartition("@")
    if not at or not re.fullmatch(r"-?\d+|-?\d*(:-?\d*){1,2}", index) or Path(path).exists():
        return Path(path), None
    return Path(name), index


def _selection(index: str) -> int | slice:
    """Convert an index of ASE to an integer or a slice."""
    if ":" not in index:
        return int(index)
    return slice(*(int(word) if word else None for word in index.split(":")))


def has_forces(atoms: Atoms) -> bool:
    """Whether a structure has an energy and forces."""
    return atoms.calc is not None and {"energy", "forces"} <= set(atoms.calc.results)


def oriented(atoms: Atoms) -> Atoms:
    """Return a copy rotated for LAMMPS: first cell vector along x, second one in the xy plane.

    Energy and forces of a finished calculation are rotated as well. A collective variable depends
    on the orientation. Structures are therefore rotated once, when they are read, and everything
    afterwards uses the same frame. Structures with the same cell are rotated in the same way.
    Structures without periodic boundaries are not rotated.

    Raises
    ------
    UserError
        If the cell vectors are left-handed.
    """
    turned = atoms.copy()
    rotation = np.eye(3)
    cell = cell_of(atoms)
    if cell.any() and not is_oriented(cell):
        full = completed(cell)
        if np.linalg.det(full) <= 0:
            raise UserError("the cell vectors are left-handed; swap two of them")
        standard, rotation = Cell(full).standard_form()
        turned.positions = turned.positions @ rotation.T
        vectors = turned.cell.array @ rotation.T
        vectors[turned.pbc] = np.tril(standard.array)[turned.pbc]
        vectors[np.abs(vectors) < 1e-12 * np.abs(vectors).max()] = 0.0  # rounding
        turned.set_cell(vectors)
    if isinstance(atoms.calc, SinglePointCalculator) and has_forces(atoms):
        energy, forces = (atoms.calc.results[key] for key in ("energy", "forces"))
        turned.calc = SinglePointCalculator(turned, energy=energy, forces=forces @ rotation.T)
    return turned  # type: ignore[no-any-return]


def is_oriented(cell: Array) -> bool:
    """Whether the first cell vector is along x and the second one in the xy plane.

    Along directions without periodicity, whose vectors are zero, the normals of the others count.
    """
    full = completed(cell) if np.any(cell) else np.zeros((3, 3))
    return not np.triu(full, 1).any() and bool((np.diag(full) >= 0).all())


def cell_of(atoms: Atoms) -> Array:
    """Lattice vectors as rows, shape (3, 3), angstrom; zero along directions without periodicity.

    Raises
    ------
    UserError
        If a lattice vector of a periodic direction is missing.
    """
    cell = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    if (missing := atoms.pbc & ~cell.any(axis=1)).any():
        raise UserError(
            f"The structure is periodic along {in_words(missing)}, but the lattice vector is "
            "missing; give it, or make the structure free there (pbc)."
        )
    return np.asarray(cell, dtype=np.float64)


def drift_of(atoms: Atoms) -> Drift:
    """Whether fixed atoms hold a structure ("kept"), or it may drift as a whole ("removed")."""
    return "kept" if len(held_atoms(atoms)) else "removed"


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
            f"The initial state has {len(initial)} atoms and the final state {len(final)}."
        )
    for index, (a, b) in enumerate(zip(initial.symbols, final.symbols, strict=True)):
        if a != b:
            raise UserError(
                f"Atom {index + 1} is {a} in the initial and {b} in the final state; both "
                "must list the same atoms in the same order."
            )
    if (initial.pbc != final.pbc).any():
        raise UserError(
            "The initial and final states have different cells: one is periodic along "
            f"{in_words(initial.pbc)}, the other along {in_words(final.pbc)}; give both the same."
        )
    if not np.allclose(cell_of(initial), cell_of(final), atol=1e-6):
        raise UserError("The initial and final states have different cells; give both the same.")
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


def hold(atoms: Atoms, start: Atoms) -> None:
    """Move a structure as a whole so that its fixed atoms are where they are in another one.

    Parameters
    ----------
    atoms
        The structure, which is changed. The fixed atoms then have exactly the other's positions.
    start
        The other structure, with the same cell and fixed atoms, which `check_held` has compared.
    """
    held = held_atoms(start)
    if not len(held):
        return
    cell = cell_of(start)
    shifts = atoms.positions - start.positions
    drift = shifts[held[0]]
    drift = drift + nearest_images(shifts[held] - drift, cell).mean(axis=0)
    atoms.positions += nearest_images(shifts - drift, cell) - shifts
    atoms.positions[held] = start.positions[held]


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
        raise UserError(f"it has {len(atoms)} atoms, but the end states have {len(symbols)}")
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
    reduced = lattice(cell)
    with np.errstate(invalid="ignore"):
        room = (0.5 - np.abs(u @ reduced.inverse)) * reduced.widths
    room[np.linalg.norm(u, axis=1) < CLOSEST_A] = np.inf  # these atoms do not move
    atom, axis = np.unravel_index(int(room.argmin()), room.shape)
    if room[atom, axis] < _VIBRATION_A:
        raise UserError(
            f"Atom {atom + 1} moves by {np.linalg.norm(u[atom]):.2f} A, nearly half of the cell, "
            f"whose width along lattice vector {'abc'[axis]} is {reduced.widths[axis]:.2f} A; a "
            "larger displacement is not unique in a periodic cell, so use a larger cell."
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
        If atoms of one element are at the positions of other atoms: see `meant_order`.
    """
    if found := misplaced(initial, final):
        raise UserError(
            f"The final state seems to list {found.number} atoms in another order: its atom "
            f"{found.atom} is at the position of atom {found.place} of the initial state; {remedy}"
        )


class Misplaced(NamedTuple):
    """Atoms in another order: number, the first of them, and whose position it has (from 1)."""

    number: int
    atom: int
    place: int


def misplaced(before: Atoms, after: Atoms) -> Misplaced | None:
    """Atoms of `after` at positions of other atoms in `before`: see `meant_order`."""
    order = meant_order(before, after)
    wrong = np.flatnonzero(order != np.arange(len(order)))
    if not len(wrong):
        return None
    atom = int(wrong[0])
    return Misplaced(len(wrong), atom + 1, int(np.flatnonzero(order == atom)[0]) + 1)


def meant_order(before: Atoms, after: Atoms) -> NDArray[np.int64]:
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
    full = completed(cell)
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


def held_atoms(atoms: Atoms) -> NDArray[np.int64]:
    """Return the numbers of the atoms, from 0, that constraints fix at their positions.

    Raises
    ------
    UserError
        If there are constraints of another kind.
    """
    held = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        whole = isinstance(constraint, FixAtoms) or (
            isinstance(constraint, FixCartesian | FixScaled) and np.all(constraint.mask)
        )
        if not whole:
            raise UserError(
                f"The structure has a constraint {type(constraint).__name__}; only atoms that are "
                "fixed along all directions (FixAtoms) are supported, so remove it."
            )
        held[constraint.get_indices()] = True
    return np.flatnonzero(held)


def fix(atoms: Atoms, serials: str) -> None:
    """Fix atoms in addition to those that are fixed already.

    Parameters
    ----------
    atoms
        The structure, which is changed.
    serials
        Serial numbers and ranges, such as "1-32,40".

    Raises
    ------
    UserError
        If the text has another form, or there are no such atoms.
    """
    try:
        parts = [[int(end) for end in part.split("-")] for part in serials.split(",")]
    except ValueError:
        parts = []
    if not parts or any(len(part) > 2 or part[0] > part[-1] for part in parts):
        raise UserError(
            f"fixed = {serials!r}: give serial numbers and ranges of atoms, such as '1-32,40'."
        )
    chosen = np.concatenate([np.arange(part[0], part[-1] + 1) for part in parts])
    if chosen.min() < 1 or chosen.max() > len(atoms):
        raise UserError(
            f"fixed = {serials!r}: the structure has the atoms 1 to {len(atoms)}; give some of "
            "these."
        )
    atoms.set_constraint(FixAtoms(np.union1d(chosen - 1, held_atoms(atoms))))


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


def _are_numbers(atoms: Atoms) -> bool:
    """Whether energy and forces are numbers; ASE's readers accept any word as a value."""
    energy, forces = (atoms.calc.results[key] for key in ("energy", "forces"))
    # With a NaN in these arrays, ASE treats the atoms as different from those of the energy.
    others = [atoms.get_initial_magnetic_moments(), atoms.get_initial_charges()]
    if not all(np.isfinite(array).all() for array in others):
        return False
    try:
        return (
            energy is not None
            and np.asarray(energy, dtype=float).ndim == 0
            and np.asarray(forces, dtype=float).shape == atoms.positions.shape
        )
    except (TypeError, ValueError):
        return False
