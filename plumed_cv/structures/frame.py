"""The displacement frame: coordinates that do not depend on translations, cell borders or strain.

In a solid, the coordinates of an atom are its displacement from a reference structure that follows
the cell. The displacement is that to the nearest periodic image, minus the mean displacement of
all atoms. A molecule rotates. Its coordinates are the displacements after the translation and the
rotation that fit the molecule best to the reference. All lengths are in angstrom.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial.distance import cdist

from plumed_cv.common.errors import UserError

Array = NDArray[np.float64]

# Below this ratio of moments the best rotation is not defined numerically.
SMALLEST_MOMENT = 1e-6


def is_periodic(cell: NDArray[Any]) -> bool:
    """Whether `cell`, shape (3, 3), has a volume; a cell of zeros means no periodicity.

    Raises
    ------
    UserError
        In any other case: one or two lattice vectors, a flat cell, or numbers that are not finite.
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
            "or no lattice vectors for a system without periodicity."
        )
    return True


def displacements(
    positions: NDArray[Any],
    cell: NDArray[Any],
    reference_positions: NDArray[Any],
    reference_cell: NDArray[Any],
) -> Array:
    """Displacement-frame coordinates of one structure, or of many structures with the same cell.

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
        If the numbers of atoms differ, a position is not finite, or only one cell is periodic.

    Notes
    -----
    Periodic images are chosen from the displacements relative to that of the first atom. A rigid
    drift of any size therefore does not move an atom across a border.
    """
    positions = _checked(positions, reference_positions)
    cell = np.asarray(cell, dtype=np.float64)
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


def aligned(
    positions: NDArray[Any], cell: NDArray[Any], reference_positions: NDArray[Any]
) -> tuple[Array, Array]:
    """Displacements of a molecule after the best fit to its reference, and the rotations.

    Parameters
    ----------
    positions
        Shape (..., N, 3), angstrom.
    cell
        Lattice vectors as rows, shape (3, 3), angstrom; all zero for no periodicity. In a periodic
        cell the molecule is first made `whole`.
    reference_positions
        Shape (N, 3), angstrom.

    Returns
    -------
    tuple
        Displacements u, shape (..., N, 3), angstrom, with zero mean over the atoms, and rotations
        R, shape (..., 3, 3): u_i = R (r_i - <r>) - (r_i^ref - <r^ref>) with the least sum of
        squares (Kabsch, Acta Cryst. A 32, 922 (1976)).

    Raises
    ------
    UserError
        If the numbers of atoms differ, a position is not finite, or the best rotation is not
        unique, as for atoms on a line.
    """
    positions = _checked(positions, reference_positions)
    if is_periodic(cell):
        positions = whole(positions, cell, reference_positions)
    centred = positions - positions.mean(axis=-2, keepdims=True)
    reference = reference_positions - reference_positions.mean(axis=0)
    left, moments, right = np.linalg.svd(np.swapaxes(centred, -1, -2) @ reference)
    sign = np.sign(np.linalg.det(left @ right))  # a rotation, not a reflection
    moments[..., 2] *= sign
    if (moments[..., 1] + moments[..., 2] <= SMALLEST_MOMENT * moments.sum(axis=-1)).any():
        raise UserError(
            "The rotation that fits a structure to the reference is not unique, because its atoms "
            "lie on a line or it has turned inside out; choose other atoms or another reference."
        )
    left[..., 2] *= sign[..., None]
    rotations = np.swapaxes(left @ right, -1, -2)
    return centred @ np.swapaxes(rotations, -1, -2) - reference, np.asarray(rotations)


def turned_back(
    gradients: NDArray[Any], displacements: NDArray[Any], reference_positions: NDArray[Any]
) -> Array:
    """Derivatives with respect to positions, from those to displacements of `aligned`, before R^T.

    The rotation depends on the positions as well. At the best fit to the reference f, the sum of
    (R r_i) x f_i is zero. This condition gives the change of the rotation. It adds the term
    f_i x lambda to the gradient g, where M lambda = sum_i (R r_i) x g_i and
    M = sum_i (R r_i . f_i - (R r_i) f_i^T).

    Parameters
    ----------
    gradients
        Shape (..., d, N, 3).
    displacements
        As from `aligned`, shape (..., N, 3), angstrom.
    reference_positions
        Shape (N, 3), angstrom.

    Returns
    -------
    Array
        Shape (..., d, N, 3). The product with R gives the derivatives with respect to positions.
    """
    reference = reference_positions - reference_positions.mean(axis=0)
    turned = displacements + reference
    moments = np.swapaxes(turned, -1, -2) @ reference
    matrix = np.trace(moments, axis1=-2, axis2=-1)[..., None, None] * np.eye(3) - moments
    torques = np.cross(turned[..., None, :, :], gradients).sum(axis=-2)
    solution = np.linalg.solve(matrix[..., None, :, :], torques[..., None])[..., 0]
    return np.asarray(gradients + np.cross(reference, solution[..., None, :]))


def whole(positions: NDArray[Any], cell: NDArray[Any], reference_positions: NDArray[Any]) -> Array:
    """Make a molecule whole that the border of the cell divides, shape (..., N, 3), angstrom.

    Each atom is moved to the image nearest to an atom to which it is bound according to `bonds`.
    The longest bond must be shorter than half the width of the cell.
    """
    joined = np.array(positions, dtype=np.float64)
    inverse = np.linalg.inv(cell)
    for parent, atom in bonds(reference_positions):
        bond = joined[..., atom, :] - joined[..., parent, :]
        joined[..., atom, :] -= np.rint(bond @ inverse) @ cell
    return joined


def bonds(reference_positions: NDArray[Any]) -> NDArray[np.int64]:
    """Pairs of atoms connected by the shortest tree through all atoms, shape (N - 1, 2).

    The first atom of a pair is atom 0 or the second atom of an earlier pair.
    """
    tree = minimum_spanning_tree(cdist(reference_positions, reference_positions))
    order, parents = breadth_first_order(tree, 0, directed=False)
    return np.stack([parents[order[1:]], order[1:]], axis=1).astype(np.int64)


def chunks(n: int, size: int = 1000) -> Iterator[slice]:
    """Consecutive ranges of n structures, for coordinates that are too many to copy at once."""
    for begin in range(0, n, size):
        yield slice(begin, min(begin + size, n))


def _checked(positions: NDArray[Any], reference_positions: NDArray[Any]) -> Array:
    positions = np.asarray(positions, dtype=np.float64)
    if positions.shape[-2:] != reference_positions.shape:
        raise UserError(
            f"The structure has {positions.shape[-2]} atoms and the reference "
            f"{len(reference_positions)}; they must be the same atoms in the same order."
        )
    if not np.isfinite(positions).all():
        raise UserError("The positions contain NaN or infinite values.")
    return positions
