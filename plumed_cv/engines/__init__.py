"""What an engine is: the part that computes forces and runs molecular dynamics.

The workflow knows this page and no engine; each engine is one file that knows no collective
variable. A long run is made of segments: each starts from the state in which the one before ended,
has its own folder and its own PLUMED input, and its outcome depends on nothing but the `Segment`
(and the machine), whatever the engine's process did before.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator

from plumed_cv.errors import UserError
from plumed_cv.files import replacing
from plumed_cv.frame import Array

Thermostat = Literal["langevin", "brownian"]


def maxwell_boltzmann(rng: np.random.Generator, masses: Array, temperature_K: float) -> Array:
    """Draw velocities at a temperature and remove the total momentum.

    Parameters
    ----------
    rng
        Source of the random numbers.
    masses
        Masses in amu, shape (N,).
    temperature_K
        Temperature in K.

    Returns
    -------
    Velocities in angstrom/fs, shape (N, 3). The centre of mass is at rest, so N - 1 atoms' worth
    of the kinetic energy is there at the start.
    """
    momenta = rng.standard_normal((len(masses), 3)) * np.sqrt(
        masses[:, None] * units.kB * temperature_K
    )
    velocities = momenta / masses[:, None]
    velocities -= momenta.sum(axis=0) / masses.sum()
    return velocities * units.fs


@dataclass(frozen=True)
class Dynamics:
    """How atoms move, at constant cell and temperature.

    Attributes
    ----------
    temperature_K
        Temperature in K.
    timestep_fs
        Time step in fs.
    thermostat
        "langevin": m dv/dt = F - m gamma v + noise. "brownian": its overdamped limit,
        dr/dt = F / (m gamma) + noise, which has no velocities.
    friction_per_ps
        gamma in 1/ps. Brownian dynamics makes steps of sqrt(2 kT timestep / (m gamma)), which
        should be about 0.01 angstrom: 100 / ps for iron at 300 K and 1 fs, not 1 / ps.
    """

    temperature_K: float
    timestep_fs: float = 1.0
    thermostat: Thermostat = "langevin"
    friction_per_ps: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature_K", "timestep_fs", "friction_per_ps"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise UserError(f"{name} = {value}: it must be a positive number")
        if self.thermostat not in ("langevin", "brownian"):
            raise UserError(
                f"thermostat = {self.thermostat!r}: there are 'langevin' and 'brownian'"
            )


@dataclass(frozen=True)
class State:
    """Where the atoms are.

    Attributes
    ----------
    positions
        In angstrom, shape (N, 3). They may lie in any periodic image.
    cell
        Rows are lattice vectors in angstrom, shape (3, 3); zero without periodic boundaries.
    velocities
        In angstrom/fs, shape (N, 3), or None to draw them from the Maxwell-Boltzmann distribution.
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
                raise UserError(f"{name} of the start configuration hold a value that is no number")
            object.__setattr__(self, name, array)

    @classmethod
    def of(cls, atoms: Atoms) -> Self:
        """Return positions and cell of `atoms`, to start with fresh velocities."""
        cell = atoms.cell.array if atoms.pbc.any() else np.zeros((3, 3))
        return cls(atoms.positions.copy(), cell.copy())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        UserError
            If the file is missing or holds something else.
        """
        try:
            with np.load(path) as file:
                velocities = file["velocities"]
                return cls(file["positions"], file["cell"], velocities if len(velocities) else None)
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{path}: not a state of a run ({error})") from error

    def save(self, path: Path | str) -> None:
        """Write an .npz file; reading it gives the same numbers to the last bit."""
        velocities = np.zeros((0, 3)) if self.velocities is None else self.velocities
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, positions=self.positions, cell=self.cell, velocities=velocities)


@dataclass(frozen=True)
class Segment:
    """One piece of molecular dynamics.

    Attributes
    ----------
    directory
        Existing folder for the output; relative names in the PLUMED input are relative to it.
    start
        Where the atoms are at the beginning.
    dynamics
        How they move.
    n_steps
        Number of steps.
    seed
        For the thermostat, and for the velocities if the start has none.
    plumed
        The PLUMED input: its text, the path of a file, or None to run without PLUMED.
    first_step
        The step number at the start, for PLUMED's clock and strides.
    count_start
        Whether PLUMED's actions count the starting configuration. False for a segment that
        continues another, whose last step was the same configuration: forces are then computed
        from it, and nothing is learned from it or printed a second time.
    snapshot_stride
        A snapshot is written after every so many steps; 0 for none.
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

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise UserError(f"n_steps = {self.n_steps}: a run has at least one step")


@dataclass(frozen=True)
class SegmentResult:
    """What a segment gave.

    Attributes
    ----------
    n_steps
        Steps done; fewer than asked for if PLUMED stopped the run.
    stopped_by_plumed
        Whether an action (COMMITTOR) ended the run.
    end
        The last configuration with its velocities.
    snapshots
        The trajectory (DCD, without periodic jumps), or None.
    seconds
        Wall time.
    """

    n_steps: int
    stopped_by_plumed: bool
    end: State
    snapshots: Path | None
    seconds: float = field(compare=False)


class Engine(Protocol):
    """Computes forces and runs molecular dynamics for one set of atoms."""

    def check(self, atoms: Atoms) -> None:
        """Raise UserError unless the engine can take `atoms` (species, order, cell)."""

    def calculator(self) -> Calculator:
        """Return an ASE calculator: energy (eV), forces (eV/angstrom), stress (eV/angstrom^3)."""

    def run(self, segment: Segment, progress: Callable[[int], None] | None = None) -> SegmentResult:
        """Run molecular dynamics; `progress` is told the steps done, a few times a second."""

    def close(self) -> None:
        """End the engine's process."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
