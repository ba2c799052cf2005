"""Two atoms with an analytic energy along a curved path."""

from functools import lru_cache
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from plumed_cv.paths.neb import find_minimum_energy_path
from plumed_cv.paths.path import EnergyPath

CURVATURE, HEIGHT, SPRING, LOWER = 0.6, 0.5, 3.0, 0.6


class CurvedValley(Calculator):
    """Two atoms whose separation (x, y, z) has a double well along the arc y = c (1 - x^2).

    The path from (-1, 0, 0) to (1, 0, 0) has its saddle point at (0, c, 0), HEIGHT eV up.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        x, y, z = atoms.positions[1] - atoms.positions[0] - [5.0, 0.0, 0.0]
        off = y - CURVATURE * (1 - x**2)
        energy, slope = self.along(x)
        energy += 0.5 * SPRING * (off**2 + z**2)
        slope += SPRING * off * 2 * CURVATURE * x
        gradient = np.array([slope, SPRING * off, SPRING * z])
        self.results = {"energy": energy, "forces": np.stack([gradient, -gradient])}

    def along(self, x: float) -> tuple[float, float]:
        """Energy along the arc and its derivative."""
        return HEIGHT * (1 - x**2) ** 2, -4 * HEIGHT * x * (1 - x**2)


def pair(x: float, y: float, z: float) -> Atoms:
    return Atoms("H2", positions=[[0, 0, 0], [5 + x, y, z]])


@lru_cache
def relaxed_path() -> EnergyPath:
    """Minimum energy path in the curved valley."""
    return find_minimum_energy_path(pair(-0.9, 0.1, 0.1), pair(0.8, 0.0, -0.1), CurvedValley, 15)
