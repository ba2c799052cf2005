"""Atoms near given places in a periodic structure of any size. Lengths are in angstrom. N atoms."""

from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from plumed_cv.structures.frame import Array, pad_cell


class Neighbours:
    """Search for atoms within a radius, with periodic images as far as this radius.

    Parameters
    ----------
    positions
        Shape (N, 3), angstrom.
    cell
        Lattice vectors as rows, shape (3, 3), angstrom; zero along directions without periodicity.
    radius
        Largest distance, angstrom.
    """

    def __init__(self, positions: Array, cell: Array, radius: float) -> None:
        self._cell = cell = pad_cell(cell, positions) if np.any(cell) else cell
        self._radius = radius
        atoms = np.arange(len(positions))
        if not cell.any():
            self._tree, self._atoms = cKDTree(positions), atoms
            return
        fractional = self._fractional(positions)
        # The distance of opposite faces is one over the length of a column of the inverse.
        reach = radius * np.linalg.norm(np.linalg.inv(cell), axis=0)
        steps = [range(-int(np.ceil(r)), int(np.ceil(r)) + 1) for r in reach]
        images, numbers = [], []
        for step in product(*steps):
            moved = fractional + step
            near = ((moved > -reach) & (moved < 1.0 + reach)).all(axis=1)
            images.append(moved[near])
            numbers.append(atoms[near])
        self._tree = cKDTree(np.concatenate(images) @ cell)
        self._atoms = np.concatenate(numbers)

    def of(self, places: Array) -> NDArray[np.int64]:
        """Atoms within the radius of any of the places, (n,)."""
        found = self._tree.query_ball_point(self._wrapped(places), self._radius)
        return np.unique(self._atoms[np.concatenate(found).astype(np.int64)])

    def distances(self, places: Array, number: int) -> Array:
        """Distances of the atom at each place to the nearest others, sorted; infinite beyond."""
        distances, _ = self._tree.query(
            self._wrapped(places), k=number + 1, distance_upper_bound=self._radius
        )
        return np.asarray(distances[:, 1:])

    def pairs(self, places: Array) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
        """Return all pairs of a place and another atom within the radius.

        Returns
        -------
        (n,), (n,), (n, 3)
            Number of the place, the atom, and the vector from the place to the atom, angstrom.
            An atom at the place itself is left out.
        """
        where = self._wrapped(places)
        found = cKDTree(where).sparse_distance_matrix(
            self._tree, self._radius, output_type="ndarray"
        )
        found = found[found["v"] > 0]
        shifts = self._tree.data[found["j"]] - where[found["i"]]
        return found["i"], self._atoms[found["j"]], shifts

    def _fractional(self, positions: Array) -> Array:
        fractional = positions @ np.linalg.inv(self._cell)
        return np.asarray(fractional - np.floor(fractional))

    def _wrapped(self, places: Array) -> Array:
        return self._fractional(places) @ self._cell if self._cell.any() else places


def nearest_distance(positions: Array, cell: Array, places: Array | None = None) -> float:
    """Median distance of an atom to its nearest neighbour, angstrom.

    Parameters
    ----------
    positions, cell
        As for `Neighbours`.
    places
        Positions of the atoms over which the median is taken, shape (n, 3); all if None.
    """
    places = positions if places is None else places
    radius = 3.0
    while radius < 50.0:
        distance = float(np.median(Neighbours(positions, cell, radius).distances(places, 1)))
        if np.isfinite(distance):
            return distance
        radius *= 2.0
    return radius
