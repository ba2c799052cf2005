"""The interface of engines, which compute forces and run molecular dynamics.

The workflow uses only this interface. Each engine is one file and does not depend on collective
variables. A long run consists of segments. Each segment starts from the final configuration of the
previous one and has its own folder and PLUMED input. Its result depends only on the `Segment` (and
the machine), and not on earlier work of the engine's process.
"""

import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, Protocol, Self, TypeVar, get_args

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import replacing
from plumed_cv.structures import cell_of, held_atoms, is_oriented
from plumed_cv.structures.frame import Array, completed, periodic_directions

Thermostat = Literal["langevin", "brownian", "none"]

# Text between the messages of nested exceptions in PLUMED's wrapper.
NESTED = "The above exception was the direct cause of the following exception:"

RECORD = "record.bin"  # in the folder of a segment, see `Record`
BLOCK = 10  # steps of `Engine.follow` that an observer receives at once
# Distance of periodic images of a structure for PLUMED, along directions without periodicity.
VACUUM_A = 1000.0

PIECE = 500  # steps of a segment of `Engine.follow`, if the engine must be started for each

_FRAME = ("PLUMED error", "at ", "message follows", "(tools", "(core")  # lines to remove


def maxwell_boltzmann(
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
                raise UserError(f"{name} = {value}: it must be a positive number")
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
                raise UserError(f"{name} of the start configuration are not all finite numbers")
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

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise UserError(f"n_steps = {self.n_steps}: a run needs at least one step")


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
    """

    n_steps: int
    stopped_by_plumed: bool
    end: State
    snapshots: Path | None
    seconds: float = field(compare=False)


class Observer(Protocol):
    """Receives a trajectory while it runs, and decides when it ends; it can be pickled."""

    def see(self, positions: Array) -> bool:
        """Receive the positions after some successive steps, and return whether to stop.

        Parameters
        ----------
        positions
            Shape (n, N, 3), angstrom, in any periodic image. The initial positions are not
            included.
        """


Seen = TypeVar("Seen", bound=Observer)


class Followed(NamedTuple, Generic[Seen]):
    """Result of one trajectory that an observer has received.

    Attributes
    ----------
    n_steps
        Completed steps.
    end
        The last configuration with its velocities.
    observer
        The observer after the last step. It may be a copy of the given one.
    """

    n_steps: int
    end: State
    observer: Seen


def check_folder(folder: Path) -> None:
    """Refuse a folder for the output of a run if its name is not ASCII.

    LAMMPS's commands and mdtraj's readers of trajectories do not take such names.

    Raises
    ------
    UserError
        If a character of the absolute path is not ASCII.
    """
    name = str(folder.absolute())
    if not name.isascii():
        other = next(letter for letter in name if not letter.isascii())
        raise UserError(
            f"{name}: LAMMPS and the readers of trajectories cannot use a folder whose name has "
            f"the letter {other!r}; choose a name of ASCII letters."
        )


class Engine(ABC):
    """Computes forces and runs molecular dynamics for one set of atoms.

    An engine implements `masses`, `evaluate`, `run` and `close`. This class has the common parts.

    Parameters
    ----------
    atoms
        The atoms: species, order, cell, periodic boundaries along any directions, and fixed atoms
        (`FixAtoms`), which no run moves. The cell must be oriented as by `structures.oriented`,
        because trajectory files contain only lengths and angles.

    Attributes
    ----------
    symbols
        Chemical symbol of each atom.
    periodic
        Whether there are periodic boundaries along each lattice vector, shape (3,).
    held
        Fixed atoms, from 0.

    Raises
    ------
    UserError
        If the cell is not of this kind, or there are other constraints.
    """

    def __init__(self, atoms: Atoms) -> None:
        self.symbols = tuple(atoms.symbols)
        self.periodic: NDArray[np.bool_] = periodic_directions(cell_of(atoms))
        self.held = held_atoms(atoms)
        _check_cell(atoms)

    @property
    @abstractmethod
    def masses(self) -> Array:
        """Mass of each atom in the dynamics, amu, shape (N,)."""

    @abstractmethod
    def evaluate(self, positions: Array, cell: Array) -> tuple[float, Array, Array]:
        """Return energy (eV), forces (eV/angstrom, (N, 3)) and stress (eV/angstrom^3, (6,)).

        The stress (xx yy zz yz xz xy) is zero unless all boundaries are periodic.

        Raises
        ------
        UserError
            If the positions or the results of the engine are not finite numbers.
        """

    def forces(self, positions: Array, cell: Array) -> Array:
        """Return the forces (eV/angstrom) of structures in a cell, shape (M, N, 3) both.

        Raises
        ------
        UserError
            As for `evaluate`, and if the forces cannot be those of the structures: different
            structures have the same forces, or `evaluate` gives other forces for the last one.
        """
        positions = np.ascontiguousarray(positions, dtype=np.float64)
        if not len(positions):
            return np.zeros_like(positions)
        found = self._forces(positions, cell)
        check_finite(type(self).__name__, 0.0, found)
        if len(found) > 1:
            self._check_forces(positions, cell, found)
        return found

    def _forces(self, positions: Array, cell: Array) -> Array:
        """Return the forces of structures as `forces` does, without its checks."""
        return np.array([self.evaluate(structure, cell)[1] for structure in positions])

    def _check_forces(self, positions: Array, cell: Array, found: Array) -> None:
        """Refuse forces that do not belong to their structures.

        An engine that skips the calculation returns the forces of an earlier configuration without
        any error. This check costs one more evaluation.
        """
        same = np.array_equal(found[0], found[-1]) and np.abs(found[0]).max() > 0
        again = self.evaluate(positions[-1], cell)[1]
        size = max(float(np.sqrt(np.mean(again**2))), 1e-6)
        off = float(np.abs(found[-1] - again).max())
        if (same and not np.array_equal(positions[0], positions[-1])) or off > 0.05 * size + 1e-4:
            raise UserError(
                f"{type(self).__name__}: the forces of snapshots are not those of their "
                f"structures (the last one differs by {off:.2g} eV/A from a new calculation); "
                "check that the potential gives the same forces for the same structure"
            )

    @abstractmethod
    def run(self, segment: Segment, progress: Callable[[int], None] | None = None) -> SegmentResult:
        """Run molecular dynamics.

        The folder of the segment receives the log of the engine, plumed.dat and plumed.log (with
        PLUMED), snapshots.dcd, and the output of PLUMED.

        Parameters
        ----------
        segment
            The segment to run.
        progress
            Called a few times a second with the number of completed steps. An exception in it ends
            the run.

        Raises
        ------
        UserError
            If the engine or PLUMED refuses its input, or the dynamics explodes.
        """

    def follow(
        self, start: State, dynamics: Dynamics, n_steps: int, seed: int, observer: Seen
    ) -> Followed[Seen]:
        """Run molecular dynamics without PLUMED or files until an observer stops it.

        This is for thousands of short trajectories. An engine that is a library does this without
        starting a program, and passes the positions in blocks of `BLOCK` steps. Other engines run
        segments of `PIECE` steps.

        Parameters
        ----------
        start
            Positions and velocities; velocities are drawn if None.
        dynamics
            Equations of motion.
        n_steps
            Largest number of steps.
        seed
            Seed of the thermostat, and of the velocities if the start has none.
        observer
            Receives the positions after every step.

        Raises
        ------
        UserError
            If the engine refuses, or the dynamics explodes.
        """
        from plumed_cv.structures.trajectory import all_positions  # importing mdtraj takes a second

        done, stop = 0, False
        seeds = np.random.SeedSequence(seed)
        while done < n_steps and not stop:
            with tempfile.TemporaryDirectory(prefix="plumed_cv-follow-") as folder:
                piece = Segment(
                    directory=Path(folder),
                    start=start,
                    dynamics=dynamics,
                    n_steps=min(PIECE, n_steps - done),
                    seed=int(seeds.spawn(1)[0].generate_state(1)[0]),
                    snapshot_stride=1,
                )
                result = self.run(piece)
                assert result.snapshots is not None
                stop = observer.see(all_positions(result.snapshots))
            start = result.end
            done += result.n_steps
        return Followed(done, start, observer)

    def rescue(self, segment: Segment, n_steps: int) -> State | None:
        """Keep the first `n_steps` of a run that was ended early.

        The snapshots in its folder are cut. The last remaining one is returned without velocities,
        or None if there is none.
        """
        from plumed_cv.structures.trajectory import keep  # importing mdtraj takes most of a second

        file, wanted = segment.directory / "snapshots.dcd", n_steps // segment.snapshot_stride
        last = keep(file, 0, wanted, periodic=bool(self.periodic.any()))
        return None if last is None else State(last, segment.start.cell)

    def write_job(self, folder: Path, segments: Sequence[Segment]) -> bool:
        """Write successive segments as inputs that do not need plumed_cv where they run.

        `folder` contains the folders of the segments and the plugin. It receives common files and a
        script, run.sh, that runs the missing segments. The first one starts from its own
        configuration, each other one from the end of the previous one. `rescue` makes results of
        their output.

        Returns
        -------
        Whether the engine supports this; otherwise nothing is written.

        Raises
        ------
        UserError
            If the engine refuses its input.
        """
        return False

    @abstractmethod
    def close(self) -> None:
        """End the engine's process and remove its temporary files, if there are any."""

    def check(self, atoms: Atoms) -> None:
        """Raise UserError unless `atoms` are those of the engine, at any positions.

        Raises
        ------
        UserError
            If number, species, order or periodic boundaries differ, or the cell is not oriented.
        """
        if len(atoms) != len(self.symbols):
            raise UserError(
                f"the structure has {len(atoms)} atoms, but the engine was set up for "
                f"{len(self.symbols)}"
            )
        for index, (found, expected) in enumerate(zip(atoms.symbols, self.symbols, strict=True)):
            if found != expected:
                raise UserError(
                    f"atom {index + 1} is {found}, but the engine was set up with {expected}; "
                    "give all structures the same order of atoms"
                )
        if (atoms.pbc != self.periodic).any():
            raise UserError("the structures differ in their periodic boundaries")
        _check_cell(atoms)

    def calculator(self) -> Calculator:
        """Return a new ASE calculator that uses this engine; several may share it.

        Energy in eV, forces in eV/angstrom, stress in eV/angstrom^3 (xx yy zz yz xz xy).
        """
        return _EngineCalculator(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_segment(self, segment: Segment) -> None:
        """Raise UserError unless the folder of the segment exists and its start fits the engine."""
        if not segment.directory.is_dir():
            raise UserError(f"{segment.directory}: there is no such folder for the output of a run")
        check_folder(segment.directory)
        start = segment.start
        if start.positions.shape != (len(self.symbols), 3):
            raise UserError(
                f"the start has positions of shape {start.positions.shape} for "
                f"{len(self.symbols)} atoms"
            )
        fits = np.array_equal(periodic_directions(start.cell), self.periodic)
        if not fits or not is_oriented(start.cell):
            raise UserError(f"the start has a cell that does not fit the engine: {start.cell}")


def plumed_input(segment: Segment) -> tuple[Path, str]:
    """Return the file of a segment's PLUMED input (written if it is a text) and its text.

    Raises
    ------
    UserError
        If the file cannot be read.
    """
    assert segment.plumed is not None
    if isinstance(segment.plumed, Path):
        file = segment.plumed.absolute()
        try:
            return file, file.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    file = segment.directory.absolute() / "plumed.dat"
    file.write_text(segment.plumed, encoding="utf-8")
    return file, segment.plumed


def uses_energy(plumed_dat: str) -> bool:
    """Whether a PLUMED input has the action ENERGY (not the unit in `UNITS ENERGY=eV`)."""
    lines = (line.partition("#")[0] for line in plumed_dat.splitlines())
    return any(re.search(r"\bENERGY\b(?!\s*=)", line) for line in lines)


def check_finite(engine: str, energy: Any, forces: Array) -> None:
    """Refuse results of an engine that are not finite numbers.

    Raises
    ------
    UserError
        If energy (or energies) or forces are infinite or not a number.
    """
    if not (np.isfinite(energy).all() and np.isfinite(forces).all()):
        raise UserError(
            f"{engine}: energy and forces are not finite; do two atoms lie on each other?"
        )


def exploded(engine: str) -> str:
    """Return the message for atoms that fly apart."""
    return (
        f"{engine}: the atoms flew apart; shorten the time step (or raise the friction of Brownian "
        "dynamics), relax the structure first, or look at the potential and at the forces of the "
        "bias"
    )


def plumed_sentence(message: str) -> str:
    """Return the message of a PLUMED exception, without its frame and positions in the source.

    The first of nested exceptions is the cause. The last one names the action, which is added if
    the cause does not name it.
    """
    said = []
    for part in message.split(NESTED):
        lines = [line.removeprefix("+++").strip() for line in part.splitlines()]
        said.append(" ".join(line for line in lines if line and not line.startswith(_FRAME)))
    cause, context = said[0], said[-1]
    named = len(said) == 1 or " with label " in cause
    return f"PLUMED: {cause}" if named else f"PLUMED: {cause} ({context})"


class _EngineCalculator(Calculator):
    """An ASE calculator that uses an engine."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.implemented_properties = ["energy", "free_energy", "forces", "stress"]
        self._engine = engine

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results` for `atoms`."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        assert self.atoms is not None
        self._engine.check(self.atoms)
        state = State.of(self.atoms)
        energy, forces, stress = self._engine.evaluate(state.positions, state.cell)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        if self._engine.periodic.all():
            self.results["stress"] = stress


def _check_cell(atoms: Atoms) -> None:
    cell = cell_of(atoms)
    if not np.linalg.det(completed(cell)) > 0:
        raise UserError(f"cell {cell.tolist()}: its volume must be positive")
    if not is_oriented(cell):
        raise UserError(
            f"cell {cell.tolist()}: engines need the first vector along x and the "
            "second in the xy plane; rotate the structures (plumed_cv.structures.oriented)"
        )
