"""Structures as they come in: read by ASE, checked, and turned as engines need them.

Lengths are in angstrom, energies in eV. N atoms.
"""

from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from plumed_cv.errors import UserError
from plumed_cv.frame import Array


def read_structure(path: Path | str) -> Atoms:
    """Read the (last) structure of a file in any format that ASE reads.

    Raises
    ------
    UserError
        If the file is missing, cannot be read, or holds positions that are not finite.
    """
    atoms: Atoms = read_structures(path, "-1:")[0]
    if len(atoms) < 2 or not np.isfinite(atoms.positions).all():
        raise UserError(f"{path}: needs at least two atoms with finite positions.")
    return atoms


def read_structures(path: Path | str, index: str = ":") -> list[Atoms]:
    """Read the structures of a file in any format that ASE reads.

    Parameters
    ----------
    path
        The file.
    index
        Which of them, as ASE writes it; all by default.

    Raises
    ------
    UserError
        If the file is missing or cannot be read, or an energy, forces, magnetic moments or charges
        are no numbers.
    """
    try:
        images = ase.io.read(path, index)
    except FileNotFoundError:
        raise UserError(f"{path}: the file does not exist.") from None
    except Exception as error:  # ASE's readers raise whatever their parsers raise
        raise UserError(f"{path}: ASE cannot read it as a structure ({error}).") from None
    for atoms in images:
        if has_forces(atoms) and not _are_numbers(atoms):
            raise UserError(
                f"{path}: holds an energy, forces, magnetic moments or charges that are no numbers."
            )
    return list(images)


def has_forces(atoms: Atoms) -> bool:
    """Whether a structure carries its energy and forces."""
    return atoms.calc is not None and {"energy", "forces"} <= set(atoms.calc.results)


def oriented(atoms: Atoms) -> Atoms:
    """Return a copy turned as LAMMPS needs it: first cell vector along x, second in the xy plane.

    Energy and forces of a finished calculation come along. A collective variable depends on the
    orientation, so structures are turned once, when they come in, and everything afterwards sees
    the same frame. Structures with the same cell are turned in the same way. Without periodic
    boundaries nothing is turned.

    Raises
    ------
    UserError
        If the cell vectors are left-handed.
    """
    turned = atoms.copy()
    rotation = np.eye(3)
    if turned.pbc.any() and not is_oriented(turned.cell.array):
        if np.linalg.det(turned.cell.array) <= 0:
            raise UserError("the cell vectors are left-handed; swap two of them")
        cell, rotation = turned.cell.standard_form()
        turned.positions = turned.positions @ rotation.T
        turned.set_cell(np.tril(cell.array))
    if isinstance(atoms.calc, SinglePointCalculator) and has_forces(atoms):
        energy, forces = (atoms.calc.results[key] for key in ("energy", "forces"))
        turned.calc = SinglePointCalculator(turned, energy=energy, forces=forces @ rotation.T)
    return turned  # type: ignore[no-any-return]


def is_oriented(cell: Array) -> bool:
    """Whether the cell's first vector is along x and its second in the xy plane."""
    return not np.triu(cell, 1).any() and bool((np.diag(cell) >= 0).all())


def cell_of(atoms: Atoms) -> Array:
    """Lattice vectors as rows, shape (3, 3), angstrom; all zero for a system without borders.

    Raises
    ------
    UserError
        If it is periodic along one or two directions only.
    """
    if not atoms.pbc.any():
        return np.zeros((3, 3))
    if not atoms.pbc.all():
        raise UserError(
            "The structure is periodic along some directions only; make it periodic along all "
            "three, with vacuum where it ends."
        )
    return np.asarray(atoms.cell.array, dtype=np.float64)


def check_end_states(initial: Atoms, final: Atoms) -> None:
    """Refuse end states that are not of one system.

    Raises
    ------
    UserError
        If the structures differ in their atoms, the order of these or the cell.
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
    if not np.allclose(cell_of(initial), cell_of(final), atol=1e-6):
        raise UserError("The initial and final states have different cells; give both the same.")


def _are_numbers(atoms: Atoms) -> bool:
    """Whether energy and forces are; ASE's readers take any word for a value."""
    energy, forces = (atoms.calc.results[key] for key in ("energy", "forces"))
    # For ASE, atoms with a NaN in these are others than those that the energy is of.
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
