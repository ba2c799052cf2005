"""Calculators that evaluate several structures in one call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from numpy.typing import NDArray

Array = NDArray[np.float64]


class _Together(Calculator):
    """A calculator of ASE that goes through the structures of a call.

    Parameters
    ----------
    calls
        A file that receives the number of structures of each call.
    flat
        Whether the forces have a wrong shape.
    most
        Largest number of structures in a call; it refuses more.
    closest
        Least distance of the first two atoms, angstrom; it refuses less.
    blind
        Whether it returns forces that are not numbers instead of refusing such a structure.
    """

    def __init__(
        self,
        calls: str | None = None,
        flat: bool = False,
        most: int = 1000,
        closest: float = 0.0,
        blind: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)  # type: ignore[no-untyped-call]
        self._calls = None if calls is None else Path(calls).absolute()
        self._flat, self._most, self._closest, self._blind = flat, most, closest, blind

    def calculate_batch(self, structures: Sequence[Atoms]) -> tuple[Array, Array]:
        """Return energies (M,) and forces (M, N, 3)."""
        if self._calls is not None:
            with self._calls.open("a", encoding="utf-8") as file:
                file.write(f"{len(structures)}\n")
        if len(structures) > self._most:
            raise MemoryError("no memory is left")
        energies, forces = [], []
        for atoms in structures:
            near = atoms.get_distance(0, 1) < self._closest
            if near and not self._blind:
                raise ValueError("two atoms are too near")
            self.get_property("energy", atoms)  # type: ignore[no-untyped-call]
            energies.append(self.results["free_energy"])
            forces.append(self.results["forces"] * (np.nan if near else 1.0))
        return np.array(energies), np.concatenate(forces) if self._flat else np.array(forces)


class Pairs(_Together, LennardJones):
    """ASE's Lennard-Jones potential."""


class Metal(_Together, EMT):
    """ASE's effective medium theory."""
