"""Symmetry of a structure and of a process: operations that keep or exchange the end states.

Atoms interact in the same way after a rotation, a reflection, a translation or an exchange of equal
atoms. Operations that keep the pair of end states therefore keep the Boltzmann distribution along
the process, and with it the mean path. Averages over these operations are averages over more
structures. A jumping vacancy in a bcc crystal has 12 operations, and a straight dislocation one for
each period of its line. The operations of one end state alone give equivalent events. Lengths are
in angstrom. N atoms.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from ase.geometry import minkowski_reduce
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator
from scipy.spatial import cKDTree

from plumed_cv.common.errors import UserError
from plumed_cv.cv.collective_variable import CollectiveVariable
from plumed_cv.cv.projection import linear
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures.frame import Array, Drift, pad_cell
from plumed_cv.structures.neighbours import Neighbours

TOLERANCE_A = 0.05  # structures relaxed to 1e-3 eV/A differ by less, broken symmetries by more
_RANGE_A = 4.5  # range of the neighbours that distinguish atoms
_RESTS = 0.1  # an atom whose displacement is below this fraction of the tolerance does not move
_MOST_MOVING = 50  # number of atoms on which an operation is tried before all others
_NEIGHBOURS = 60  # number of them at most
_PROBES = 32  # number of atoms that are compared with all others
_MOST_IMAGES = 3e7  # largest number of images of all atoms by all operations


@dataclass(frozen=True)
class Operation:
    """An operation on displacements: those of atom i, rotated, become those of atom `image[i]`.

    Parameters
    ----------
    rotation
        Orthogonal matrix, shape (3, 3); acts on row vectors from the right.
    image
        Atom to which each atom is mapped, shape (N,).
    offset
        Displacement of the transformed reference structure, shape (N, 3), angstrom.
    reverses
        Whether the operation exchanges the end states.
    """

    rotation: Array
    image: NDArray[np.int64]
    offset: Array
    reverses: bool

    @property
    def is_identity(self) -> bool:
        """Whether the operation changes nothing."""
        in_place = (self.image == np.arange(len(self.image))).all()
        return not self.reverses and bool(in_place) and np.allclose(self.rotation, np.eye(3))

    def within(self, chosen: NDArray[np.int64], drift: Drift) -> "Operation | None":
        """Return the operation on some atoms only, (n,); None if it maps one of them elsewhere."""
        place = np.full(len(self.image), -1)
        place[chosen] = np.arange(len(chosen))
        image = place[self.image[chosen]]
        if (image < 0).any():
            return None
        offset = self.offset[chosen]
        if drift == "removed":
            offset = offset - offset.mean(axis=0)
        return Operation(self.rotation, image, offset, self.reverses)

    def turn(self, vectors: Array) -> Array:
        """Rotate and permute, without the offset: shape (..., N, 3)."""
        turned = np.empty_like(vectors)
        turned[..., self.image, :] = vectors @ self.rotation
        return turned


def find_operations(
    variable: CollectiveVariable,
    tolerance_A: float = TOLERANCE_A,
    held: NDArray[np.int64] | Sequence[int] = (),
) -> list[Operation]:
    """Find the operations that keep or exchange the end states of a collective variable.

    Parameters
    ----------
    variable
        It gives species, cell, reference structure and end states.
    tolerance_A
        Largest distance of an atom from the mapped position of another one, angstrom.
    held
        Fixed atoms, from 0, which an operation maps onto fixed atoms.

    Returns
    -------
    list
        The identity comes first. Only the identity for a system without periodicity.
    """
    n = variable.n_atoms
    identity = Operation(np.eye(3), np.arange(n), np.zeros((n, 3)), reverses=False)
    if not variable.reference_cell.any():
        return [identity]
    finder = _Finder(variable, tolerance_A, held)
    found = [identity]
    for rotation in _lattice_rotations(finder.cell):
        for reverses in (False, True):
            for operation in finder.with_rotation(rotation, reverses):
                if not operation.is_identity:
                    found.append(operation)
    return found


def find_path_operations(
    path: EnergyPath, serials: NDArray[np.int64] | None = None
) -> list[Operation]:
    """Return the operations of the end states that the minimum energy path also has.

    A path may break the symmetry of its end states, by passing through one of several equal saddle
    points. An operation counts if it maps each atom of each image to within `TOLERANCE_A` of the
    path.

    Parameters
    ----------
    path
        The path of all atoms.
    serials
        Atoms on which the operations act, by their serial numbers from 1, (n,). Operations that map
        one of them to another atom are left out. If None, all atoms.
    """
    first, last = path.images[0], path.images[-1]
    line = linear(path.species, path.cell, first.positions, last.positions, drift=path.drift)
    moving = np.linalg.norm(path.displacements, axis=2).max(axis=0) > _RESTS * TOLERANCE_A
    chosen = np.flatnonzero(moving)
    found = [
        op
        for op in find_operations(line, held=path.held)
        if _asymmetry(path, op, chosen) < TOLERANCE_A
    ]
    if serials is None:
        return found
    parts = (operation.within(serials - 1, path.drift) for operation in found)
    return [part for part in parts if part is not None]


def close_under(chosen: NDArray[np.int64], found: Sequence[Operation]) -> NDArray[np.int64]:
    """Return atoms together with those to which the operations map them, sorted, (n,)."""
    return np.unique(np.concatenate([chosen, *(operation.image[chosen] for operation in found)]))


def _asymmetry(path: EnergyPath, operation: Operation, moving: NDArray[np.int64]) -> float:
    """Largest distance from the path of a moving atom that the operation has mapped, angstrom."""
    targets = operation.image[moving]
    images = path.displacements[:, moving] @ operation.rotation + operation.offset[targets]
    places = 1.0 - path.arc_length if operation.reverses else path.arc_length
    spline = Akima1DInterpolator(path.arc_length, path.displacements[:, targets], axis=0)
    apart = images - spline(np.clip(places, 0.0, 1.0))
    return float(np.linalg.norm(apart, axis=2).max(initial=0.0))


def find_space_group(
    species: Sequence[str],
    positions: Array,
    cell: Array,
    tolerance_A: float = TOLERANCE_A,
    held: NDArray[np.int64] | Sequence[int] = (),
) -> list[Operation]:
    """Find the operations of the space group of a structure, with translations within its cell.

    Parameters
    ----------
    species
        Kind of each atom, for example `structures.kinds_of`.
    positions, cell
        The structure, shapes (N, 3) and (3, 3), angstrom.
    tolerance_A
        Largest distance of an atom from the mapped position of another one, angstrom.
    held
        Fixed atoms, from 0, which an operation maps onto fixed atoms.

    Returns
    -------
    list
        The identity comes first. They act on displacements from the structure, so the offset is
        zero. Operations that the cell does not have are not found, even if the crystal has them.

    Raises
    ------
    UserError
        If the structure is a perfect crystal with too many operations.
    """
    n = len(species)
    nothing = np.zeros((n, 3))
    found = [Operation(np.eye(3), np.arange(n), nothing, reverses=False)]
    cell = pad_cell(cell, positions)
    sites = _Sites(_kinds(species, held), positions, cell, tolerance_A)
    first, *others = sites.alike()
    x = sites.fractional
    translations = [np.arange(n)]
    translations += [
        image for place in others if (image := sites.match(x + x[place] - x[first])) is not None
    ]
    if 48 * n * len(translations) > _MOST_IMAGES:
        raise UserError(
            f"The structure has {n} atoms and {len(translations)} translations, which are too many "
            "symmetry operations to try; use a smaller cell, or no symmetry."
        )
    # Another translation would only repeat the operations of a rotation.
    places: list[int] = []
    seen: set[int] = set()
    for place in (first, *others):
        if place not in seen:
            places.append(place)
            seen.update(image[place] for image in translations)
    for rotation in _lattice_rotations(cell):
        turned = x @ rotation
        matches = (sites.match(turned + x[place] - turned[first]) for place in places)
        image = next((match for match in matches if match is not None), None)
        if image is None:
            continue
        cartesian = np.asarray(np.linalg.solve(cell, rotation @ cell), dtype=np.float64)
        for translation in translations:
            operation = Operation(cartesian, translation[image], nothing, reverses=False)
            if not operation.is_identity:
                found.append(operation)
    return found


def _kinds(species: Sequence[str], held: NDArray[np.int64] | Sequence[int]) -> list[str]:
    """Names of the atoms by which operations tell them: element, and whether they are fixed."""
    kinds = list(species)
    for atom in held:
        kinds[atom] += " fixed"
    return kinds


def _lattice_rotations(cell: Array) -> Iterator[NDArray[np.int64]]:
    """Integer matrices W that keep the lattice: fractional coordinates x become x W.

    Those of a reduced cell have only the elements -1, 0 and 1; the given cell may be skew.
    """
    reduced, change = minkowski_reduce(cell)  # reduced = change @ cell
    back = np.rint(np.linalg.inv(change)).astype(np.int64)
    metric = reduced @ reduced.T
    candidates = np.array(list(product((-1, 0, 1), repeat=9)), dtype=np.int64).reshape(-1, 3, 3)
    images = candidates @ metric @ candidates.transpose(0, 2, 1)
    kept = np.abs(images - metric).max(axis=(1, 2)) < 1e-4 * np.trace(metric)
    yield from back @ candidates[kept] @ change


class _Sites:
    """Positions of the atoms of a structure, and a search for atoms at given positions."""

    def __init__(
        self, species: Sequence[str], positions: Array, cell: Array, tolerance_A: float
    ) -> None:
        self.cell = cell
        self.tolerance = tolerance_A
        self.fractional = positions @ np.linalg.inv(cell)
        self.kinds = np.unique(np.asarray(species), return_inverse=True)[1]
        self._tree = cKDTree(self.fractional % 1.0 % 1.0, boxsize=1.0)

    def match(
        self, fractional: Array, atoms: NDArray[np.int64] | slice = slice(None)
    ) -> NDArray[np.int64] | None:
        """Atom at each mapped position of `atoms`; None if one has no atom of the same kind."""
        _, image = self._tree.query(fractional % 1.0 % 1.0)
        apart = fractional - self.fractional[image]
        apart -= np.rint(apart)
        far = np.linalg.norm(apart @ self.cell, axis=1) > self.tolerance
        if far.any() or (self.kinds[image] != self.kinds[atoms]).any():
            return None
        if len(np.unique(image)) < len(image):
            return None
        return np.asarray(image, dtype=np.int64)

    def alike(self) -> NDArray[np.int64]:
        """A small set of atoms that includes all images of its first atom.

        Images have the same sorted distances of neighbours within the tolerance.
        """
        positions = self.fractional @ self.cell
        nearest = Neighbours(positions, self.cell, _RANGE_A).distances(positions, _NEIGHBOURS)
        nearest = nearest[:, np.isfinite(nearest).all(axis=0)]
        coarse = np.column_stack([self.kinds, np.rint(nearest / (4.0 * self.tolerance))])
        _, group, size = np.unique(coarse, axis=0, return_inverse=True, return_counts=True)
        alike: list[NDArray[np.int64]] = []
        for first in np.argsort(size[group.ravel()], kind="stable")[:_PROBES]:
            off = np.abs(nearest - nearest[first]).max(axis=1, initial=0.0)
            same = (self.kinds == self.kinds[first]) & (off <= 2.0 * self.tolerance)
            others = np.flatnonzero(same)
            alike.append(np.concatenate([[first], others[others != first]]))
        return min(alike, key=len)


class _Finder:
    """Tests rotations of a lattice, with all translations, on the end states of a process."""

    def __init__(
        self,
        variable: CollectiveVariable,
        tolerance_A: float,
        held: NDArray[np.int64] | Sequence[int],
    ) -> None:
        self.cell = pad_cell(variable.reference_cell, variable.reference_positions)
        self.displacements = variable.end_displacements
        names = _kinds(variable.species, held)
        self.states = [
            _Sites(names, variable.reference_positions + u, self.cell, tolerance_A)
            for u in self.displacements
        ]
        kinds = self.states[0].kinds
        step = np.linalg.norm(self.displacements[1] - self.displacements[0], axis=1)
        # The atom that moves most has the fewest possible images.
        self.mover = int(step.argmax())
        self.places = np.flatnonzero(
            (np.abs(step - step[self.mover]) < tolerance_A) & (kinds == kinds[self.mover])
        )
        self.first = np.argsort(-step, kind="stable")[:_MOST_MOVING]

    def with_rotation(self, rotation: NDArray[np.int64], reverses: bool) -> Iterator[Operation]:
        """Yield all operations with this rotation (of fractional row vectors)."""
        cartesian = np.asarray(np.linalg.solve(self.cell, rotation @ self.cell), dtype=np.float64)
        start, end = (1, 0) if reverses else (0, 1)
        turned = [state.fractional @ rotation for state in self.states]
        for place in self.places:
            shift = self.states[start].fractional[place] - turned[0][self.mover]
            if self.states[start].match(turned[0][self.first] + shift, self.first) is None:
                continue
            image = self.states[start].match(turned[0] + shift)
            again = None if image is None else self.states[end].match(turned[1] + shift)
            if image is None or again is None or (image != again).any():
                continue
            offset = np.zeros_like(self.displacements[0])
            offset[image] = self.displacements[0] @ cartesian
            offset = self.displacements[start] - offset
            yield Operation(cartesian, image, offset, reverses)
