"""Reading structures from files of any format of ASE, and of LAMMPS."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError

from plumed_cv.common.errors import UserError, naming
from plumed_cv.structures import lammps_files
from plumed_cv.structures.atoms import fix, forget_moments, has_forces, held_atoms, orient


def read_structure(path: Path | str, species: Sequence[str] | None = None) -> Atoms:
    """Read the (last) structure of a file; see `read_structures`.

    Raises
    ------
    UserError
        As `read_structures`, and if there are fewer than two atoms or positions are not finite.
    """
    atoms: Atoms = read_structures(path, "-1:", species)[-1]
    if len(atoms) < 2 or not np.isfinite(atoms.positions).all():
        raise UserError(
            f"{path}: needs at least two atoms with finite positions; give another structure."
        )
    return atoms


def read_oriented(
    path: Path | str,
    species: Sequence[str] | None = None,
    fixed: str | None = None,
    *,
    moments: bool = True,
) -> Atoms:
    """Read the structure of a file, rotated as engines need it, with its fixed atoms.

    Parameters
    ----------
    path, species
        The file and its elements, see `read_structures`.
    fixed
        Serial numbers of the atoms to fix, as in `system.fixed`; if None, those of the file stay.
    moments
        Whether initial magnetic moments are kept.

    Raises
    ------
    UserError
        If `read_structure` refuses the file, its cell cannot be rotated, or it has constraints
        other than fixed atoms.
    """
    atoms = read_structure(path, species)
    with naming(path):
        atoms = orient(atoms)
        if not moments:
            forget_moments(atoms)
        if fixed is not None:
            fix(atoms, fixed)
        held_atoms(atoms)  # refuses other constraints
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
        raise UserError(f"{file}: the file does not exist; correct its name.") from None
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
