"""Reading trajectories (formats of mdtraj, ASE and LAMMPS) as displacements for the training."""

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase.io.formats import UnknownFileTypeError
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import require
from plumed_cv.common.files import replacing
from plumed_cv.structures.atoms import cell_of, orient
from plumed_cv.structures.checking import check_atoms
from plumed_cv.structures.frame import Array
from plumed_cv.structures.reading import iterate_structures, split_index

_NM = 10.0  # angstrom
_STRUCTURES = 1000  # structures that are read at once, at most
_NUMBERS = 10_000_000  # coordinates that are read at once

# mdtraj reads these formats without the cell, or without the order of the atoms.
_NOT_BY_MDTRAJ = {".xyz", ".xyz.gz", ".lammpstrj", ".cif", ".cif.gz"}


class HasReference(Protocol):
    """Atoms with a reference structure; every collective variable is one."""

    @property
    def species(self) -> tuple[str, ...]:
        """Chemical symbols, shape (N)."""

    @property
    def serials(self) -> NDArray[np.int64]:
        """Serial numbers from 1, shape (N)."""

    @property
    def reference_positions(self) -> Array:
        """Reference structure, shape (N, 3), angstrom."""

    def displacements(self, positions: NDArray[Any], cell: NDArray[Any]) -> Array:
        """Displacement-frame coordinates, shape (..., N, 3), angstrom."""


def read_displacements(
    files: Sequence[Path | str],
    variable: HasReference,
    cell: Array | None = None,
    stride: int = 1,
    species: Sequence[str] | None = None,
) -> NDArray[np.float32]:
    """Displacement-frame coordinates of all structures of the given trajectories.

    Parameters
    ----------
    files
        Trajectories: DCD, XTC, TRR, NetCDF and more by mdtraj; ASE trajectories, extended XYZ,
        XDATCAR and more by ASE, where `file@index` may select structures; LAMMPS dumps.
    variable
        Any collective variable of these atoms. It gives the species and the reference structure.
    cell
        Lattice vectors as rows, shape (3, 3), angstrom, for a run at constant cell. By default,
        the cell of each structure in the file, rotated as by `structures.oriented`.
    stride
        Read only every `stride`-th structure.
    species
        Chemical symbols of all atoms of the trajectories. The atoms of `variable` are selected
        by their serial numbers. If None, the trajectories contain exactly the atoms of
        `variable`, in its order.

    Returns
    -------
    NDArray
        Shape (M, N, 3), angstrom.

    Raises
    ------
    UserError
        If a file is missing, cannot be read, is empty, has another number of atoms, or contains
        positions that are not finite.
    """
    everyone = tuple(species or variable.species)
    chosen = None if species is None else variable.serials - 1
    found = np.empty((0, *variable.reference_positions.shape), dtype=np.float32)
    for file in files:
        path, index = split_index(file)
        by_mdtraj = _is_of_mdtraj(path)
        if by_mdtraj and index is not None:
            raise UserError(
                f"{file}: only files of ASE or LAMMPS can have an index; give {path.name} and a "
                "stride."
            )
        try:
            before = len(found)
            parts = (_by_mdtraj if by_mdtraj else _by_ase)(file, everyone, chosen, stride)
            for positions, own_cell in parts:
                part = variable.displacements(positions, own_cell if cell is None else cell)
                # The array grows in place. A list of parts that is joined in the end would need
                # twice the memory. Large arrays grow by moving their pages, without a copy.
                found.resize((len(found) + len(part), *part.shape[1:]), refcheck=False)
                found[-len(part) :] = part
            if len(found) == before:
                raise UserError("the trajectory contains no structure.")
        except UserError as error:
            raise UserError(f"{file}: {str(error).rstrip('.')}.") from None
        except FileNotFoundError:
            raise UserError(f"{file}: the trajectory does not exist.") from None
        except UnknownFileTypeError:
            raise UserError(
                f"{file}: the format of this trajectory is unknown; formats of mdtraj are "
                "recognised by the suffix (.dcd, .xtc, .trr, .nc), those of ASE and LAMMPS by the "
                "content."
            ) from None
        except Exception as error:  # readers raise all exceptions of their parsers
            raise UserError(
                f"{file}: {'mdtraj' if by_mdtraj else 'ASE'} cannot read it as a trajectory "
                f"({' '.join(str(error).split())})."
            ) from None
    return found


def count_structures(file: Path) -> int:
    """Number of structures of a DCD file."""
    with quiet(), _dcd_file(file) as trajectory:
        return len(trajectory)


def read_positions(file: Path, number: int) -> Array:
    """Positions of one structure of a DCD file, by its number from 0, shape (N, 3), angstrom."""
    with quiet(), _dcd_file(file) as trajectory:
        trajectory.seek(number)
        positions, _, _ = trajectory.read(n_frames=1)
    return np.asarray(positions[0], dtype=np.float64)


def read_all_positions(file: Path) -> Array:
    """Positions of all structures of a DCD file, shape (M, N, 3), angstrom."""
    return np.concatenate(list(iterate_positions(file)))


def iterate_positions(file: Path) -> Iterator[Array]:
    """Yield the positions of the structures of a DCD file, shape (m, N, 3) each, angstrom.

    Raises
    ------
    UserError
        If the file cannot be read.
    """
    try:
        with quiet(), _dcd_file(file) as trajectory:
            number = len(trajectory)
            first, _, _ = trajectory.read(n_frames=1)
    except OSError as error:
        raise UserError(f"{file}: cannot be read as a trajectory ({error}).") from None
    size = max(1, min(_STRUCTURES, _NUMBERS // max(1, first.size)))
    for begin in range(0, number, size):
        with quiet(), _dcd_file(file) as trajectory:
            trajectory.seek(begin)
            positions, _, _ = trajectory.read(n_frames=size)
        yield np.asarray(positions, dtype=np.float64)


def keep(file: Path, begin: int, end: int, *, periodic: bool) -> Array | None:
    """Reduce a DCD file to the structures `begin` to `end` - 1; return the last positions.

    Parameters
    ----------
    file
        The file, which is replaced. It is removed if no structure remains.
    begin, end
        As in a slice.
    periodic
        Whether the structures have a cell.

    Returns
    -------
    Array or None
        Shape (N, 3), angstrom; None if no structure remains, or the file cannot be read.
    """
    try:
        with quiet(), _dcd_file(file) as trajectory:
            positions, lengths, angles = trajectory.read(n_frames=max(end, 1))
    except OSError:  # the file does not exist, or its first structure is incomplete
        return None
    positions, lengths, angles = positions[begin:end], lengths[begin:end], angles[begin:end]
    if len(positions) == 0:
        file.unlink()
        return None
    cells = {"cell_lengths": lengths, "cell_angles": angles} if periodic else {}
    with replacing(file) as temporary, _dcd_file(temporary, "w") as trajectory:
        trajectory.write(positions, **cells)
    return np.asarray(positions[-1], dtype=np.float64)


def _dcd_file(file: Path, mode: str = "r") -> Any:
    """Open a DCD file."""
    return require("mdtraj").formats.DCDTrajectoryFile(str(file), mode)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the messages of the DCD reader, which is C code, on standard output."""
    c_library = ctypes.CDLL(
        "ucrtbase" if os.name == "nt" else None
    )  # has an output buffer of its own
    sys.stdout.flush()
    c_library.fflush(None)
    kept = os.dup(1)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            c_library.fflush(None)
            os.dup2(kept, 1)
            os.close(kept)


def _is_of_mdtraj(file: Path) -> bool:
    """Whether mdtraj reads a file, according to its suffix."""
    suffixes = file.suffixes
    registry = require("mdtraj.formats.registry").FormatRegistry
    known = registry.loaders.keys() - _NOT_BY_MDTRAJ
    return not known.isdisjoint({"".join(suffixes[-2:]), "".join(suffixes[-1:])})


def _by_mdtraj(
    file: Path | str, symbols: Sequence[str], chosen: NDArray[np.int64] | None, stride: int
) -> Iterator[tuple[NDArray[Any], Array]]:
    """Positions (angstrom), shape (M, N, 3), of structures with the same cell, and the cell."""
    size = max(1, min(_STRUCTURES, _NUMBERS // (3 * len(symbols))))
    if Path(file).suffix == ".dcd":
        yield from _by_dcd(Path(file), len(symbols), chosen, stride, size)
        return
    chunks = require("mdtraj").iterload(
        str(file), top=_topology(symbols), chunk=size, stride=stride, atom_indices=chosen
    )
    while True:
        with quiet():
            chunk = next(chunks, None)
        if chunk is None:
            return
        positions, vectors = chunk.xyz * _NM, chunk.unitcell_vectors
        if vectors is None:
            yield positions, np.zeros((3, 3))
        else:
            yield from _by_cell(positions, np.asarray(vectors, dtype=np.float64) * _NM)


def _by_dcd(
    file: Path, n_atoms: int, chosen: NDArray[np.int64] | None, stride: int, size: int
) -> Iterator[tuple[NDArray[Any], Array]]:
    """Read as `_by_mdtraj`, without a topology, which takes long for many atoms."""
    with quiet(), _dcd_file(file) as trajectory:
        number = len(trajectory)
        first, _, _ = trajectory.read(n_frames=1)
    if first.shape[1] != n_atoms:
        raise UserError(f"it has {first.shape[1]} atoms, and {n_atoms} are expected")
    for begin in range(0, number, size * stride):
        with quiet(), _dcd_file(file) as trajectory:
            trajectory.seek(begin)
            n_frames = len(range(begin, min(number, begin + size * stride), stride))
            positions, lengths, angles = trajectory.read(
                n_frames=n_frames, stride=stride, atom_indices=chosen
            )
        cells = np.zeros((len(positions), 3, 3))
        if lengths is not None and np.all(lengths):
            vectors = require("mdtraj.utils").lengths_and_angles_to_box_vectors
            cells = np.stack(vectors(*lengths.T, *angles.T), axis=1).astype(np.float64)
        yield from _by_cell(positions, cells)


def _by_ase(
    file: Path | str, symbols: Sequence[str], chosen: NDArray[np.int64] | None, stride: int
) -> Iterator[tuple[NDArray[Any], Array]]:
    """Read as `_by_mdtraj`, by ASE."""
    if not split_index(file)[0].is_file():
        raise FileNotFoundError
    structures = islice(iterate_structures(file, symbols), 0, None, stride)
    while chunk := list(islice(structures, _STRUCTURES)):
        for atoms in chunk:
            check_atoms(atoms, symbols)
        turned = [orient(atoms) for atoms in chunk]
        positions = np.stack([atoms.positions for atoms in turned])
        cells = np.stack([cell_of(atoms) for atoms in turned])
        yield from _by_cell(positions if chosen is None else positions[:, chosen], cells)


def _by_cell(positions: NDArray[Any], cells: Array) -> Iterator[tuple[NDArray[Any], Array]]:
    """Positions of successive structures with the same cell."""
    changes = np.flatnonzero((np.diff(cells, axis=0) != 0).any(axis=(1, 2))) + 1
    edges = [0, *changes, len(cells)]
    for begin, end in pairwise(edges):
        yield positions[begin:end], cells[begin]


def _topology(species: Sequence[str]) -> Any:
    mdtraj = require("mdtraj")
    topology = mdtraj.Topology()
    residue = topology.add_residue("SYS", topology.add_chain())
    for symbol in species:
        topology.add_atom(symbol, mdtraj.element.get_by_symbol(symbol), residue)
    return topology
