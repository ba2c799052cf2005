"""The displacement frame: coordinates that no translation, cell border or cell strain can disturb.

An atom's coordinate is its displacement from a reference structure that follows the cell, taken to
its nearest periodic image, less the mean displacement of all atoms. All lengths are in angstrom.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv.errors import UserError

Array = NDArray[np.float64]


def is_periodic(cell: NDArray[Any]) -> bool:
    """Whether `cell`, shape (3, 3), has a volume; an all-zero cell means no periodicity.

    Raises
    ------
    UserError
        If the cell is neither: one or two lattice vectors, a flat cell, or numbers not finite.
    """
    cell = np.asarray(cell, dtype=np.float64)
    if cell.shape != (3, 3) or not np.isfinite(cell).all():
        raise UserError(f"The cell must be three finite lattice vectors, not {cell.tolist()}.")
    if not cell.any():
        return False
    lengths = np.linalg.norm(cell, axis=1)
    if not lengths.all() or abs(np.linalg.det(cell)) < 1e-6 * lengths.prod():
        raise UserError(
            f"The cell {cell.tolist()} A has no volume; give three independent lattice vectors, "
            "or none at all for a system without periodicity."
        )
    return True


def displacements(
    positions: NDArray[Any],
    cell: NDArray[Any],
    reference_positions: NDArray[Any],
    reference_cell: NDArray[Any],
) -> Array:
    """Displacement-frame coordinates of one structure or of many that share a cell.

    Parameters
    ----------
    positions
        Shape (..., N, 3), angstrom.
    cell
        Lattice vectors as rows, shape (3, 3), angstrom; all zero for no periodicity.
    reference_positions, reference_cell
        The reference structure, shapes (N, 3) and (3, 3), angstrom.

    Returns
    -------
    Array
        Displacements u, shape (..., N, 3), angstrom, with zero mean over the atoms.

    Raises
    ------
    UserError
        If the atom counts differ, a position is not finite, or just one of the cells is periodic.

    Notes
    -----
    Images are chosen from displacements relative to the first atom's, so that a rigid drift of any
    size takes no atom across a border.
    """
    positions = np.asarray(positions, dtype=np.float64)
    cell = np.asarray(cell, dtype=np.float64)
    if positions.shape[-2:] != reference_positions.shape:
        raise UserError(
            f"The structure has {positions.shape[-2]} atoms and the reference "
            f"{len(reference_positions)}; they must be the same atoms in the same order."
        )
    if not np.isfinite(positions).all():
        raise UserError("The positions contain NaN or infinite values.")
    periodic = is_periodic(cell)
    if periodic != is_periodic(reference_cell):
        raise UserError(
            "The structure and the reference must both be periodic or both have no cell."
        )
    if periodic:
        reference_positions = reference_positions @ np.linalg.solve(reference_cell, cell)
    shifts = positions - reference_positions
    shifts -= shifts[..., :1, :].copy()
    if periodic:
        shifts -= np.rint(shifts @ np.linalg.inv(cell)) @ cell
    shifts -= shifts.mean(axis=-2, keepdims=True)
    return np.asarray(shifts)
