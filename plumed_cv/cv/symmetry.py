"""The symmetry of a process: what maps its two end states onto themselves or onto each other.

Atoms interact in the same way after a rotation, a reflection, a translation or an exchange of equal
atoms. Operations that leave the pair of end states as it is therefore leave the Boltzmann
distribution along the process as it is, and with it the mean path: averages over them are averages
over more structures. A jumping vacancy in a bcc crystal has 12, a straight dislocation one for each
period of its line. Lengths are in angstrom. N atoms.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from plumed_cv.cv.collective_variable import CollectiveVariable
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures.frame import Array

TOLERANCE_A = 0.05  # structures relaxed to 1e-3 eV/A differ by less, broken symmetries by more


@dataclass(frozen=True)
class Operation:
    """An operation on displacements: atom i's, rotated, become those of atom `image[i]`.

    Parameters
    ----------
    rotation
        Orthogonal matrix, shape (3, 3); acts on row vectors from the right.
    image
        Where each atom goes, shape (N,).
    offset
        Displacement of the transformed reference structure, shape (N, 3), angstrom.
    reverses
        Whether the end states change places.
    """

    rotation: Array
    image: NDArray[np.int64]
    offset: Array
    reverses: bool

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        in_place = (self.image == np.arange(len(self.image))).all()
        return not self.reverses and bool(in_place) and np.allclose(self.rotation, np.eye(3))

    def turn(self, vectors: Array) -> Array:
        """Rotate and permute, without the offset: shape (..., N, 3)."""
        turned = np.empty_like(vectors)
        turned[..., self.image, :] = vectors @ self.rotation
        return turned


def operations(variable: CollectiveVariable, tolerance_A: float = TOLERANCE_A) -> list[Operation]:
    """Find the operations that keep or exchange the end states of a collective variable.

    Parameters
    ----------
    variable
        Gives species, cell, reference structure and end states.
    tolerance_A
        How far an atom may lie from where another one was mapped, angstrom.

    Returns
    -------
    list
        The identity first. Only the identity for a system without periodicity.
    """
    n = variable.n_atoms
    identity = Operation(np.eye(3), np.arange(n), np.zeros((n, 3)), reverses=False)
    if not variable.reference_cell.any():
        return [identity]
    finder = _Finder(variable, tolerance_A)
    found = [identity]
    for rotation in _lattice_rotations(variable.reference_cell):
        for reverses in (False, True):
            for operation in finder.with_rotation(rotation, reverses):
                if not operation.is_identity:
                    found.append(operation)
    return found


def of_path(path: EnergyPath, variable: CollectiveVariable) -> list[Operation]:
    """Those of `operations(variable)` that the minimum energy path has as well.

    A path may break the symmetry of its end states: through one of several equal saddle points. An
    operation counts if it takes each atom of each image to within `TOLERANCE_A` of the path.
    """
    return [op for op in operations(variable) if _asymmetry(path, op) < TOLERANCE_A]


def _asymmetry(path: EnergyPath, operation: Operation) -> float:
    """How far the operation takes the atom of the path that it takes farthest off it, angstrom."""
    images = operation.turn(path.displacements) + operation.offset
    images -= images.mean(axis=1, keepdims=True)
    places = 1.0 - path.arc_length if operation.reverses else path.arc_length
    apart = images - path.spline(np.clip(places, 0.0, 1.0))
    return float(np.linalg.norm(apart, axis=2).max())


def _lattice_rotations(cell: Array) -> Iterator[NDArray[np.int64]]:
    """Integer matrices W that keep the lattice: fractional coordinates x become x W."""
    metric = cell @ cell.T
    candidates = np.array(list(product((-1, 0, 1), repeat=9)), dtype=np.int64).reshape(-1, 3, 3)
    images = candidates @ metric @ candidates.transpose(0, 2, 1)
    kept = np.abs(images - metric).max(axis=(1, 2)) < 1e-4 * np.trace(metric)
    yield from candidates[kept]


class _Finder:
    """Tries rotations of a lattice, with all translations, on the end states of a process."""

    def __init__(self, variable: CollectiveVariable, tolerance_A: float) -> None:
        self.cell = variable.reference_cell
        self.tolerance = tolerance_A
        self.displacements = variable.end_displacements
        inverse = np.linalg.inv(self.cell)
        self.fractional = [(variable.reference_positions + u) @ inverse for u in self.displacements]
        self.trees = [cKDTree(x % 1.0 % 1.0, boxsize=1.0) for x in self.fractional]
        self.kinds = np.unique(variable.species, return_inverse=True)[1]
        step = np.linalg.norm(self.displacements[1] - self.displacements[0], axis=1)
        # The atom that moves most has the fewest places to go to.
        self.mover = int(step.argmax())
        self.places = np.flatnonzero(
            (np.abs(step - step[self.mover]) < tolerance_A) & (self.kinds == self.kinds[self.mover])
        )

    def with_rotation(self, rotation: NDArray[np.int64], reverses: bool) -> Iterator[Operation]:
        """All operations with this rotation (on fractional row vectors)."""
        cartesian = np.asarray(np.linalg.solve(self.cell, rotation @ self.cell), dtype=np.float64)
        start, end = (1, 0) if reverses else (0, 1)
        turned = [x @ rotation for x in self.fractional]
        for place in self.places:
            shift = self.fractional[start][place] - turned[0][self.mover]
            image = self._match(turned[0] + shift, start)
            again = None if image is None else self._match(turned[1] + shift, end)
            if image is None or again is None or (image != again).any():
                continue
            offset = np.zeros_like(self.displacements[0])
            offset[image] = self.displacements[0] @ cartesian
            offset = self.displacements[start] - offset
            yield Operation(cartesian, image, offset, reverses)

    def _match(self, fractional: Array, state: int) -> NDArray[np.int64] | None:
        """Which atom of an end state lies where each atom was mapped; None if one finds none."""
        _, image = self.trees[state].query(fractional % 1.0 % 1.0)
        apart = fractional - self.fractional[state][image]
        apart -= np.rint(apart)
        far = np.linalg.norm(apart @ self.cell, axis=1) > self.tolerance
        if far.any() or (self.kinds[image] != self.kinds).any():
            return None
        if len(np.unique(image)) < len(image):
            return None
        return np.asarray(image, dtype=np.int64)
