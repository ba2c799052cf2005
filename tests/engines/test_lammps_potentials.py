"""Potentials of LAMMPS: units, elements of types, masses, charges, and lines that are refused."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule

from plumed_cv.common.errors import UserError
from plumed_cv.engines import (
    RECORD,
    Dynamics,
    Record,
    Segment,
    State,
    Thermostat,
    read_record,
)
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.engines.lammps_potential import element_types, named_elements
from plumed_cv.engines.lammps_program import LammpsProgram
from plumed_cv.engines.lammps_units import UNITS
from tests.engines.test_lammps import EAM, POTENTIAL, SPECIES, Array, lammps_of, mixture, reference

KCAL = 23.060541945329334  # kcal/mol per eV, as in LAMMPS's fix plumed


def in_kcal(commands: list[str]) -> list[str]:
    """Commands of a Lennard-Jones potential with energies in kcal/mol."""
    words = [line.split() for line in commands]
    for line in words:
        if line[0] == "pair_coeff":
            line[3] = repr(float(line[3]) * KCAL)
    return [" ".join(line) for line in words]


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
