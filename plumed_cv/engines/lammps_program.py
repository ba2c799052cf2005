"""LAMMPS as a program: an `lmp` with `fix plumed`, on one core or, started by mpirun, on many.

For a LAMMPS that is not the Python library's: one that a cluster provides, with potentials, a GPU
or an MPI of its own. Each segment is an input script in the segment's folder, run by the program.
What lammps.py says of `fix plumed` holds here: it hands over no kT, and counts the first
configuration of every segment; and without periodic boundaries it hands over LAMMPS's own box, so
that actions need NOPBC. More than one MPI rank needs a PLUMED that was built with MPI too.
"""

import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from plumed_cv.engines import (
    Engine,
    Segment,
    SegmentResult,
    State,
    exploded,
    maxwell_boltzmann,
    plumed_input,
    plumed_sentence,
)
from plumed_cv.engines.lammps import element_types, potential_commands, standard_mass
from plumed_cv.engines.lammps_process import (
    BAR_IN_EV_PER_A3,
    FS_IN_PS,
    is_explosion,
    lammps_sentence,
    package_potentials,
)
from plumed_cv.engines.process import how_it_ended, run_program, steps_of
from plumed_cv.errors import UserError
from plumed_cv.frame import Array
from plumed_cv.kernel import Plumed, find_plumed

_LARGEST_SEED = 899_999_999
_LOG_STRIDE = 1000  # steps between lines of log.lammps
_ANSWER = "plumed_cv answers"


class LammpsProgram(Engine):
    """LAMMPS by its `lmp` program.

    Parameters
    ----------
    program
        The program with what starts it, for example "lmp" or "mpirun -np 4 lmp".
    potential, atoms, species, directory, plumed, plugin
        As for `LammpsEngine`.

    Raises
    ------
    UserError
        If LAMMPS is missing, refuses the potential, or cannot take the atoms.
    """

    def __init__(
        self,
        program: str,
        potential: Sequence[str] | Path,
        atoms: Atoms,
        *,
        species: Sequence[str] | None = None,
        directory: Path | str = ".",
        plumed: Plumed | None = None,
        plugin: Path | None = None,
    ) -> None:
        super().__init__(atoms)
        self._program = shlex.split(program)
        if not self._program or shutil.which(self._program[0]) is None:
            raise UserError(
                f"{program}: there is no such program; name an lmp on PATH, or its whole path"
            )
        self._directory = Path(directory).absolute()
        self._commands = potential_commands(potential, self._directory)
        self._elements, self._types = element_types(atoms, species)
        charges = atoms.get_initial_charges()
        self._charges = charges if charges.any() else None
        self._plumed = plumed
        self._plugin = plugin
        self._work = tempfile.TemporaryDirectory(prefix="plumed_cv-lammps-")
        start = State.of(atoms)
        _, table = self._single(start)
        self._masses = table[:, 1]

    def evaluate(self, positions: Array, cell: Array) -> tuple[float, Array, Array]:
        """Return energy (eV), forces (eV/angstrom, (N, 3)) and stress (eV/angstrom^3, (6,)).

        By a run of no steps: starting LAMMPS takes longer than the forces of a small system.
        """
        state = State(positions, cell)
        (energy, *pressure), table = self._single(state)
        forces = table[:, 2:]
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise UserError(
                "LAMMPS: energy and forces are not finite; do two atoms lie on each other?"
            )
        stress = np.zeros(6)
        if self.periodic:
            stress = -np.array(pressure)[[0, 1, 2, 5, 4, 3]] * BAR_IN_EV_PER_A3
        return energy, forces, stress

    def run(self, segment: Segment, progress: Callable[[int], None] | None = None) -> SegmentResult:
        """Run molecular dynamics; the folder gets LAMMPS's input and log.lammps too."""
        self._check_segment(segment)
        started = time.perf_counter()
        folder, dynamics = segment.directory.absolute(), segment.dynamics
        velocity_seed, noise_seed = np.random.SeedSequence(segment.seed).spawn(2)
        start = segment.start
        if start.velocities is None:
            rng = np.random.default_rng(velocity_seed)
            velocities = maxwell_boltzmann(rng, self._masses, dynamics.temperature_K)
            start = State(start.positions, start.cell, velocities)
        seeds = noise_seed.generate_state(len(self._elements)) % _LARGEST_SEED + 1
        lines = [
            *self._set_up(folder / "start.data", start),
            f'log "{folder / "log.lammps"}"',
            f'shell cd "{folder}"',  # where relative names in PLUMED's input begin
            f"reset_timestep {segment.first_step}",
            f"timestep {float(dynamics.timestep_fs) * FS_IN_PS!r}",
            f"thermo {_LOG_STRIDE}",
            "thermo_style custom step temp pe",
            "thermo_modify lost error norm no flush yes",
            "compute_modify thermo_temp extra/dof 0",
        ]
        environment: dict[str, str] = {}
        input_file = None
        if segment.plumed is not None:
            input_file = plumed_input(segment)[0]
            if self._plumed is None:
                self._plumed = find_plumed()
            environment = self._plumed.environment()
            if self._plugin is not None:
                lines.append(f'plugin load "{self._plugin}"')
            lines += [
                f'fix plumed all plumed plumedfile "{input_file}" outfile plumed.log',
                "fix_modify plumed energy no",
            ]
        lines += self._dynamics(segment, seeds.tolist())
        snapshots = None
        if segment.snapshot_stride:
            snapshots = folder / "snapshots.dcd"
            lines += [
                f'dump snapshots all dcd {segment.snapshot_stride} "{snapshots}"',
                f"dump_modify snapshots unwrap yes delay {segment.first_step + 1}",
            ]
        end = folder / "end.dump"
        lines += [
            f"run {segment.n_steps} post no",
            # By its name in this folder, which a forgotten program finds removed.
            f"write_dump all custom {end.name} id xu yu zu vx vy vz "
            "modify sort id format float %.17g",
            f'print "{_ANSWER}: $(step:%.0f)"',
        ]

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
        n_steps = int(last) - segment.first_step
        return SegmentResult(
            n_steps=n_steps,
            stopped_by_plumed=segment.plumed is not None and n_steps < segment.n_steps,
            end=State(table[:, 1:4], start.cell, table[:, 4:7] * FS_IN_PS),
            snapshots=snapshots,
            seconds=time.perf_counter() - started,
        )

    def close(self) -> None:
        """Remove the files for single structures."""
        self._work.cleanup()

    def _single(self, state: State) -> tuple[list[float], Array]:
        """Energy (eV) and pressures (bar); and for each atom its id, mass and forces."""
        folder = Path(self._work.name)
        table = folder / "single.dump"
        stress = [f"c_stress[{k}]" for k in range(1, 7)]
        answers = " ".join(f"$({name}:%.17g)" for name in ("pe", *stress))
        lines = [
            *self._set_up(folder / "start.data", state),
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

    def _set_up(self, data: Path, state: State) -> list[str]:
        """Write the atoms; return the commands that read them and set up the potential."""
        cell, positions = state.cell, state.positions
        images = np.zeros(positions.shape, dtype=int)
        if self.periodic:
            images = np.floor(positions @ np.linalg.inv(cell)).astype(int)
            edges = np.stack([np.zeros(3), np.diag(cell)])
        else:
            edges = np.stack([positions.min(axis=0) - 1, positions.max(axis=0) + 1])
        wrapped = positions - images @ cell
        text = ["LAMMPS data of plumed_cv", ""]
        text += [f"{len(positions)} atoms", f"{len(self._elements)} atom types"]
        for axis, (low, high) in zip("xyz", edges.T.tolist(), strict=True):
            text.append(f"{low!r} {high!r} {axis}lo {axis}hi")
        tilts = [float(cell[k]) for k in ((1, 0), (2, 0), (2, 1))]
        if any(tilts):
            text.append(f"{' '.join(map(repr, tilts))} xy xz yz")
        text += ["", "Masses", ""]
        text += [f"{k} {standard_mass(name)!r}" for k, name in enumerate(self._elements, 1)]
        style = "atomic" if self._charges is None else "charge"
        text += ["", f"Atoms # {style}", ""]
        charges = ["" for _ in positions] if self._charges is None else self._charges.tolist()
        rows = zip(self._types.tolist(), charges, wrapped.tolist(), images.tolist(), strict=True)
        for number, (kind, charge, where, image) in enumerate(rows, 1):
            text.append(f"{number} {kind} {charge} {_row(where)} {' '.join(map(str, image))}")
        if state.velocities is not None:
            text += ["", "Velocities", ""]
            velocities = (state.velocities / FS_IN_PS).tolist()
            text += [f"{number} {_row(v)}" for number, v in enumerate(velocities, 1)]
        data.write_text("\n".join(text) + "\n")
        kinds = range(1, len(self._elements) + 1)
        return [
            "units metal",
            f"atom_style {style}",
            "atom_modify map array",
            f"boundary {'p p p' if self.periodic else 's s s'}",
            "box tilt large",
            f'read_data "{data}"',
            *(f"group type{k} type {k}" for k in kinds),
            f"neighbor 1.0 {'bin' if self.periodic else 'nsq'}",
            "neigh_modify every 1 delay 0 check yes",
            *self._commands,
        ]

    def _dynamics(self, segment: Segment, seeds: list[int]) -> list[str]:
        dynamics = segment.dynamics
        temperature = repr(float(dynamics.temperature_K))
        friction = float(dynamics.friction_per_ps)
        if dynamics.thermostat == "langevin":
            return [
                "fix integrate all nve",
                f"fix thermostat all langevin {temperature} {temperature} {1 / friction!r} "
                f"{seeds[0]}",
            ]
        # LAMMPS moves by F / gamma_t and takes gamma_t as mass/time: here m gamma, type by type.
        lines = []
        for kind, seed in enumerate(seeds, 1):
            if not (self._types == kind).any():
                continue
            mass = float(self._masses[self._types == kind][0])
            lines.append(
                f"fix brownian{kind} type{kind} brownian {temperature} {seed} rng gaussian "
                f"gamma_t {mass * friction!r}"
            )
        return lines

    def _lammps(
        self,
        script: Path,
        lines: Sequence[str],
        environment: dict[str, str] | None = None,
        heard: Callable[[str], None] | None = None,
        plumed_dat: Path | None = None,
    ) -> list[float]:
        """Run a script and return the numbers that its last line prints."""
        script.write_text("\n".join(lines) + "\n")
        # In the folder where relative names in the potential begin.
        code, said = run_program(
            [*self._program, "-in", str(script), "-log", "none", "-nocite"],
            self._directory,
            environment={**package_potentials(), **(environment or {})},
            heard=heard,
        )
        answers = re.findall(rf"^{_ANSWER}: (.*)$", said, re.MULTILINE)
        if code == 0 and answers:
            return [float(word) for word in answers[-1].split()]
        thrown = re.search(r"^Exception: (.*?)(?=^Abort|\Z)", said, re.MULTILINE | re.DOTALL)
        if plumed_dat is not None and thrown:
            raise UserError(f"{plumed_dat}: {plumed_sentence(thrown[1])}")
        errors = re.findall(r"^ERROR.*(?:\n(?!Last|Abort|\s*$).*)*", said, re.MULTILINE)
        last = (
            errors[-1]
            if errors
            else f"ended {how_it_ended(code)}: "
            + (said.strip().rpartition("\n")[2] or "it said nothing")
        )
        if is_explosion(last):
            raise UserError(exploded("LAMMPS"))
        raise UserError(f"LAMMPS: {lammps_sentence(last)}")


def _row(values: Sequence[float]) -> str:
    return " ".join(map(repr, values))
