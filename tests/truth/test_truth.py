"""`plumed-cv run` on model systems with answers by quadrature (docs/truth.md)."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units

from plumed_cv import input_file, workflow
from plumed_cv.cv import CollectiveVariable, linear
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.structures import cell_of
from tests.truth.comparison import comparisons
from tests.truth.landscape import LANDSCAPES, OnLandscape, lammps_commands
from tests.truth.models import MODELS, QUANTITIES, Model, exact
from tests.vacancy import called

FAST = ("LAMMPS",)
LARGEST_ERROR_EV = 0.04  # of the flux barrier: a result that says nothing is no success


def between(initial: Atoms, final: Atoms) -> CollectiveVariable:
    cell = cell_of(initial)
    return linear(initial.get_chemical_symbols(), cell, initial.positions, final.positions)


@pytest.mark.parametrize("name", LANDSCAPES)
def test_forces_are_those_of_the_energy(name: str) -> None:
    landscape = LANDSCAPES[name]
    rng = np.random.default_rng(1)
    for s in rng.uniform(-0.2, 1.2, size=3) * landscape.length:
        atoms = landscape.state(s)
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        atoms.positions += [3.0, -2.0, 1.0]
        atoms.calc = OnLandscape(name)
        forces, step = atoms.get_forces(), 1e-5
        numerical = np.zeros_like(forces)
        for place in np.ndindex(*forces.shape):
            energies = []
            for sign in (1, -1):
                moved = atoms.positions.copy()
                moved[place] += sign * step
                energies.append(landscape.energy_and_forces(moved)[0])
            numerical[place] = (energies[1] - energies[0]) / (2 * step)
        np.testing.assert_allclose(forces, numerical, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in LANDSCAPES if name.startswith("three atoms")])
def test_formulas_of_lammps_are_the_landscape(name: str) -> None:
    landscape = LANDSCAPES[name]
    atoms, rng = landscape.state(0.0), np.random.default_rng(2)
    with LammpsEngine(lammps_commands(name), atoms) as engine:
        for s in (-0.3, 1.0, 2.7):
            positions = landscape.state(s).positions + rng.normal(scale=0.2, size=(3, 3)) + 20.0
            energy, forces, _ = engine.evaluate(positions, atoms.cell.array)
            expected = landscape.energy_and_forces(positions)
            assert energy == pytest.approx(expected[0], abs=1e-11)
            np.testing.assert_allclose(forces, expected[1], atol=1e-11)


@pytest.mark.parametrize("name", ["asymmetric", "three wells"])
def test_quadrature_along_the_path_itself(name: str) -> None:
    """Where the CV is s, A(s) = V1 + m/2 kT ln k is known in closed form."""
    model = MODELS[name]
    potential, kT = model.potential, model.kT_eV
    variable = between(potential.state(0.0), potential.state(potential.length))
    along = exact(model, variable)
    s = np.linspace(-0.5, 1.5, 40_001) * potential.length
    step = s[1] - s[0]
    A = model.free_energy(s)
    inside = (s >= 0.0) & (s <= potential.length)
    assert along.A1_minus_A0[0] == pytest.approx(A[inside][-1] - A[inside][0], abs=1e-4)
    assert along.barrier[0] == pytest.approx(A[inside].max() - A[s < 0.5].min(), abs=1e-4)
    tops = [k for k in np.flatnonzero(inside) if A[k] > max(A[k - 1], A[k + 1])]
    populations = [step * part.sum() for part in np.split(np.exp(-A / kT), tops)]
    flux_barrier = A[inside].max() + kT * np.log(populations[0])
    assert along.flux_barrier[0] == pytest.approx(flux_barrier, abs=1e-4)
    delta_F = -kT * np.log(populations[-1] / populations[0])
    assert along.delta_F[0] == pytest.approx(delta_F, abs=1e-4)
    # s moves with the thermal speed sqrt(kT sum b^2/m), of which sqrt(1/2 pi) goes forwards.
    square = potential.basis[0].reshape(-1, 3) ** 2
    speed = np.sqrt(kT / (2 * np.pi) * (square.sum(axis=1) / variable.masses).sum())
    over = [speed * np.exp(-A[top] / kT) * units.second for top in tops]
    rate = over[0] / populations[0]
    if name == "three wells":  # steady current from the first basin to an empty third one
        back, on = over[0] / populations[1], over[1] / populations[1]
        rate *= on / (back + on)
    assert along.tst_rate[0] == pytest.approx(rate, rel=3e-3)


def test_quadrature_across_the_path() -> None:
    """A CV tilted by y_1: exp(-A/kT) is the convolution of those of s and of a Gaussian."""
    model = Model("straight", "three atoms")
    potential, kT = model.potential, model.kT_eV
    length, tilt = potential.length, 0.8
    final = potential.state(0.0)
    final.positions = potential.positions(np.array([length, tilt, *np.zeros(4)]))
    along = exact(model, between(potential.state(0.0), final))
    square = length**2 + tilt**2
    s = np.linspace(-2.0, 2.0 + length, 4001)
    xi = np.linspace(-0.3, 1.3, 3201)
    sigma = np.sqrt(kT / potential.stiffness) * tilt / square
    kernel = np.exp(-0.5 * ((xi[:, None] - s * length / square) / sigma) ** 2) / sigma
    rho = kernel @ np.exp(-potential.energy_along(s) / kT)
    A = -kT * np.log(rho)
    inside = (xi > 0) & (xi < 1)
    barrier = A[inside].max() - A[xi < 0.5].min()
    assert along.barrier[0] == pytest.approx(barrier, abs=5e-4)
    assert along.A1_minus_A0[0] == pytest.approx(A[xi >= 1][0] - A[xi >= 0][0], abs=5e-4)
    before = np.cumsum(rho) * (xi[1] - xi[0])
    # |grad xi| is 1/sqrt(length^2 + tilt^2).
    flux = np.max(-kT * np.log(rho[inside] / before[inside] / np.sqrt(square)))
    assert along.flux_barrier[0] == pytest.approx(flux, abs=5e-4)


# The largest deviation of the mean force was 3.4 errors among 320 values (docs/truth.md), that of
# the histogram 4.2 among 339, and values of one run are correlated. At 4.0 one set of runs in 30
# would fail on a processor that rounds differently.
LARGEST_DEVIATION = 5.0


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_results_are_right_within_their_errors(name: str, plugin: Path, tmp_path: Path) -> None:
    model = MODELS[name]
    file = model.write(tmp_path / "model", seed=1)
    result = workflow.run(input_file.load(file), tmp_path / "model" / "run")
    assert len(result["iterations"]) == 2
    assert result["flux_barrier_error_eV"] < LARGEST_ERROR_EV
    found = list(comparisons(model, tmp_path / "model" / "run"))
    for one in found:
        if one.value is not None and one.error is not None:
            assert abs(one.deviation) < LARGEST_DEVIATION, one
    keys = [f"{q}_per_s" if q == "tst_rate" else f"{q}_eV" for q in QUANTITIES]
    for part in result["iterations"]:
        of_run = [
            one.value
            for one in found
            if (one.iteration, one.estimator) == (part["iteration"], part["estimator"])
        ]
        assert of_run == [part[key] for key in keys]
        assert None not in of_run


def test_histogram_alone_by_the_command_line(plugin: Path, tmp_path: Path) -> None:
    model = replace(MODELS["LAMMPS"], mean_force=False)
    file = model.write(tmp_path / "model", seed=2)
    file.write_text(file.read_text().replace("maximum = 2", "maximum = 1\nminimum = 1"))
    done = called("run", file, "--dir", tmp_path / "model" / "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["estimator"] == "histogram"
    for one in comparisons(model, tmp_path / "model" / "run"):
        assert one.error is None or abs(one.deviation) < LARGEST_DEVIATION, one
