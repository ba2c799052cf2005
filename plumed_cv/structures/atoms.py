"""The cell and the fixed atoms of a structure, and its rotation as engines need it.

Lengths are in angstrom. N atoms.
"""

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.cell import Cell
from ase.constraints import FixAtoms, FixCartesian, FixScaled
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.structures.frame import Array, Drift, complete_cell, in_words, nearest_images

LARGEST_MOVE_A = 1e-3  # of a fixed atom between two structures

# Properties of atoms on which the dynamics depends, besides elements, positions and constraints.
OF_DYNAMICS = ("masses", "initial_magmoms", "initial_charges")


def strip(atoms: Atoms) -> Atoms:
    """Return a copy that has only what the dynamics depends on."""
    copy: Atoms = atoms.copy()
    copy.info.clear()
    for name in set(copy.arrays) - {"numbers", "positions", *OF_DYNAMICS}:
        del copy.arrays[name]
    return copy


def has_forces(atoms: Atoms) -> bool:
    """Whether a structure has an energy and forces."""
    return atoms.calc is not None and {"energy", "forces"} <= set(atoms.calc.results)


def orient(atoms: Atoms) -> Atoms:
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
        full = complete_cell(cell)
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
    full = complete_cell(cell) if np.any(cell) else np.zeros((3, 3))
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


def forget_moments(atoms: Atoms) -> None:
    """Remove initial magnetic moments, on which an interatomic potential does not depend."""
    atoms.arrays.pop("initial_magmoms", None)


def has_kinds_by_moment(atoms: Atoms) -> bool:
    """Whether atoms that are alike otherwise have different magnetic moments."""
    without = atoms.copy()
    forget_moments(without)
    return len(set(kinds_of(atoms))) > len(set(kinds_of(without)))


def kinds_of(atoms: Atoms) -> list[str]:
    """Name the kind of each atom: its element, and its own mass, moment and charge if given.

    No operation of a symmetry exchanges atoms of different kinds, such as isotopes or ions of
    different charge.
    """
    kinds = list(atoms.get_chemical_symbols())
    for name in OF_DYNAMICS:
        if name in atoms.arrays:
            values = np.round(atoms.arrays[name], 6).tolist()
            kinds = [f"{kind} {value}" for kind, value in zip(kinds, values, strict=True)]
    return kinds


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
