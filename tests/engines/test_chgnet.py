"""A real model in single precision, with weights in its package, as an engine and as committee."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from plumed_cv.engines import Dynamics, Segment, State
from plumed_cv.engines.ase import AseEngine
from plumed_cv.paths.neb import measure_noise, relax
from tests.conftest import needed

MAKER = """
from chgnet.model.dynamics import CHGNetCalculator
from chgnet.model.model import CHGNet


def chgnet(model):
    loaded = CHGNet.load(model_name=model, use_device="cpu", verbose=False)
    return CHGNetCalculator(loaded, use_device="cpu")
"""


@pytest.fixture(autouse=True)
def package() -> None:
    """The package with the weights."""
    needed("chgnet", "chgnet")


def salt() -> Atoms:
    """Lithium chloride with a vacancy."""
    atoms: Atoms = bulk("LiCl", "rocksalt", a=5.13, cubic=True)
    del atoms[0]
    atoms.rattle(0.02, seed=1)
    return atoms


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's, of its own future
def test_forces_are_those_of_the_energy_and_can_be_relaxed(tmp_path: Path) -> None:
    atoms = salt()
    calculator, arguments = "chgnet.model.dynamics.CHGNetCalculator", {"use_device": "cpu"}
    with AseEngine(calculator, atoms, arguments=arguments) as engine:
        cell = atoms.cell.array
        found = engine.forces(atoms.positions + np.zeros((2, 1, 1)), cell)
        np.testing.assert_array_equal(*found)  # the calculator keeps results: they are the same
        # Energies have a noise of 1e-5 eV in single precision, and a step 0.02 A.
        step = 0.01
        for atom, axis in ((0, 0), (3, 1)):
            energies = []
            for sign in (1, -1):
                moved = atoms.positions.copy()
                moved[atom, axis] += sign * step
                energies.append(engine.evaluate(moved, cell)[0])
            slope = (energies[1] - energies[0]) / (2 * step)
            assert found[0, atom, axis] == pytest.approx(slope, abs=5e-3)
        noise = measure_noise(atoms, engine.calculator())
        assert 0.0 < noise < 2e-5
        atoms.calc = engine.calculator()
        relax(atoms, fmax_eV_A=1e-2)
        dynamics = Dynamics(300.0, timestep_fs=2.0)
        result = engine.run(Segment(tmp_path, State.of(atoms), dynamics, 10, 2))
    assert result.n_steps == 10
    assert 0.0 < np.abs(result.end.positions - atoms.positions).max() < 0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_other_models_of_the_package_are_other_potentials(tmp_path: Path) -> None:
    (tmp_path / "potential.py").write_text(MAKER)
    atoms = salt()
    forces = []
    for model in ("0.3.0", "r2scan"):
        with AseEngine(
            "potential.chgnet", atoms, arguments={"model": model}, directory=tmp_path
        ) as engine:
            forces.append(engine.evaluate(atoms.positions, atoms.cell.array)[1])
    assert 1e-3 < np.abs(forces[0] - forces[1]).max() < 1.0


@pytest.mark.filterwarnings("ignore")
def test_a_batch_has_the_numbers_of_one_after_another() -> None:
    atoms = salt()
    noise = np.random.default_rng(2).normal(scale=0.06, size=(5, len(atoms), 3))
    structures = atoms.positions + noise
    structures[2] += atoms.cell.array[0]  # outside the cell
    arguments = {"use_device": "cpu"}
    with AseEngine(
        "plumed_cv.engines.batches.chgnet", atoms, arguments=arguments, batch=2
    ) as engine:
        energies, forces = engine.evaluate_all(structures, atoms.cell.array)
        for k, structure in enumerate(structures):
            energy, own, _ = engine.evaluate(structure, atoms.cell.array)
            assert energies[k] == pytest.approx(energy, abs=1e-4)
            np.testing.assert_allclose(forces[k], own, atol=1e-4)
    assert np.ptp(energies) > 1e-2
