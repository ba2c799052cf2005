"""The reference estimator and its profiles against analytic answers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from plumed_cv.cli import app
from plumed_cv.common.errors import UserError
from plumed_cv.freeenergy import (
    Estimator,
    Grid,
    State,
    estimate_profile,
    reweight_profile,
    split_into_blocks,
    write_state,
)
from plumed_cv.workflow import analyse_states
from tests.frozen import KT, WIDE, Array, Frozen, correlated_blocks, double_well


@pytest.mark.parametrize("stiffness", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("height_kT", [5.0, 20.0])
def test_exact_sums_give_the_analytic_profile(stiffness: float, height_kT: float) -> None:
    """Without noise, the error is that of the grid: dz^2/8 times the change of A''."""
    U = double_well(height_kT)
    kappa = stiffness * KT / WIDE.spacing**2
    system = Frozen(WIDE, U, lambda x: 0.9 * U(x), kappa)
    found = estimate_profile([system.exact()])
    assert found.barrier.value == pytest.approx(height_kT * KT, abs=0.015 * KT)
    assert found.A1_minus_A0.value == pytest.approx(0.0, abs=1e-6 * KT)
    assert found.delta_F.value == pytest.approx(0.0, abs=1e-6 * KT)
    interior = slice(5, -5)
    deviation = found.A - U(found.xi)
    assert np.ptp(deviation[interior]) < 0.04 * KT
    # The end bins are half cut off by the wall.
    assert np.ptp(deviation) < 0.25 * KT
    # A_k is the convolution with the spring's Gaussian, up to and including the end nodes.
    x = np.linspace(-0.6, 1.6, 10001)
    spring = 0.5 * kappa * (x - WIDE.nodes[:, None]) ** 2
    convolved = -KT * np.log(np.exp(-(U(x) + spring) / KT).sum(axis=1))
    assert np.ptp(found.A_k - convolved) < 0.02 * KT


def test_exact_sums_on_a_periodic_cv() -> None:
    grid = Grid(-np.pi, np.pi, 100, periodic=True)

    def U(x: Array) -> Array:  # noqa: N802
        return np.asarray(KT * (5 * np.cos(x) + 2 * np.sin(2 * x)))

    found = estimate_profile([Frozen(grid, U, lambda x: 0.8 * U(x)).exact()], states=(-1.5, 1.5))
    assert np.ptp(found.A - U(found.xi)) < 0.02 * KT
    assert np.ptp(found.A_k - U(found.xi)) < 0.3 * KT


def test_a_gap_in_a_circle_takes_what_is_left_after_a_turn() -> None:
    """Half of a circle has samples and climbs by 5 kT: A climbs as they say, and falls elsewhere.

    Even steps all around, as on a circle where all is known, would leave half of it.
    """
    grid = Grid(0.0, 2.0, 40, periodic=True)
    sums = np.zeros((4, 40))
    sums[0, :20] = 500.0
    sums[1] = 5 * KT * sums[0]  # a slope of 5 kT
    kappa = KT / grid.spacing**2
    state = State(("xi",), (grid,), KT, (kappa,), 0.01, 0, np.zeros(40), 10000, sums)
    A = state.energy()
    assert A[0] == 0.0
    assert A[19] == pytest.approx(0.95 * 5 * KT, rel=1e-3)
    assert A[39] == pytest.approx(0.0, abs=0.5 * KT)
    frozen = replace(state, tau=np.inf, prior=state.derivative())
    assert frozen.energy()[19] == pytest.approx(0.5 * 0.95 * 5 * KT, rel=0.1)


def test_adaptive_estimator_fills_a_well() -> None:
    """Samples drawn from the present bias: Eq. 7 converges to the profile.

    20000 independent samples in 30 bins: an error of about 0.04 kT at a node, and a tolerance of
    four times that for 31 nodes.
    """
    rng = np.random.default_rng(1)
    grid = Grid(0.0, 1.0, 30)
    U = double_well(6.0)
    estimator = Estimator(grid, KT, ramp=4000)
    fine = np.linspace(-0.15, 1.15, 400)
    early = estimator.state
    for step in range(22000):
        if step % 200 == 0:
            now = Frozen(grid, U, lambda x: estimator.state.energy())
            total = np.exp(-(U(fine) + now.bias(fine)) / KT)
            cumulative = np.cumsum(total) / total.sum()
        estimator.learn(float(np.interp(rng.random(), cumulative, fine)))
        if step == 2000:
            early = estimator.state
    found = estimate_profile([estimator.state - early])
    deviation = found.A - U(found.xi)
    assert np.abs(deviation - deviation.mean())[1:-1].max() < 0.16 * KT


@pytest.mark.parametrize("periodic", [False, True])
def test_force_is_the_derivative_of_the_bias(periodic: bool) -> None:
    rng = np.random.default_rng(2)
    grid = Grid(-1.0, 2.0, 40, periodic)
    estimator = Estimator(grid, KT, ramp=30)
    for xi in rng.uniform(-1.02, 2.02, size=200):
        estimator.learn(xi)
    for xi in [-1.2, -1.0, 0.03, 1.99999, 2.1]:
        h = 1e-6
        slope = (estimator.evaluate(xi + h).bias_eV - estimator.evaluate(xi - h).bias_eV) / (2 * h)
        now = estimator.evaluate(xi)
        assert now.force_eV == pytest.approx(-slope, rel=1e-6, abs=1e-7)
        assert now.probability.sum() == pytest.approx(1.0, abs=1e-14)


def test_a_sample_far_outside_teaches_nothing() -> None:
    estimator = Estimator(Grid(0.0, 1.0, 50), KT)
    estimator.learn(5.0)
    assert estimator.state.steps == 1
    assert not estimator.state.sums.any()


def test_default_tau_is_the_weight_of_twenty_samples() -> None:
    grid = Grid(0.0, 1.0, 10)
    assert Estimator(grid, KT).state.tau == 20
    assert Estimator(grid, KT, ramp=100000).state.tau == pytest.approx(210e-5)
    assert Estimator(grid, KT, ramp=10).state.tau == pytest.approx(15.5)
    assert Estimator(grid, KT).state.kappa_eV == pytest.approx(100 * KT)


def test_states_add_and_subtract() -> None:
    rng = np.random.default_rng(3)
    estimator = Estimator(Grid(0.0, 1.0, 20), KT, ramp=50)
    states = [estimator.state]
    for _ in range(3):
        for xi in rng.uniform(0, 1, 40):
            estimator.learn(xi)
        states.append(estimator.state)
    first, second, third = split_into_blocks(states[1:])
    together = first + second + third
    assert together.steps == 120
    np.testing.assert_allclose(together.sums, states[-1].sums, rtol=1e-12, atol=1e-14)
    with pytest.raises(UserError, match="in their order"):
        _ = states[1] - states[2]
    with pytest.raises(UserError, match="differ in kT_eV"):
        _ = states[1] + replace(states[1], kT_eV=2 * KT)
    with pytest.raises(UserError, match="differ in grid"):
        estimate_profile([states[1], Estimator(Grid(0.0, 1.0, 21), KT).state])
    with pytest.raises(UserError, match="at least one state"):
        estimate_profile([])


def test_empty_bins_stay_empty() -> None:
    system = Frozen(WIDE, double_well(2.0), double_well(2.0))
    parts = [system.state(np.array([0.0, 0.01, 0.02])), system.state(np.array([0.3, 0.31, 0.01]))]
    found = estimate_profile(parts)
    visited = WIDE.bin(np.array([0.0, 0.01, 0.02, 0.3, 0.31]))
    assert set(np.flatnonzero(np.isfinite(found.A))) == set(visited)
    # Visited in both blocks; the others live by one block alone.
    assert np.isfinite(found.A_error[visited[1]])
    assert np.isnan(found.A_error[visited[3]])
    assert np.isnan([found.delta_F.value, found.A1_minus_A0.value]).all()
    assert np.isnan(found.barrier.value)  # the product was not reached: the top is not known


def test_fes_names_the_keys_for_a_cv_in_other_units(tmp_path: Path) -> None:
    """The states of a distance are at 2.5 and 3.5, not at 0 and 1."""
    system = Frozen(
        Grid(2.3, 3.7, 140),
        lambda x: double_well(3.0)(x - 2.5),
        lambda x: double_well(3.0)(x - 2.5),
    )
    rng = np.random.default_rng(2)
    states = [str(tmp_path / f"{k}.state") for k in range(8)]
    for state in states:
        write_state(Path(state), system.state(system.sample(rng, 20_000)))
    line = ["fes", *states, "--walkers", "-o", str(tmp_path / "fes.dat")]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    assert "not sampled from 0 to 1" in " ".join(done.stderr.split())
    assert "--reactant and --product" in " ".join(done.stderr.split())
    done = CliRunner().invoke(app, [*line, "--reactant", "2.5", "--product", "3.5", "--json"])
    assert done.stderr == ""
    # The histogram of 160 000 samples has some 0.02 kT.
    assert json.loads(done.stdout)["barrier_eV"] == pytest.approx(3.0 * KT, abs=0.2 * KT)


def test_unknown_errors_have_a_reason_and_a_remedy(tmp_path: Path) -> None:
    """One state, a copy, a run that adds nothing, states in the wrong order or of several runs."""
    system = Frozen(WIDE, double_well(3.0), double_well(3.0))
    rng = np.random.default_rng(5)
    first = system.state(system.sample(rng, 20_000))
    later = first + system.state(system.sample(rng, 20_000))
    left = later + system.state(rng.uniform(-0.05, 0.05, 100))  # none is near the product
    files = {}
    for name, state in (("1", first), ("2", later), ("copy", later), ("3", left)):
        files[name] = tmp_path / name / "babf.state"
        files[name].parent.mkdir()
        write_state(files[name], state)

    def said(*names: str, options: tuple[str, ...] = ()) -> str:
        line = ["fes", *(str(files[name]) for name in names), *options]
        done = CliRunner().invoke(app, [*line, "-o", str(tmp_path / "fes.dat")])
        return " ".join(done.stderr.split()) + str(done.exception or "")

    assert said("1", "2") == ""
    single = said("1")
    assert f"{files['1']}: the errors are unknown, because they need several states" in single
    assert "STORE_STATES" in single
    assert "--walkers" in single
    one_sided = said("2", "3")
    assert f"{files['2']}: the errors are unknown" in one_sided
    assert "without this state do not reach both end states" in one_sided
    for options in ((), ("--walkers",)):
        assert said("2", "copy", options=options) == (
            f"{files['copy']}: is the same state as {files['2']}; give each state once."
        )
    swapped = said("2", "1")
    assert swapped.startswith(f"{files['1']}, after {files['2']}: ")
    assert "--walkers" in swapped
    assert "error_note" in analyse_states([files["1"]]).numbers
    assert str(analyse_states(files["1"]).note).startswith(str(files["1"]))
    assert analyse_states([files["1"], files["2"]]).note is None


def test_a_process_that_only_climbs_has_a_barrier() -> None:
    """A maximum at the product counts as a barrier if the product was reached."""
    system = Frozen(WIDE, lambda x: 4 * KT * np.abs(x), lambda x: 4 * KT * np.abs(x))
    rng = np.random.default_rng(2)
    found = estimate_profile([system.state(system.sample(rng, 20_000)) for _ in range(8)])
    # The local cubic rounds off the kink at 0; the histogram has some 0.02 kT.
    assert found.barrier.value == pytest.approx(4 * KT, abs=0.3 * KT)
    assert 0.0 < found.barrier.error < 0.1 * KT


def test_reweighting_and_mean_force_agree() -> None:
    """Two estimates from one frozen run, each with its error: 30 nodes within 4 errors.

    One node in 16000 would be further away; errors from 10 groups make that one in a few hundred.
    """
    rng = np.random.default_rng(6)
    U = double_well(5.0)
    system = Frozen(Grid(-0.2, 1.2, 28), U, lambda x: 0.8 * U(x))
    series = correlated_blocks(system, rng, 20, 4000, 0.5)
    found = estimate_profile([system.state(x) for x in series])
    A, error = reweight_profile(system.grid, KT, series, [system.bias(x) for x in series])
    inner = slice(3, -3)
    difference = (found.A - A)[inner]
    difference -= difference.mean()
    tolerance = 4 * np.hypot(found.A_error, error)[inner] + 0.02 * KT  # bins of 0.05
    assert (np.abs(difference) < tolerance).all()
    j = system.grid.bin(system.x)
    truth = -KT * np.log(np.bincount(j[j >= 0], np.exp(-U(system.x) / KT)[j >= 0]))
    assert (np.abs((A - truth)[inner] - np.mean((A - truth)[inner])) < 4 * error[inner]).all()
