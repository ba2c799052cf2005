"""Data and dump files of LAMMPS: columns, cells, serial numbers, damage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms

from plumed_cv import cv, input_file, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.structures import (
    lammps_files,
    read_structure,
    read_structures,
)
from plumed_cv.structures.trajectory import read_displacements
from tests.test_structures import carbide, dump_text


def data_text(atoms: Atoms, row: str, style: str = "", masses: str = "", head: str = "") -> str:
    kinds = list(dict.fromkeys(atoms.symbols))
    a, b, c = atoms.cell.lengths().tolist()
    text = f"LAMMPS data file {head}\n\n{len(atoms)} atoms\n{len(kinds)} atom types\n\n"
    text += f"0 {a!r} xlo xhi\n0 {b!r} ylo yhi\n0 {c!r} zlo zhi\n{masses}\nAtoms{style}\n\n"
    for i in range(len(atoms))[::-1]:
        x = "{!r} {!r} {!r}".format(*atoms.positions[i].tolist())
        kind = kinds.index(atoms.symbols[i]) + 1
        text += row.format(id=i + 1, type=kind, x=x, q=[1.5, -1.5][kind - 1]) + "\n"
    return text


MASSES = "\nMasses\n\n1 28.0855  # silicon\n2 12.011\n"

ROWS = {
    "atomic": ("{id} {type} {x}", ""),
    "atomic with images": ("{id} {type} {x} 0 0 0", " # atomic"),
    "charge": ("{id} {type} {q} {x}", ""),
    "charge, said": ("{id} {type} {q} {x} 0 0 0", " # charge"),
    "full": ("{id} 7 {type} {q} {x}", ""),
    "molecular, said": ("{id} 1 {type} {x}", "  # molecular"),
    "molecular": ("{id} 9 {type} {x}", ""),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("suffix", ["data", "lmp", "lammps", "none.of.these"])
def test_a_data_file(tmp_path: Path, name: str, suffix: str) -> None:
    atoms, (row, style) = carbide(), ROWS[name]
    file = tmp_path / f"sic.{suffix}"
    for masses, species in ((MASSES, None), ("", ("Si", "C")), (MASSES, ("Si", "C"))):
        file.write_text(data_text(atoms, row, style, masses))
        found = read_structure(file, species)
        assert list(found.symbols) == list(atoms.symbols)
        np.testing.assert_allclose(found.positions, atoms.positions, atol=1e-12)
        np.testing.assert_allclose(found.cell.array, atoms.cell.array, atol=1e-12)
        assert found.pbc.all()
        charge = 1.5 if "q" in row else 0.0
        expected = [charge if symbol == "Si" else -charge for symbol in atoms.symbols]
        np.testing.assert_allclose(found.get_initial_charges(), np.array(expected))


def test_image_flags_and_an_origin(tmp_path: Path) -> None:
    file = tmp_path / "two.data"
    file.write_text(
        "two\n\n2 atoms\n1 atom types\n-1 4 xlo xhi\n-2 4 ylo yhi\n0 7 zlo zhi\n0.5 0 0 xy xz yz\n"
        "\nMasses\n\n1 55.845\n\nAtoms # atomic\n\n2 1 3 3 3 1 0 -1\n1 1 0 0 0 0 0 0\n\n"
        "Velocities\n\n1 0 0 0\n2 0 0 0\n"
    )
    atoms = read_structure(file)
    np.testing.assert_allclose(atoms.positions, [[1.0, 2.0, 0.0], [9.0, 5.0, -4.0]])
    np.testing.assert_allclose(
        atoms.cell.array, [[5.0, 0.0, 0.0], [0.5, 6.0, 0.0], [0.0, 0.0, 7.0]]
    )


@pytest.mark.parametrize("columns", ["id type x y z", "id type xs ys zs", "type xu id yu zu fx"])
@pytest.mark.parametrize("shear", [0.0, 1.0, -1.0])
def test_a_dump(tmp_path: Path, columns: str, shear: float) -> None:
    frames = [carbide(shear), carbide(shear)]
    frames[1].positions += 0.3
    file = tmp_path / "sic.dump"
    file.write_text(dump_text(frames, columns.replace("fx", "fx fy fz")))
    for atoms, expected in zip(read_structures(file, species=["Si", "C"]), frames, strict=True):
        assert list(atoms.symbols) == list(expected.symbols)
        assert atoms.calc is None  # it has no energy, and 0 would be one
        np.testing.assert_allclose(atoms.cell.array, expected.cell.array, atol=1e-12)
        np.testing.assert_allclose(atoms.positions, expected.positions, atol=1e-12)
    assert read_structure(file, ["Si", "C"]).positions == pytest.approx(frames[1].positions)
    assert read_structure(f"{file}@0", ["Si", "C"]).positions == pytest.approx(frames[0].positions)


def numbered(text: str, numbers: dict[int, int]) -> str:
    """A dump or data file with other serial numbers; the lines of atoms begin with them."""
    lines = []
    for line in text.splitlines():
        number, _, rest = line.partition(" ")
        atom = len(rest.split()) >= 4 and number.isdecimal()
        lines.append(f"{numbers[int(number)]} {rest}" if atom else line)
    return "\n".join(lines) + "\n"


def test_serial_numbers_with_gaps(tmp_path: Path) -> None:
    """Serial numbers give the order of the atoms in data files and dumps."""
    atoms = carbide()
    gaps = {k: 3 * k + (900 if k > 20 else 0) for k in range(1, 65)}
    frames = [atoms, atoms.copy(), atoms.copy()]
    frames[1].rattle(0.1, seed=4)
    frames[2].rattle(0.1, seed=5)
    data, dump = tmp_path / "sic.data", tmp_path / "sic.dump"
    text = data_text(atoms, "{id} {type} {x} 0 0 0", " # atomic", MASSES)
    data.write_text(numbered(text, gaps))
    dump.write_text(numbered(dump_text(frames), gaps))
    assert "2 6 " not in data.read_text()
    found = [read_structure(data), *read_structures(dump, species=["Si", "C"])]
    for one, expected in zip(found, [atoms, *frames], strict=True):
        assert list(one.symbols) == list(atoms.symbols)
        np.testing.assert_allclose(one.positions, expected.positions, atol=1e-12)
    assert lammps_files.first_gap(data) == lammps_files.first_gap(dump) == (1, 3)
    variable = cv.linear(
        atoms.get_chemical_symbols(), atoms.cell.array, atoms.positions, frames[1].positions
    )
    u = frames[2].positions - atoms.positions
    read = read_displacements([dump], variable)
    np.testing.assert_allclose(read[2], u - u.mean(axis=0), atol=2e-6)
    # Other atoms in a later structure: the order of those that are left would be another one.
    later = numbered(dump_text(frames[1:2]), {**gaps, 64: 1})
    dump.write_text(numbered(dump_text(frames[:1]), gaps) + later)
    sentence = r"sic\.dump: the serial number 1 is not in all"
    with pytest.raises(UserError, match=sentence):
        read_structures(dump, species=["Si", "C"])
    with pytest.raises(UserError, match=sentence):
        read_displacements([dump], variable)


def test_serial_numbers_with_gaps_that_an_input_uses(tmp_path: Path) -> None:
    atoms = carbide()
    final = atoms.copy()
    final.positions[5] += 0.5
    text = "{id} {type} {x} 0 0 0"
    for name, one in (("initial", atoms), ("final", final)):
        file = numbered(data_text(one, text, " # atomic", MASSES), {k: k + 1 for k in range(1, 65)})
        (tmp_path / f"{name}.data").write_text(file)
    potential = ["pair_style tersoff", "pair_coeff * * SiC.tersoff Si C"]
    lines = ["group low id 1:4", "fix s low spring/self 1", "fix_modify s energy yes"]
    for name, section, more in (
        ("system.fixed", "system", {"fixed": "1-8"}),
        ("cv.atoms", "cv", {"atoms": "1-8"}),
        ("sampling.plumed", "sampling", {"plumed": "d: DISTANCE ATOMS=1,2"}),
        ("'group low id 1:4'", "engine", {"potential": [*potential, *lines]}),
        ("", "engine", {}),
    ):
        content: dict[str, dict[str, Any]] = {"engine": {"potential": potential}}
        content["system"] = {k: tmp_path / f"{k}.data" for k in ("initial", "final")}
        content["system"]["temperature_K"] = 300
        content.setdefault(section, {}).update(more)
        given = input_file.validate(content, "input")
        if name:
            with pytest.raises(UserError, match="atom 1 has the serial number 2, and " + name):
                workflow.read_end_states(given)
        else:
            assert len(workflow.read_end_states(given)[0]) == 64


def test_elements_that_are_not_known_are_no_hydrogen(tmp_path: Path) -> None:
    atoms = carbide()
    file = tmp_path / "sic.dump"
    file.write_text(dump_text([atoms]))
    with pytest.raises(UserError, match="the element of its type 1 is not known"):
        read_structure(file)
    with pytest.raises(UserError, match="an atom of type 2, but only the elements of 1 types"):
        read_structure(file, ["Si"])
    file.write_text(dump_text([atoms], "id element x y z"))
    assert list(read_structure(file).symbols) == list(atoms.symbols)
    file.write_text(dump_text([atoms], "id type element x y z"))
    with pytest.raises(UserError, match="type 1 is Si, but C in engine"):
        read_structure(file, ["C", "Si"])
    file.write_text(data_text(atoms, ROWS["atomic"][0], "", MASSES))
    with pytest.raises(UserError, match=r"type 1 has a mass of 28\.0855 amu, but is C"):
        read_structure(file, ["C", "Si"])


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "cut": (lambda text: text[:2000], "lines for 64 atoms"),
    "no box": (lambda text: text.replace("ylo yhi", ""), "cannot read it"),
    "a word": (lambda text: text.replace("\n1 1 ", "\n1 1 much ", 1), "atom style is unknown"),
    "a number twice": (lambda text: text.replace("\n5 ", "\n4 ", 1), "the same serial number"),
    "other style": (lambda text: text.replace("Atoms", "Atoms # sphere"), "atom style is 'sphere'"),
    "units": (lambda text: text.replace("file", "file, units = lj"), "its units are LAMMPS's lj"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_data_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    change, sentence = DAMAGE[name]
    file = tmp_path / "sic.data"
    file.write_text(change(data_text(carbide(), ROWS["atomic"][0])))
    with pytest.raises(UserError, match=sentence) as caught:
        read_structure(file, ["Si", "C"])
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("id x y z", "no column type or element"),
        ("type x y z", "no column id"),
        ("id type fx fy fz", "no positions"),
    ],
)
def test_dumps_without_what_is_needed(tmp_path: Path, columns: str, words: str) -> None:
    file = tmp_path / "sic.dump"
    file.write_text(dump_text([carbide()], columns))
    with pytest.raises(UserError, match=rf"sic\.dump: .*{words}.*write it with 'id type x y z'"):
        read_structure(file)


@pytest.mark.parametrize("kind", ["data", "dump"])
def test_damage_anywhere_is_a_sentence_or_a_structure(tmp_path: Path, kind: str) -> None:
    text = dump_text([carbide()]) if kind == "dump" else data_text(carbide(), "{id} {type} {x}")
    rng, file = np.random.default_rng(4), tmp_path / f"sic.{kind}"
    for _ in range(150):
        at, length = int(rng.integers(len(text))), int(rng.integers(1, 30))
        file.write_text(text[:at] + rng.choice(["", "x", "1", "\n", "é"]) + text[at + length :])
        try:
            read_structure(file, ["Si", "C"])
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
