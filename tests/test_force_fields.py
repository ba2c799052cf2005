"""Whole runs with force fields in units real, and with charges and long-range forces."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc100
from ase.constraints import FixAtoms
from ase.neighborlist import neighbor_list

from plumed_cv import freeenergy, input_file, workflow
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.path import load_path
from tests.engines.test_lammps_potentials import in_kcal

SECTIONS = """
[path]
images = 5
fmax_eV_A = {fmax}
[sampling]
steps = {steps}
segments = 6
prior = "energy"
timestep_fs = {timestep}
friction_per_ps = {friction}
[iteration]
minimum = 1
maximum = 1
[rate]
enabled = false
"""


def prepare(
    folder: Path, ends: tuple[Atoms, Atoms], engine: str, **values: float
) -> input_file.Config:
    """Write the input of one iteration into a folder."""
    folder.mkdir(exist_ok=True)
    for name, atoms in zip(("initial", "final"), ends, strict=True):
        atoms.write(folder / f"{name}.xyz")
    system = 'initial = "initial.xyz"\nfinal = "final.xyz"\n'
    system += f"temperature_K = {values.pop('kelvin')}\n"
    text = f"[system]\n{system}[engine]\n{engine}\n{SECTIONS.format(**values)}"
    (folder / "in.toml").write_text(text)
    return input_file.load(folder / "in.toml")


def run(folder: Path, ends: tuple[Atoms, Atoms], engine: str, **values: float) -> dict[str, Any]:
    """Run one iteration in a folder."""
    return workflow.run(prepare(folder, ends, engine, **values), folder / "run")


def adatom() -> tuple[Atoms, Atoms]:
    """An atom hops on argon (100), of which two layers of three are fixed."""
    initial = fcc100("Ar", size=(3, 3, 3), a=5.3, vacuum=8.0)
    add_adsorbate(initial, "Ar", 2.6, "hollow")
    initial.info.clear()
    initial.pbc = (True, True, False)
    initial.set_constraint(FixAtoms([atom.index for atom in initial if atom.tag >= 2]))
    final = initial.copy()
    final.positions[-1, 0] += 5.3 / 2**0.5
    return initial, final


def test_a_run_in_units_real(tmp_path: Path, plugin: Path) -> None:
    """The same path and profile as in units metal, apart from LAMMPS's constants (1e-7)."""
    ends = adatom()
    metal = ["pair_style lj/cut 7.5", "pair_coeff * * 0.0103 3.4", "pair_modify shift yes"]
    values = {"kelvin": 30, "steps": 6000, "timestep": 4.0, "friction": 10.0, "fmax": 1e-3}
    paths, profiles = [], []
    for name, commands in (("metal", metal), ("real", ["units real", *in_kcal(metal)])):
        engine = f'potential = {commands}\nunits = "{name}"'
        run(tmp_path / name, ends, engine, **values)
        paths.append(load_path(tmp_path / name / "run/path.xyz"))
        profiles.append(freeenergy.read_fes(tmp_path / name / "run/fes.dat"))
    assert 0.01 < paths[0].barrier < 0.02
    assert paths[1].barrier == pytest.approx(paths[0].barrier, abs=1e-6)
    metal_A, real_A = (profile.A_k for profile in profiles)
    assert np.ptp(metal_A) > 0.01
    np.testing.assert_allclose(real_A, metal_A, atol=1e-4)


# Sodium chloride of Tosi and Fumi, J. Phys. Chem. Solids 25, 45 (1964), in eV and angstrom.
NACL = [
    "pair_style born/coul/long 8.0",
    "pair_coeff 1 1 0.2637 0.317 2.340 1.0487 -0.4993",
    "pair_coeff 1 2 0.2110 0.317 2.755 6.9906 -8.6758",
    "pair_coeff 2 2 0.1582 0.317 3.170 72.4022 -145.4285",
    "pair_modify table 0",
    "kspace_style ewald 1e-6",
]
CHARGES = {"Na": 1.0, "Cl": -1.0}
SETTING = ["set type 1 charge 1.0", "set type 2 charge -1.0"]
MADELUNG = 1.747564594633  # of the rock salt structure, for the distance of neighbours


def salt() -> Atoms:
    atoms: Atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2)
    return atoms


def test_energy_of_an_ionic_crystal() -> None:
    """Madelung's sum and pairs in Python; forces are the derivative of the energy."""
    atoms = salt()
    first, second, r = neighbor_list("ijd", atoms, 8.0)
    kinds = np.array([0 if symbol == "Na" else 1 for symbol in atoms.symbols])
    rows = [np.array(line.split()[3:], dtype=float) for line in NACL[1:4]]
    A, rho, sigma, C, D = np.array(rows)[kinds[first] + kinds[second]].T
    pairs = 0.5 * (A * np.exp((sigma - r) / rho) - C / r**6 + D / r**8).sum()
    coulomb = -MADELUNG * 32 * units._e / (4e-10 * np.pi * units._eps0) / 2.82
    rattled = atoms.copy()
    rattled.rattle(0.1, seed=1)
    for commands, least, most in ((NACL, 0.0, 1e-5), (NACL[:4] + NACL[5:], 1e-4, 1e-2)):
        with LammpsEngine([*commands, *SETTING], atoms, species=("Na", "Cl")) as engine:
            energy = engine.evaluate(atoms.positions, atoms.cell.array)[0]
            assert energy == pytest.approx(pairs + coulomb, rel=1e-5)
            forces = engine.forces(rattled.positions[None], atoms.cell.array)[0]
            ends = []
            for step in (-1e-4, 1e-4):
                moved = rattled.positions.copy()
                moved[3, 0] += step
                ends.append(engine.evaluate(moved, atoms.cell.array)[0])
            # With the tables of Coulomb forces (docs/engines/lammps.md) they are another function.
            assert least < abs((ends[0] - ends[1]) / 2e-4 - forces[3, 0]) < most


def vacancy_pair() -> tuple[Atoms, Atoms]:
    """A sodium ion moves around the chlorine vacancy into the sodium vacancy beside it."""
    crystal = salt()
    places = crystal.get_all_distances(mic=True)
    chlorine = int(np.flatnonzero(np.isclose(places[0], 2.82))[0])
    near = np.isclose(places[0], 5.64 / 2**0.5) & np.isclose(places[chlorine], 2.82)
    final = crystal.copy()
    final.positions[np.flatnonzero(near)[0]] = crystal.positions[0]
    for atoms in (crystal, final):
        atoms.set_initial_charges([CHARGES[symbol] for symbol in atoms.symbols])
        del atoms[[0, chlorine]]
    return crystal, final


def test_a_run_of_a_vacancy_pair_in_salt(tmp_path: Path, plugin: Path) -> None:
    """Charges of structure and potential give the same path, and the run reaches the end."""
    ends = vacancy_pair()
    engine = f'potential = {NACL}\nspecies = ["Na", "Cl"]'
    values = {"kelvin": 1000, "steps": 8000, "timestep": 2.0, "friction": 5.0, "fmax": 0.01}
    result = run(tmp_path / "columns", ends, engine, **values)
    path = load_path(tmp_path / "columns/run/path.xyz")
    assert path.barrier == pytest.approx(0.995, abs=0.01)
    assert result["md_steps"] == 8000
    assert abs(result["barrier_eV"] - path.barrier) < 0.3
    for atoms in ends:
        atoms.set_initial_charges(None)
    engine = f'potential = {[*SETTING, *NACL]}\nspecies = ["Na", "Cl"]'
    given = prepare(tmp_path / "lines", ends, engine, **values)
    found = workflow.find_path(given, tmp_path / "lines/path.xyz")
    np.testing.assert_allclose(found.energies, path.energies, atol=1e-6)
