"""GROMACS as an engine: the program `gmx mdrun -plumed` of GROMACS 2025 or newer.

The user gives run parameters (.mdp), a topology (.top) and a structure with its atom names (.gro,
.g96, .pdb or .tpr); what a run must have (integrator, steps, thermostat, seeds, output) is set here
and replaces what the parameters say of it. A segment is a
`gmx grompp` and a `gmx mdrun` in its folder; positions and velocities go from one to the next in
the precision of the `gmx`.

GROMACS passes positions, box, masses, charges, kT and the step to PLUMED, but never the energy, so
ENERGY cannot be used. cpp/engines/gromacs_kernel.cpp, a library between the two, adds what the
interface lacks: the end of a run that PLUMED stops, `Segment.count_start`, and causes of errors.
"""

import os
import re
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.engines.engine import Engine, Followed, Seen, check_finite, exploded
from plumed_cv.engines.gromacs_files import (
    KJ_MOL,
    SINGLE,
    constrained_atoms,
    mdp_of,
    read_mdp,
    read_trr,
    trr_to_dcd,
    unwrap,
    write_mdp,
    write_trr,
)
from plumed_cv.engines.plumed_input import plumed_sentence, uses_energy, write_plumed_input
from plumed_cv.engines.process import run_program, steps_of
from plumed_cv.engines.segments import Dynamics, Segment, SegmentResult, State
from plumed_cv.setup.kernel import Plumed, data_dir, find_plumed
from plumed_cv.setup.plugin import build_plugin
from plumed_cv.setup.tools import LIBRARY_SUFFIX
from plumed_cv.structures.frame import Array

PROGRAM_VARIABLE = "GMX"
SINGLE_THREAD = ("-ntmpi", "1", "-ntomp", "1", "-pin", "off")
SHIM_NAME = f"libplumed_cv_gromacs{LIBRARY_SUFFIX}"

# mdrun takes seconds to start, its leap-frog velocities are half a step away from the positions,
# and its md-vv differs from the sampling in constraints and precision.
_NO_TRAJECTORIES = (
    "GROMACS: it starts no trajectories from given velocities here, so there is no transmission "
    "coefficient; the rate of transition state theory is an upper bound, and rate.enabled = false "
    "accepts this"
)
_FASTEST = 10.0  # angstrom/fs; if atoms fly apart, GROMACS continues or crashes
_CRASHES = ("SIGSEGV", "SIGABRT", "SIGFPE", "SIGBUS")  # by name: Windows has no SIGBUS
_STEP_OUT = 500  # steps between lines of mdrun's progress

_JOB = """#!/bin/sh
# Runs the segments that are missing, one after the other. It needs this folder, GROMACS 2025 or
# newer and PLUMED: PLUMED_KERNEL names its libplumedKernel.so, GMX and MDRUN say how gmx and mdrun
# are started. {kernel}, which stands between the two, and the plugin are loaded from here: where
# another PLUMED or system runs, put those that belong to it in their places.
GMX=${{GMX:-gmx}}
MDRUN=${{MDRUN:-$GMX mdrun{options}}}
cd "$(dirname "$0")" || exit 1
export PLUMED_CV_KERNEL="${{PLUMED_KERNEL:?is not set; it names libplumedKernel.so}}"
export PLUMED_KERNEL="$PWD/{kernel}"
export PLUMED_CV_COUNT_START={count_start}
start=../start.trr
for segment in {names}; do
    if ! test -f $segment/run.gro; then  # which is written after the last step
        (
            cd $segment && rm -f *.state *.trr || exit 1  # of an earlier try
            $GMX grompp -nobackup -f run.mdp -p ../topol.top{files} \\
                -t $start -o run.tpr -maxwarn {max_warnings} || exit 1
            $MDRUN -nobackup -s run.tpr -deffnm run -plumed plumed.dat && test -f run.gro
        ) || exit 1
    fi
    start=../$segment/run.cpt
    PLUMED_CV_COUNT_START=0  # the first configuration is the last one of the segment before
done
"""


@dataclass(frozen=True)
class Gromacs:
    """A `gmx` program.

    Attributes
    ----------
    command
        The command that starts it.
    version
        Its version, for example "2025.2".
    has_plumed
        Whether its `mdrun` has the option `-plumed`.
    """

    command: tuple[str, ...]
    version: str
    has_plumed: bool


def unpacked_gromacs() -> Path:
    """Return the folder in which python/gromacs.py unpacks GROMACS."""
    return data_dir() / "gromacs-trixie"


def find_gromacs(program: str | None = None) -> Gromacs:
    """Return the `gmx` to use.

    It is `program`, otherwise that of the variable GMX, otherwise the one that python/gromacs.py
    has unpacked, otherwise `gmx` on PATH.

    Raises
    ------
    UserError
        If there is no gmx, or it does not start.
    """
    words = shlex.split(program or os.environ.get(PROGRAM_VARIABLE) or "")
    unpacked = unpacked_gromacs() / "gmx"
    if not words and unpacked.is_file():
        words = [str(unpacked)]
    if not words:
        words = ["gmx" if shutil.which("gmx") or not shutil.which("gmx_mpi") else "gmx_mpi"]
    if shutil.which(words[0]) is None:
        raise UserError(
            f"{words[0]}: there is no such program; run python/gromacs.py of the repository, or "
            f"install GROMACS 2025 or newer and name its gmx in the input ([engine] program) "
            f"or in {PROGRAM_VARIABLE}"
        )
    here = Path.cwd()
    code, said = run_program([*words, "--version"], here)
    version = re.search(r"GROMACS version:\s*(\S+)", said)
    if code != 0 or version is None:
        last = (said.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"{' '.join(words)}: is not a working gmx ({last}); name another one in [engine] "
            "program"
        )
    options = run_program([*words, "-quiet", "mdrun", "-h"], here)[1]
    return Gromacs(tuple(words), version[1], "-plumed" in options)


class GromacsEngine(Engine):
    """GROMACS through its `gmx` program.

    Parameters
    ----------
    mdp, topology, structure
        Run parameters; topology; a structure file of the same atoms in the same order, of which
        only the names are used (and the coordinates for `restraints` if that is not given).
    atoms
        The atoms: species, cell and periodic boundaries, as `pbc` of `mdp` has them.
    restraints
        Reference coordinates of position restraints (grompp -r); `structure` by default.
    index
        Index file (grompp -n), if the parameters name groups of it.
    directory
        Folder of relative file names; the working directory by default.
    program
        The `gmx` program, see `find_gromacs`. One of double precision (`gmx_d`) gives energies and
        forces at 0 K with all digits.
    options
        Options of `mdrun`: threads, GPU.
    max_warnings
        Number of warnings of `grompp` to accept.
    plumed
        The PLUMED to use; by default `kernel.find_plumed()`, at the first run with PLUMED.

    Raises
    ------
    UserError
        If a file is missing, GROMACS refuses a file, or its atoms differ.
    """

    def __init__(
        self,
        mdp: Path | str,
        topology: Path | str,
        structure: Path | str,
        atoms: Atoms,
        *,
        restraints: Path | str | None = None,
        index: Path | str | None = None,
        directory: Path | str = ".",
        program: str | None = None,
        options: Sequence[str] = SINGLE_THREAD,
        max_warnings: int = 0,
        plumed: Plumed | None = None,
    ) -> None:
        super().__init__(atoms)
        if not self.periodic.all():
            raise UserError(
                "GROMACS needs periodic boundaries along all directions; "
                "put a molecule in a large box, in all files"
            )
        if len(self.held):
            raise UserError(
                f"{len(self.held)} atoms are fixed, which works with the engines lammps and ase, "
                "but not with gromacs; use one of these, or restrain the atoms in the topology."
            )
        self.gromacs = find_gromacs(program)
        self._directory = Path(directory).absolute()
        self._work = tempfile.TemporaryDirectory(prefix="plumed_cv-gromacs-")
        folder = Path(self._work.name)
        self._topology = self._file(topology)
        self._structure = self._file(structure)
        self._restraints = self._file(restraints or structure)
        self._index = None if index is None else self._file(index)
        self._options = tuple(options)
        self._max_warnings = max_warnings
        self._plumed = plumed
        self._parameters = read_mdp(self._file(mdp))
        if groups := self._parameters.get("freezegrps"):
            raise UserError(
                f"{self._file(mdp)}: freezegrps = {groups} fixes atoms, but plumed_cv cannot take "
                "them into account with gromacs; remove it, and fix the atoms in the structure "
                "with the engine lammps or ase, or restrain them in the topology"
            )
        self._prepare(folder, State.of(atoms), SINGLE)  # which tries the files
        dump = self._gmx(folder, "dump", "-s", "run.tpr")
        self._check_species(dump)
        self._constrained = constrained_atoms(dump)

    @property
    def masses(self) -> Array:
        """Refused: only the .tpr contains the masses."""
        raise UserError(_NO_TRAJECTORIES)

    @property
    def constrained(self) -> NDArray[np.int64]:
        """Atoms, from 0, whose distances to others the .mdp and the topology constrain."""
        return self._constrained

    def follow(
        self, start: State, dynamics: Dynamics, n_steps: int, seed: int, observer: Seen
    ) -> Followed[Seen]:
        """Refused: see `_NO_TRAJECTORIES`."""
        raise UserError(_NO_TRAJECTORIES)

    def evaluate(self, positions: Array, cell: Array) -> tuple[float, Array, Array]:
        """Return energy (eV), forces (eV/angstrom, (N, 3)) and stress (eV/angstrom^3, (6,)).

        It is a run of zero steps, because `mdrun -rerun` gives no virial, in GROMACS's precision.
        """
        folder = Path(self._work.name)
        self._prepare(folder, State(positions, cell), SINGLE)
        self._gmx(folder, "mdrun", "-deffnm", "run", "-noconfout", *self._options)
        forces = read_trr(folder / "run.trr")["f"]
        # `gmx energy` prints the terms in this order of its own.
        terms = ["Potential", *(f"Vir-{part}" for part in ("XX", "XY", "XZ", "YY", "YZ", "ZZ"))]
        outputs = ("-f", "run.edr", "-o", "run.xvg", "-dp")
        self._gmx(folder, "energy", *outputs, given="\n".join(terms) + "\n\n")
        rows = (folder / "run.xvg").read_text().splitlines()
        values = [row.split() for row in rows if row.strip() and row.lstrip()[0] not in "#@"]
        numbers = np.array(values[-1][1:], dtype=np.float64) * KJ_MOL
        check_finite("GROMACS", numbers, forces)
        # GROMACS's virial is -1/2 sum r f.
        stress = 2 * numbers[1:][[0, 3, 5, 4, 2, 1]] / abs(np.linalg.det(cell))
        return float(numbers[0]), forces, stress

    def run(self, segment: Segment, progress: Callable[[int], None] | None = None) -> SegmentResult:
        """Run molecular dynamics; the folder also receives GROMACS's run.log, run.edr and run.tpr.

        A run that PLUMED stops continues for up to a hundred steps, until GROMACS checks its
        signals. These steps are discarded, except for `end`, which is their last configuration.
        """
        self._check_segment(segment)
        started = time.perf_counter()
        folder = segment.directory
        self._prepare(folder, segment.start, mdp_of(segment, segment.start.velocities is None))
        files = ["-s", "run.tpr", "-deffnm", "run"]
        environment: dict[str, str] = {}
        if segment.plumed is not None:
            files += ["-plumed", str(_plumed_input(segment))]
            environment = self._environment(segment.count_start)
        watch = ["-v", "-stepout", str(_STEP_OUT)] if progress is not None else []

        def tell(step: int) -> None:
            assert progress is not None
            progress(min(segment.n_steps, max(0, step - segment.first_step)))

        said = self._gmx(
            folder,
            *("mdrun", *files, *watch, *self._options),
            environment=environment,
            heard=steps_of(tell, r"step (\d+)[, ]") if progress is not None else None,
        )
        stopped = re.search(r"plumed_cv: PLUMED stopped the run at step (\d+)", said)
        n_steps = int(stopped[1]) - segment.first_step if stopped else segment.n_steps
        # The checkpoint is written at every end of a run, with all digits.
        self._gmx(folder, "trjconv", "-f", "run.cpt", "-o", "end.trr")
        end = read_trr(folder / "end.trr")
        positions, velocities = end["x"], end["v"]
        if not (np.isfinite(positions).all() and abs(velocities).max() < _FASTEST):
            raise UserError(exploded("GROMACS"))
        steps = segment.first_step, segment.first_step + n_steps
        snapshots = trr_to_dcd(folder / "snapshots.dcd", folder / "run.trr", segment.start, steps)
        if (folder / "PLUMED.OUT").exists():
            (folder / "PLUMED.OUT").replace(folder / "plumed.log")
        for name in ("run.trr", "run.cpt", "run.gro", "end.trr", "frame.trr", "mdout.mdp"):
            (folder / name).unlink(missing_ok=True)
        last = segment.start.positions if snapshots is None else snapshots
        positions = unwrap(np.stack([last, positions]), segment.start.cell)[-1]
        return SegmentResult(
            n_steps=n_steps,
            stopped_by_plumed=stopped is not None,
            end=State(positions, segment.start.cell, velocities),
            snapshots=None if snapshots is None else folder / "snapshots.dcd",
            seconds=time.perf_counter() - started,
        )

    def rescue(self, segment: Segment, n_steps: int) -> State | None:
        """Keep the first steps of a run that was ended early."""
        folder = segment.directory
        steps = segment.first_step, segment.first_step + n_steps
        snapshots = folder / "snapshots.dcd"
        last = trr_to_dcd(snapshots, folder / "run.trr", segment.start, steps)
        return None if last is None else State(last, segment.start.cell)

    def write_job(self, folder: Path, segments: Sequence[Segment]) -> bool:
        """Write inputs for a `gmx` with `mdrun -plumed`, with all files of the topology."""
        first, work = segments[0], Path(self._work.name)
        draws = first.start.velocities is None
        # A processed topology does not need these parameters, and an unused macro is a warning.
        processed = {k: v for k, v in self._parameters.items() if k not in ("define", "include")}
        for segment in segments:
            _plumed_input(segment)
            own = mdp_of(segment, draws and segment is first)
            write_mdp(segment.directory / "run.mdp", {**processed, **own})
        topology = "-pp", folder.absolute() / "topol.top"
        self._prepare(work, first.start, mdp_of(first, draws), topology)
        carried = {"start.trr": work / "frame.trr", SHIM_NAME: self._shim()}
        arguments = ""
        for option, name, file in self._coordinates():
            carried[name + file.suffix] = file
            arguments += f" {option} ../{name}{file.suffix}"
        for name, file in carried.items():
            shutil.copyfile(file, folder / name)
        job = _JOB.format(
            names=" ".join(segment.directory.name for segment in segments),
            options="".join(f" {option}" for option in self._options),
            files=arguments,
            max_warnings=self._max_warnings,
            count_start=int(first.count_start),
            kernel=SHIM_NAME,
        )
        (folder / "run.sh").write_text(job)
        return True

    def close(self) -> None:
        """Remove the files for single structures."""
        self._work.cleanup()

    def _file(self, name: Path | str) -> Path:
        path = self._directory / name
        if not path.is_file():
            raise UserError(
                f"{path}: there is no such file for GROMACS; correct its name in the section "
                "[engine]"
            )
        return path

    def _environment(self, count_start: bool) -> dict[str, str]:
        if not self.gromacs.has_plumed:
            raise UserError(
                f"{' '.join(self.gromacs.command)}: GROMACS {self.gromacs.version} has no "
                "`mdrun -plumed`, which came with 2025; name a newer one in [engine] program"
            )
        shim = self._shim()
        assert self._plumed is not None
        return {
            **self._plumed.environment(),
            "PLUMED_KERNEL": str(shim),
            "PLUMED_CV_KERNEL": str(self._plumed.kernel),
            "PLUMED_CV_COUNT_START": str(int(count_start)),
        }

    def _shim(self) -> Path:
        if self._plumed is None:
            self._plumed = find_plumed()
        return build_plugin(self._plumed).with_name(SHIM_NAME)

    def _coordinates(self) -> list[tuple[str, str, Path]]:
        """Input files of grompp besides the topology: options, kinds of files, files."""
        files = [("-c", "structure", self._structure), ("-r", "restraints", self._restraints)]
        if self._index is not None:
            files.append(("-n", "index", self._index))
        return files

    def _prepare(
        self, folder: Path, start: State, own: Mapping[str, object], more: Sequence[object] = ()
    ) -> None:
        """Write run.tpr from the user's parameters and those that are set here."""
        folder = folder.absolute()
        write_mdp(folder / "run.mdp", {**self._parameters, **own})
        write_trr(folder / "frame.trr", start)
        inputs: list[object] = ["-f", folder / "run.mdp", "-p", self._topology]
        inputs += ["-t", folder / "frame.trr"]
        for option, _, file in self._coordinates():
            inputs += [option, file]
        outputs = ["-o", folder / "run.tpr", "-po", folder / "mdout.mdp", *more]
        # In the user's folder, because relative names in the parameters (include) begin there.
        self._gmx(self._directory, "grompp", *inputs, *outputs, "-maxwarn", self._max_warnings)

    def _gmx(
        self,
        folder: Path,
        *arguments: object,
        given: str = "",
        environment: Mapping[str, str] | None = None,
        heard: Callable[[str], None] | None = None,
    ) -> str:
        command = [*self.gromacs.command, "-quiet", "-nobackup", *map(str, arguments)]
        code, said = run_program(command, folder, environment=environment, given=given, heard=heard)
        # A run that was interrupted by PLUMED's stop also ends with a status.
        if code != 0 and "plumed_cv: PLUMED stopped the run" not in said:
            crashes = {-number for number in signal.Signals if number.name in _CRASHES}
            if arguments[0] == "mdrun" and code in crashes:
                raise UserError(exploded("GROMACS"))
            text = _complaint(str(arguments[0]), code, said)
            if "not the same as in Trajectory" in text:
                text = (
                    f"{self._topology}: the structure has {len(self.symbols)} atoms; it has others"
                )
            if text.startswith("PLUMED"):
                text = f"{arguments[arguments.index('-plumed') + 1]}: {text}"
            raise UserError(text)
        return said

    def _check_species(self, said: str) -> None:
        """Compare the elements of the topology, if it names them, with those of the atoms."""
        numbers: dict[int, list[int]] = {}
        for part in re.split(r"\n +moltype \((?=\d+\))", said)[1:]:
            found = re.findall(r"atom\[ *\d+\]=\{.*atomnumber= *(-?\d+)\}", part)
            numbers[int(part.partition(")")[0])] = [int(number) for number in found]
        blocks = re.findall(r"moltype += (\d+) \".*\"\s+#molecules += (\d+)", said)
        expected = [n for kind, count in blocks for n in numbers[int(kind)] * int(count)]
        for index, (symbol, number) in enumerate(zip(self.symbols, expected, strict=True)):
            if number > 0 and symbol != chemical_symbols[number]:
                raise UserError(
                    f"{self._topology}: atom {index + 1} is {chemical_symbols[number]}, and "
                    f"{symbol} in the structure; give all files the same order of atoms, and "
                    "structures that name the elements"
                )


def _plumed_input(segment: Segment) -> Path:
    """Return the file of a segment's PLUMED input, written if it is a text."""
    file, text = write_plumed_input(segment)
    if uses_energy(text, segment.directory):
        raise UserError(
            f"{file}: uses ENERGY, which GROMACS does not pass to PLUMED; use another variable"
        )
    return file


def _complaint(tool: str, code: int, said: str) -> str:
    """Return the message of GROMACS as one sentence."""
    if "PLUMED force provider:" in said:
        inner = said.partition("PLUMED force provider:")[2].partition("For more information")[0]
        return plumed_sentence(inner)
    if "PLUMED was calculating the forces" in said:
        inner = said.partition("PLUMED was calculating the forces")[2].lstrip(":\n")
        return plumed_sentence(inner.partition("For more information")[0])
    mistakes = {
        kind: re.findall(rf"^{kind} \d+ \[(.*)\]:\n((?: +.*\n)+)", said, re.MULTILINE)
        for kind in ("ERROR", "WARNING")
    }
    fatal = re.search(
        r"^Source file:.*\n(?:Function:.*\n)?\n.*:\n((?:.*\n)+?)\nFor more", said, re.MULTILINE
    )
    if fatal and not mistakes["ERROR"] and "Too many warnings" not in fatal[1]:
        text = fatal[1]
    elif found := mistakes["ERROR"] or mistakes["WARNING"]:
        text = ": ".join(found[0])
    else:
        text = said.strip().rpartition("\n")[2] or f"ended with status {code}"
    return f"gmx {tool}: " + re.sub(r"\s+", " ", text).strip().rstrip(".")
