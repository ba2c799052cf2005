"""The units of LAMMPS in which a potential may be, and those of this package in them.

Everything outside of LAMMPS is in eV, angstrom, fs, amu and e. LAMMPS runs in `units metal` (eV,
ps, bar) or in `units real` (kcal/mol, fs, atm), which some force fields need. Lengths are in
angstrom, masses in g/mol, charges in e and temperatures in K in both
(https://docs.lammps.org/units.html).
"""

from dataclasses import dataclass
from typing import Literal

from plumed_cv.structures.frame import Array

UnitsName = Literal["metal", "real"]

EV_IN_KJ_PER_MOL = 96.48530749925792  # as in LAMMPS's fix plumed
KCAL_IN_KJ = 4.184
BAR_IN_EV_PER_A3 = 6.241509074460763e-07
ATM_IN_BAR = 1.01325
FS_IN_PS = 1e-3


@dataclass(frozen=True)
class Units:
    """One of LAMMPS's systems of units.

    Attributes
    ----------
    name
        As in LAMMPS's command `units`.
    energy_eV
        Its unit of energy, eV; forces are this per angstrom.
    time_ps
        Its unit of time, ps; velocities are angstrom per this.
    pressure_eV_A3
        Its unit of pressure, eV/angstrom^3.
    """

    name: UnitsName
    energy_eV: float
    time_ps: float
    pressure_eV_A3: float

    def time(self, time_fs: float) -> float:
        """Return a time in LAMMPS's unit."""
        return float(time_fs) * FS_IN_PS / self.time_ps

    def velocities(self, velocities: Array) -> Array:
        """Return velocities, in angstrom/fs, in LAMMPS's unit."""
        return velocities / FS_IN_PS * self.time_ps

    def velocities_A_fs(self, velocities: Array) -> Array:  # noqa: N802
        """Return velocities of LAMMPS in angstrom/fs."""
        return velocities * FS_IN_PS / self.time_ps


UNITS = {
    "metal": Units("metal", 1.0, 1.0, BAR_IN_EV_PER_A3),
    "real": Units("real", KCAL_IN_KJ / EV_IN_KJ_PER_MOL, FS_IN_PS, ATM_IN_BAR * BAR_IN_EV_PER_A3),
}
