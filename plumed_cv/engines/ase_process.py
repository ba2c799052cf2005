"""The process of an ASE calculator: its forces, our integrators, and PLUMED by its bindings.

A trajectory is a generator. It yields each structure whose forces it needs and receives its
energy and forces. Several trajectories therefore advance together, step by step, and a calculator
that can evaluates their structures together (`batches`). The process imports torch only if the
calculator does.
"""

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

import numpy as np
from ase import Atoms, units
from ase.cell import Cell

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import require
from plumed_cv.engines import deviation
from plumed_cv.engines.ase_calculator import enter, evaluate_batch, forces_of, make_calculator
from plumed_cv.engines.ase_plumed import Coupling, PlumedFiles
from plumed_cv.engines.engine import BLOCK, Followed, Seen, check_finite, exploded
from plumed_cv.engines.integrator import Integrator
from plumed_cv.engines.segments import (
    RECORD,
    Dynamics,
    Segment,
    SegmentResult,
    State,
    draw_velocities,
)
from plumed_cv.structures.frame import Array, complete_cell, reduce_lattice

HELD = "plumed_cv_held"  # array of the fixed atoms

_LOG_STRIDE = 1000  # steps between lines of log.ase


class _Evaluated(NamedTuple):
    """Forces (eV/angstrom, (N, 3)) of a structure, and a function that returns its energy (eV)."""

    forces: Array
    energy: Callable[[], float]


_Place = tuple[Array, Array]  # positions (N, 3) and cell (3, 3), angstrom
_Result = TypeVar("_Result")
_Trajectory = Generator[_Place, _Evaluated, _Result]


class AseWorker:
    """The calculator with one set of atoms, in the other process."""

    def __init__(
        self,
        calculator: str,
        arguments: dict[str, Any],
        directory: Path,
        atoms: Atoms,
        members: Sequence[tuple[str, dict[str, Any], Path]] = (),
        uncertainty: str | None = None,
        batch: int = 1,
    ) -> None:
        self._name = calculator
        self._uncertainty = uncertainty
        self._members = []
        for name, given, folder in members:
            enter(folder)
            other = atoms.copy()
            other.arrays.pop(HELD)
            other.calc = make_calculator(name, given)
            self._members.append((name, other))
        enter(directory)
        self._atoms = atoms
        self._held = np.flatnonzero(atoms.arrays.pop(HELD))
        self._calculator = make_calculator(calculator, arguments)
        atoms.calc = self._calculator
        if batch > 1 and not hasattr(self._calculator, "calculate_batch"):
            raise UserError(
                f"engine.batch = {batch}: the calculator {calculator} has no method "
                "calculate_batch, so it cannot evaluate structures together; remove this key"
            )
        self._batch = [atoms.copy() for _ in range(batch)] if batch > 1 else []
        self._masses: Array = atoms.get_masses()
        self._charges: Array = atoms.get_initial_charges()
        self._done = 0
        self._forces()

    def describe(self) -> dict[str, Any]:
        """Return the masses in amu."""
        return {"masses": self._masses}

    def step(self) -> int:
        """Return the number of steps done of the current run."""
        return self._done

    def evaluate(self, positions: Array, cell: Array) -> tuple[float, Array, Array]:
        """Return energy (eV), forces (eV/angstrom) and stress (eV/angstrom^3)."""
        atoms = self._atoms
        self._place(atoms, positions, cell)
        forces, energy = self._forces(), self._energy()
        check_finite(self._name, energy, forces)
        stress = np.zeros(6)
        if reduce_lattice(cell).periodic.all():
            stress = np.full(6, np.nan)
            if "stress" in self._calculator.implemented_properties:
                stress = np.array(atoms.get_stress(apply_constraint=False))
        return energy, forces, stress

    def forget(self) -> None:
        """Reset the calculators: lists of neighbours, whose order affects the last bit, go too."""
        for calculator in (self._calculator, *(other.calc for _, other in self._members)):
            if hasattr(calculator, "reset"):
                calculator.reset()

    def evaluate_all(self, positions: Array, cell: Array) -> tuple[Array, Array]:
        """Return energies (M,) and forces (M, N, 3) of structures, without their stress."""
        energies, forces = np.empty(len(positions)), np.empty_like(positions)
        labels = [f"structure {k + 1} of {len(positions)}" for k in range(len(positions))]
        for k, found in enumerate(self._evaluate(((each, cell) for each in positions), labels)):
            energies[k], forces[k] = found.energy(), found.forces
        check_finite(self._name, energies, forces)
        return energies, forces

    def deviations(self, positions: Array, cell: Array) -> Array:
        """Return the model deviation (eV/angstrom) of structures, (M,)."""
        return np.array([self._deviation(structure, cell) for structure in positions])

    def run(
        self, segments: Sequence[Segment], plumed: Sequence[PlumedFiles | None]
    ) -> list[SegmentResult]:
        """Run molecular dynamics: one segment, or several together."""
        home = Path.cwd()
        labels = [str(segment.directory) for segment in segments]
        results = self._advance(list(map(self._run, segments, plumed)), labels)
        os.chdir(home)
        return results

    def follow(
        self,
        starts: Sequence[State],
        dynamics: Dynamics,
        n_steps: int,
        seeds: Sequence[int],
        observers: Sequence[Seen],
    ) -> list[Followed[Seen]]:
        """Run molecular dynamics until observers stop it: one trajectory, or several together."""
        return self._advance(
            [
                self._follow(start, dynamics, n_steps, seed, observer)
                for start, seed, observer in zip(starts, seeds, observers, strict=True)
            ],
            [f"trajectory {k + 1} of {len(starts)}" for k in range(len(starts))],
        )

    def _advance(
        self, trajectories: Sequence[_Trajectory[_Result]], labels: Sequence[str]
    ) -> list[_Result]:
        """Advance trajectories together until all have ended; return their results.

        An error in one of several ends all, and its message begins with the label of this one.
        """
        assert self._batch or len(trajectories) == 1
        self._done = 0
        self.forget()
        results: dict[int, _Result] = {}
        found: dict[int, _Evaluated | None] = dict.fromkeys(range(len(trajectories)))
        while found:
            wanted: dict[int, _Place] = {}
            for k, evaluated in found.items():
                each = trajectories[k]
                try:
                    wanted[k] = next(each) if evaluated is None else each.send(evaluated)
                except StopIteration as ended:
                    results[k] = ended.value
                except UserError as error:
                    if len(trajectories) == 1 or labels[k] in str(error):  # PLUMED names its input
                        raise
                    raise UserError(f"{labels[k]}: {error}") from error
            names = [labels[k] for k in wanted]
            found = dict(zip(wanted, self._evaluate(wanted.values(), names), strict=True))
        return [results[k] for k in range(len(trajectories))]

    def _evaluate(self, places: Iterable[_Place], labels: Sequence[str]) -> Iterator[_Evaluated]:
        """Evaluate structures, in batches if the calculator can.

        The energy of one that is evaluated alone can be asked for before the next one. Messages
        about a batch name its structures by their labels.
        """
        if not self._batch:
            for place in places:
                self._place(self._atoms, *place)
                yield _Evaluated(self._forces(), self._energy)
            return
        waiting, most = list(places), len(self._batch)
        for first in range(0, len(waiting), most):
            part, names = waiting[first : first + most], labels[first : first + most]
            structures = self._batch[: len(part)]
            for atoms, place in zip(structures, part, strict=True):
                self._place(atoms, *place)
            energies, forces = evaluate_batch(self._name, self._calculator, structures, names)
            for energy, force in zip(energies.tolist(), forces, strict=True):
                yield _Evaluated(force, partial(float, energy))

    def _run(self, segment: Segment, plumed: PlumedFiles | None) -> _Trajectory[SegmentResult]:
        started = time.perf_counter()
        start, dynamics, stride = segment.start, segment.dynamics, segment.snapshot_stride
        cell, directory = start.cell, segment.directory.absolute()
        thermal, noise = (
            np.random.default_rng(seed) for seed in np.random.SeedSequence(segment.seed).spawn(2)
        )
        positions, velocities = start.positions.copy(), self._velocities(start, dynamics, thermal)
        os.chdir(directory)
        coupling = None
        if plumed is not None:
            coupling = Coupling(plumed, segment, self._masses, self._charges)
        integrator = Integrator(dynamics, self._masses, self._held, noise)
        reached = segment.first_step + segment.n_steps
        any_snapshot = stride > 0 and reached // stride > segment.first_step // stride
        snapshots = directory / "snapshots.dcd" if any_snapshot else None
        record, watch, beyond, done = segment.record, segment.watch, None, 0
        with (
            _Snapshots(snapshots, cell) as trajectory,
            nullcontext() if record is None else (directory / RECORD).open("wb") as records,
            (directory / "log.ase").open("w", encoding="utf-8") as log,
            nullcontext() if watch is None else deviation.open_table(directory) as watched,
        ):
            found = yield positions, cell
            self._bias(coupling, found, positions, segment.first_step, segment.count_start)
            for step in range(segment.first_step + 1, reached + 1):
                if coupling is not None and coupling.stopped:
                    break
                positions, velocities = integrator.begin(positions, velocities, found.forces)
                found = yield positions, cell
                if record is not None and records is not None and step % record.stride == 0:
                    of_atoms = np.stack([positions, found.forces])[:, record.serials - 1]
                    records.write(of_atoms.tobytes())
                    records.flush()
                self._bias(coupling, found, positions, step, True)
                velocities = integrator.end(velocities, found.forces)
                done += 1
                self._done += 1
                if snapshots is not None and step % stride == 0:
                    trajectory.write(positions)
                if step % _LOG_STRIDE == 0:
                    self._log(log, step, velocities, found.energy())
                if watch is not None and watched is not None and step % watch.stride == 0:
                    disagree = self._deviation(positions, cell)
                    watched.write(f"{step * dynamics.timestep_fs:.6f} {disagree:.10g}\n")
                    if disagree > watch.limit:
                        beyond = disagree
                        break
        if coupling is not None:
            coupling.close()
        return SegmentResult(
            n_steps=done,
            stopped_by_plumed=coupling is not None and coupling.stopped,
            end=State(positions, cell, None if dynamics.thermostat == "brownian" else velocities),
            snapshots=snapshots,
            seconds=time.perf_counter() - started,
            deviation=beyond,
        )

    def _follow(
        self, start: State, dynamics: Dynamics, n_steps: int, seed: int, observer: Seen
    ) -> _Trajectory[Followed[Seen]]:
        thermal, noise = (
            np.random.default_rng(source) for source in np.random.SeedSequence(seed).spawn(2)
        )
        positions, velocities = start.positions.copy(), self._velocities(start, dynamics, thermal)
        integrator = Integrator(dynamics, self._masses, self._held, noise)
        found = yield positions, start.cell
        self._bias(None, found, positions, 0, False)
        done, stop = 0, False
        while done < n_steps and not stop:
            block = np.empty((min(BLOCK, n_steps - done), *positions.shape))
            for k in range(len(block)):
                positions, velocities = integrator.begin(positions, velocities, found.forces)
                found = yield positions, start.cell
                self._bias(None, found, positions, 0, False)
                velocities = integrator.end(velocities, found.forces)
                block[k] = positions
            done += len(block)
            self._done += len(block)
            stop = observer.see(block)
        moving = None if dynamics.thermostat == "brownian" else velocities
        return Followed(done, State(positions, start.cell, moving), observer)

    def _velocities(self, start: State, dynamics: Dynamics, rng: np.random.Generator) -> Array:
        """Velocities at the start, drawn if there are none; fixed atoms are at rest."""
        if start.velocities is None:
            return draw_velocities(rng, self._masses, dynamics.temperature_K, self._held)
        velocities = start.velocities.copy()
        velocities[self._held] = 0.0
        return velocities

    def _place(self, atoms: Atoms, positions: Array, cell: Array) -> None:
        atoms.positions = positions
        # A calculator may need the height of the vacuum, which is not part of the cell.
        periodic = reduce_lattice(cell).periodic
        if not np.array_equal(atoms.cell.array[periodic], cell[periodic]):
            atoms.cell = np.where(periodic[:, None], cell, atoms.cell.array)

    def _forces(self) -> Array:
        return forces_of(self._name, self._atoms)

    def _energy(self) -> float:
        energy = self._atoms.get_potential_energy(apply_constraint=False)
        return float(self._calculator.results.get("free_energy", energy))

    def _deviation(self, positions: Array, cell: Array) -> float:
        """Model deviation of a structure."""
        self._place(self._atoms, positions, cell)
        forces = [self._forces()]
        if self._uncertainty is not None:
            results = self._calculator.results
            if self._uncertainty not in results:
                raise UserError(
                    f"engine.uncertainty = {self._uncertainty!r}: the calculator {self._name} has "
                    f"no such result; it has {', '.join(sorted(results))}"
                )
            found = float(np.max(np.abs(results[self._uncertainty])))
        else:
            if not self._members:
                raise UserError(f"{self._name}: is alone; give others in engine.committee")
            for name, other in self._members:
                other.positions = self._atoms.positions
                if not np.array_equal(other.cell.array, self._atoms.cell.array):
                    other.cell = self._atoms.cell
                forces.append(forces_of(name, other))
            found = deviation.compute_deviation(np.array(forces))
        if not np.isfinite(found):
            raise UserError(exploded(self._name))
        return found

    def _bias(
        self,
        coupling: Coupling | None,
        found: _Evaluated,
        positions: Array,
        step: int,
        counts: bool,
    ) -> None:
        """Add the forces of PLUMED to those of the potential."""
        if coupling is not None:
            coupling.add(found.forces, positions, step, counts, found.energy)
        if not np.isfinite(found.forces).all():
            raise UserError(exploded(self._name))

    def _log(self, log: TextIO, step: int, velocities: Array, energy_eV: float) -> None:
        kinetic = 0.5 * float((self._masses[:, None] * velocities**2).sum()) / units.fs**2
        free = max(len(self._masses) - len(self._held), 1)
        temperature = kinetic / (1.5 * free * units.kB)
        log.write(f"{step} {temperature:.4f} {energy_eV:.10g}\n")


class _Snapshots:
    """Writer of a DCD file, or of nothing."""

    def __init__(self, path: Path | None, cell: Array) -> None:
        self._path = path
        self._cell = cell

    def __enter__(self) -> "_Snapshots":
        if self._path is not None:
            # Imported here, because it takes most of a second and is not needed at 0 K.
            self._file = require("mdtraj").formats.DCDTrajectoryFile(str(self._path), "w")
        return self

    def write(self, positions: Array) -> None:
        """Add a snapshot."""
        periodic = self._cell.any()
        box = Cell(complete_cell(self._cell))
        lengths, angles = box.lengths(), box.angles()
        self._file.write(
            positions.astype(np.float32)[None],
            cell_lengths=lengths[None] if periodic else None,
            cell_angles=angles[None] if periodic else None,
        )

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            self._file.close()
