"""Molecular dynamics in segments: the equations of motion, configurations, orders and results."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import replacing
from plumed_cv.structures import cell_of
from plumed_cv.structures.frame import Array

Thermostat = Literal["langevin", "brownian", "none"]

RECORD = "record.bin"  # in the folder of a segment, see `Record`


def draw_velocities(
    rng: np.random.Generator,
    masses: Array,
    temperature_K: float,
    held: NDArray[np.int64] | Sequence[int] = (),
) -> Array:
    """Draw velocities at a temperature; remove the total momentum if no atom is fixed.

    Parameters
    ----------
    rng
        Random number generator.
    masses
        Masses in amu, shape (N,).
    temperature_K
        Temperature in K.
    held
        Fixed atoms, from 0, whose velocities are zero.

    Returns
    -------
    Velocities in angstrom/fs, shape (N, 3). Without fixed atoms the centre of mass is at rest, so
    the kinetic energy is that of N - 1 atoms.
    """
    momenta = rng.standard_normal((len(masses), 3)) * np.sqrt(
        masses[:, None] * units.kB * temperature_K
    )
    velocities = momenta / masses[:, None]
    if len(held):
        velocities[held] = 0.0
    else:
        velocities -= momenta.sum(axis=0) / masses.sum()
    return velocities * units.fs


@dataclass(frozen=True)
class Dynamics:
    """Equations of motion, at constant cell, and at constant temperature or energy.

    Attributes
    ----------
    temperature_K
        Temperature in K.
    timestep_fs
        Time step in fs.
    thermostat
        "langevin": m dv/dt = F - m gamma v + noise.
        "brownian": its overdamped limit, dr/dt = F / (m gamma) + noise, which has no velocities.
        "none": Newton's equations by velocity Verlet, at constant energy. The temperature is that
        of the initial velocities.
    friction_per_ps
        gamma in 1/ps. Brownian dynamics makes steps of sqrt(2 kT timestep / (m gamma)), which
        should be about 0.01 angstrom. For iron at 300 K and 1 fs, this is 100 / ps and not 1 / ps.

    Raises
    ------
    UserError
        If a number is not positive, or there is no such thermostat.
    """

    temperature_K: float
    timestep_fs: float = 1.0
    thermostat: Thermostat = "langevin"
    friction_per_ps: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature_K", "timestep_fs", "friction_per_ps"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise UserError(f"{name} = {value}: give a positive number")
        if self.thermostat not in get_args(Thermostat):
            raise UserError(
                f"thermostat = {self.thermostat!r}: choose 'langevin', 'brownian' or 'none'"
            )


@dataclass(frozen=True)
class State:
    """A configuration: positions, cell, velocities.

    Attributes
    ----------
    positions
        In angstrom, shape (N, 3), in any periodic image.
    cell
        Rows are lattice vectors in angstrom, shape (3, 3); zero along directions without periodic
        boundaries.
    velocities
        In angstrom/fs, shape (N, 3), or None to draw them from the Maxwell-Boltzmann distribution.

    Raises
    ------
    UserError
        If a number is not finite.
    """

    positions: Array
    cell: Array
    velocities: Array | None = None

    def __post_init__(self) -> None:
        for name in ("positions", "cell", "velocities"):
            value = getattr(self, name)
            if value is None:
                continue
            array = np.ascontiguousarray(value, dtype=np.float64)
            if not np.isfinite(array).all():
                raise UserError(
                    f"{name} of the start configuration are not all finite numbers; give another "
                    "start"
                )
            object.__setattr__(self, name, array)

    @classmethod
    def of(cls, atoms: Atoms) -> Self:
        """Return positions and cell of `atoms`, without velocities."""
        return cls(atoms.positions.copy(), cell_of(atoms).copy())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a file written by `save`.

        Raises
        ------
        UserError
            If the file is missing or contains something else.
        """
        try:
            with np.load(path) as file:
                velocities = file["velocities"]
                return cls(file["positions"], file["cell"], velocities if len(velocities) else None)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except Exception as error:  # any exception of the readers of zip archives
            raise UserError(f"{path}: is not a state of a run ({error})") from error

    def save(self, path: Path | str) -> None:
        """Write an .npz file. Reading it gives the same numbers to the last bit."""
        velocities = np.zeros((0, 3)) if self.velocities is None else self.velocities
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, positions=self.positions, cell=self.cell, velocities=velocities)


@dataclass(frozen=True)
class Record:
    """Atoms whose positions and forces a run with PLUMED writes while it runs.

    Attributes
    ----------
    serials
        Serial numbers of the atoms, from 1, shape (n,).
    stride
        Steps between two records. The configuration at the start is not recorded.
    """

    serials: NDArray[np.int64]
    stride: int


def read_record(file: Path, n_atoms: int) -> tuple[Array, Array]:
    """Read the records of a run: positions (angstrom) and forces without bias (eV/angstrom).

    Parameters
    ----------
    file
        The file `RECORD` of a segment. A last record that is incomplete is left out.
    n_atoms
        Number of atoms n.

    Returns
    -------
    (M, n, 3), (M, n, 3)
        The positions may be in any periodic image.
    """
    numbers = np.fromfile(file, dtype=np.float64)
    size = 6 * n_atoms
    whole = numbers[: len(numbers) // size * size].reshape(-1, 2, n_atoms, 3)
    return whole[:, 0], whole[:, 1]


@dataclass(frozen=True)
class Watch:
    """Watch of the model deviation in a run.

    Attributes
    ----------
    limit
        The run ends if the model deviation is larger, eV/angstrom, or in the unit of the
        calculator's own uncertainty.
    stride
        Steps between two calculations of it.
    """

    limit: float
    stride: int


@dataclass(frozen=True)
class Segment:
    """One segment of molecular dynamics.

    Attributes
    ----------
    directory
        Existing folder for the output. Relative names in the PLUMED input are relative to it.
    start
        Initial configuration.
    dynamics
        Equations of motion.
    n_steps
        Number of steps.
    seed
        Seed of the thermostat, and of the velocities if the start has none.
    plumed
        The PLUMED input: its text, the path of a file, or None for a run without PLUMED.
    first_step
        Step number at the start, for PLUMED's clock and strides.
    count_start
        Whether PLUMED's actions count the initial configuration. It is False for a segment that
        continues another one, whose last step was the same configuration. Forces are then computed
        from it, but it is neither learned nor printed again. LAMMPS's own `fix plumed` always
        counts it.
    snapshot_stride
        Steps between snapshots; 0 for none.
    record
        Atoms whose positions and forces are written to the file `RECORD` of the folder. Only
        engines that are libraries can do this.
    watch
        Watch of the model deviation, which is written to the file `deviation.FILE` of the folder.
        Only ASE can do this.

    Raises
    ------
    UserError
        If it has no steps.
    """

    directory: Path
    start: State
    dynamics: Dynamics
    n_steps: int
    seed: int
    plumed: str | Path | None = None
    first_step: int = 0
    count_start: bool = True
    snapshot_stride: int = 10
    record: Record | None = None
    watch: Watch | None = None

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise UserError(f"n_steps = {self.n_steps}: give one step or more")


@dataclass(frozen=True)
class SegmentResult:
    """Result of one segment.

    Attributes
    ----------
    n_steps
        Completed steps; fewer than requested if PLUMED stopped the run.
    stopped_by_plumed
        Whether an action (COMMITTOR) ended the run.
    end
        The last configuration with its velocities.
    snapshots
        The trajectory (DCD, without periodic jumps), or None.
    seconds
        Wall time.
    deviation
        The model deviation that ended the run, because it was larger than the limit; otherwise
        None.
    """

    n_steps: int
    stopped_by_plumed: bool
    end: State
    snapshots: Path | None
    seconds: float = field(compare=False)
    deviation: float | None = None

    @property
    def stopped(self) -> bool:
        """Whether a guard ended the run: an action of PLUMED, or the limit of the deviation."""
        return self.stopped_by_plumed or self.deviation is not None
