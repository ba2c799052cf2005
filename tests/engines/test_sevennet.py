"""SevenNet in single precision, with weights in its package, as an engine and in batches."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from plumed_cv.engines import Dynamics, Segment, State
from plumed_cv.engines.ase import AseEngine
from plumed_cv.paths.neb import measure_noise, relax
from tests.conftest import needed

ARGUMENTS = {"model": "7net-0", "device": "cpu"}


@pytest.fixture(autouse=True)
def package() -> None:
    """The package with the weights."""
    needed("sevenn", "sevenn")


def salt() -> Atoms:
    """Lithium chloride with a vacancy."""
    atoms: Atoms = bulk("LiCl", "rocksalt", a=5.13, cubic=True)
    del atoms[0]
    atoms.rattle(0.02, seed=1)
    return atoms


@pytest.mark.slow
def test_forces_are_those_of_the_energy_and_can_be_relaxed(tmp_path: Path) -> None:
    atoms = salt()
    calculator = "sevenn.calculator.SevenNetCalculator"
    with AseEngine(calculator, atoms, arguments=ARGUMENTS) as engine:
        cell = atoms.cell.array
        forces = engine.evaluate(atoms.positions, cell)[1]
        # Energies have a noise of 1e-5 eV in single precision, and a step 0.02 A.
        step = 0.01
        for atom, axis in ((0, 0), (3, 1)):
            moved = np.repeat(atoms.positions[None], 2, axis=0)
            moved[:, atom, axis] += step, -step
            energies = engine.evaluate_all(moved, cell)[0]
            slope = (energies[1] - energies[0]) / (2 * step)
            assert forces[atom, axis] == pytest.approx(slope, abs=5e-3)
        assert 0.0 < measure_noise(atoms, engine.calculator()) < 2e-5
        atoms.calc = engine.calculator()
        relax(atoms, fmax_eV_A=1e-2)
        dynamics = Dynamics(300.0, timestep_fs=2.0)
        result = engine.run(Segment(tmp_path, State.of(atoms), dynamics, 10, 2))
    assert result.n_steps == 10
    assert 0.0 < np.abs(result.end.positions - atoms.positions).max() < 0.5


def test_a_batch_has_the_numbers_of_one_after_another() -> None:
    atoms = salt()
    noise = np.random.default_rng(2).normal(scale=0.06, size=(5, len(atoms), 3))
    structures = atoms.positions + noise
    structures[2] += atoms.cell.array[0]  # outside the cell
    calculator = "plumed_cv.engines.batches.sevennet"
    with AseEngine(calculator, atoms, arguments=ARGUMENTS, batch=3) as engine:
        energies, forces = engine.evaluate_all(structures, atoms.cell.array)
        for k, structure in enumerate(structures):
            energy, own, _ = engine.evaluate(structure, atoms.cell.array)
            assert energies[k] == pytest.approx(energy, abs=1e-4)
            np.testing.assert_allclose(forces[k], own, atol=1e-4)
    assert np.ptp(energies) > 1e-2
