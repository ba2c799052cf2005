"""LAMMPS commands and input scripts, and the meaning of LAMMPS's errors.

Both engines use them, the library and the program. Input scripts are for `lmp` programs with `fix
plumed`, here or elsewhere.
"""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.engines.engine import exploded
from plumed_cv.engines.lammps_potential import (
    charges_of,
    element_types,
    package_potentials,
    potential_commands,
    standard_mass,
)
from plumed_cv.engines.lammps_units import UNITS, Units, UnitsName
from plumed_cv.engines.segments import Dynamics, Segment, State, draw_velocities
from plumed_cv.structures import held_atoms
from plumed_cv.structures.frame import Array, complete_cell, reduce_lattice
from plumed_cv.structures.lammps_files import MASS_TOLERANCE, is_of_another

END = "end.dump"  # the last configuration of a segment, with all digits

MARGIN_A = 5.0  # between the atoms and the faces of the box along directions without periodicity
LARGEST_SEED = 899_999_999
LOG_STRIDE = 1000  # steps between lines of log.lammps

_JOB = """#!/bin/sh
# Runs the segments that are missing, one after the other. It needs this folder and an lmp that has
# fix plumed; LMP says how that is started. PLUMED loads libplumed_cv.so from here: where another
# PLUMED runs, put the plugin that belongs to it in its place.
LMP=${{LMP:-lmp}}
cd "$(dirname "$0")" || exit 1
for segment in {names}; do
    if ! test -f $segment/end.data; then  # rm: files of an earlier try
        (cd $segment && rm -f *.state *.dcd guard.* && $LMP -in in.lammps) || exit 1
    fi
    if grep -qs '^ *[0-9]' $segment/guard.*; then
        echo "$segment left the process; plumed-cv run takes it in and writes what comes next"
        exit 0
    fi
done
"""


class LammpsInput:
    """Writes the commands for one potential and one set of atoms.

    Parameters
    ----------
    potential, atoms, species, directory, units
        As for `LammpsEngine`.

    Raises
    ------
    UserError
        As for `potential_commands` and `element_types`, and if the potential needs charges and the
        atoms have none.
    """

    def __init__(
        self,
        potential: Sequence[str] | Path,
        atoms: Atoms,
        species: Sequence[str] | None,
        directory: Path,
        units: UnitsName = "metal",
    ) -> None:
        self._directory = directory
        self.units = UNITS[units]
        self.commands = potential_commands(potential, directory, units)
        self.elements, self.types = element_types(atoms, species, self.commands)
        self.periodic: NDArray[np.bool_] = atoms.pbc.copy()
        self.boundary = boundary_arguments(self.periodic, self.commands)
        self.held = held_atoms(atoms)
        self.charges = charges_of(self.commands, atoms)
        self._expected_masses = atoms.get_masses()

    def check_masses(self, masses: Array) -> None:
        """Refuse masses (amu, shape (N,)) that are not those of the elements of the atoms.

        A structure may contain other masses, those of isotopes.

        Raises
        ------
        UserError
            If a mass differs by more than 5 %, or is that of the element of another type.
        """
        off = np.abs(masses / self._expected_masses - 1.0)
        wrong = off > MASS_TOLERANCE
        for kind, name in enumerate(self.elements, 1):
            usual = np.isclose(self._expected_masses, standard_mass(name)) & (self.types == kind)
            if usual.any() and is_of_another(float(masses[usual][0]), name, self.elements):
                wrong |= usual
        if wrong.any():
            atom = int(np.where(wrong, off, -1.0).argmax())
            kind = int(self.types[atom])
            raise UserError(
                f"LAMMPS's type {kind} is {self.elements[kind - 1]} and has a mass of "
                f"{masses[atom]:.4g} amu instead of {self._expected_masses[atom]:.4g}; name the "
                "elements of the types 1, 2, ... in engine.species in the order of the potential, "
                "or, if an isotope is meant, give its mass in the potential (mass) and in the "
                "structure (column masses of extended XYZ)"
            )

    def data(self, state: State) -> str:
        """Return a data file."""
        cell, positions = state.cell, state.positions
        wrapped, images = wrap(positions, cell)
        edges = box_edges(positions, cell)
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
            velocities = self.units.velocities(state.velocities).tolist()
            text += [f"{number} {_row(v)}" for number, v in enumerate(velocities, 1)]
        return "\n".join(text) + "\n"

    def frames(self, positions: Array, cell: Array) -> str:
        """Return structures, (M, N, 3), in a cell as a dump file for `rerun`."""
        wrapped, _ = wrap(positions, cell)
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
        return [
            f"units {self.units.name}",
            f"atom_style {style}",
            "atom_modify map array",
            f"boundary {self.boundary}",
            "box tilt large",
            f'read_data "{data}"',
            *group_commands(len(self.elements), self.held),
            "neighbor 1.0 bin",
            "neigh_modify every 1 delay 0 check yes",
            *self.commands,
        ]

    def moving(self, start: State, temperature_K: float, seed: int, masses: Array) -> State:
        """Return the start of a trajectory with velocities; missing velocities are drawn."""
        if start.velocities is not None:
            velocities = start.velocities.copy()
            velocities[self.held] = 0.0
        else:
            rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[0])
            velocities = draw_velocities(rng, masses, temperature_K, self.held)
        return State(start.positions, start.cell, velocities)

    def seeds(self, seed: int) -> tuple[int, ...]:
        """Return seeds for the thermostat of a trajectory, one for each type."""
        noise = np.random.SeedSequence(seed).spawn(2)[1]
        seeds = noise.generate_state(len(self.elements)) % LARGEST_SEED + 1
        return tuple(int(seed) for seed in seeds)

    def run(self, segment: Segment, masses: Array, plumed_dat: Path | str | None) -> list[str]:
        """Return the commands that run a segment in the working directory, after `set_up`."""
        lines = [
            f"reset_timestep {segment.first_step}",
            f"timestep {self.units.time(segment.dynamics.timestep_fs)!r}",
            f"thermo {LOG_STRIDE}",
            "thermo_style custom step temp pe",
            "thermo_modify lost error norm no flush yes",
            *temperature_of_free(),
        ]
        if plumed_dat is not None:
            lines += [
                f'fix plumed all plumed plumedfile "{plumed_dat}" outfile plumed.log',
                "fix_modify plumed energy no",
            ]
        kinds = range(1, len(self.elements) + 1)
        of_types = [next(iter(masses[self.types == kind].tolist()), None) for kind in kinds]
        seeds = self.seeds(segment.seed)
        lines += dynamics_fixes(segment.dynamics, seeds, of_types, self.units)
        if segment.snapshot_stride:
            lines += [
                f"dump snapshots all dcd {segment.snapshot_stride} snapshots.dcd",
                f"dump_modify snapshots unwrap yes delay {segment.first_step + 1}",
            ]
        return [
            *lines,
            f"run {segment.n_steps} post no",
            # By its name in this folder, so that a program from an earlier run does not find it.
            f"write_dump all custom {END} id xu yu zu vx vy vz modify sort id format float %.17g",
        ]

    def write_job(self, folder: Path, segments: Sequence[Segment], masses: Array) -> None:
        """Write segments for an `lmp` with `fix plumed`, see `Engine.write_job`."""
        commands = self._carried(folder)
        data = "../start.data"
        first = segments[0]
        start = self.moving(first.start, first.dynamics.temperature_K, first.seed, masses)
        (folder / "start.data").write_text(self.data(start))
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
        """Copy the files that the commands of the potential name; return the adapted commands."""
        potentials = Path(
            {**package_potentials(), **os.environ}.get("LAMMPS_POTENTIALS", self._directory)
        )

        def carried(word: re.Match[str]) -> str:
            for place in (self._directory, potentials):
                if (place / word[0]).is_file():
                    shutil.copyfile(place / word[0], folder / Path(word[0]).name)
                    return f"../{Path(word[0]).name}"
            return word[0]

        return [re.sub(r"[^\s\"']+", carried, line) for line in self.commands]


def boundary_arguments(periodic: NDArray[np.bool_], commands: Sequence[str]) -> str:
    """Return the arguments of LAMMPS's `boundary`.

    Along directions without periodicity the box grows with the atoms (m), so that none is lost. The
    correction of long-range forces for slabs (kspace_modify slab) needs constant faces (f).
    """
    slab = any(line.split()[:1] == ["kspace_modify"] and " slab " in line for line in commands)
    return " ".join("p" if along else "f" if slab else "m" for along in periodic)


def box_edges(positions: Array, cell: Array) -> Array:
    """Return the lower and upper edges of LAMMPS's box, shape (2, 3), angstrom.

    Along directions without periodicity it contains the atoms and `MARGIN_A` on both sides.
    """
    low, high = positions.min(axis=0) - MARGIN_A, positions.max(axis=0) + MARGIN_A
    periodic = reduce_lattice(cell).periodic
    return np.where(periodic, [np.zeros(3), np.diag(cell)], [low, high])


def wrap(positions: Array, cell: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return positions in the cell, (..., 3), and the numbers of subtracted lattice vectors."""
    periodic = reduce_lattice(cell).periodic
    fractions = positions @ np.linalg.inv(complete_cell(cell))
    images = np.where(periodic, np.floor(fractions), 0.0)
    return positions - images @ cell, images.astype(np.int64)


def group_commands(n_types: int, held: NDArray[np.int64]) -> list[str]:
    """Return the commands for the groups of atoms that move: `free`, and `type1`, ... of a type."""
    kinds = range(1, n_types + 1)
    if not len(held):
        return ["group free union all", *(f"group type{k} type {k}" for k in kinds)]
    parts = np.split(held, np.flatnonzero(np.diff(held) > 1) + 1)
    ranges = " ".join(f"{part[0] + 1}:{part[-1] + 1}" for part in parts)
    lines = [f"group held id {ranges}", "group free subtract all held"]
    for k in kinds:
        lines += [f"group kind{k} type {k}", f"group type{k} intersect kind{k} free"]
    return lines


def temperature_of_free() -> list[str]:
    """Return the commands by which LAMMPS prints the temperature of the atoms that move."""
    return [
        "compute free_temp free temp",
        # The thermostat also acts on the centre of mass: three degrees of freedom for each atom.
        "compute_modify free_temp extra/dof 0",
        "thermo_modify temp free_temp",
    ]


def _row(values: Sequence[float]) -> str:
    return " ".join(map(repr, values))


def dynamics_fixes(
    dynamics: Dynamics, seeds: Sequence[int], masses: Sequence[float | None], units: Units
) -> list[str]:
    """Return the `fix` commands that move the atoms.

    Parameters
    ----------
    dynamics
        Equations of motion.
    seeds
        One seed for each type of atoms. The moving atoms of a type are the group `type1`, `type2`,
        ..., all moving atoms the group `free`.
    masses
        In amu, for each type; None for a type without atoms.
    units
        Units of the commands.
    """
    temperature = repr(float(dynamics.temperature_K))
    friction = float(dynamics.friction_per_ps)
    if dynamics.thermostat == "none":
        return ["fix integrate free nve"]
    if dynamics.thermostat == "langevin":
        thermostat = (
            f"langevin {temperature} {temperature} {1 / friction / units.time_ps!r} {seeds[0]}"
        )
        return ["fix integrate free nve", f"fix thermostat free {thermostat}"]
    # LAMMPS's displacement is F / gamma_t with gamma_t as mass/time: here m gamma for each type.
    return [
        f"fix brownian{kind} type{kind} brownian {temperature} {seed} rng gaussian "
        f"gamma_t {mass * friction * units.time_ps!r}"
        for kind, (seed, mass) in enumerate(zip(seeds, masses, strict=True), 1)
        if mass is not None
    ]


def explain(message: str, command: str | None = None) -> str:
    """Return an error of LAMMPS at a command as one sentence, without its place in the source."""
    if re.search(r"[Ll]ost atoms|non-matching # of atoms|[Nn]on-numeric|neighbor bins", message):
        return exploded("LAMMPS")
    text = re.sub(r"\s+", " ", message).strip()
    text = re.sub(r"^ERROR( on proc \d+)?: ", "", text)
    text = re.sub(r" ?\((?:/|src/|\.\./)\S*:\d+\)", "", text)
    text = re.sub(r" ?Last (?:input line|command): .*$", "", text).rstrip(" .")
    if needed := re.search(r"requires? (metal|real) units", text):
        text += f"; set engine.units = '{needed[1]}'"
    return f"LAMMPS: {text}" if command is None else f"LAMMPS, at '{command}': {text}"
