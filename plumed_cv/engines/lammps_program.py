"""LAMMPS as a program: an `lmp` with `fix plumed`, on one core or, started by mpirun, on many.

This is for a LAMMPS other than that of the Python library: for example one of a cluster, with its
own potentials, GPU or MPI. Each segment is an input script in its folder that the program runs. The
remarks on `fix plumed` in lammps.py apply: it passes no kT, and counts the first configuration of
every segment. Along directions without periodic boundaries it passes LAMMPS's own box, so actions
of PLUMED may take wrong images of atoms there (NOPBC); AUTOENCODER does not. More
than one MPI rank needs a PLUMED that was also built with MPI.
"""

import math
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from plumed_cv.common.errors import UserError
from plumed_cv.engines.engine import Engine, check_finite, exploded
from plumed_cv.engines.lammps_input import END, LammpsInput, explain
from plumed_cv.engines.lammps_potential import package_potentials
from plumed_cv.engines.lammps_units import UnitsName
from plumed_cv.engines.plumed_input import plumed_sentence, write_plumed_input
from plumed_cv.engines.process import how_it_ended, run_program, steps_of
from plumed_cv.engines.segments import Segment, SegmentResult, State
from plumed_cv.setup.kernel import Plumed, find_plumed
from plumed_cv.structures.frame import Array

_ANSWER = "plumed_cv answers"


class LammpsProgram(Engine):
    """LAMMPS through its `lmp` program.

    Parameters
    ----------
    program
        The command of the program, for example "lmp" or "mpirun -np 4 lmp".
    potential, atoms, species, directory, units, plumed, plugin
        As for `LammpsEngine`.

    Raises
    ------
    UserError
        If LAMMPS is missing, refuses the potential, or does not accept the atoms.
    """

    def __init__(
        self,
        program: str,
        potential: Sequence[str] | Path,
        atoms: Atoms,
        *,
        species: Sequence[str] | None = None,
        directory: Path | str = ".",
        units: UnitsName = "metal",
        plumed: Plumed | None = None,
        plugin: Path | None = None,
    ) -> None:
        super().__init__(atoms)
        self._program = shlex.split(program)
        if not self._program or shutil.which(self._program[0]) is None:
            raise UserError(
                f"{program}: there is no such program; name an lmp on PATH, or its complete path"
            )
        self._directory = Path(directory).absolute()
        self._input = LammpsInput(potential, atoms, species, self._directory, units)
        self._plumed = plumed
        self._plugin = plugin
        self._work = tempfile.TemporaryDirectory(prefix="plumed_cv-lammps-")
        self._ranks = 1
        start = State.of(atoms)
        _, table = self._single(start)
        self._masses = table[:, 1]
        self._input.check_masses(self._masses)

    @property
    def masses(self) -> Array:
        """Mass of each atom in amu, shape (N,)."""
        return np.asarray(self._masses)

    def evaluate(self, positions: Array, cell: Array) -> tuple[float, Array, Array]:
        """Return energy (eV), forces (eV/angstrom, (N, 3)) and stress (eV/angstrom^3, (6,)).

        It is a run of zero steps. Starting LAMMPS takes longer than the forces of a small system.
        """
        state = State(positions, cell)
        (energy, *pressure), table = self._single(state)
        units = self._input.units
        energy, forces = energy * units.energy_eV, table[:, 2:] * units.energy_eV
        check_finite("LAMMPS", energy, forces)
        stress = np.zeros(6)
        if self.periodic.all():
            stress = -np.array(pressure)[[0, 1, 2, 5, 4, 3]] * units.pressure_eV_A3
        return energy, forces, stress

    def _forces(self, positions: Array, cell: Array) -> Array:
        """Forces of structures, (M, N, 3), eV/angstrom: one `rerun` for all."""
        if not self.periodic.all():  # the box of one structure may be too small for another
            return super()._forces(positions, cell)
        folder = Path(self._work.name)
        data, frames, table = (folder / name for name in ("start.data", "frames.dump", "f.dump"))
        data.write_text(self._input.data(State(positions[0], cell)))
        frames.write_text(self._input.frames(positions, cell))
        lines = [
            *self._input.set_up(data),
            "log none",
            "thermo_style custom step",
            f'dump forces all custom 1 "{table}" id fx fy fz',
            "dump_modify forces sort id format float %.17g",
            # The box is that of the data file, not of the dump.
            f'rerun "{frames}" dump x y z box no',
            f'print "{_ANSWER}: $(step:%.0f)"',
        ]
        self._lammps(folder / "in.lammps", lines)
        rows = [row for row in table.read_text().splitlines() if row.count(" ") == 3]
        words = " ".join(row for row in rows if not row.startswith("ITEM")).split()
        found = np.array(words, dtype=np.float64).reshape(len(positions), -1, 4)[..., 1:]
        return np.ascontiguousarray(found) * self._input.units.energy_eV

    def run(self, segment: Segment, progress: Callable[[int], None] | None = None) -> SegmentResult:
        """Run molecular dynamics; the folder also receives LAMMPS's input and log.lammps."""
        self._check_segment(segment)
        started = time.perf_counter()
        folder = segment.directory.absolute()
        kelvin = segment.dynamics.temperature_K
        start = self._input.moving(segment.start, kelvin, segment.seed, self._masses)
        (folder / "start.data").write_text(self._input.data(start))
        lines = [
            *self._input.set_up(folder / "start.data"),
            f'log "{folder / "log.lammps"}"',
            f'shell cd "{folder}"',  # folder of relative names in PLUMED's input
        ]
        environment: dict[str, str] = {}
        input_file = None
        if segment.plumed is not None:
            input_file = write_plumed_input(segment)[0]
            if self._plumed is None:
                self._plumed = find_plumed()
            if self._ranks > 1 and not self._plumed.mpi:
                raise UserError(
                    f"{shlex.join(self._program)}: starts {self._ranks} MPI ranks, but the PLUMED "
                    f"here ({self._plumed.kernel}) has no MPI; start one, or set PLUMED_KERNEL to "
                    "a PLUMED with the MPI of this LAMMPS, which `plumed-cv plumed --mpi` builds"
                )
            environment = self._plumed.environment()
            if self._plugin is not None:
                lines.append(f'plugin load "{self._plugin}"')
        lines += self._input.run(segment, self._masses, input_file)
        lines.append(f'print "{_ANSWER}: $(step:%.0f)"')
        snapshots = folder / "snapshots.dcd" if segment.snapshot_stride else None
        end = folder / END

        def tell(step: int) -> None:
            assert progress is not None
            progress(min(segment.n_steps, max(0, step - segment.first_step)))

        (last,) = self._lammps(
            folder / "in.lammps",
            lines,
            environment,
            steps_of(tell, r"\n +(\d+) +[-+.\de]+ +[-+.\de]+ *(?=\n)") if progress else None,
            input_file,
        )
        table = np.loadtxt(end, skiprows=9, ndmin=2)
        for name in (end, folder / "start.data"):
            name.unlink()
        if len(table) != len(self.symbols) or not np.isfinite(table).all():
            raise UserError(exploded("LAMMPS"))
        table[self.held, 1:4] = start.positions[self.held]  # without rounding of images
        n_steps = int(last) - segment.first_step
        return SegmentResult(
            n_steps=n_steps,
            stopped_by_plumed=segment.plumed is not None and n_steps < segment.n_steps,
            end=State(table[:, 1:4], start.cell, self._input.units.velocities_A_fs(table[:, 4:7])),
            snapshots=snapshots,
            seconds=time.perf_counter() - started,
        )

    def write_job(self, folder: Path, segments: Sequence[Segment]) -> bool:
        """Write inputs for an `lmp` with `fix plumed`."""
        self._input.write_job(folder, segments, self._masses)
        return True

    def close(self) -> None:
        """Remove the files for single structures."""
        self._work.cleanup()

    def _single(self, state: State) -> tuple[list[float], Array]:
        """Energy and pressures, and id, mass and forces of each atom, in LAMMPS's units."""
        folder = Path(self._work.name)
        table = folder / "single.dump"
        data = folder / "start.data"
        data.write_text(self._input.data(state))
        stress = [f"c_stress[{k}]" for k in range(1, 7)]
        answers = " ".join(f"$({name}:%.17g)" for name in ("pe", *stress))
        lines = [
            *self._input.set_up(data),
            "log none",
            "compute stress all pressure NULL virial",
            f"thermo_style custom step pe {' '.join(stress)}",
            "thermo_modify lost error norm no",
            "run 0 post no",
            f'write_dump all custom "{table}" id mass fx fy fz modify sort id format float %.17g',
            f'print "{_ANSWER}: {answers}"',
        ]
        values = self._lammps(folder / "in.lammps", lines)
        return values, np.loadtxt(table, skiprows=9, ndmin=2)

    def _lammps(
        self,
        script: Path,
        lines: Sequence[str],
        environment: dict[str, str] | None = None,
        heard: Callable[[str], None] | None = None,
        plumed_dat: Path | None = None,
    ) -> list[float]:
        """Run a script and return the numbers in its last line."""
        script.write_text("\n".join(lines) + "\n")
        # In the folder of relative names in the potential.
        code, said = run_program(
            [*self._program, "-in", str(script), "-log", "none", "-nocite"],
            self._directory,
            environment={**package_potentials(), **(environment or {})},
            heard=heard,
        )
        if grid := re.search(r"(\d+) by (\d+) by (\d+) MPI processor grid", said):
            self._ranks = math.prod(map(int, grid.groups()))
        answers = re.findall(rf"^{_ANSWER}: (.*)$", said, re.MULTILINE)
        if code == 0 and answers:
            return [float(word) for word in answers[-1].split()]
        # Every rank may print it.
        first = r"^Exception: (.*?)(?=^Abort|^Exception|\Z)"
        thrown = re.search(first, said, re.MULTILINE | re.DOTALL)
        if plumed_dat is not None and thrown:
            raise UserError(f"{plumed_dat}: {plumed_sentence(thrown[1])}")
        errors = re.findall(r"^ERROR.*(?:\n(?!Last|Abort|\s*$).*)*", said, re.MULTILINE)
        last = (
            errors[-1]
            if errors
            else f"ended {how_it_ended(code)}: "
            + (said.strip().rpartition("\n")[2] or "it printed nothing")
        )
        raise UserError(explain(last))
