"""The displacement frame: coordinates that do not depend on translations, cell borders or strain.

In a solid, the coordinates of an atom are its displacement from a reference structure that follows
the cell. The displacement is that to the nearest periodic image, minus the mean displacement of
all atoms. If fixed atoms hold the structure, the mean is not subtracted. A molecule rotates. Its
coordinates are the displacements after the translation and the rotation that fit the molecule best
to the reference. A cell is three lattice vectors in rows; a row of zeros is a direction without
periodicity. All lengths are in angstrom.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import polar
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial.distance import cdist

from plumed_cv.common.errors import UserError

Array = NDArray[np.float64]

# Whether the mean displacement is subtracted, or fixed atoms hold the structure.
Drift = Literal["removed", "kept"]

# Below this ratio of moments the best rotation is not defined numerically.
SMALLEST_MOMENT = 1e-6

LARGEST_STRAIN = 0.25  # of the cell relative to that of the reference
_ROUNDING = 1e-3  # radian

# Sums of the other two lattice vectors, and all combinations of the three.
_PAIRS = [pair for pair in product((-1, 0, 1), repeat=2) if any(pair)]
_TRIPLES = np.array(list(product((-1, 0, 1), repeat=3)))


def periodic_directions(cell: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a system is periodic along each lattice vector, shape (3,).

    Parameters
    ----------
    cell
        Lattice vectors as rows, shape (3, 3), angstrom; zero along directions without periodicity.

    Raises
    ------
    UserError
        If the lattice vectors are not independent or not finite.
    """
    cell = np.asarray(cell, dtype=np.float64)
    if cell.shape != (3, 3) or not np.isfinite(cell).all():
        raise UserError(f"The cell is {cell.tolist()}; give three finite lattice vectors.")
    lengths = np.linalg.norm(cell, axis=1)
    periodic: NDArray[np.bool_] = lengths > 0
    vectors = cell[periodic]
    volume = np.sqrt(max(np.linalg.det(vectors @ vectors.T), 0.0))
    if volume < 1e-6 * lengths[periodic].prod():
        raise UserError(
            f"The cell {cell.tolist()} A has no volume; give independent lattice vectors, and none "
            "along a direction without periodicity."
        )
    return periodic


def complete_cell(cell: NDArray[Any]) -> Array:
    """Replace lattice vectors that are zero by unit vectors orthogonal to all others, (3, 3)."""
    full = np.array(cell, dtype=np.float64)
    missing = np.flatnonzero(~periodic_directions(full))
    if len(missing) == 3:
        return np.eye(3)
    if len(missing) == 2:
        known = 3 - missing.sum()
        after, last = (known + 1) % 3, (known + 2) % 3
        along = full[known] / np.linalg.norm(full[known])
        axis = np.eye(3)[last if along[after] ** 2 > 0.8 else after]
        rest = axis - (axis @ along) * along
        full[after] = rest / np.linalg.norm(rest)
        missing = np.array([last])
    for k in missing:
        normal = np.cross(full[(k + 1) % 3], full[(k + 2) % 3])
        full[k] = normal / np.linalg.norm(normal)
    return full


def pad_cell(cell: NDArray[Any], positions: NDArray[Any], gap_A: float = 30.0) -> Array:
    """Give a structure a lattice vector also along directions without periodicity, shape (3, 3).

    The images of the structure are `gap_A` apart. This is for searches of neighbours and programs
    that know only periodicity along all directions.
    """
    full = complete_cell(cell)
    free = ~periodic_directions(cell)
    heights = np.asarray(positions) @ np.linalg.inv(full)
    extent = heights.reshape(-1, 3).max(axis=0) - heights.reshape(-1, 3).min(axis=0)
    full[free] *= (extent + gap_A)[free, None]
    return full


def nearest_images(vectors: NDArray[Any], cell: NDArray[Any]) -> Array:
    """Shorten vectors by lattice vectors: those to the nearest periodic image, (..., 3), angstrom.

    Rounding in the reduced lattice gives the nearest image of a vector that is shorter than half of
    the smallest distance of lattice planes. For longer ones the neighbouring images are compared.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    reduced = reduce_lattice(cell)
    if not reduced.periodic.any():
        return vectors
    vectors = vectors - np.rint(vectors @ reduced.inverse) @ reduced.vectors
    if not reduced.orthogonal:
        far = (vectors**2).sum(axis=-1) > 0.25 * reduced.widths.min() ** 2
        if far.any():
            images = _TRIPLES[~_TRIPLES[:, ~reduced.periodic].any(axis=1)] @ reduced.vectors
            candidates = vectors[far][:, None] + images
            best = (candidates**2).sum(axis=-1).argmin(axis=-1)
            vectors[far] = candidates[np.arange(len(best)), best]
    return np.asarray(vectors)


class Lattice(NamedTuple):
    """A reduced lattice.

    Attributes
    ----------
    periodic
        Whether there is periodicity along each vector, shape (3,).
    vectors
        Lattice vectors that no sum with the others makes shorter, completed, shape (3, 3),
        angstrom.
    inverse
        Their inverse, with columns of zeros along directions without periodicity, shape (3, 3).
    widths
        Distances of the lattice planes, shape (3,), angstrom; infinite along these directions.
    orthogonal
        Whether all lattice vectors are orthogonal.
    """

    periodic: NDArray[np.bool_]
    vectors: Array
    inverse: Array
    widths: Array
    orthogonal: bool


def reduce_lattice(cell: NDArray[Any]) -> Lattice:
    """The reduced lattice of a cell, shape (3, 3), angstrom."""
    return _lattice(np.ascontiguousarray(cell, dtype=np.float64).tobytes())


@lru_cache(maxsize=64)
def _lattice(cell: bytes) -> Lattice:
    given = np.frombuffer(cell).reshape(3, 3)
    periodic = periodic_directions(given)
    vectors = complete_cell(_reduced(given, periodic))
    inverse = np.asarray(np.linalg.inv(vectors), dtype=np.float64)
    inverse[:, ~periodic] = 0.0
    with np.errstate(divide="ignore"):
        widths = np.asarray(1.0 / np.sqrt((inverse**2).sum(axis=0)), dtype=np.float64)
    metric = (vectors @ vectors.T)[np.ix_(periodic, periodic)]
    orthogonal = not np.count_nonzero(metric - np.diag(np.diag(metric)))
    return Lattice(periodic, vectors, inverse, widths, orthogonal)


def displacements(
    positions: NDArray[Any],
    cell: NDArray[Any],
    reference_positions: NDArray[Any],
    reference_cell: NDArray[Any],
    drift: Drift = "removed",
) -> Array:
    """Displacement-frame coordinates of one structure, or of many structures with the same cell.

    Parameters
    ----------
    positions
        Shape (..., N, 3), angstrom.
    cell
        Lattice vectors as rows, shape (3, 3), angstrom. Those along directions in which the
        reference is not periodic have no meaning.
    reference_positions, reference_cell
        The reference structure, shapes (N, 3) and (3, 3), angstrom.
    drift
        Whether the mean displacement is subtracted ("removed"), or not ("kept"), because fixed
        atoms hold the structure.

    Returns
    -------
    Array
        Displacements u, shape (..., N, 3), angstrom.

    Raises
    ------
    UserError
        If the numbers of atoms differ, a position is not finite, or the cell is not that of the
        reference with a strain: vectors are missing, or it is rotated, flipped or strained by more
        than 25 %.

    Notes
    -----
    Without fixed atoms, periodic images are chosen from the displacements relative to that of the
    first atom. A rigid drift of any size therefore does not move an atom across a border.
    """
    positions = _checked(positions, reference_positions)
    own = _own_cell(cell, reference_cell)
    if not np.array_equal(own, reference_cell):
        along = np.linalg.solve(complete_cell(reference_cell), _completed_as(own, reference_cell))
        reference_positions = reference_positions @ along
    shifts = positions - reference_positions
    if drift == "removed":
        shifts -= shifts[..., :1, :].copy()
    shifts = nearest_images(shifts, own)
    if drift == "removed":
        shifts -= shifts.mean(axis=-2, keepdims=True)
    return np.asarray(shifts)


def _own_cell(cell: NDArray[Any], reference_cell: NDArray[Any]) -> Array:
    """The cell without lattice vectors that the reference does not have.

    Raises
    ------
    UserError
        If it is not the cell of the reference with a strain.
    """
    periodic = periodic_directions(reference_cell)
    own = np.where(periodic[:, None], np.asarray(cell, dtype=np.float64), 0.0)
    if not np.array_equal(periodic_directions(own), periodic):
        raise UserError(
            f"The reference is periodic along {in_words(periodic)}, but the structure has no "
            "lattice vector there; give it the same cell."
        )
    if not np.array_equal(own, reference_cell) and not _is_strain(own, reference_cell, periodic):
        raise UserError(
            f"The cell {own.tolist()} A is not that of the reference "
            f"{np.asarray(reference_cell).tolist()} A with a strain of up to 25 %; use the same "
            "orientation and the same lattice vectors (no flips of the cell)."
        )
    return own


def _completed_as(cell: Array, reference_cell: NDArray[Any]) -> Array:
    """The cell with the vectors of the completed reference along directions that it lacks."""
    return np.where(periodic_directions(cell)[:, None], cell, complete_cell(reference_cell))


def _is_strain(cell: Array, reference_cell: NDArray[Any], periodic: NDArray[np.bool_]) -> bool:
    """Whether a cell is a strained reference, not a rotated one or another choice of vectors.

    A cell whose first vector is along x and whose second one is in the xy plane rotates with a
    shear by no more than twice the strain.
    """
    inverse = np.linalg.inv(complete_cell(reference_cell))
    full = _completed_as(cell, reference_cell)
    found = inverse @ full
    if not np.linalg.det(found) > 0:
        return False
    distance = float(((found - np.eye(3)) ** 2).sum())
    for k in np.flatnonzero(periodic):
        others = [(k + 1) % 3, (k + 2) % 3]
        for pair in _PAIRS:
            if all(periodic[n] or not m for n, m in zip(others, pair, strict=True)):
                flipped = full.copy()
                flipped[k] += np.array(pair) @ full[others]
                if ((inverse @ flipped - np.eye(3)) ** 2).sum() < distance - 1e-12:
                    return False
    rotation, stretch = polar(found, side="left")
    strain = float(np.abs(stretch - np.eye(3)).max())
    angle = float(np.arccos(np.clip(0.5 * (np.trace(rotation) - 1.0), -1.0, 1.0)))
    return strain < LARGEST_STRAIN and angle < 2.0 * strain + _ROUNDING


def _reduced(cell: NDArray[Any], periodic: NDArray[np.bool_]) -> Array:
    """Lattice vectors that no sum with the others makes shorter, shape (3, 3)."""
    reduced = np.array(cell, dtype=np.float64)
    shorter = True
    while shorter:
        shorter = False
        for k in np.flatnonzero(periodic):
            others = [(k + 1) % 3, (k + 2) % 3]
            for pair in _PAIRS:
                candidate = reduced[k] + np.array(pair) @ reduced[others]
                square = float(candidate @ candidate)
                if 0 < square < (1.0 - 1e-9) * float(reduced[k] @ reduced[k]):
                    reduced[k] = candidate
                    shorter = True
    return reduced


def in_words(periodic: NDArray[np.bool_]) -> str:
    """Names of the lattice vectors along which a system is periodic, for messages."""
    return (
        " and ".join(name for name, along in zip("abc", periodic, strict=True) if along) or "none"
    )


def align(
    positions: NDArray[Any], cell: NDArray[Any], reference_positions: NDArray[Any]
) -> tuple[Array, Array]:
    """Displacements of a molecule after the best fit to its reference, and the rotations.

    Parameters
    ----------
    positions
        Shape (..., N, 3), angstrom.
    cell
        Lattice vectors as rows, shape (3, 3), angstrom; zero along directions without periodicity.
        In a periodic cell the molecule is first made whole.
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
    if periodic_directions(cell).any():
        positions = make_whole(positions, cell, reference_positions)
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


def turn_back(
    gradients: NDArray[Any], displacements: NDArray[Any], reference_positions: NDArray[Any]
) -> Array:
    """Derivatives with respect to positions, from those to displacements of `align`, before R^T.

    The rotation depends on the positions as well. At the best fit to the reference f, the sum of
    (R r_i) x f_i is zero. This condition gives the change of the rotation. It adds the term
    f_i x lambda to the gradient g, where M lambda = sum_i (R r_i) x g_i and
    M = sum_i (R r_i . f_i - (R r_i) f_i^T).

    Parameters
    ----------
    gradients
        Shape (..., d, N, 3).
    displacements
        As from `align`, shape (..., N, 3), angstrom.
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


def make_whole(
    positions: NDArray[Any], cell: NDArray[Any], reference_positions: NDArray[Any]
) -> Array:
    """Make a molecule whole that the border of the cell divides, shape (..., N, 3), angstrom.

    Each atom is moved to the image nearest to an atom to which `find_bonds` connects it.
    The longest bond must be shorter than half the width of the cell.
    """
    joined = np.array(positions, dtype=np.float64)
    for parent, atom in find_bonds(reference_positions):
        bond = nearest_images(joined[..., atom, :] - joined[..., parent, :], cell)
        joined[..., atom, :] = joined[..., parent, :] + bond
    return joined


def find_bonds(reference_positions: NDArray[Any]) -> NDArray[np.int64]:
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
            f"{len(reference_positions)}; give both the same atoms in the same order."
        )
    if not np.isfinite(positions).all():
        raise UserError(
            "The positions contain NaN or infinite values; remove the structures that have them."
        )
    return positions
