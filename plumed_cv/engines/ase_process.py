"""The process of an ASE calculator: its forces, our integrators, and PLUMED by its bindings.

The integrators are BAOAB for Langevin dynamics (Leimkuhler and Matthews, doi:10.1093/amrx/abs010),
Euler's method for Brownian dynamics, and velocity Verlet without a thermostat. The process imports
torch only if the calculator does.
"""

import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.cell import Cell
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import require
from plumed_cv.engines import deviation
from plumed_cv.engines.engine import BLOCK, Followed, Seen, check_finite, exploded
from plumed_cv.engines.plumed_input import NESTED, VACUUM_A, plumed_sentence
from plumed_cv.engines.segments import (
    RECORD,
    Dynamics,
    Segment,
    SegmentResult,
    State,
    draw_velocities,
)
from plumed_cv.structures.frame import Array, complete_cell, pad_cell, reduce_lattice

HELD = "plumed_cv_held"  # array of the fixed atoms

_LOG_STRIDE = 1000  # steps between lines of log.ase

_EV_IN_KJ_MOL = 96.48530749925792  # PLUMED's value

# Positions (angstrom), velocities (angstrom/fs) and forces (eV/angstrom), shape (N, 3) each.
_Moved = tuple[Array, Array, Array]


@dataclass(frozen=True)
class PlumedFiles:
    """Input and output files of PLUMED, the kernel, and its environment variables."""

    input_file: Path
    log_file: Path
    kernel: Path
    environment: dict[str, str]


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
    ) -> None:
        self._name = calculator
        self._uncertainty = uncertainty
        self._members = []
        for name, given, folder in members:
            _enter(folder)
            other = atoms.copy()
            other.arrays.pop(HELD)
            other.calc = _calculator(name, given)
            self._members.append((name, other))
        _enter(directory)
        self._atoms = atoms
        self._held = np.flatnonzero(atoms.arrays.pop(HELD))
        self._calculator = _calculator(calculator, arguments)
        atoms.calc = self._calculator
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
        self._place(positions, cell)
        forces, energy = self._forces(), self._energy()
        check_finite(self._name, energy, forces)
        stress = np.zeros(6)
        if reduce_lattice(cell).periodic.all():
            stress = np.full(6, np.nan)
            if "stress" in self._calculator.implemented_properties:
                stress = np.array(atoms.get_stress(apply_constraint=False))
        return energy, forces, stress

    def forces(self, positions: Array, cell: Array) -> Array:
        """Return the forces (eV/angstrom) of structures, (M, N, 3), without their stress."""
        found = np.empty_like(positions)
        for k, structure in enumerate(positions):
            self._place(structure, cell)
            found[k] = self._forces()
        check_finite(self._name, 0.0, found)
        return found

    def deviations(self, positions: Array, cell: Array) -> Array:
        """Return the model deviation (eV/angstrom) of structures, (M,)."""
        found = np.empty(len(positions))
        for k, structure in enumerate(positions):
            self._place(structure, cell)
            found[k] = self._deviation()
        return found

    def run(self, segment: Segment, plumed: PlumedFiles | None) -> SegmentResult:
        """Run molecular dynamics."""
        started = time.perf_counter()
        self._done = 0
        start, dynamics, stride = segment.start, segment.dynamics, segment.snapshot_stride
        directory = segment.directory.absolute()
        home = Path.cwd()
        thermal, noise = (
            np.random.default_rng(seed) for seed in np.random.SeedSequence(segment.seed).spawn(2)
        )
        velocities = self._velocities(start, dynamics, thermal)
        for each in (self._calculator, *(other.calc for _, other in self._members)):
            if hasattr(each, "reset"):
                each.reset()  # also lists of neighbours, whose order affects the last bit
        self._place(start.positions, start.cell)
        # Relative names in PLUMED's input are relative to the folder of the segment.
        os.chdir(directory)
        coupling = None
        if plumed is not None:
            coupling = _Coupling(plumed, segment, self._masses, self._charges)
        integrator = _Integrator(dynamics, self._masses, self._held, noise)
        reached = segment.first_step + segment.n_steps
        any_snapshot = stride > 0 and reached // stride > segment.first_step // stride
        snapshots = directory / "snapshots.dcd" if any_snapshot else None
        moved = integrator.move
        positions = start.positions.copy()
        record, watch, beyond = segment.record, segment.watch, None
        with (
            _Snapshots(snapshots, start.cell) as trajectory,
            nullcontext() if record is None else (directory / RECORD).open("wb") as records,
            (directory / "log.ase").open("w", encoding="utf-8") as log,
            nullcontext() if watch is None else deviation.open_table(directory) as watched,
        ):
            forces = self._biased_forces(coupling, segment.first_step, segment.count_start)
            for step in range(segment.first_step + 1, segment.first_step + segment.n_steps + 1):
                if coupling is not None and coupling.stopped:
                    break

                def forces_at(where: Array, step: int = step) -> Array:
                    self._atoms.positions = where
                    if record is not None and records is not None and step % record.stride == 0:
                        of_atoms = np.stack([where, self._forces()])[:, record.serials - 1]
                        records.write(of_atoms.tobytes())
                        records.flush()
                    return self._biased_forces(coupling, step, True)

                positions, velocities, forces = moved(positions, velocities, forces, forces_at)
                self._done += 1
                if snapshots is not None and step % stride == 0:
                    trajectory.write(positions)
                if step % _LOG_STRIDE == 0:
                    self._log(log, step, velocities)
                if watch is not None and watched is not None and step % watch.stride == 0:
                    found = self._deviation()
                    watched.write(f"{step * dynamics.timestep_fs:.6f} {found:.10g}\n")
                    if found > watch.limit:
                        beyond = found
                        break
        if coupling is not None:
            coupling.close()
        os.chdir(home)
        return SegmentResult(
            n_steps=self._done,
            stopped_by_plumed=coupling is not None and coupling.stopped,
            end=State(
                positions, start.cell, None if dynamics.thermostat == "brownian" else velocities
            ),
            snapshots=snapshots,
            seconds=time.perf_counter() - started,
            deviation=beyond,
        )

    def follow(
        self, start: State, dynamics: Dynamics, n_steps: int, seed: int, observer: Seen
    ) -> Followed[Seen]:
        """Run molecular dynamics until an observer stops it."""
        thermal, noise = (
            np.random.default_rng(source) for source in np.random.SeedSequence(seed).spawn(2)
        )
        positions = start.positions.copy()
        velocities = self._velocities(start, dynamics, thermal)
        if hasattr(self._calculator, "reset"):
            self._calculator.reset()
        self._place(positions, start.cell)
        integrator = _Integrator(dynamics, self._masses, self._held, noise)

        def forces_at(where: Array) -> Array:
            self._atoms.positions = where
            return self._biased_forces(None, 0, False)

        forces = forces_at(positions)
        self._done, stop = 0, False
        while self._done < n_steps and not stop:
            block = np.empty((min(BLOCK, n_steps - self._done), *positions.shape))
            for k in range(len(block)):
                positions, velocities, forces = integrator.move(
                    positions, velocities, forces, forces_at
                )
                block[k] = positions
            self._done += len(block)
            stop = observer.see(block)
        moving = None if dynamics.thermostat == "brownian" else velocities
        return Followed(self._done, State(positions, start.cell, moving), observer)

    def _velocities(self, start: State, dynamics: Dynamics, rng: np.random.Generator) -> Array:
        """Velocities at the start, drawn if there are none; fixed atoms are at rest."""
        if start.velocities is None:
            return draw_velocities(rng, self._masses, dynamics.temperature_K, self._held)
        velocities = start.velocities.copy()
        velocities[self._held] = 0.0
        return velocities

    def _place(self, positions: Array, cell: Array) -> None:
        self._atoms.positions = positions
        # A calculator may need the height of the vacuum, which is not part of the cell.
        periodic = reduce_lattice(cell).periodic
        if not np.array_equal(self._atoms.cell.array[periodic], cell[periodic]):
            self._atoms.cell = np.where(periodic[:, None], cell, self._atoms.cell.array)

    def _forces(self) -> Array:
        return _forces_of(self._name, self._atoms)

    def _energy(self) -> float:
        energy = self._atoms.get_potential_energy(apply_constraint=False)
        return float(self._calculator.results.get("free_energy", energy))

    def _deviation(self) -> float:
        """Model deviation of the present structure."""
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
                forces.append(_forces_of(name, other))
            found = deviation.compute_deviation(np.array(forces))
        if not np.isfinite(found):
            raise UserError(exploded(self._name))
        return found

    def _biased_forces(self, coupling: "_Coupling | None", step: int, counts: bool) -> Array:
        forces = self._forces()
        if coupling is not None:
            coupling.add(forces, self._atoms.positions, step, counts, self._energy)
        if not np.isfinite(forces).all():
            raise UserError(exploded(self._name))
        return forces

    def _log(self, log: TextIO, step: int, velocities: Array) -> None:
        kinetic = 0.5 * float((self._masses[:, None] * velocities**2).sum()) / units.fs**2
        free = max(len(self._masses) - len(self._held), 1)
        temperature = kinetic / (1.5 * free * units.kB)
        log.write(f"{step} {temperature:.4f} {self._energy():.10g}\n")


class _Integrator:
    """One step of dynamics. Fixed atoms have no velocity, force or noise."""

    def __init__(
        self,
        dynamics: Dynamics,
        masses: Array,
        held: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> None:
        self._rng = rng
        self._dt = dynamics.timestep_fs
        friction = dynamics.friction_per_ps / 1000  # 1/fs
        kT = units.kB * dynamics.temperature_K
        mass = masses[:, None] / units.fs**2  # eV fs^2/angstrom^2
        self._half_kick = 0.5 * self._dt / mass
        self._kept = np.exp(-friction * self._dt)
        moves = {"langevin": self._langevin, "brownian": self._brownian, "none": self._verlet}
        self.move = moves[dynamics.thermostat]
        self._kick = np.sqrt((1 - self._kept**2) * kT / mass)
        self._drift = self._dt / (mass * friction)
        self._jump = np.sqrt(2 * kT * self._drift)
        for factors in (self._half_kick, self._kick, self._drift, self._jump):
            factors[held] = 0.0

    def _langevin(
        self, x: Array, v: Array, forces: Array, forces_at: Callable[[Array], Array]
    ) -> _Moved:
        """BAOAB."""
        v = v + self._half_kick * forces
        x = x + 0.5 * self._dt * v
        v = self._kept * v + self._kick * self._rng.standard_normal(x.shape)
        x = x + 0.5 * self._dt * v
        forces = forces_at(x)
        return x, v + self._half_kick * forces, forces

    def _verlet(
        self, x: Array, v: Array, forces: Array, forces_at: Callable[[Array], Array]
    ) -> _Moved:
        """Velocity Verlet."""
        v = v + self._half_kick * forces
        x = x + self._dt * v
        forces = forces_at(x)
        return x, v + self._half_kick * forces, forces

    def _brownian(
        self, x: Array, v: Array, forces: Array, forces_at: Callable[[Array], Array]
    ) -> _Moved:
        """Euler-Maruyama; the velocities have no meaning."""
        x = x + self._drift * forces + self._jump * self._rng.standard_normal(x.shape)
        return x, v, forces_at(x)


class _Coupling:
    """PLUMED through its bindings."""

    def __init__(self, files: PlumedFiles, segment: Segment, masses: Array, charges: Array) -> None:
        os.environ.update(files.environment)
        plumed = require("plumed")  # finds the kernel through the environment
        self._file = files.input_file
        self._masses, self._charges = masses, charges
        # PLUMED knows only periodicity along all directions or none.
        self._cell = np.ascontiguousarray(segment.start.cell)
        if self._cell.any():
            self._cell = pad_cell(self._cell, segment.start.positions, VACUUM_A)
        self._stop = np.zeros(1, dtype=np.intc)
        self._energy_needed = np.zeros(1, dtype=np.intc)
        self._energy: NDArray[np.float64] = np.zeros(1)
        try:
            self._plumed = plumed.Plumed(kernel=str(files.kernel))
            for key, value in (
                ("setMDEnergyUnits", _EV_IN_KJ_MOL),
                ("setMDLengthUnits", 0.1),
                ("setMDTimeUnits", 0.001),
                ("setMDEngine", "ASE"),
                ("setNatoms", len(masses)),
                ("setTimestep", float(segment.dynamics.timestep_fs)),
                ("setKbT", float(units.kB * segment.dynamics.temperature_K)),
                ("setNoVirial", None),  # the cell is constant
                ("setPlumedDat", str(files.input_file)),
                ("setLogFile", str(files.log_file)),
                ("init", None),
            ):
                self._cmd(key, value)
        except Exception as error:
            raise self._refusal(error) from error

    @property
    def stopped(self) -> bool:
        """Whether an action (COMMITTOR) has asked to stop the run."""
        return bool(self._stop[0])

    def add(
        self,
        forces: Array,
        positions: Array,
        step: int,
        counts: bool,
        energy: Callable[[], float],
    ) -> None:
        """Add the bias to the forces, which are scaled by a bias on ENERGY."""
        positions = np.ascontiguousarray(positions)
        try:
            self._cmd("setStep", step)
            self._cmd("setPositions", positions)
            self._cmd("setForces", forces)
            self._cmd("setMasses", self._masses)
            self._cmd("setCharges", self._charges)
            self._cmd("setBox", self._cell)
            self._cmd("setStopFlag", self._stop)
            self._cmd("prepareCalc")
            self._cmd("isEnergyNeeded", self._energy_needed)
            if self._energy_needed[0]:
                self._energy[0] = energy()
                self._cmd("setEnergy", self._energy)
            self._cmd("performCalc" if counts else "performCalcNoUpdate")
        except Exception as error:
            raise self._refusal(error) from error

    def close(self) -> None:
        """End PLUMED, which then flushes and closes its files."""
        self._plumed.finalize()

    def _cmd(self, key: str, value: Any = None) -> None:
        self._plumed.cmd(key) if value is None else self._plumed.cmd(key, value)

    def _refusal(self, error: Exception) -> Exception:
        if isinstance(error, UserError):
            return error
        messages, cause = [str(error)], error.__cause__
        while cause is not None:
            messages.insert(0, str(cause))
            cause = cause.__cause__
        return UserError(f"{self._file}: {plumed_sentence(NESTED.join(messages))}")


def _enter(directory: Path) -> None:
    """Make a folder that of relative file names and of the user's modules."""
    os.chdir(directory)
    if str(directory) not in sys.path:
        sys.path.append(str(directory))


def _forces_of(name: str, atoms: Atoms) -> Array:
    """Forces of a calculator, eV/angstrom."""
    try:
        return np.array(atoms.get_forces(apply_constraint=False), dtype=np.float64)
    except Exception as error:  # calculators may raise any exception
        raise UserError(f"{name}: gives no forces ({_words(error)}); use another one") from error


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


def _calculator(name: str, arguments: dict[str, Any]) -> Calculator:
    """Import the object `name` and call it."""
    module, _, attribute = name.rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"engine.calculator = {name!r}: cannot be imported ({_words(error)}); give the dotted "
            "name of a calculator class, such as ase.calculators.emt.EMT, and install its package"
        ) from error
    try:
        calculator: Calculator = factory(**arguments)
    except Exception as error:  # calculators may raise any exception
        raise UserError(
            f"{name}: cannot be made ({_words(error)}); correct engine.arguments = {arguments}"
        ) from error
    if not hasattr(calculator, "get_forces") or not hasattr(calculator, "results"):
        raise UserError(
            f"engine.calculator = {name!r}: is not an ASE calculator; name a class such as "
            "ase.calculators.emt.EMT, or a function that makes a calculator"
        )
    return calculator


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
