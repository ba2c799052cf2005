"""Other events: the minima that trajectories reach when they leave the process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read

from plumed_cv.common.files import replacing
from plumed_cv.cv.symmetry import Operation
from plumed_cv.rates.shots import Relaxed
from plumed_cv.structures import cell_of, drift_of
from plumed_cv.structures.frame import Array, displacements

SAME_A = 0.3  # largest distance of an atom between two structures that count as the same minimum


class Events:
    """The minima that were found, as files of a folder: other-1.xyz, other-2.xyz, ...

    Two minima are the same event if no atom moves by more than `SAME_A` between them. They are
    compared directly and after each symmetry operation that keeps both end states.

    Parameters
    ----------
    folder
        The folder of the files.
    ends
        The relaxed initial and final state.
    operations
        Symmetry of the process (`cv.symmetry`); operations that exchange the end states are not
        used.
    """

    def __init__(
        self,
        folder: Path,
        ends: tuple[Atoms, Atoms],
        operations: Sequence[Operation],
    ) -> None:
        self._folder = folder
        self._initial = ends[0]
        self._operations = [each for each in operations if not each.reverses]
        self._ends = [self._displacements(atoms.positions) for atoms in ends]
        self._known: list[Array] = []
        while self.file(len(self._known) + 1).exists():
            atoms = read(self.file(len(self._known) + 1))
            assert isinstance(atoms, Atoms)
            self._known.append(self._displacements(atoms.positions))

    def file(self, event: int) -> Path:
        """Return the file of an event's structure; events are numbered from 1."""
        return self._folder / f"other-{event}.xyz"

    def identify(self, found: Relaxed) -> Literal["before", "behind"] | int:
        """Return the end state that a minimum is, or the (possibly new) number of its event."""
        u = self._displacements(found.positions)
        for name, end in zip(("before", "behind"), self._ends, strict=True):
            if _apart(u, end) < SAME_A:
                return name  # type: ignore[return-value]
        images = [u, *(self._image(u, operation) for operation in self._operations)]
        for event, known in enumerate(self._known, 1):
            if any(_apart(image, known) < SAME_A for image in images):
                return event
        self._known.append(u)
        self._write(len(self._known), u, found.energy_eV)
        return len(self._known)

    def energy_eV(self, event: int) -> float:  # noqa: N802
        """Potential energy of the minimum of an event, eV."""
        atoms = read(self.file(event))
        assert isinstance(atoms, Atoms)
        return float(atoms.get_potential_energy())

    def _displacements(self, positions: Array) -> Array:
        cell = cell_of(self._initial)
        reference = self._initial.positions
        return displacements(positions, cell, reference, cell, drift_of(self._initial))

    def _image(self, u: Array, operation: Operation) -> Array:
        image = operation.turn(u) + operation.offset
        return np.asarray(image - image.mean(axis=0))

    def _write(self, event: int, u: Array, energy_eV: float) -> None:
        """Write the minimum without the drift of the trajectory, as `plumed-cv run` reads it."""
        atoms = self._initial.copy()
        atoms.calc = None
        atoms.positions = self._initial.positions + (u - self._ends[0])
        atoms.calc = SinglePointCalculator(atoms, energy=energy_eV)
        with replacing(self.file(event)) as temporary:
            atoms.write(temporary, format="extxyz")


def _apart(u: Array, other: Array) -> float:
    """Largest distance of an atom between two structures, angstrom."""
    return float(np.linalg.norm(u - other, axis=1).max())
