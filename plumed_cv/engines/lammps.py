"""LAMMPS as an engine: any of its potentials, on one core, coupled to PLUMED.

The user gives the commands for the potential, `pair_style` and `pair_coeff` lines or a file with
them. Everything else is set here, in the units of the potential. The library of LAMMPS runs in a
process of its own, so that an error in it, in PLUMED or in a potential becomes a message.

PLUMED is coupled by LAMMPS's `fix plumed`, or by `fix external` and our own bridge
(cpp/engines/lammps_bridge.cpp). The same plumed.dat works with both. There are differences. The
bridge passes kT, so plumed.dat needs no TEMP. `fix plumed` counts the first configuration of every
segment; the bridge counts it only if `Segment.count_start` is true. `fix plumed` makes LAMMPS
compute the virial in every step, which costs as much as PLUMED itself.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from ase import Atoms
from ase.units import kB

from plumed_cv.common.errors import UserError
from plumed_cv.engines.engine import Engine, Followed, Seen
from plumed_cv.engines.lammps_bridge import PlumedRun
from plumed_cv.engines.lammps_input import LammpsInput
from plumed_cv.engines.lammps_potential import standard_mass
from plumed_cv.engines.lammps_process import LammpsProcess, RunOrder, System
from plumed_cv.engines.lammps_units import UnitsName
from plumed_cv.engines.plumed_input import uses_energy, write_plumed_input
from plumed_cv.engines.process import Child
from plumed_cv.engines.segments import RECORD, Dynamics, Segment, SegmentResult, State
from plumed_cv.setup.kernel import Plumed, find_plumed
from plumed_cv.setup.plugin import build_plugin
from plumed_cv.setup.tools import LIBRARY_SUFFIX
from plumed_cv.structures.frame import Array

Coupling = Literal["auto", "external", "plumed"]

BRIDGE_NAME = f"libplumed_cv_lammps{LIBRARY_SUFFIX}"


class LammpsEngine(Engine):
    """The library of LAMMPS in a process of its own.

    Parameters
    ----------
    potential
        LAMMPS commands that set up the potential, for example `["pair_style eam/fs", "pair_coeff *
        * Fe_mm.eam.fs Fe"]`, or the path of a LAMMPS file with such commands. They are executed
        after the box and the atoms exist, and may also set `mass`, charges (`set`), `neighbor` or
        `neigh_modify`. Potential files are searched in `directory`, then in LAMMPS_POTENTIALS (by
        default the folder in the LAMMPS package).
    atoms
        The atoms: their species, order, cell, periodic boundaries, fixed atoms and initial charges.
        The cell must be oriented as by `structures.oriented`.
    species
        Chemical symbols of LAMMPS atom types 1, 2, ... By default those in a line such as
        `pair_coeff * * file Ni Al`, or the elements of `atoms` in order of first appearance if the
        commands do not distinguish types.
    masses
        Masses in amu by symbol. By default those that the potential sets, otherwise ASE's. They
        must agree with those of the elements within 5 %.
    directory
        Folder of relative file names in `potential`; the working directory by default.
    units
        LAMMPS's units of `potential`: "metal" (eV, ps) or "real" (kcal/mol, fs). Energies, forces
        and times outside of the potential are in eV, angstrom and fs with both.
    coupling
        "external": `fix external` and our bridge. "plumed": LAMMPS's `fix plumed`. "auto": the
        bridge, which is faster.
    plumed
        The PLUMED to use; by default `kernel.find_plumed()`, at the first run with PLUMED.
    plugin
        A LAMMPS plugin library with `fix plumed` for a LAMMPS that was built without it.

    Raises
    ------
    UserError
        If LAMMPS is missing, refuses the potential, or does not accept the atoms.
    """

    def __init__(
        self,
        potential: Sequence[str] | Path,
        atoms: Atoms,
        *,
        species: Sequence[str] | None = None,
        masses: Mapping[str, float] | None = None,
        directory: Path | str = ".",
        units: UnitsName = "metal",
        coupling: Coupling = "auto",
        plumed: Plumed | None = None,
        plugin: Path | None = None,
    ) -> None:
        super().__init__(atoms)
        start = State.of(atoms)
        given = dict(masses or {})
        self._directory = Path(directory).absolute()
        self._input = LammpsInput(potential, atoms, species, self._directory, units)
        elements = self._input.elements
        self._coupling = coupling
        self._plumed = plumed
        self._plugin = plugin
        self._bridge: Path | None = None
        self._system = System(
            units=self._input.units,
            commands=self._input.commands,
            directory=self._directory,
            elements=elements,
            default_masses=tuple(given.get(e, standard_mass(e)) for e in elements),
            masses=tuple(given.get(e, standard_mass(e)) for e in elements) if given else None,
            types=self._input.types,
            charges=self._input.charges,
            positions=start.positions,
            cell=start.cell,
            boundary=self._input.boundary,
            held=self._input.held,
        )
        self._child = Child(LammpsProcess, self._system)
        description = self._child.ask("describe")  # wrong input is refused here
        self._masses: Array = description["masses"]
        if not given:
            self._input.check_masses(self._masses)
        self._version = int(description["version"])
        self._has_fix_plumed = bool(description["has_fix_plumed"])

    @property
    def masses(self) -> Array:
        """Mass of each atom in amu, shape (N,)."""
        return self._masses

    @property
    def version(self) -> int:
        """LAMMPS's version as a number, for example 20250722."""
        return self._version

    def evaluate(self, positions: Array, cell: Array) -> tuple[float, Array, Array]:
        """Return energy (eV), forces (eV/angstrom, (N, 3)) and stress (eV/angstrom^3, (6,))."""
        state = State(positions, cell)
        return self._child.ask("evaluate", state.positions, state.cell)  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Forget the list of neighbours; the next structure gets a new one."""
        self._child.ask("forget")

    def _forces(self, positions: Array, cell: Array) -> Array:
        return self._child.ask("forces", positions, cell)  # type: ignore[no-any-return]

    def run(self, segment: Segment, progress: Callable[[int], None] | None = None) -> SegmentResult:
        """Run molecular dynamics; log.lammps has the temperature (K) and potential energy.

        This energy is in the unit of the potential.

        PLUMED receives the positions as LAMMPS keeps them: in the cell, not unwrapped.
        """
        self._check_segment(segment)
        kelvin = segment.dynamics.temperature_K
        start = self._input.moving(segment.start, kelvin, segment.seed, self._masses)
        directory = segment.directory.absolute()
        order = RunOrder(
            directory=directory,
            start=start,
            dynamics=segment.dynamics,
            n_steps=segment.n_steps,
            seeds=self._input.seeds(segment.seed),
            first_step=segment.first_step,
            snapshots=directory / "snapshots.dcd" if segment.snapshot_stride else None,
            snapshot_stride=segment.snapshot_stride,
            plumed=self._plumed_run(segment, directory),
        )
        answer = self._child.ask("run", order, progress=progress)
        answer["positions"][self.held] = start.positions[self.held]  # without rounding of images
        return SegmentResult(
            n_steps=answer["n_steps"],
            stopped_by_plumed=answer["stopped"],
            end=State(answer["positions"], start.cell, answer["velocities"]),
            snapshots=order.snapshots,
            seconds=answer["seconds"],
        )

    def follow(
        self, start: State, dynamics: Dynamics, n_steps: int, seed: int, observer: Seen
    ) -> Followed[Seen]:
        """Run molecular dynamics until an observer stops it, in LAMMPS's process."""
        start = self._input.moving(start, dynamics.temperature_K, seed, self._masses)
        seeds = self._input.seeds(seed)
        found: Followed[Seen] = self._child.ask("follow", start, dynamics, n_steps, seeds, observer)
        found.end.positions[self.held] = start.positions[self.held]
        return found

    def write_job(self, folder: Path, segments: Sequence[Segment]) -> bool:
        """Write inputs for an `lmp` with `fix plumed`; not for user-defined masses."""
        if self._system.masses is not None:
            return False
        self._input.write_job(folder, segments, self._masses)
        return True

    def close(self) -> None:
        """End LAMMPS's process; the next use of the engine starts a new one."""
        self._child.close()

    def _plumed_run(self, segment: Segment, directory: Path) -> PlumedRun | None:
        if segment.plumed is None:
            return None
        if self._plumed is None:
            self._plumed = find_plumed()
        input_file, text = write_plumed_input(segment)
        bridge = None
        if self._coupling == "plumed":
            if not self._has_fix_plumed and self._plugin is None:
                raise UserError(
                    "this LAMMPS was built without `fix plumed`; choose the coupling 'external'"
                )
        else:
            if self._bridge is None:
                self._bridge = build_plugin(self._plumed).with_name(BRIDGE_NAME)
            bridge = self._bridge
        return PlumedRun(
            input_file=input_file,
            log_file=directory / "plumed.log",
            kernel=self._plumed.kernel,
            environment=self._plumed.environment(),
            bridge=bridge,
            plugin=self._plugin,
            kt=float(kB * segment.dynamics.temperature_K),
            count_start=segment.count_start,
            needs_energy=uses_energy(text, directory),
            record=segment.record,
            record_file=directory / RECORD,
        )
