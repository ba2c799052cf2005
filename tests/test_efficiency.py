"""Comparison of bABF with other methods: each in a real engine, and the committed table."""

from pathlib import Path

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from plumed_cv import freeenergy
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable
from plumed_cv.paths.path import EnergyPath
from plumed_cv.setup.kernel import Plumed
from plumed_cv.structures.frame import displacements
from python.benchmarks import efficiency
from python.benchmarks import efficiency_methods as methods
from python.benchmarks.methods import babf, case, colvars, plumed_actions
from python.benchmarks.methods.case import GRID, KT, Setup
from python.references import common

from .conftest import unavailable

NOWHERE = np.zeros((127, 3))


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory, plugin: Path) -> Setup:
    """A straight path between the end states, which are not relaxed."""
    initial, final = common.end_states("paper")
    step = displacements(final.positions, initial.cell.array, initial.positions, initial.cell.array)
    images = []
    for xi in np.linspace(0, 1, 9):
        image = initial.copy()
        image.positions += xi * step
        energy = 0.6 * np.sin(np.pi * xi) ** 2
        image.calc = SinglePointCalculator(image, energy=energy, forces=NOWHERE)
        images.append(image)
    try:
        return Setup.make(EnergyPath(tuple(images)), tmp_path_factory.mktemp("efficiency"))
    except UserError as error:
        unavailable(str(error))
        raise


def parabola(xi: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 - 2.0 * (xi - 0.5) ** 2)


def test_the_profile_that_is_read_is_the_one_given() -> None:
    found = case.analyse_profile(parabola(GRID.nodes))
    # A cubic fit does not change a parabola, whose lowest node is the end of the grid.
    assert found.barrier.value == pytest.approx(2.0 * 0.6**2, abs=1e-9)
    assert found.A1_minus_A0.value == pytest.approx(0, abs=1e-9)


def test_nothing_is_read_off_a_profile_that_misses_the_product() -> None:
    A = np.where(GRID.nodes < 0.6, parabola(GRID.nodes), np.nan)
    assert np.isnan(case.read_barrier(A, 1.0).barrier_eV)


def test_weights_take_the_bias_off() -> None:
    rng = np.random.default_rng(1)
    xi = rng.uniform(-0.105, 1.105, 400_000)  # as under the bias -A
    A = plumed_actions.reweight(xi, -parabola(xi))
    # 3300 samples a bin, and the steepest bins are 0.024 eV wide.
    assert A - A[60] == pytest.approx(parabola(GRID.nodes) - 0.5, abs=6 * KT / 3300**0.5)


def test_interval_of_an_rms_holds_the_true_one_as_often_as_it_says() -> None:
    errors = np.random.default_rng(2).normal(size=(4000, 8))
    inside = [low < 1 < high for _, low, high in map(efficiency.rms, errors)]
    # 0.68, and 4000 trials have a standard error of 0.007.
    assert np.mean(inside) == pytest.approx(0.68, abs=0.03)


def test_prior_is_the_energy_of_the_path_and_rises_beyond_it(setup: Setup) -> None:
    model = CollectiveVariable.load(setup.model)
    A = case.interpolate_energy(model, setup.path)
    assert A[60] == pytest.approx(0.6, abs=1e-6)
    assert A[10] == pytest.approx(0, abs=1e-6)
    assert A[0] > 0.005
    assert A[-1] > 0.005


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_runs(
    method: str, setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Heavy-handed, so that so few steps lead across, and no bin stays empty.
    for module in (babf, plumed_actions):
        monkeypatch.setattr(module, "STRIDE", 1)
    monkeypatch.setattr(plumed_actions, "HEIGHT_EV", 0.5)
    monkeypatch.setattr(plumed_actions, "PACE", {"METAD": 20, "METAD-500": 20, "OPES": 20})
    for module in (colvars, plumed_actions):
        monkeypatch.setattr(module, "FULL_SAMPLES", 2)
    monkeypatch.setattr(babf, "PRIOR_SAMPLES", 1)
    # Each of eight walkers heats up on its own share.
    most = 48_000 if method == "bABF-walkers" else 12_000
    try:
        found = methods.measure(method, setup, tmp_path / "run", 1, (2000, most))
    except UserError as error:  # DRR needs boost
        unavailable(str(error))
        raise
    assert list(found) == ["2000", str(most)]
    for numbers in found.values():
        assert 0 < (numbers["deviation_A"] or 0) < 10
        assert numbers["us_per_step"]
    barrier, delta = (found[str(most)][name] for name in ("barrier_eV", "delta_F_eV"))
    assert barrier is not None
    assert delta is not None
    assert 0.01 < barrier < 5  # far from converged
    assert abs(delta) < 5


def test_the_prior_comes_into_the_bias(setup: Setup, tmp_path: Path) -> None:
    babf.run_babf_prior(setup, tmp_path, 1, (1000,))
    state = freeenergy.read_state(tmp_path / "1000" / "00" / "babf.state")
    energy = case.interpolate_energy(CollectiveVariable.load(setup.model), setup.path)
    assert state.prior == pytest.approx(
        freeenergy.prior_derivative(GRID, GRID.nodes, energy), abs=1e-9
    )
    assert state.tau == babf.PRIOR_SAMPLES


def test_colvars_has_the_same_variable(setup: Setup, tmp_path: Path) -> None:
    colvars.run_eabf(setup, tmp_path, 1, (200, 500))
    values, frames = colvars.read_frames(tmp_path)
    model = CollectiveVariable.load(setup.model)
    ours = [float(model.value(frame, setup.path.cell)[0]) for frame in frames]
    assert len(values) == 51
    assert np.ptp(values) > 1e-3
    assert values == pytest.approx(ours, abs=1e-9)


def test_actions_are_found_out(plumed_installation: Plumed) -> None:
    assert plumed_actions.has_action("METAD")
    assert not plumed_actions.has_action("NO_SUCH_ACTION")


def test_results_are_kept_and_read_again(tmp_path: Path) -> None:
    reference = {"barrier_eV": 0.5, "barrier_error_eV": 0.001}
    one, two = ({"100000": {"barrier_eV": barrier}} for barrier in (0.5, None))
    data = {"reference": reference, "runs": {"METAD": {"2": two, "1": one}, "bABF": {"1": one}}}
    efficiency.write_data(tmp_path / "data.json", data)
    assert efficiency.read_data(tmp_path / "data.json") == data
    assert efficiency.read_data(tmp_path / "none.json") == {"runs": {}}


@pytest.mark.committed
def test_the_reference_is_still_the_one_compared_with() -> None:
    used = efficiency.read_data()["reference"]
    barrier, error = case.read_truth()
    assert abs(barrier - used["barrier_eV"]) < 3 * np.hypot(error, used["barrier_error_eV"])
