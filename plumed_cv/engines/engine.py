"""An engine: it computes forces and runs molecular dynamics."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple, NoReturn, Protocol, Self, TypeVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.engines.segments import Dynamics, Segment, SegmentResult, State
from plumed_cv.structures import cell_of, held_atoms, is_oriented
from plumed_cv.structures.frame import Array, complete_cell, in_words, periodic_directions

BLOCK = 10  # steps of `Engine.follow` that an observer receives at once
PIECE = 500  # steps of a segment of `Engine.follow`, if the engine must be started for each


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
    batch
        Largest number of structures that are evaluated in one call.

    Raises
    ------
    UserError
        If the cell is not of this kind, or there are other constraints.
    """

    batch: int = 1

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

    def forget(self) -> None:  # noqa: B027
        """Forget all earlier structures: nothing computed later depends on them.

        A list of neighbours that was made for another structure gives the same forces, but adds
        them up in another order. The last bits of the next results are then different. Most engines
        keep nothing.
        """

    @property
    def constrained(self) -> NDArray[np.int64]:
        """Atoms, from 0, whose distances to others are constants in the dynamics."""
        return np.zeros(0, dtype=np.int64)

    def forces(self, positions: Array, cell: Array) -> Array:
        """Return the forces (eV/angstrom) of structures in a cell, shape (M, N, 3) both.

        Raises
        ------
        UserError
            As for `evaluate`, and if the forces cannot be those of the structures: different
            structures have the same forces, or `evaluate` gives other forces for the last one or
            for one in the middle.
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
        return self.evaluate_all(positions, cell)[1]

    def evaluate_all(self, positions: Array, cell: Array) -> tuple[Array, Array]:
        """Return energies (eV, (M,)) and forces (eV/angstrom) of structures, shape (M, N, 3).

        This is for structures that belong together, such as the images of a path. An engine may
        evaluate them in one call.

        Raises
        ------
        UserError
            As for `evaluate`.
        """
        found = [self.evaluate(structure, cell)[:2] for structure in positions]
        energies, forces = zip(*found, strict=True)
        return np.array(energies), np.array(forces)

    def _check_forces(self, positions: Array, cell: Array, found: Array) -> None:
        """Refuse forces that do not belong to their structures.

        An engine that skips the calculation, or uses a list of neighbours of an earlier
        configuration, returns wrong forces without any error. This check costs two more
        evaluations.
        """
        same = np.array_equal(found[0], found[-1]) and np.abs(found[0]).max() > 0
        if same and not np.array_equal(positions[0], positions[-1]):
            self._refuse_forces("the first and the last one have the same")
        for k in dict.fromkeys((len(found) // 2, len(found) - 1)):
            again = self.evaluate(positions[k], cell)[1]
            size = max(float(np.sqrt(np.mean(again**2))), 1e-6)
            off = float(np.abs(found[k] - again).max())
            if off > 0.05 * size + 1e-4:
                self._refuse_forces(
                    f"number {k + 1} of {len(found)} differs by {off:.2g} eV/A from a new "
                    "calculation"
                )

    def _refuse_forces(self, reason: str) -> NoReturn:
        raise UserError(
            f"{type(self).__name__}: the forces of snapshots are not those of their structures "
            f"({reason}); check that the potential gives the same forces for the same structure"
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

    def run_all(
        self, segments: Sequence[Segment], progress: Callable[[int], None] | None = None
    ) -> list[SegmentResult]:
        """Run segments that do not depend on each other, such as those of several walkers.

        An engine may run them at the same time. Otherwise one runs after another.

        Parameters
        ----------
        segments
            The segments to run.
        progress
            As for `run`; called with the number of steps of all segments.

        Raises
        ------
        UserError
            As for `run`. The other segments end, too.
        """
        results: list[SegmentResult] = []
        for segment in segments:
            before = sum(result.n_steps for result in results)
            heard = None if progress is None else (lambda done, n=before: progress(n + done))
            results.append(self.run(segment, heard))
        return results

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
        from plumed_cv.structures.trajectory import (
            read_all_positions,  # importing mdtraj takes a second
        )

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
                stop = observer.see(read_all_positions(result.snapshots))
            start = result.end
            done += result.n_steps
        return Followed(done, start, observer)

    def follow_all(
        self,
        starts: Sequence[State],
        dynamics: Dynamics,
        n_steps: int,
        seeds: Sequence[int],
        observers: Sequence[Seen],
    ) -> list[Followed[Seen]]:
        """Run trajectories that do not depend on each other, each as `follow` does.

        An engine may run them at the same time. Otherwise one runs after another.
        """
        return [
            self.follow(start, dynamics, n_steps, seed, observer)
            for start, seed, observer in zip(starts, seeds, observers, strict=True)
        ]

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
                f"{len(self.symbols)}; give all structures the same atoms"
            )
        for index, (found, expected) in enumerate(zip(atoms.symbols, self.symbols, strict=True)):
            if found != expected:
                raise UserError(
                    f"atom {index + 1} is {found}, but the engine was set up with {expected}; "
                    "give all structures the same order of atoms"
                )
        if (atoms.pbc != self.periodic).any():
            raise UserError(
                f"the structure is periodic along {in_words(atoms.pbc)}, but the engine was set up "
                f"for {in_words(self.periodic)}; give all structures the same periodic boundaries"
            )
        _check_cell(atoms)

    def calculator(self) -> Calculator:
        """Return a new ASE calculator that uses this engine; several may share it.

        Energy in eV, forces in eV/angstrom, stress in eV/angstrom^3 (xx yy zz yz xz xy).
        """
        return EngineCalculator(self)

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
            raise UserError(
                f"{segment.directory}: there is no such folder for the output of a run; make it "
                "first"
            )
        check_folder(segment.directory)
        start = segment.start
        if start.positions.shape != (len(self.symbols), 3):
            raise UserError(
                f"the start has positions of shape {start.positions.shape} for "
                f"{len(self.symbols)} atoms; give a start of the same atoms"
            )
        fits = np.array_equal(periodic_directions(start.cell), self.periodic)
        if not fits or not is_oriented(start.cell):
            raise UserError(
                f"the start has the cell {start.cell.tolist()}, which does not fit the engine; "
                "give a cell that is periodic along the same directions, with its first vector "
                "along x and the second in the xy plane"
            )


def check_finite(engine: str, energy: Any, forces: Array) -> None:
    """Refuse results of an engine that are not finite numbers.

    Raises
    ------
    UserError
        If energy (or energies) or forces are infinite or not a number.
    """
    if not (np.isfinite(energy).all() and np.isfinite(forces).all()):
        raise UserError(
            f"{engine}: energy and forces are not finite; check that no two atoms are at one place"
        )


def exploded(engine: str) -> str:
    """Return the message for atoms that fly apart."""
    return (
        f"{engine}: the atoms flew apart; shorten the time step (or raise the friction of Brownian "
        "dynamics), relax the structure first, or look at the potential and at the forces of the "
        "bias"
    )


class EngineCalculator(Calculator):
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

    def calculate_together(self, images: Sequence[Atoms]) -> None:
        """Fill `results` of the calculators of images in one cell, if the engine has batches.

        Only images that have moved are calculated. All have calculators of this engine.
        """
        if self._engine.batch == 1:
            return
        wanted = ["energy", "forces"]
        moved = [atoms for atoms in images if atoms.calc.calculation_required(atoms, wanted)]
        if not moved:
            return
        for atoms in moved:
            self._engine.check(atoms)
        positions = np.array([atoms.positions for atoms in moved])
        energies, forces = self._engine.evaluate_all(positions, cell_of(moved[0]))
        for atoms, energy, own in zip(moved, energies.tolist(), forces, strict=True):
            atoms.calc.atoms = atoms.copy()
            atoms.calc.results = {"energy": energy, "free_energy": energy, "forces": own}


def _check_cell(atoms: Atoms) -> None:
    cell = cell_of(atoms)
    if not np.linalg.det(complete_cell(cell)) > 0:
        raise UserError(
            f"cell {cell.tolist()}: its volume must be positive; give a right-handed cell of "
            "independent vectors"
        )
    if not is_oriented(cell):
        raise UserError(
            f"cell {cell.tolist()}: engines need the first vector along x and the "
            "second in the xy plane; rotate the structures (plumed_cv.structures.oriented)"
        )
