"""Minimum energy path: an analytic one, samples with noise, and files."""

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator

from plumed_cv.errors import UserError
from plumed_cv.path import EnergyPath, check_end_states, load_path, minimum_energy_path

CURVATURE, HEIGHT, SPRING = 0.6, 0.5, 3.0


class CurvedValley(Calculator):
    """Two atoms; their separation (x, y, z) moves in a double well along the arc y = c (1 - x^2).

    The path from (-1, 0, 0) to (1, 0, 0) has its saddle point at (0, c, 0), HEIGHT eV up.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        x, y, z = atoms.positions[1] - atoms.positions[0] - [5.0, 0.0, 0.0]
        off = y - CURVATURE * (1 - x**2)
        energy = HEIGHT * (1 - x**2) ** 2 + 0.5 * SPRING * (off**2 + z**2)
        slope = np.array(
            [-4 * HEIGHT * x * (1 - x**2) + SPRING * off * 2 * CURVATURE * x, SPRING * off]
        )
        gradient = np.array([*slope, SPRING * z])
        self.results = {"energy": energy, "forces": np.stack([gradient, -gradient])}


def pair(x: float, y: float, z: float) -> Atoms:
    return Atoms("H2", positions=[[0, 0, 0], [5 + x, y, z]])


@pytest.fixture(scope="module")
def valley() -> EnergyPath:
    return minimum_energy_path(pair(-0.9, 0.1, 0.1), pair(0.8, 0.0, -0.1), CurvedValley, 15)


def test_barrier_and_shape_are_the_analytic_ones(valley: EnergyPath) -> None:
    assert valley.barrier == pytest.approx(HEIGHT, abs=1e-5)
    assert valley.energies[[0, -1]] == pytest.approx([0, 0], abs=1e-5)
    top = valley.images[int(np.argmax(valley.energies))]
    saddle = top.positions[1] - top.positions[0] - [5, 0, 0]
    np.testing.assert_allclose(saddle, [0, CURVATURE, 0], atol=1e-3)
    # On a minimum energy path the forces are along the path.
    tangents = valley.spline.derivative()(valley.arc_length)
    tangents /= np.linalg.norm(tangents, axis=(1, 2), keepdims=True)
    forces = np.stack([image.get_forces() for image in valley.images])
    along = np.sum(forces * tangents, axis=(1, 2), keepdims=True) * tangents
    # Between knots 0.2 A apart the spline's tangent is off by some hundredths of a radian.
    assert np.abs(forces - along).max() < 0.1 * np.abs(along).max()


def test_noise_has_its_variance_and_keeps_centre_and_tangent(valley: EnergyPath) -> None:
    variance, n = 0.005, 20_000
    samples = valley.noisy_samples(n, variance, np.random.default_rng(1)).astype(np.float64)
    at = np.linspace(0, 1, n)
    noise = samples - valley.spline(at)
    np.testing.assert_allclose(noise.mean(axis=1), 0, atol=1e-6)
    tangent = valley.spline.derivative()(at)
    tangent /= np.linalg.norm(tangent, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(np.sum(noise * tangent, axis=(1, 2)), 0, atol=1e-6)
    # Of 6 coordinates 2 are left; relative error sqrt(2 / 2n) = 0.7 %, five of them allowed:
    # odds of failing below 1e-6.
    assert np.sum(noise**2) / n == pytest.approx(2 * variance, rel=0.035)


def test_file_keeps_energies_and_forces(valley: EnergyPath, tmp_path: Path) -> None:
    file = tmp_path / "path.xyz"
    valley.save(file)
    read = load_path(file)
    np.testing.assert_allclose(read.energies, valley.energies, atol=1e-7)
    np.testing.assert_allclose(read.displacements, valley.displacements, atol=1e-7)
    assert read.species == ("H", "H")


def test_paths_that_are_none(valley: EnergyPath, tmp_path: Path) -> None:
    file = tmp_path / "path.xyz"
    with pytest.raises(UserError, match="does not exist"):
        load_path(file)
    file.write_text("not a structure")
    with pytest.raises(UserError, match="ASE cannot read"):
        load_path(file)
    ase.io.write(file, list(valley.images[:2]))
    with pytest.raises(UserError, match="three or more"):
        load_path(file)
    ase.io.write(file, [pair(0, 0, 0)] * 3)
    with pytest.raises(UserError, match="image 0 has no energy"):
        load_path(file)
    other = Atoms("HO", positions=[[0, 0, 0], [5, 0, 0]])
    other.calc = SinglePointCalculator(other, energy=0.0, forces=np.zeros((2, 3)))
    ase.io.write(file, [*valley.images[:3], other])
    with pytest.raises(UserError, match="image 3 has other atoms"):
        load_path(file)


def test_end_states_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="2 atoms and the final state 3"):
        check_end_states(pair(0, 0, 0), Atoms("H3", positions=np.eye(3)))
    with pytest.raises(UserError, match="Atom 2 is H in the initial and O"):
        check_end_states(pair(0, 0, 0), Atoms("HO", positions=np.eye(3)[:2]))
    boxed = pair(0, 0, 0)
    boxed.set_cell([9, 9, 9])
    boxed.pbc = True
    with pytest.raises(UserError, match="different cells"):
        check_end_states(boxed, pair(0, 0, 0))
    with pytest.raises(UserError, match="relax to the same structure"):
        minimum_energy_path(pair(-0.9, 0.1, 0), pair(-0.8, 0, 0), CurvedValley, 7)
    with pytest.raises(UserError, match="did not converge"):
        minimum_energy_path(pair(-0.9, 0.1, 0), pair(0.8, 0, 0), CurvedValley, 7, max_steps=2)
