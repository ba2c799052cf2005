"""The LAMMPS engine against independent forces, statistics and itself after a restart."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, make_supercell, molecule
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.engines import (
    RECORD,
    Dynamics,
    Record,
    Segment,
    State,
    Thermostat,
    maxwell_boltzmann,
    read_record,
)
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.engines.lammps_potential import element_types, named_elements, neighbour_settings
from plumed_cv.engines.lammps_program import LammpsProgram
from plumed_cv.engines.lammps_units import UNITS
from plumed_cv.engines.process import how_it_ended, run_program
from plumed_cv.setup.kernel import Plumed
from plumed_cv.structures import oriented
from tests.engines.kits import script_output

Array = NDArray[np.float64]

# A mixture of two Lennard-Jones species: epsilon (eV), sigma (angstrom); cutoff, not shifted.
LJ = {("Ar", "Ar"): (0.0103, 3.40), ("Ar", "Kr"): (0.0125, 3.52), ("Kr", "Kr"): (0.0140, 3.65)}
CUTOFF = 7.0
POTENTIAL = [f"pair_style lj/cut {CUTOFF}"] + [
    f"pair_coeff {i} {j} {LJ[pair][0]} {LJ[pair][1]}"
    for (i, j), pair in {(1, 1): ("Ar", "Ar"), (1, 2): ("Ar", "Kr"), (2, 2): ("Kr", "Kr")}.items()
]
SPECIES = ("Ar", "Kr")
EAM = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]


def mixture(seed: int = 0, shear: float = 0.0) -> Atoms:
    """32 atoms of an fcc mixture of two species, displaced, in a cell that may be sheared."""
    rng = np.random.default_rng(seed)
    atoms: Atoms = bulk("Ar", cubic=True, a=5.4) * (2, 2, 2)
    cell = atoms.cell.array.copy()
    cell[1, 0], cell[2, 0], cell[2, 1] = 3.1 * shear, -1.7 * shear, 2.3 * shear
    atoms.set_cell(cell, scale_atoms=True)
    atoms.symbols[1::3] = "Kr"
    atoms.positions += rng.normal(scale=0.15, size=(len(atoms), 3))
    return atoms


def reference(atoms: Atoms) -> tuple[float, Array, Array]:
    """Energy, forces and stress (xx yy zz yz xz xy) of the mixture, from a list of pairs."""
    first, second, length, vector = neighbor_list("ijdD", atoms, CUTOFF)
    symbols = np.array(atoms.symbols)
    pairs = [LJ[tuple(sorted(p))] for p in zip(symbols[first], symbols[second], strict=True)]
    epsilon, sigma = np.array(pairs).T
    power = (sigma / length) ** 6
    energy = float((2 * epsilon * (power**2 - power)).sum())  # each pair is listed twice
    slope = -24 * epsilon * (2 * power**2 - power) / length
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, first, (slope / length)[:, None] * vector)
    stress = 0.5 * np.einsum("p,pa,pb->ab", slope / length, vector, vector)
    volume = atoms.cell.volume or 1.0
    return energy, forces, (stress / volume)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


@pytest.fixture(scope="module")
def engine() -> Iterator[LammpsEngine]:
    with LammpsEngine(POTENTIAL, mixture(), species=SPECIES) as engine:
        yield engine


@pytest.mark.parametrize("shear", [0.0, 1.0, 3.0])
def test_energy_forces_and_stress(shear: float) -> None:
    atoms = mixture(shear=shear)
    with LammpsEngine(POTENTIAL, atoms, species=SPECIES) as engine:
        atoms.calc = engine.calculator()
        energy, forces, stress = reference(atoms)
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-11)
        np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-12)
        np.testing.assert_allclose(atoms.get_stress(), stress, rtol=1e-5, atol=1e-10)


KCAL = 23.060541945329334  # kcal/mol per eV, as in LAMMPS's fix plumed


def in_kcal(commands: list[str]) -> list[str]:
    """Commands of a Lennard-Jones potential with energies in kcal/mol."""
    words = [line.split() for line in commands]
    for line in words:
        if line[0] == "pair_coeff":
            line[3] = repr(float(line[3]) * KCAL)
    return [" ".join(line) for line in words]


def lammps_of(program: bool, *arguments: Any, **keys: Any) -> LammpsEngine | LammpsProgram:
    if not program:
        return LammpsEngine(*arguments, **keys)
    plugin = Path(script_output("lammps_fix_plumed.py"))
    lmp = str(Path(sys.executable).with_name("lmp"))
    return LammpsProgram(lmp, *arguments, plugin=plugin, **keys)


@pytest.mark.parametrize("program", [False, True])
def test_units_real(tmp_path: Path, plugin: Path, program: bool) -> None:
    """The same system in both units: energies, stress, dynamics, PLUMED's values and records.

    LAMMPS's constants for the two differ by 1e-7, and so do dynamics.
    """
    atoms = mixture(shear=1.0)
    plumed = (
        "UNITS LENGTH=A ENERGY=eV TIME=fs\nd: DISTANCE ATOMS=1,2\ne: ENERGY\n"
        "r: RESTRAINT ARG=d AT=4.0 KAPPA=1.0\nPRINT ARG=d,e,r.bias FILE=colvar STRIDE=1\n"
    )
    found: dict[tuple[str, str], Array] = {}
    for name in UNITS:
        folder = tmp_path / name
        folder.mkdir()
        potential = POTENTIAL if name == "metal" else in_kcal(POTENTIAL)
        with lammps_of(program, potential, atoms, species=SPECIES, units=name) as engine:
            energy, forces, stress = engine.evaluate(atoms.positions, atoms.cell.array)
            expected = reference(atoms)
            assert energy == pytest.approx(expected[0], rel=1e-11)
            np.testing.assert_allclose(forces, expected[1], atol=1e-12)
            np.testing.assert_allclose(stress, expected[2], rtol=1e-5, atol=1e-10)
            moved = atoms.positions + 0.01
            np.testing.assert_allclose(
                engine.forces(moved[None], atoms.cell.array)[0], expected[1], atol=1e-10
            )
            thermostats: tuple[Thermostat, ...] = ("langevin", "brownian", "none")
            for thermostat in thermostats:
                friction = 50.0 if thermostat == "brownian" else 5.0
                dynamics = Dynamics(300.0, 2.0, thermostat, friction)
                end = engine.run(Segment(folder, State.of(atoms), dynamics, 20, 3)).end
                found[name, thermostat] = end.positions
                if end.velocities is not None and thermostat != "brownian":
                    found[name, thermostat + " velocities"] = end.velocities
            record = None if program else Record(np.array([2, 5]), 5)
            segment = Segment(
                folder, State.of(atoms), Dynamics(300.0, 2.0), 20, 3, plumed, record=record
            )
            found[name, "plumed"] = engine.run(segment).end.positions
            found[name, "colvar"] = np.loadtxt(folder / "colvar")
            if record:
                found[name, "record"] = np.stack(read_record(folder / RECORD, 2))
    for what in [what for name, what in found if name == "real"]:
        np.testing.assert_allclose(found["real", what], found["metal", what], rtol=1e-5, atol=1e-6)
    assert np.abs(found["metal", "none"] - atoms.positions).max() > 0.05  # they did move


def test_a_force_field_that_needs_units_real() -> None:
    """Methane with ReaxFF: forces are the derivative of the energy; a bond holds some eV."""
    atoms = molecule("CH4", vacuum=5.0, pbc=True)
    atoms.positions[1] += 0.05
    reax = ["pair_style reaxff NULL", "pair_coeff * * ffield.reax.cho H C"]
    charges = "fix q all qeq/reaxff 1 0.0 10.0 1e-9 reaxff"
    with pytest.raises(UserError, match=r"requires real units .*; set engine.units = 'real'"):
        LammpsEngine([*reax, charges], atoms)
    with LammpsEngine([*reax, charges], atoms, units="real") as engine:
        cell = atoms.cell.array
        energy, forces, _ = engine.evaluate(atoms.positions, cell)
        for atom, axis in ((0, 0), (1, 2)):
            ends = []
            for step in (-1e-3, 1e-3):
                moved = atoms.positions.copy()
                moved[atom, axis] += step
                ends.append(engine.evaluate(moved, cell)[0])
            assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(forces[atom, axis], abs=1e-3)
        far = atoms.positions.copy()
        far[1] += 3.0
        # Dissociation of a C-H bond in methane: 439 kJ/mol (CRC Handbook), 4.55 eV.
        assert engine.evaluate(far, cell)[0] - energy == pytest.approx(4.55, abs=0.8)


def test_charges() -> None:
    atoms = Atoms("NaCl", [[0, 0, 0], [0, 0, 2.5]])
    atoms.set_initial_charges([1.0, -1.0])
    potential = ["pair_style coul/cut 10.0", "pair_coeff * *"]
    with LammpsEngine(potential, atoms) as engine:
        atoms.calc = engine.calculator()
        force = units._e**2 / (4 * np.pi * units._eps0) / 2.5**2 * 1e10 / units._e
        assert atoms.get_forces()[0, 2] == pytest.approx(force, rel=1e-5)


def test_masses(tmp_path: Path) -> None:
    atoms = mixture()
    with LammpsEngine(POTENTIAL, atoms, species=SPECIES) as engine:
        np.testing.assert_allclose(engine.masses, atoms.get_masses())
    with pytest.raises(UserError, match=r"type 2 is Kr and has a mass of 7 amu instead of 83\.8"):
        LammpsEngine([*POTENTIAL, "mass 2 7.0"], atoms, species=SPECIES)
    isotope = mixture()
    isotope.set_masses([7.0 if symbol == "Kr" else None for symbol in isotope.symbols])
    with LammpsEngine([*POTENTIAL, "mass 2 7.0"], isotope, species=SPECIES) as engine:
        assert set(engine.masses) == {7.0, 39.948}
    with pytest.raises(UserError, match=r"mass of 83\.8 amu instead of 7"):
        LammpsEngine(POTENTIAL, isotope, species=SPECIES)
    with LammpsEngine(POTENTIAL, atoms, species=SPECIES, masses={"Ar": 5.0}) as engine:
        assert set(engine.masses) == {5.0, 83.798}


def test_a_file_that_sets_up_the_potential(tmp_path: Path) -> None:
    (tmp_path / "lj.in").write_text("\n".join(POTENTIAL))
    atoms = mixture()
    with LammpsEngine(Path("lj.in"), atoms, species=SPECIES, directory=tmp_path) as engine:
        atoms.calc = engine.calculator()
        np.testing.assert_allclose(atoms.get_forces(), reference(atoms)[1], atol=1e-12)


ALLOY = ["pair_style eam/alloy", "pair_coeff * * NiAlH_jea.eam.alloy Ni Al"]


def test_types_are_those_that_the_potential_names(tmp_path: Path) -> None:
    """The structure lists aluminium first; cohesive energy and mass show which element it is."""
    nickel = bulk("Ni", cubic=True, a=3.52) * (3, 3, 3)
    atoms = nickel.copy()
    atoms.symbols[0] = "Al"
    with LammpsEngine(ALLOY, nickel, species=["Ni", "Al"]) as engine:
        pure = engine.evaluate(nickel.positions, nickel.cell.array)[0]
    (tmp_path / "alloy.in").write_text("# nickel\nunits metal\ninclude coefficients.in # more\n")
    (tmp_path / "coefficients.in").write_text("\n".join(ALLOY).replace("* * ", "* * &\n  "))
    energies = []
    for potential, species in ((ALLOY, None), (Path("alloy.in"), None), (ALLOY, ["Ni", "Al"])):
        with LammpsEngine(potential, atoms, species=species, directory=tmp_path) as engine:
            energies.append(engine.evaluate(atoms.positions, atoms.cell.array)[0])
            assert engine.masses[0] == pytest.approx(26.98, abs=0.01)
    assert energies == pytest.approx([energies[0]] * 3, abs=1e-9)
    # One atom of 108 is another; with exchanged elements 107 would be.
    assert abs(energies[0] - pure) < 5
    with pytest.raises(UserError, match="names other elements for the types"):
        LammpsEngine(ALLOY, atoms, species=["Al", "Ni"])
    # Labels that are no symbols leave it open, and masses tell that the guess is wrong.
    funcfl = ["pair_style eam", "pair_coeff 1 1 Ni_u3.eam", "pair_coeff 2 2 Al_jnp.eam"]
    with pytest.raises(UserError, match=r"'pair_coeff 1 1 Ni_u3.eam': which of Al, Ni are LAMMPS"):
        LammpsEngine(funcfl, atoms)
    with pytest.raises(UserError, match="type 1 is Al and has a mass of 58"):
        LammpsEngine(funcfl, atoms, species=["Al", "Ni"])


@pytest.mark.parametrize("order", ["Ni Al", "Al Ni", "H Al Ni", "Al H Ni"])
@pytest.mark.parametrize("style", ["eam/alloy", "hybrid", "hybrid/overlay"])
def test_any_order_of_the_potential_gives_the_same_alloy(order: str, style: str) -> None:
    atoms = bulk("Ni", cubic=True, a=3.52) * (3, 3, 3)
    atoms.symbols[::5] = "Al"
    atoms.rattle(0.05, seed=2)
    with LammpsEngine(ALLOY, atoms) as engine:
        expected = engine.evaluate(atoms.positions, atoms.cell.array)
    file = ALLOY[1].split()[3]
    commands = [f"pair_style {style}", f"pair_coeff * * {file} {order}"]
    if style != "eam/alloy":
        commands[0] += " eam/alloy"
        commands[1] = commands[1].replace("* * ", "* * eam/alloy ")
    with LammpsEngine(commands, atoms) as engine:
        found = engine.evaluate(atoms.positions, atoms.cell.array)
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-10)


def test_another_order_than_that_of_the_potential() -> None:
    """Masses identify the elements, also neighbours in the periodic table; so do two lines."""
    atoms = bulk("Au", cubic=True, a=4.08) * (3, 3, 3)
    atoms.symbols[0] = "Pt"
    funcfl = ["pair_style eam", "pair_coeff 1 1 Au_u3.eam", "pair_coeff 2 2 Pt_u3.eam"]
    with LammpsEngine(funcfl, atoms, species=["Au", "Pt"]) as engine:
        assert engine.masses[:2] == pytest.approx([195.09, 196.97])
    program = str(Path(sys.executable).with_name("lmp"))
    for make in (LammpsEngine, lambda *a, **k: LammpsProgram(program, *a, **k)):
        with pytest.raises(UserError, match=r"type 1 is Pt and has a mass of 197 amu"):
            make(funcfl, atoms, species=["Pt", "Au"])
    iron = bulk("Fe", cubic=True, a=2.86) * (4, 4, 4)
    iron.symbols[7] = "P"
    both = ["pair_style hybrid/overlay eam/fs eam/fs", "pair_coeff * * eam/fs 1 FeP_mm.eam.fs Fe P"]
    swapped = "pair_coeff * * eam/fs 2 FeP_mm.eam.fs P Fe"
    with pytest.raises(UserError, match=r"names P for type 1, but .* names Fe; give"):
        LammpsEngine([*both, swapped], iron)
    labels = ["labelmap atom 1 Fe 2 P", "pair_style lj/cut 6.0", "pair_coeff Fe* P 0.1 2.0"]
    assert element_types(iron, None, labels)[0] == ("Fe", "P")
    for commands in (labels, ["labelmap atom 2 P 1 Fe", *labels[1:]]):
        with pytest.raises(UserError, match="names other elements for the types"):
            element_types(iron, ["P", "Fe"], commands)


def test_two_types_of_one_element() -> None:
    """The types follow from the elements, so the second one would have no atoms."""
    alike = ["pair_style lj/cut 7", "pair_coeff * * 0.01 2.3"]
    iron = bulk("Fe", cubic=True, a=2.86) * (4, 4, 4)
    assert set(element_types(iron, ["Fe", "Fe"], alike)[1]) == {1}
    for more in (["pair_coeff 2 2 0.1 2.3"], ["set type 2 charge 1"]):
        with pytest.raises(UserError, match="several types are Fe, and the potential disting"):
            element_types(iron, ["Fe", "Fe"], [*alike, *more])
    labels = ["pair_style tersoff", "pair_coeff * * iron.tersoff Fe1 Fe2"]
    with pytest.raises(UserError, match="several types are Fe"):
        element_types(iron, ["Fe", "Fe"], labels)


NAMES = {
    "one": (["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"], ("Fe",)),
    "no file": (["pair_style deepmd graph.pb", "pair_coeff * * O H"], ("O", "H")),
    "meam": (["pair_style meam", "pair_coeff * * l.meam Si C SiC.meam C Si Si"], ("C", "Si", "Si")),
    "meam without parameters": (["pair_style meam", "pair_coeff * * l.meam Si NULL Si"], ("Si",)),
    "eim": (["pair_style eim", "pair_coeff * * Na Cl ../ffield.eim Cl Na"], ("Cl", "Na")),
    "snap": (["pair_style snap", "pair_coeff * * W.snapcoeff W.snapparam W"], ("W",)),
    "hybrid": (
        [
            "pair_style hybrid/overlay tersoff lj/cut 10.0 tersoff",
            "pair_coeff * * tersoff 1 'my SiC.tersoff' Si C NULL",
            "pair_coeff * * tersoff 2 BN.tersoff NULL NULL B",
            "pair_coeff 1 3 lj/cut 0.1 3.0",
        ],
        ("Si", "C", "B"),
    ),
    "open": (
        ["pair_style hybrid sw lj/cut 9", "pair_coeff * * sw Si.sw Si NULL"],
        ("Si", None),
    ),
    "numbers": (["pair_style lj/cut 7", "pair_coeff * * 0.01 3.4"], ()),
    "table": (["pair_style table linear 100", "pair_coeff * * fe.table Fe"], ()),
    "labels": (["pair_style tersoff", "pair_coeff * * SiC.tersoff Si(D) C"], ()),
    "quip": (["pair_style quip", 'pair_coeff * * gap.xml "" 14'], ()),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_types(name: str) -> None:
    commands, expected = NAMES[name]
    assert named_elements(commands)[0] == expected


def test_types_that_nothing_names() -> None:
    atoms = Atoms("SiAr" * 2, positions=[[x, 0, 0] for x in (0, 4, 8, 12)])
    open_one = NAMES["open"][0]
    assert element_types(atoms, None, open_one)[0] == ("Si", "Ar")
    masses = ["pair_style lj/cut 7", "pair_coeff 1 2 1 1", "mass 2 28.09", "mass 1 39.9"]
    assert element_types(atoms, None, masses)[0] == ("Ar", "Si")
    alike = ["pair_style lj/cut 7", "pair_coeff * * 1 1"]
    assert element_types(atoms, None, alike)[0] == ("Si", "Ar")
    for commands in (masses[:2], NAMES["labels"][0], [*alike, "set type 1 charge 1"]):
        with pytest.raises(
            UserError, match=r"which of Si, Ar are LAMMPS's types .* engine.species"
        ):
            element_types(atoms, None, commands)


COULOMB = ["pair_style buck/coul/cut 6.0", "pair_coeff * * 500.0 0.3 0.0"]


def salt(charged: bool = False) -> Atoms:
    atoms: Atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True) * (2, 2, 2)
    atoms.rattle(0.1, seed=1)
    if charged:
        atoms.set_initial_charges([2.0 if symbol == "Mg" else -2.0 for symbol in atoms.symbols])
    return atoms


def test_charges_that_the_potential_sets(tmp_path: Path, plugin: Path) -> None:
    """Charges by a list, a file or a variable give the forces of the structure's charges.

    PLUMED receives the same charges.
    """
    atoms, species = salt(), ("Mg", "O")
    with LammpsEngine(COULOMB, salt(charged=True)) as engine:
        expected = engine.forces(atoms.positions[None], atoms.cell.array)[0]
    setting = ["set type 1 charge 2.0", "set type 2 charge -2.0"]
    (tmp_path / "mgo.in").write_text("\n".join(["units metal", *setting, *COULOMB]))
    group = ["variable q equal 2", "set group all charge ${q}", "set type 2 charge -2"]
    for potential in ([*setting, *COULOMB], Path("mgo.in"), [*group, *COULOMB]):
        with LammpsEngine(potential, atoms, species=species, directory=tmp_path) as engine:
            found = engine.forces(atoms.positions[None], atoms.cell.array)[0]
            np.testing.assert_allclose(found, expected, atol=1e-9)
            plumed = "DUMPMASSCHARGE FILE=charges"
            engine.run(Segment(tmp_path, State.of(atoms), Dynamics(1.0), 1, 1, plumed))
            charges = np.loadtxt(tmp_path / "charges")[:, 2]
            np.testing.assert_allclose(charges, salt(charged=True).get_initial_charges())
            (tmp_path / "charges").unlink()
    program = str(Path(sys.executable).with_name("lmp"))
    with LammpsProgram(program, Path("mgo.in"), atoms, species=species, directory=tmp_path) as lmp:
        found = lmp.forces(atoms.positions[None], atoms.cell.array)[0]
        np.testing.assert_allclose(found, expected, atol=1e-9)
    with pytest.raises(UserError, match="needs charges, but the atoms have none"):
        LammpsEngine(COULOMB, atoms)


NOT_OF_A_POTENTIAL = {
    "boundary p p f": "the boundaries are those of the structure",
    "atom_style charge": "plumed_cv sets box, atoms and dynamics",
    "read_data mgo.data": "plumed_cv sets box, atoms and dynamics",
    "run 100": "plumed_cv sets box, atoms and dynamics",
    "minimize 0 1e-6 100 100": "plumed_cv sets box, atoms and dynamics",
    "units real": "set engine.units = 'real', or change the line",
    "units lj": "use a potential in units metal or real",
    "fix hold bottom setforce 0.0 0.0 0.0": "fixes atoms",
    "fix hold bottom move none": "fixes atoms",
    "fix hold bottom freeze": "fixes atoms",
    "fix f bottom rigid/nve single": "fixes atoms",
    "fix s all shake 1e-4 20 0 t 1": "fixes atoms",
    "fix 1 all nve": "plumed_cv sets the dynamics",
    "fix 1 all langevin 300 300 0.1 1": "plumed_cv sets the dynamics",
    "fix hold bottom spring/self 10.0": "add 'fix_modify hold energy yes'",
    "fix wall all wall/lj93 zlo EDGE 1 1 2.5": "add 'fix_modify wall energy yes'",
    "label loop": "loops are not possible",
}


@pytest.mark.parametrize("line", NOT_OF_A_POTENTIAL)
def test_lines_that_do_not_belong_to_a_potential(tmp_path: Path, line: str) -> None:
    file = tmp_path / "pot.in"
    file.write_text("\n".join(["group bottom id 1:4", line, *POTENTIAL]))
    for potential in ([*POTENTIAL, line], Path("pot.in")):
        with pytest.raises(UserError, match=re.escape(NOT_OF_A_POTENTIAL[line])) as caught:
            LammpsEngine(potential, mixture(), species=SPECIES, directory=tmp_path)
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)
        assert (str(file) in str(caught.value)) == isinstance(potential, Path)


def test_springs_whose_energy_counts() -> None:
    atoms = mixture()
    atoms.positions += 1.0  # all of them in the cell
    held = ["group bottom id 1:4", "fix hold bottom spring/self 10.0", "fix_modify hold energy yes"]
    with LammpsEngine([*POTENTIAL, *held], atoms, species=SPECIES) as engine:
        moved = atoms.positions.copy()
        moved[0, 0] += 0.1
        energy = engine.evaluate(moved, atoms.cell.array)[0]
        atoms.positions = moved
        assert energy == pytest.approx(reference(atoms)[0] + 0.5 * 10.0 * 0.1**2, abs=1e-9)


def test_potential_of_the_lammps_package() -> None:
    atoms = bulk("Fe", cubic=True, a=2.8553) * (4, 4, 4)
    with LammpsEngine(EAM, atoms) as engine:
        atoms.calc = engine.calculator()
        # Cohesive energy of this potential: Mendelev et al., Philos. Mag. 83, 3977 (2003).
        assert atoms.get_potential_energy() / len(atoms) == pytest.approx(-4.12, abs=0.005)


def test_oriented_turns_all_structures_alike() -> None:
    one = make_supercell(bulk("Ar", a=5.4), 2 * np.eye(3))
    two = one.copy()
    two.rattle(0.1, seed=1)
    with pytest.raises(UserError, match="first vector along x"):
        LammpsEngine(["pair_style lj/cut 5", "pair_coeff * * 0.01 3.4"], one)
    turned = [oriented(one), oriented(two)]
    moved = two.positions - one.positions
    turned_moved = turned[1].positions - turned[0].positions
    np.testing.assert_allclose(turned_moved @ turned_moved.T, moved @ moved.T, atol=1e-12)
    with LammpsEngine(["pair_style lj/cut 5", "pair_coeff * * 0.01 3.4"], turned[0]) as engine:
        turned[1].calc = engine.calculator()
        assert np.isfinite(turned[1].get_forces()).all()


def test_maxwell_boltzmann() -> None:
    rng = np.random.default_rng(1)
    masses = np.where(np.arange(4000) % 2, 40.0, 84.0)
    velocities = maxwell_boltzmann(rng, masses, 120.0)
    np.testing.assert_allclose((masses[:, None] * velocities).sum(axis=0), 0, atol=1e-10)
    for mass in (40.0, 84.0):
        energy = 0.5 * mass * (velocities[masses == mass] ** 2).sum(axis=1).mean() / units.fs**2
        # 6000 squares of normals: relative error 1.8 %, five of them.
        assert energy == pytest.approx(1.5 * units.kB * 120.0, rel=0.09)


def test_langevin_keeps_the_temperature(tmp_path: Path, engine: LammpsEngine) -> None:
    dynamics = Dynamics(40.0, timestep_fs=4.0, friction_per_ps=10.0)
    engine.run(Segment(tmp_path, State.of(mixture()), dynamics, 60_000, 3))
    log = (tmp_path / "log.lammps").read_text()
    lines = re.findall(r"^\s*(\d+)\s+(\S+)\s+(\S+)\s*$", log, re.MULTILINE)
    temperatures = np.array([float(words[1]) for words in lines])[5:]
    assert len(temperatures) == 56
    # 96 degrees of freedom, samples 4 ps apart at a correlation time of 0.1 ps: each has a
    # relative error of sqrt(2/96) = 14 %, the mean of 56 has 1.9 %; five of them. The
    # discretisation adds less than 0.1 %.
    assert temperatures.mean() == pytest.approx(40.0, rel=0.096)


def test_forces_after_a_run_that_plumed_has_stopped(tmp_path: Path) -> None:
    """A stop leaves the timer expired; later runs would end before their first step."""
    atoms = mixture()
    others = np.stack([mixture(seed).positions for seed in (1, 2, 3)])
    plumed = "d: DISTANCE ATOMS=1,2\nCOMMITTOR ARG=d BASIN_LL1=0 BASIN_UL1=100 STRIDE=1\n"
    with LammpsEngine(POTENTIAL, atoms, species=SPECIES) as engine:
        stopped = engine.run(
            Segment(tmp_path, State.of(atoms), Dynamics(50.0), 20, seed=1, plumed=plumed)
        )
        assert stopped.stopped_by_plumed
        found = engine.forces(others, atoms.cell.array)
        again = engine.evaluate(others[1], atoms.cell.array)[1]
    for structure, forces in zip(others, found, strict=True):
        moved = atoms.copy()
        moved.positions = structure
        np.testing.assert_allclose(forces, reference(moved)[1], atol=1e-9)
    np.testing.assert_allclose(found[1], again, atol=1e-9)


@pytest.mark.parametrize("program", [False, True])
@pytest.mark.parametrize(
    "line",
    [
        "neigh_modify delay 10",
        "neigh_modify every 10 delay 0 check no",
        "neigh_modify once yes",
    ],
)
def test_lists_of_neighbours_for_structures_that_do_not_follow_each_other(
    program: bool, line: str
) -> None:
    """Each structure has the atoms at other places, so no pair of the neighbour list remains."""
    rng = np.random.default_rng(4)
    structures = np.stack([mixture(seed).positions + rng.uniform(0, 6, 3) for seed in range(12)])
    structures[1::2] = structures[1::2, ::-1]
    with lammps_of(program, [*POTENTIAL, line], mixture(), species=SPECIES) as engine:
        found = engine.forces(structures, mixture().cell.array)
        again = engine.forces(structures[::-1], mixture().cell.array)[::-1]
    for structure, forces, same in zip(structures, found, again, strict=True):
        moved = mixture()
        moved.positions = structure
        np.testing.assert_allclose(forces, reference(moved)[1], atol=1e-9)
        np.testing.assert_allclose(same, forces, atol=1e-9)


def test_settings_of_the_list_of_neighbours() -> None:
    lines = [
        "pair_style x",
        "neigh_modify delay 4 every 2 exclude type 1 2",
        "neigh_modify once no",
    ]
    assert neighbour_settings(lines) == [
        "neigh_modify delay 4",
        "neigh_modify every 2",
        "neigh_modify once no",
    ]


def test_brownian_diffusion_and_mobility(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    atoms = Atoms("ArKr" * 2000, rng.uniform(0, 300, (4000, 3)), cell=[300] * 3, pbc=True)
    dynamics = Dynamics(250.0, timestep_fs=2.0, thermostat="brownian", friction_per_ps=50.0)
    with LammpsEngine(["pair_style zero 5.0", "pair_coeff * *"], atoms) as engine:
        start = State.of(atoms)
        end = engine.run(Segment(tmp_path, start, dynamics, 50, 3, snapshot_stride=0)).end
    for kind, mass in ((0, 39.948), (1, 83.798)):
        moved = (end.positions - start.positions)[kind::2]
        # 2 D t with D = kT / (m gamma); 6000 squares of normals: error 1.8 %, five of them.
        diffusion = units.kB * 250.0 / (mass * 0.05 / units.fs)  # angstrom^2 per ASE's time
        expected = 2 * diffusion * 100 * units.fs
        assert (moved**2).mean() == pytest.approx(expected, rel=0.092)


BAD_POTENTIALS = {
    "missing file": (["pair_style eam/fs", "pair_coeff * * none.eam.fs Ar Kr"], "none.eam.fs"),
    "unknown style": (["pair_style liquid 1.0"], "Unrecognized pair style 'liquid'"),
    "missing element": (["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Ar Kr"], "element"),
    "missing pair": ([POTENTIAL[0], "pair_coeff 1 1 0.01 3.4"], "coeffs are not set"),
    "no pair_style": (["pair_coeff * * 0.01 3.4"], "no pair_style"),
    "other units": (["units real", *POTENTIAL], "engine.units = 'real'"),
    "unknown command": ([*POTENTIAL, "pear_coeff 1 1 1 1"], "Unknown command: pear_coeff"),
}


@pytest.mark.parametrize("name", BAD_POTENTIALS)
def test_bad_potential(name: str) -> None:
    commands, match = BAD_POTENTIALS[name]
    with pytest.raises(UserError, match=re.escape(match)) as caught:
        LammpsEngine(commands, mixture(), species=SPECIES)
    assert "\n" not in str(caught.value)


def test_missing_file_with_the_potential(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lj\.in: there is no such LAMMPS file"):
        LammpsEngine(Path("lj.in"), mixture(), directory=tmp_path)


def test_atoms_that_do_not_fit(engine: LammpsEngine) -> None:
    with pytest.raises(UserError, match="31 atoms"):
        engine.check(mixture()[:31])
    other = mixture()
    other.symbols[4] = "Ne"
    with pytest.raises(UserError, match="atom 5 is Ne"):
        engine.check(other)
    with pytest.raises(UserError, match="also contains Kr"):
        LammpsEngine(POTENTIAL, mixture(), species=["Ar"])
    with pytest.raises(UserError, match="'Xx9' is not a chemical symbol"):
        LammpsEngine(POTENTIAL, mixture(), species=["Ar", "Kr", "Xx9"])
    surface = mixture()
    surface.pbc = [True, True, False]
    with pytest.raises(UserError, match="differ in their periodic boundaries"):
        engine.check(surface)


def test_positions_that_are_no_numbers(engine: LammpsEngine) -> None:
    atoms = mixture()
    atoms.positions[3, 1] = np.nan
    atoms.calc = engine.calculator()
    with pytest.raises(UserError, match="not all finite numbers"):
        atoms.get_forces()
    atoms = mixture()
    atoms.positions[3] = atoms.positions[4]
    atoms.calc = engine.calculator()
    with pytest.raises(UserError, match="not finite"):
        atoms.get_forces()


def test_a_program_on_two_ranks(tmp_path: Path, plumed_installation: Plumed) -> None:
    """Without PLUMED: tests/plumed/test_mpi.py has one with MPI."""
    atoms, programs = mixture(shear=1.0), Path(sys.executable).parent
    command = f"{programs / 'mpirun'} -np 2 {programs / 'lmp'}"
    with LammpsProgram(command, POTENTIAL, atoms, species=SPECIES) as engine:
        energy, forces, _ = engine.evaluate(atoms.positions, atoms.cell.array)
        assert energy == pytest.approx(reference(atoms)[0], rel=1e-11)
        np.testing.assert_allclose(forces, reference(atoms)[1], atol=1e-12)
        result = engine.run(Segment(tmp_path, State.of(atoms), Dynamics(40.0), 50, 1))
        assert result.n_steps == 50
        assert "on 2 procs" in (tmp_path / "log.lammps").read_text()
        if not plumed_installation.mpi:  # PLUMED would see a part of the atoms on each rank
            biased = Segment(tmp_path, State.of(atoms), Dynamics(40.0), 1, 1, "d: DISTANCE\n")
            with pytest.raises(
                UserError, match=r"starts 2 MPI ranks, but the PLUMED here .* no MPI"
            ):
                engine.run(biased)


@pytest.mark.parametrize("name", BAD_POTENTIALS)
def test_bad_potential_of_a_program(name: str) -> None:
    commands, match = BAD_POTENTIALS[name]
    program = str(Path(sys.executable).with_name("lmp"))
    with pytest.raises(UserError, match=re.escape(match)) as caught:
        LammpsProgram(program, commands, mixture(), species=SPECIES)
    assert "\n" not in str(caught.value)


def test_a_program_that_lacks_fix_plumed(tmp_path: Path, plugin: Path) -> None:
    program = str(Path(sys.executable).with_name("lmp"))
    with LammpsProgram(program, POTENTIAL, mixture(), species=SPECIES) as engine:
        segment = Segment(tmp_path, State.of(mixture()), Dynamics(40.0), 1, 1, "d: DISTANCE\n")
        with pytest.raises(UserError, match="Unrecognized fix style 'plumed'"):
            engine.run(segment)
    with pytest.raises(UserError, match="no-such-lmp: there is no such program"):
        LammpsProgram("no-such-lmp", POTENTIAL, mixture(), species=SPECIES)


def processes_in(folder: Path) -> list[Path]:
    """Processes whose working directory is a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append(process)
    return found


FOREVER = """
import sys
from pathlib import Path
from plumed_cv.engines import Dynamics, Segment, State
from plumed_cv.engines.lammps_program import LammpsProgram
from tests.engines.test_lammps import POTENTIAL, SPECIES, mixture
engine = LammpsProgram(sys.argv[1], POTENTIAL, mixture(), species=SPECIES)
engine.run(Segment(Path(sys.argv[2]), State.of(mixture()), Dynamics(50.0), 10**8, 1))
"""


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_a_program_ends_with_what_started_it(tmp_path: Path, how: str) -> None:
    """pip's lmp is a script: the program that it starts must end too."""
    program = str(Path(sys.executable).with_name("lmp"))
    line = [sys.executable, "-c", FOREVER, program, str(tmp_path)]
    repository = Path(__file__).parents[2]
    with subprocess.Popen(line, cwd=repository, stderr=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 300
        while not processes_in(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_in(tmp_path)
        parent.send_signal(signal.SIGINT if how == "interrupted" else signal.SIGKILL)
    # After a kill it ends when it has nobody to tell its next thousand steps.
    deadline = time.monotonic() + 200
    while processes_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_in(tmp_path)


def test_what_an_exit_status_says() -> None:
    assert how_it_ended(3) == "with status 3"
    assert how_it_ended(-9) == "by signal 9 (SIGKILL)"
    assert how_it_ended(137) == "with status 137, as after signal 9 (SIGKILL)"
    assert how_it_ended(247) == "with status 247, as after signal 9 (SIGKILL)"
    killed = ["sh", "-c", "kill -9 $$"]
    assert "SIGKILL" in how_it_ended(run_program(killed, Path.cwd())[0])


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    with LammpsEngine(POTENTIAL, mixture(), species=SPECIES) as engine:
        started: list[int] = []

        def kill(step: int) -> None:
            if not started:
                started.append(step)
                children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                for child in map(int, children):
                    if b"lammps_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                        victims.append(child)
                os.kill(victims[-1], signal.SIGKILL)

        victims: list[int] = []
        segment = Segment(tmp_path, State.of(mixture()), Dynamics(50.0), 10**7, 1)
        with pytest.raises(UserError, match="signal 9"):
            engine.run(segment, kill)
