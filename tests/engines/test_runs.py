"""`plumed-cv run` with each engine: a vacancy in a small crystal, from path to profile."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read

from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.engines.lammps_program import LammpsProgram
from plumed_cv.freeenergy import meanforce
from plumed_cv.input_file import load
from plumed_cv.sampling import open_engine
from plumed_cv.sampling.folders import ATOMS
from plumed_cv.workflow import analyse
from tests.conftest import needed
from tests.engines.kits import EPSILON, gromacs, script_output

INPUT = """
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = {temperature}
[engine]
{engine}
[path]
images = 5
fmax_eV_A = 0.1
structures = 200
[cv]
components = 5
atoms = "{atoms}"
[sampling]
steps = 1200
segments = 6
timestep_fs = 2.0
deviation_limit_A = 8.0
walkers = {walkers}
[iteration]
minimum = 1
maximum = 1
"""


def vacancy(symbol: str, a: float, repeat: int) -> tuple[Atoms, Atoms]:
    """The states before and after atom 1 has moved into the vacancy."""
    initial: Atoms = bulk(symbol, cubic=True, a=a) * (repeat, repeat, repeat)
    hole = initial.positions[0].copy()
    del initial[0]
    final = initial.copy()
    final.positions[0] = hole
    return initial, final


def fill_in(engine: str, temperature: float, walkers: int = 1, atoms: str = "auto") -> str:
    return INPUT.format(engine=engine, temperature=temperature, walkers=walkers, atoms=atoms)


def run(folder: Path, ends: tuple[Atoms, Atoms], text: str) -> None:
    for name, atoms in zip(("initial", "final"), ends, strict=True):
        atoms.write(folder / f"{name}.xyz", format="extxyz")
    (folder / "input.toml").write_text(text)
    line = [sys.executable, "-m", "plumed_cv.cli", "run", "input.toml", "--json"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    # So short a run need not arrive at the other state, but it must have sampled.
    if done.returncode == 0:
        result = json.loads(done.stdout)
        assert result["md_steps"] == 1200
        assert result["barrier_eV"] > 0
    else:
        assert "its 1200 steps did not reach both end states" in done.stderr
    assert analyse(folder / "run" / "iteration-1")["md_steps"] == 1200
    # The same command finds all that was done.
    again = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (done.returncode, done.stdout)


@pytest.mark.slow
def test_ase(tmp_path: Path, plugin: Path) -> None:
    engine = 'name = "ase"\ncalculator = "ase.calculators.emt.EMT"'
    run(tmp_path, vacancy("Cu", 3.6, 2), fill_in(engine, 300.0))


@pytest.mark.slow
def test_gromacs(tmp_path: Path, plugin: Path) -> None:
    ends = vacancy("Ar", 5.4, 3)
    gromacs(ends[0], EPSILON, tmp_path).close()
    lines = [
        'name = "gromacs"',
        'mdp = "crystal.mdp"',
        'topology = "crystal.top"',
        'structure = "crystal.gro"',
        f'program = "{script_output("gromacs.py")}"',
    ]
    run(tmp_path, ends, fill_in("\n".join(lines), 40.0))


@pytest.mark.slow
def test_torch_sim(tmp_path: Path, plugin: Path) -> None:
    """Three walkers in batches. LAMMPS has the same potential, and computes the same forces."""
    needed("torch_sim", "torch-sim-atomistic")
    epsilon, alpha, sigma, cutoff = 0.3, 2.0, 2.6, 5.4
    lines = [
        'name = "torch-sim"',
        'model = "morse.Metal"',
        f"arguments = {{ epsilon = {epsilon}, alpha = {alpha}, sigma = {sigma}, "
        f"cutoff = {cutoff} }}",
        f'directory = "{Path(__file__).parent}"',
    ]
    ends = vacancy("Cu", 3.6, 2)
    run(tmp_path, ends, fill_in("\n".join(lines), 300.0, walkers=3, atoms="all"))
    images = read(tmp_path / "run" / "path.xyz", ":")
    homes = sorted((tmp_path / "run" / "iteration-1").glob("walker-*"))
    assert len(homes) == 3
    commands = [f"pair_style morse {cutoff}", f"pair_coeff * * {epsilon} {alpha} {sigma}"]
    with LammpsEngine(commands, ends[0], species=("Cu",)) as lammps:
        for image in images:
            energy, forces, _ = lammps.evaluate(image.positions, image.cell.array)
            assert image.get_potential_energy() == pytest.approx(energy, abs=1e-6)
            np.testing.assert_allclose(image.get_forces(), forces, atol=1e-6)
        # The forces in the dynamics, of which the mean force is made; in single precision.
        for home in homes:
            last = sorted(home.glob("segment-*"))[-1] / ATOMS
            positions, recorded = meanforce.read_atoms(last, len(ends[0]))
            expected = lammps.forces(positions, ends[0].cell.array)
            np.testing.assert_allclose(recorded, expected, atol=1e-4)
            assert len(recorded) > 1
            assert np.abs(recorded).max() > 0.5


def test_a_lammps_program_is_opened(tmp_path: Path, plugin: Path) -> None:
    atoms = vacancy("Fe", 2.8553, 3)[0]
    program = Path(sys.executable).with_name("lmp")
    lines = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]
    engine = f'potential = {json.dumps(lines)}\nprogram = "{program}"'
    (tmp_path / "input.toml").write_text(fill_in(engine, 300.0))
    with open_engine(load(tmp_path / "input.toml"), atoms) as opened:
        assert isinstance(opened, LammpsProgram)
