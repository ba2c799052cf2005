"""Free energy of formation of a defect, as the user gives it."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import units

from plumed_cv.common.errors import UserError


@dataclass(frozen=True)
class Formation:
    """Free energy of formation of the defect.

    Attributes
    ----------
    temperatures_K, free_energies_eV, errors_eV
        Shapes (n,). With one temperature of NaN, the values hold at all temperatures.
    entropy_kB
        Entropy of formation: the free energy at T is the value minus T times this.
    """

    temperatures_K: tuple[float, ...]
    free_energies_eV: tuple[float, ...]
    errors_eV: tuple[float, ...]
    entropy_kB: float = 0.0

    def at(self, temperature_K: float) -> tuple[float, float]:
        """Return the free energy at a temperature and its error, eV.

        Raises
        ------
        UserError
            If it is not known there.
        """
        for kelvin, value, error in zip(
            self.temperatures_K, self.free_energies_eV, self.errors_eV, strict=True
        ):
            if np.isnan(kelvin) or np.isclose(kelvin, temperature_K, rtol=0, atol=1e-6):
                return value - units.kB * temperature_K * self.entropy_kB, error
        raise UserError(
            f"The free energy of formation at {temperature_K:g} K is missing; add a row for it."
        )


def read_formation(given: str, entropy_kB: float = 0.0) -> Formation:
    """Read the free energy of formation: a number in eV, or the name of a CSV file.

    The file has the columns temperature_K, free_energy_eV and, if known, error_eV.

    Raises
    ------
    UserError
        If it is neither.
    """
    try:
        return Formation((float("nan"),), (float(given),), (0.0,), entropy_kB)
    except ValueError:
        pass
    try:
        with Path(given).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        columns = [
            [float(row.get(name) or default) for row in rows]
            for name, default in (
                ("temperature_K", "missing"), ("free_energy_eV", "missing"), ("error_eV", "0"),
            )
        ]  # fmt: skip
    except OSError as error:
        raise UserError(
            f"{given}: is no number, and no file ({error.strerror}); give the energy in eV, or a "
            "CSV file."
        ) from None
    except (ValueError, csv.Error, UnicodeDecodeError):
        rows, columns = [], []
    if not rows:
        raise UserError(
            f"{given}: is not a CSV file with numbers in the columns temperature_K, "
            "free_energy_eV and, if known, error_eV."
        )
    kelvin, energies, errors = map(tuple, columns)
    return Formation(kelvin, energies, errors, entropy_kB)
