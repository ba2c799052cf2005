"""Energies, forces and dynamics by LAMMPS's library, in a process of its own (see process.py)."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.engines.engine import BLOCK, Followed, Seen, check_finite, exploded
from plumed_cv.engines.lammps_bridge import Bridge, PlumedRun
from plumed_cv.engines.lammps_input import (
    LOG_STRIDE,
    box_edges,
    dynamics_fixes,
    group_commands,
    temperature_of_free,
    wrap,
)
from plumed_cv.engines.lammps_library import Library
from plumed_cv.engines.lammps_potential import neighbour_settings, package_potentials
from plumed_cv.engines.lammps_units import Units
from plumed_cv.engines.plumed_input import VACUUM_A
from plumed_cv.engines.segments import Dynamics, State
from plumed_cv.structures.frame import Array, pad_cell, periodic_directions

LMP_STYLE_GLOBAL, LMP_TYPE_VECTOR = 0, 1  # as in lammps.constants

_STRESS = "plumed_cv_stress"
_PLUMED = "plumed_cv_plumed"
# The list of neighbours is made again as soon as an atom has moved by half of the skin.
_EXACT_NEIGHBOURS = "neigh_modify every 1 delay 0 check yes once no"

# Structures whose atoms are all nearer to those of the last one follow it without a new setup.
# LAMMPS finds an atom again that has left the cell by less than a cell.
_NEAR_A = 2.0


@dataclass(frozen=True)
class System:
    """Input of the process: everything that is the same for all segments.

    Attributes
    ----------
    units
        Units of LAMMPS.
    commands
        LAMMPS commands that set up the potential.
    directory
        Folder of relative file names in the commands.
    elements
        Chemical symbol of each LAMMPS type, in order.
    default_masses, masses
        Masses in amu by type, before the commands and (None or) after them.
    types
        Type of each atom, from 1, shape (N,).
    charges
        Charges in e, shape (N,), or None.
    positions, cell
        Any configuration, angstrom; lattice vectors are zero along directions without periodic
        boundaries.
    boundary
        Arguments of LAMMPS's `boundary`.
    held
        Fixed atoms, from 0.
    """

    units: Units
    commands: tuple[str, ...]
    directory: Path
    elements: tuple[str, ...]
    default_masses: tuple[float, ...]
    masses: tuple[float, ...] | None
    types: NDArray[np.int64]
    charges: Array | None
    positions: Array
    cell: Array
    boundary: str
    held: NDArray[np.int64]


@dataclass(frozen=True)
class RunOrder:
    """One run, in the units of this package, and with a seed for each type as LAMMPS needs it."""

    directory: Path
    start: State
    dynamics: Dynamics
    n_steps: int
    seeds: tuple[int, ...]
    first_step: int
    snapshots: Path | None
    snapshot_stride: int
    plumed: PlumedRun | None


class LammpsProcess:
    """The library of LAMMPS with one set of atoms.

    Parameters
    ----------
    system
        The atoms and their potential.

    Raises
    ------
    UserError
        If the library is missing or of another kind, or refuses the potential or the atoms.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._library = Library(len(system.types))
        self._lammps = self._library.handle
        self._natoms = len(system.types)
        self._plugins: set[Path] = set()
        self._cell = np.zeros((3, 3))
        self._periodic: NDArray[np.bool_] = periodic_directions(system.cell)
        self._first_step = 0
        self._evaluated: Array | None = None  # positions of the last energy, if LAMMPS is set up
        self._create(system)

    def describe(self) -> dict[str, Any]:
        """Return masses by atom, version and styles for the parent."""
        masses = self._lammps.numpy.extract_atom("mass")[self._system.types]
        return {
            "masses": np.array(masses),
            "version": self._lammps.version(),
            "has_fix_plumed": bool(self._lammps.has_style("fix", "plumed")),
        }

    def step(self) -> int:
        """Return the number of steps done of the current run."""
        return max(0, self._library.step - self._first_step)

    def evaluate(self, positions: Array, cell: Array) -> tuple[float, Array, Array]:
        """Return energy (eV), forces (eV/A) and stress (eV/A^3; xx yy zz yz xz xy).

        A structure that is near the last one, as in a relaxation, needs no new setup. The list of
        neighbours and the tables of the potential are then kept.
        """
        if not self._move_to(positions, cell):
            self._place(positions, cell, None)
            self._library.do(
                _EXACT_NEIGHBOURS,
                "reset_timestep 0",
                "thermo 1",
                "thermo_style custom step pe " + " ".join(f"c_{_STRESS}[{k}]" for k in range(1, 7)),
            )
            self._library.run("0 post no")
        units = self._system.units
        energy = float(self._lammps.get_thermo("pe")) * units.energy_eV
        extract = self._lammps.numpy.extract_compute
        pressure = np.array(extract(_STRESS, LMP_STYLE_GLOBAL, LMP_TYPE_VECTOR))[[0, 1, 2, 5, 4, 3]]
        forces = self._library.gather("f") * units.energy_eV
        check_finite("LAMMPS", energy, forces)
        self._evaluated = np.array(positions)
        stress = -pressure * units.pressure_eV_A3 if self._periodic.all() else np.zeros(6)
        return energy, forces, stress

    def _move_to(self, positions: Array, cell: Array) -> bool:
        """Compute a structure near the last one in a step in which nothing moves the atoms.

        Returns
        -------
        bool
            False if the structure needs a new setup.
        """
        if self._evaluated is None or not np.array_equal(cell, self._cell):
            return False
        # Also false if a position is not a number.
        if not np.abs(positions - self._evaluated).max() < _NEAR_A:
            return False
        # Without wrapping: an atom that crosses a border would appear to have moved far.
        images = self._library.gather("image", dtype=np.int32)
        self._library.scatter("x", positions - images @ self._cell)
        return self._library.run("1 pre no post no") == 1

    def forget(self) -> None:
        """Compute the next structure in a new setup, which does not depend on earlier ones."""
        self._end_evaluations()

    def _end_evaluations(self) -> None:
        """Return to the settings of the potential for dynamics."""
        if self._evaluated is not None:
            self._evaluated = None
            self._library.do(*neighbour_settings(self._system.commands))

    def forces(self, positions: Array, cell: Array) -> Array:
        """Return the forces (eV/A) of structures, (M, N, 3), in a cell.

        Settings of the potential such as `neigh_modify delay 10` assume that the structures follow
        each other in time. Here LAMMPS checks before each of them whether its list of neighbours is
        still valid.
        """
        self._end_evaluations()
        self._library.do(_EXACT_NEIGHBOURS)
        try:
            return self._forces(positions, cell)
        finally:
            self._library.do(*neighbour_settings(self._system.commands))

    def _forces(self, positions: Array, cell: Array) -> Array:
        self._place(positions[0], cell, None)
        self._library.do("reset_timestep 0", "thermo 0", "thermo_style custom step")
        self._library.run("0 post no")
        found = np.empty_like(positions)
        for k, structure in enumerate(positions):
            wrapped, images = self._wrap(structure)
            self._library.scatter("x", wrapped)
            self._library.scatter("image", images)
            # A step in which nothing moves the atoms. `run 0` would compute the tables of the
            # potential again, which takes ten times as long as the forces.
            if self._library.run("1 pre no post no") != 1:
                raise UserError(
                    "LAMMPS: it made no step for the forces of a structure, so they would be those "
                    "of an earlier one; remove what ends runs (fix halt, timer) from the potential"
                )
            found[k] = self._library.gather("f") * self._system.units.energy_eV
        return found

    def run(self, order: RunOrder) -> dict[str, Any]:
        """Run molecular dynamics and return its end."""
        started = time.perf_counter()
        self._first_step = order.first_step
        # Relative names in PLUMED's input are relative to the segment. The parent ends the process
        # after a failed run, so the following lines only clean up after a successful run.
        os.chdir(order.directory)
        self._place(order.start.positions, order.start.cell, order.start.velocities)
        self._library.do(
            "log log.lammps",
            f"reset_timestep {order.first_step}",
            f"timestep {self._system.units.time(order.dynamics.timestep_fs)!r}",
            f"thermo {LOG_STRIDE}",
            "thermo_style custom step temp pe",
            "thermo_modify lost error norm no temp free_temp",
        )
        fixes = []
        bridge = None
        if order.plumed is not None:
            bridge = self._add_plumed(order, order.plumed)
            fixes.append(_PLUMED)
        fixes += self._add_dynamics(order.dynamics, order.seeds)
        if order.snapshots is not None:
            self._library.do(
                f"dump snapshots all dcd {order.snapshot_stride} {order.snapshots.name}",
                # The configuration at the start is the last snapshot of the previous run.
                f"dump_modify snapshots unwrap yes delay {order.first_step + 1}",
            )
        n_steps = self._library.run(f"{order.n_steps} post no")
        stopped = order.plumed is not None and n_steps < order.n_steps
        if bridge is not None:
            stopped = bridge.finish()
        self._library.do(*(f"unfix {name}" for name in fixes))
        if order.snapshots is not None:
            self._library.do("undump snapshots")
        self._library.do("log none")
        os.chdir(self._system.directory)
        end = self._state()
        return {
            "n_steps": n_steps,
            "stopped": stopped,
            "positions": end.positions,
            "velocities": end.velocities,
            "seconds": time.perf_counter() - started,
        }

    def follow(
        self,
        start: State,
        dynamics: Dynamics,
        n_steps: int,
        seeds: Sequence[int],
        observer: Seen,
    ) -> Followed[Seen]:
        """Run molecular dynamics until an observer stops it.

        Raises
        ------
        UserError
            If LAMMPS makes no step, or the dynamics explodes.
        """
        self._first_step = 0
        self._place(start.positions, start.cell, start.velocities)
        self._library.do(
            "reset_timestep 0",
            f"timestep {self._system.units.time(dynamics.timestep_fs)!r}",
            "thermo 0",
            "thermo_style custom step",
            "thermo_modify lost error norm no",
        )
        fixes = self._add_dynamics(dynamics, seeds)
        self._library.run("0 post no")
        done, stop = 0, False
        while done < n_steps and not stop:
            block = np.empty((min(BLOCK, n_steps - done), self._natoms, 3))
            for k in range(len(block)):
                # `run 1` with its setup would take as long as twenty steps.
                if self._library.run("1 pre no post no") != 1:
                    raise UserError(
                        "LAMMPS: it made no step, so the trajectory does not move; remove what "
                        "end runs (fix halt, timer) from the potential"
                    )
                block[k] = self._positions()
            if not np.isfinite(block).all():
                raise UserError(exploded("LAMMPS"))
            done += len(block)
            stop = observer.see(block)
        self._library.do(*(f"unfix {name}" for name in fixes))
        return Followed(done, self._state(), observer)

    def _positions(self) -> Array:
        """Positions, unwrapped, (N, 3)."""
        positions = self._library.gather("x")
        if self._periodic.any():
            positions += self._library.gather("image", dtype=np.int32) @ self._cell
        return positions

    def _state(self) -> State:
        """Positions and velocities."""
        positions = self._positions()
        velocities = self._system.units.velocities_A_fs(self._library.gather("v"))
        if not (np.isfinite(positions).all() and np.isfinite(velocities).all()):
            raise UserError(exploded("LAMMPS"))
        return State(positions, self._cell, velocities)

    def _create(self, system: System) -> None:
        os.environ.update(package_potentials())
        os.chdir(system.directory)
        cell = system.cell
        n_types = len(system.elements)
        self._library.do(
            f"units {system.units.name}",
            f"atom_style {'atomic' if system.charges is None else 'charge'}",
            # Atoms keep their order. Arrays then need no sorting, and runs are repeatable bit by
            # bit.
            "atom_modify map array sort 0 0",
            f"boundary {system.boundary}",
            "box tilt large",
        )
        edges = " ".join(
            f"{low!r} {high!r}" for low, high in box_edges(system.positions, cell).T.tolist()
        )
        tilts = _tilts(cell)
        # A prism would always work, but an orthogonal box is faster.
        if any(tilts):
            self._library.do(f"region box prism {edges} {' '.join(map(repr, tilts))}")
        else:
            self._library.do(f"region box block {edges}")
        self._triclinic = any(tilts)
        self._cell = np.array(cell)
        self._library.do(f"create_box {n_types} box")
        wrapped, images = self._wrap(system.positions)
        created = self._lammps.create_atoms(
            self._natoms,
            list(range(1, self._natoms + 1)),
            system.types.tolist(),
            wrapped.ravel().tolist(),
        )
        if created != self._natoms:
            raise UserError(
                f"LAMMPS accepted {created} of {self._natoms} atoms, because some are outside of "
                "the cell along a direction without periodicity; make the cell larger there"
            )
        self._library.scatter("image", images)  # `fix spring/self` stores unwrapped positions
        if system.charges is not None:
            self._library.scatter("q", system.charges)
        kinds = range(1, n_types + 1)
        self._library.do(*(f"mass {k} {system.default_masses[k - 1]!r}" for k in kinds))
        self._library.do(*group_commands(n_types, system.held))
        self._library.do("neighbor 1.0 bin")
        self._library.do(_EXACT_NEIGHBOURS)
        self._library.do(*system.commands)
        if system.masses is not None:
            self._library.do(*(f"mass {k} {system.masses[k - 1]!r}" for k in kinds))
        self._library.do(
            f"compute {_STRESS} all pressure NULL virial",
            *temperature_of_free(),
        )
        self._library.do("run 0 post no")  # reports everything that is wrong or missing

    def _place(self, positions: Array, cell: Array, velocities: Array | None) -> None:
        self._end_evaluations()
        if not np.array_equal(cell, self._cell):
            tilts = _tilts(cell)
            if any(tilts) and not self._triclinic:
                self._library.do("change_box all triclinic")
                self._triclinic = True
            words = [
                f"{axis} final 0 {value!r}"
                for axis, value, along in zip("xyz", _lengths(cell), self._periodic, strict=True)
                if along
            ]
            if self._triclinic:
                words += [
                    f"{name} final {value!r}"
                    for name, value in zip(("xy", "xz", "yz"), tilts, strict=True)
                ]
            self._library.do(f"change_box all {' '.join(words)} units box")
            self._cell = np.array(cell)
        wrapped, images = self._wrap(positions)
        self._library.scatter("x", wrapped)
        self._library.scatter("image", images)
        if velocities is None:
            velocities = np.zeros_like(wrapped)
        self._library.scatter("v", self._system.units.velocities(velocities))

    def _wrap(self, positions: Array) -> tuple[Array, NDArray[np.int32]]:
        """Return positions in the cell, and the subtracted lattice vectors."""
        wrapped, images = wrap(positions, self._cell)
        return wrapped, images.astype(np.int32)

    def _add_dynamics(self, dynamics: Dynamics, seeds: Sequence[int]) -> list[str]:
        """Return the names of the fixes."""
        masses = self._lammps.numpy.extract_atom("mass")[1:].tolist()
        commands = dynamics_fixes(dynamics, seeds, masses, self._system.units)
        self._library.do(*commands)
        return [command.split()[1] for command in commands]

    def _add_plumed(self, order: RunOrder, plumed: PlumedRun) -> Bridge | None:
        os.environ.update(plumed.environment)
        if plumed.bridge is None:
            if plumed.plugin is not None and plumed.plugin not in self._plugins:
                self._library.do(f'plugin load "{plumed.plugin}"')
                self._plugins.add(plumed.plugin)
            self._library.do(
                f"fix {_PLUMED} all plumed plumedfile {plumed.input_file.name} "
                f"outfile {plumed.log_file.name}",
                # Otherwise the bias of the last step would be part of the energy for PLUMED.
                f"fix_modify {_PLUMED} energy no",
            )
            return None
        self._library.do(f"fix {_PLUMED} all external pf/callback 1 1")
        masses = np.array(self._lammps.numpy.extract_atom("mass")[self._system.types])
        if self._system.charges is None:
            charges = np.zeros(self._natoms)
        else:  # those that the commands of the potential set
            charges = self._library.gather("q", width=1)[:, 0]
        return Bridge(
            self._lammps,
            _PLUMED,
            plumed,
            masses,
            charges,
            # PLUMED knows only periodicity along all directions or none.
            pad_cell(self._cell, order.start.positions, VACUUM_A)
            if self._periodic.any()
            else self._cell,
            self._system.units,
            order.dynamics.timestep_fs,
            order.first_step,
        )


def _lengths(cell: Array) -> list[float]:
    return [float(cell[k, k]) for k in range(3)]


def _tilts(cell: Array) -> list[float]:
    return [float(cell[1, 0]), float(cell[2, 0]), float(cell[2, 1])]
