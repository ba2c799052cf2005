"""Reader of LAMMPS data and dump files.

These files identify atoms by the numbers of LAMMPS types. The elements of the types come from the
potential or the user (`species`), from masses or labels in a data file, or from the column
`element` of a dump. If none of these is given, the file is refused. Lengths are in angstrom.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.structures.frame import Array

Kind = Literal["data", "dump"]

# Columns of a line of the section `Atoms` for each supported atom style; image flags may follow.
_STYLES = {
    "atomic": ("id", "type", "x", "y", "z"),
    "charge": ("id", "type", "q", "x", "y", "z"),
    "molecular": ("id", "molecule", "type", "x", "y", "z"),
    "full": ("id", "molecule", "type", "q", "x", "y", "z"),
}
_STYLES |= {"bond": _STYLES["molecular"], "angle": _STYLES["molecular"]}
_HEAD = 20_000  # bytes that are read to recognise the format
MASS_TOLERANCE = 0.05  # a larger relative difference of masses means another element


@dataclass(frozen=True)
class _Contents:
    """Atoms, cell and types of one structure in a file.

    Attributes
    ----------
    ids, types
        Serial number and LAMMPS type of each atom, shape (N,).
    positions
        Shape (N, 3), angstrom.
    cell
        Lattice vectors as rows, shape (3, 3), angstrom.
    pbc
        Whether the structure is periodic, for each direction.
    charges
        Shape (N,), e, or None.
    labels
        Names of the types, if the file has them.
    masses
        Masses of the types in amu, if the file has them.
    """

    ids: NDArray[np.int64]
    types: NDArray[np.int64]
    positions: Array
    cell: Array
    pbc: Sequence[bool]
    charges: Array | None
    labels: dict[int, str]
    masses: dict[int, float]


def kind_of(path: Path | str) -> Kind | None:
    """Return "data" or "dump" for a LAMMPS file, from its content; None for another file.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with Path(path).open("rb") as file:
        head = file.read(_HEAD).decode(errors="replace")
    if re.match(r"\s*ITEM: (TIMESTEP|UNITS|TIME)\b", head):
        return "dump"
    box = r"^\s*\S+\s+\S+\s+(xlo\s+xhi|\S+\s+avec)\b"
    if re.search(r"^\s*\d+\s+atoms\s*(#.*)?$", head, re.MULTILINE) and re.search(
        box, head, re.MULTILINE
    ):
        return "data"
    return None


def read(
    path: Path | str, kind: Kind, index: int | slice, species: Sequence[str] | None
) -> list[Atoms]:
    """Read structures with atoms in the order of their serial numbers.

    Parameters
    ----------
    path
        The file.
    kind
        Format of the file.
    index
        Which structures of a dump to read.
    species
        Chemical symbols of LAMMPS types 1, 2, ...; None if they are unknown.

    Raises
    ------
    UserError
        If the file is damaged, has units other than angstrom, or the elements are unknown.
    """
    if kind == "data":
        found = [_structure(_data(Path(path)), species)]
        return found[index] if isinstance(index, slice) else [found[index]]
    edges = _edges(Path(path))
    chosen = edges[index] if isinstance(index, slice) else [edges[index]]
    return [_structure(contents, species) for contents in _frames(Path(path), chosen)]


def iterate(path: Path | str, index: slice, symbols: Sequence[str]) -> Iterator[Atoms]:
    """Read the structures of a dump of known atoms one by one.

    Parameters
    ----------
    path
        The file.
    index
        Which structures to read.
    symbols
        Chemical symbols of the atoms in the order of their serial numbers.

    Raises
    ------
    UserError
        As for `read`, and if the types do not agree with the symbols.
    """
    for contents in _frames(Path(path), _edges(Path(path))[index]):
        yield _structure(contents, _species_of(contents, symbols))


def first_gap(path: Path | str) -> tuple[int, int] | None:
    """Return the first atom whose serial number is not its place in their order, and that number.

    Parameters
    ----------
    path
        A data or dump file, of which the last structure counts, or a file of another format.

    Returns
    -------
    tuple or None
        The place, from 1, and the serial number; None if the atoms have the numbers 1 to N.
    """
    kind = kind_of(path)
    if kind is None:
        return None
    if kind == "data":
        ids = _data(Path(path)).ids
    else:
        ids = next(_frames(Path(path), _edges(Path(path))[-1:])).ids
    ordered = np.sort(ids)
    off = np.flatnonzero(ordered != np.arange(1, len(ordered) + 1))
    return (int(off[0]) + 1, int(ordered[off[0]])) if len(off) else None


def _species_of(contents: _Contents, symbols: Sequence[str]) -> list[str] | None:
    """Elements of the types, from the elements of the atoms; None if the file names them."""
    if -1 in contents.labels or len(contents.types) != len(symbols):
        return None
    found: dict[int, str] = {}
    for kind, symbol in zip(
        contents.types[np.argsort(contents.ids)].tolist(), symbols, strict=True
    ):
        if found.setdefault(kind, symbol) != symbol:
            raise UserError(
                f"in the end states, its atoms of type {kind} are both {found[kind]} and {symbol}; "
                "give all structures the same order of atoms"
            )
    return [found.get(kind, "X") for kind in range(1, max(found) + 1)]


def _data(path: Path) -> _Contents:
    """Contents of a data file."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    _check_units(lines[0] if lines else "")
    header: dict[str, list[float]] = {}
    sections: dict[str, list[list[str]]] = {}
    style, section = None, None
    for line in lines[1:]:
        text, _, comment = line.partition("#")
        words = text.split()
        if not words:
            continue
        if words[0][0].isalpha() and words[0][0].isupper() and section != "Atom Type Labels":
            section = text.strip()
            sections[section] = []
            if section == "Atoms":
                style = comment.strip() or None
        elif section is None:
            last = next(k for k in (*range(len(words)), -1) if k < 0 or words[k][0].isalpha())
            header[" ".join(words[last:])] = [float(word) for word in words[:last]]
        elif words[0].isdecimal() or section != "Atom Type Labels":
            sections[section].append(words)
        else:
            section = text.strip()
            sections[section] = []
    if "Atoms" not in sections or len(sections["Atoms"]) != int(header["atoms"][0]):
        raise UserError(
            f"its section Atoms has {len(sections.get('Atoms', []))} lines for "
            f"{int(header['atoms'][0])} atoms"
        )
    rows = sections["Atoms"]
    n_types = int(header["atom types"][0])
    labels = {int(words[0]): words[1] for words in sections.get("Atom Type Labels", [])}
    numbers = {label: number for number, label in labels.items()}
    columns = _columns(rows, style, n_types, set(numbers))
    table = {name: [row[k] for row in rows] for k, name in enumerate(columns)}
    cell, origin = np.zeros((3, 3)), np.zeros(3)
    if "avec" in header:
        cell = np.array([header[name] for name in ("avec", "bvec", "cvec")])
        origin = np.array(header["abc origin"])
    else:
        for axis, name in enumerate("xyz"):
            low, high = header[f"{name}lo {name}hi"]
            cell[axis, axis], origin[axis] = high - low, low
        cell[1, 0], cell[2, 0], cell[2, 1] = header.get("xy xz yz", (0.0, 0.0, 0.0))
    positions = np.array([table[name] for name in "xyz"], dtype=np.float64).T - origin
    if len({len(row) for row in rows}) == 1 and len(rows[0]) == len(columns) + 3:
        images = np.array([row[len(columns) :] for row in rows], dtype=np.float64)
        positions += images @ cell
    return _Contents(
        ids=np.array(table["id"], dtype=np.int64),
        types=np.array([numbers.get(word) or int(word) for word in table["type"]]),
        positions=positions,
        cell=cell,
        pbc=(True, True, True),
        charges=np.array(table["q"], dtype=np.float64) if "q" in table else None,
        labels=labels,
        masses={
            numbers.get(words[0]) or int(words[0]): float(words[1])
            for words in sections.get("Masses", [])
        },
    )


def _columns(
    rows: list[list[str]], style: str | None, n_types: int, labels: set[str]
) -> tuple[str, ...]:
    """Names of the columns of the section Atoms."""
    widths = {len(row) for row in rows}
    if style is not None:
        if style not in _STYLES:
            raise UserError(
                f"its atom style is {style!r}; the supported styles are {', '.join(_STYLES)}"
            )
        if widths - {len(_STYLES[style]), len(_STYLES[style]) + 3}:
            raise UserError(
                f"its atom style is {style!r}, but the lines of the section Atoms do not fit it; "
                "correct the style after the name of the section"
            )
        return _STYLES[style]

    def is_type(word: str) -> bool:
        return word in labels or (word.isdecimal() and 1 <= int(word) <= n_types)

    fitting = set()
    for columns in _STYLES.values():
        kind = columns.index("type")
        whole = [k for k, name in enumerate(columns) if name in ("id", "molecule")]
        if widths <= {len(columns), len(columns) + 3} and all(
            is_type(row[kind])
            and all(row[k].isdecimal() for k in whole)
            and all(word.lstrip("-").isdecimal() for word in row[len(columns) :])
            for row in rows
        ):
            fitting.add(columns)
    if len(fitting) != 1:
        raise UserError(
            "its atom style is unknown; write it after the name of the section, as in 'Atoms # "
            f"atomic' ({', '.join(_STYLES)})"
        )
    return fitting.pop()


def _edges(path: Path) -> list[tuple[int, int]]:
    """Begin and end of each structure of a dump, in bytes."""
    begins, at = [], 0
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b"ITEM: UNITS"):
                _check_units(f"units = {next(file).decode(errors='replace').strip()}")
                at = file.tell()
                continue
            if line.startswith(b"ITEM: TIMESTEP"):
                begins.append(at)
            at += len(line)
    return list(pairwise([*begins, at]))


def _frames(path: Path, edges: Sequence[tuple[int, int]]) -> Iterator[_Contents]:
    """Contents of structures of a dump, which must be of the same atoms."""
    first = None
    with path.open("rb") as file:
        for begin, end in edges:
            file.seek(begin)
            contents = _frame(file.read(end - begin).decode())
            ids = np.sort(contents.ids)
            first = ids if first is None else first
            if not np.array_equal(ids, first):
                other = next(iter(np.setxor1d(ids, first).tolist()), "of an atom")
                raise UserError(
                    f"the serial number {other} is not in all of its structures; write the same "
                    "atoms in every structure"
                )
            yield contents


def _frame(text: str) -> _Contents:
    """Contents of one structure of a dump."""
    items: dict[str, tuple[str, list[str]]] = {}
    for part in text.split("ITEM: ")[1:]:
        head, *lines = part.splitlines()
        name = re.match(r"(BOX BOUNDS|[A-Z ]+?)(?=$| [a-z])", head)
        key = name[1] if name else head
        items[key] = (head[len(key) :].strip(), lines)
    n_atoms = int(items["NUMBER OF ATOMS"][1][0])
    columns, rows = items["ATOMS"][0].split(), [line.split() for line in items["ATOMS"][1]]
    if len(rows) != n_atoms or any(len(row) != len(columns) for row in rows):
        raise UserError(f"a structure of {n_atoms} atoms is incomplete")
    table = {name: [row[k] for row in rows] for k, name in enumerate(columns)}
    if "type" not in table and "element" not in table:
        raise UserError("it has no column type or element; write it with 'id type x y z'")
    if "id" not in table:
        raise UserError("it has no column id; write it with 'id type x y z'")
    cell, origin, pbc = _box(*items["BOX BOUNDS"])
    for names in (("x", "y", "z"), ("xu", "yu", "zu"), ("xs", "ys", "zs"), ("xsu", "ysu", "zsu")):
        if all(name in table for name in names):
            positions = np.array([table[name] for name in names], dtype=np.float64).T
            scaled = "s" in names[0]
            break
    else:
        raise UserError("it has no positions; write it with 'id type x y z'")
    labels: dict[int, str] = {}
    if "type" in table:
        types = np.array(table["type"], dtype=np.int64)
        if "element" in table:
            for number, label in zip(types.tolist(), table["element"], strict=True):
                if labels.setdefault(number, label) != label:
                    raise UserError(f"type {number} is both {labels[number]} and {label}")
            if len(labels) > 1 and set(labels.values()) == {"C"}:
                labels = {}  # LAMMPS writes C for all types if the elements are unknown
    else:
        names_of_elements = sorted(set(table["element"]))
        labels = dict(enumerate(names_of_elements, 1))
        types = np.array([names_of_elements.index(name) + 1 for name in table["element"]])
    return _Contents(
        ids=np.array(table["id"], dtype=np.int64),
        types=types,
        positions=positions @ cell if scaled else positions - origin,
        cell=cell,
        pbc=pbc,
        charges=np.array(table["q"], dtype=np.float64) if "q" in table else None,
        labels=labels if "type" in table else {-1: "", **labels},
        masses={},
    )


def _box(head: str, lines: list[str]) -> tuple[Array, Array, list[bool]]:
    """Cell, origin and boundaries of the box of a dump."""
    words = head.split()
    numbers = np.array([line.split() for line in lines[:3]], dtype=np.float64)
    pbc = [word.startswith("p") for word in words[-3:]] if len(words) >= 3 else [True] * 3
    if words[:1] == ["abc"]:
        return numbers[:, :3], numbers[:, 3], pbc
    xy, xz, yz = numbers[:, 2] if numbers.shape[1] > 2 else (0.0, 0.0, 0.0)
    low, high = numbers[:, 0].copy(), numbers[:, 1].copy()
    # The bounds are those of the box that encloses the tilted box.
    low[:2] -= [min(0.0, xy, xz, xy + xz), min(0.0, yz)]
    high[:2] -= [max(0.0, xy, xz, xy + xz), max(0.0, yz)]
    cell = np.diag(high - low)
    cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
    return cell, low, pbc


def _check_units(line: str) -> None:
    units = re.search(r"units\s*=\s*(\w+)", line)
    if units and units[1] not in ("metal", "real"):
        raise UserError(
            f"its units are LAMMPS's {units[1]}; write it in units with angstrom (metal, real)"
        )


def _structure(contents: _Contents, species: Sequence[str] | None) -> Atoms:
    elements = _elements(contents, species)
    order = np.argsort(contents.ids, kind="stable")
    if (np.diff(contents.ids[order]) == 0).any():
        raise UserError("two atoms have the same serial number")
    atoms = Atoms(
        [elements[number] for number in contents.types[order].tolist()],
        contents.positions[order],
        cell=contents.cell,
        pbc=contents.pbc,
    )
    if contents.charges is not None:
        atoms.set_initial_charges(contents.charges[order])
    return atoms


def _elements(contents: _Contents, species: Sequence[str] | None) -> dict[int, str]:
    """Element of each type that occurs."""
    kinds = sorted(set(contents.types.tolist()))
    numbered = -1 not in contents.labels
    found: dict[int, str] = {}
    for kind in kinds:
        label, mass = contents.labels.get(kind), contents.masses.get(kind)
        if species is not None and numbered and kind > len(species):
            raise UserError(
                f"it has an atom of type {kind}, but only the elements of {len(species)} types are "
                f"known ({', '.join(species)}); name the element of every type in engine.species"
            )
        if species is not None and numbered:
            found[kind] = species[kind - 1]
            if label in atomic_numbers and label != found[kind]:
                raise UserError(
                    f"its type {kind} is {label}, but {found[kind]} in engine.species or in the "
                    "potential; give both the same order of types"
                )
            expected = atomic_masses[atomic_numbers.get(found[kind], 0)]
            if mass is not None and is_of_another(mass, found[kind], species):
                raise UserError(
                    f"its type {kind} has a mass of {mass:g} amu, but is {found[kind]} "
                    f"({expected:.4g} amu) in engine.species or in the potential; give both the "
                    "same order of types"
                )
        elif label in atomic_numbers:
            found[kind] = str(label)
        elif mass is not None and (element := nearest_element(mass)) is not None:
            found[kind] = element
        else:
            raise UserError(
                f"the element of its type {kind} is not known; name the elements of LAMMPS's "
                "types 1, 2, ... in engine.species, or write the structure as extended XYZ"
            )
    return found


def is_of_another(mass: float, symbol: str, among: Sequence[str]) -> bool:
    """Whether a mass (amu) differs by more than 5 % from that of an element, or is another's.

    The others are `among`; the masses of gold and platinum, for example, differ by 1 %.
    """
    expected = float(atomic_masses[atomic_numbers.get(symbol, 0)])
    far = abs(mass / expected - 1.0) > MASS_TOLERANCE
    return far or nearest_element(mass, among) not in (None, symbol)


def nearest_element(mass: float, among: Sequence[str] = ()) -> str | None:
    """Return the element with this mass (amu) within 1 % (5 % if names are given), or None.

    The result is None if the element is not unique.
    """
    names = among or [name for name in atomic_numbers if name != "X"]
    tolerance = MASS_TOLERANCE if among else 0.01
    masses = {name: float(atomic_masses[atomic_numbers.get(name, 0)]) for name in names}
    near = [name for name in names if abs(masses[name] / mass - 1.0) < tolerance]
    if not near:
        return None
    best = min(near, key=lambda name: abs(masses[name] - mass))
    others = [name for name in near if name != best]
    closer = all(abs(masses[name] - mass) > 3 * abs(masses[best] - mass) for name in others)
    return best if closer else None
