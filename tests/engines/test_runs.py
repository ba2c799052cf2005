"""`plumed-cv run` with each engine: a vacancy in a small crystal, from path to profile."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk

from plumed_cv.engines.lammps_program import LammpsProgram
from plumed_cv.input_file import load
from plumed_cv.sampling import open_engine
from plumed_cv.workflow import analyse
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
[sampling]
steps = 1200
segments = 6
timestep_fs = 2.0
deviation_limit_A = 8.0
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


def run(folder: Path, ends: tuple[Atoms, Atoms], engine: str, temperature: float) -> None:
    for name, atoms in zip(("initial", "final"), ends, strict=True):
        atoms.write(folder / f"{name}.xyz", format="extxyz")
    text = INPUT.format(engine=engine, temperature=temperature)
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
    run(tmp_path, vacancy("Cu", 3.6, 2), engine, 300.0)


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
    run(tmp_path, ends, "\n".join(lines), 40.0)


def test_a_lammps_program_is_opened(tmp_path: Path, plugin: Path) -> None:
    atoms = vacancy("Fe", 2.8553, 3)[0]
    program = Path(sys.executable).with_name("lmp")
    lines = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]
    engine = f'potential = {json.dumps(lines)}\nprogram = "{program}"'
    (tmp_path / "input.toml").write_text(INPUT.format(engine=engine, temperature=300.0))
    with open_engine(load(tmp_path / "input.toml"), atoms) as opened:
        assert isinstance(opened, LammpsProgram)
