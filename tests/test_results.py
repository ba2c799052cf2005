"""Results from given samples: both estimators, the choice between them, and steps."""

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from plumed_cv import freeenergy, workflow
from plumed_cv.freeenergy import Grid
from plumed_cv.workflow import estimates
from plumed_cv.workflow.rate_of_steps import shares_of_time
from tests.frozen import KT
from tests.test_babf_basins import Process, gaussians

MEAN_FORCE, HISTOGRAM = "mean force of the atoms", "histogram"
COLUMNS = ("node-0", "gradnorm", "invmass")
POOLED = "mean force of the atoms in all iterations"


def sampled(noise_eV: float, tilt_eV: float = 0.0) -> tuple[Process, workflow.Sampled]:
    """Three wells in 20 blocks of 400 independent samples, with the forces of the same samples.

    Parameters
    ----------
    noise_eV
        Standard deviation of the force along xi.
    tilt_eV
        What is added to it: a wrong force.
    """
    rng = np.random.default_rng(21)
    process = Process(
        gaussians([0.0, 0.5, 1.0], [8.0, 6.0, 9.0], [0.1, 0.08, 0.1]), grid=Grid(-0.25, 1.25, 75)
    )
    system = process.system()
    series = [system.sample(rng, 400) for _ in range(20)]
    fine = np.linspace(-0.4, 1.4, 20001)
    slope = np.gradient(process.free_energy(fine), fine)
    forces = [
        np.interp(x, fine, slope) + tilt_eV + noise_eV * rng.normal(size=len(x)) for x in series
    ]
    norms = [process.gradnorm(x) for x in series]
    columns: dict[str, list[NDArray[np.float64]]] = {
        "ae.node-0": series,
        "ae.gradnorm": norms,
        "ae.invmass": [norm**2 / 20.0 for norm in norms],
    }
    atoms = [
        freeenergy.bin_samples(process.grid, x, f) for x, f in zip(series, forces, strict=True)
    ]
    return process, workflow.Sampled([system.state(x) for x in series], atoms, columns)


def test_the_estimator_with_the_smaller_error_answers() -> None:
    """The mean force is more precise than the histogram if forces have little noise.

    Four errors from 20 blocks are exceeded once in a thousand.
    """
    for noise, expected in ((0.2, MEAN_FORCE), (20.0, HISTOGRAM)):
        process, found = sampled(noise)
        profile, result = workflow.analyse_samples(found)
        json.dumps(result, allow_nan=False)
        assert result["estimator"] == expected
        assert result["estimators_agree"] is True
        both = result["estimators"]
        errors = {name: both[name]["flux_barrier_error_eV"] for name in (MEAN_FORCE, HISTOGRAM)}
        assert min(errors, key=errors.__getitem__) == expected
        for key in ("flux_barrier_eV", "delta_F_eV", "delta_F_error_eV"):
            assert result[key] == both[expected][key]
        assert profile.delta_F.value == result["delta_F_eV"]
        exact = process.flux([process.system().exact()], [np.linspace(-0.249, 1.249, 4001)])
        assert abs(result["flux_barrier_eV"] - exact.barrier.value) < 4 * errors[expected]
        assert len(result["steps"]) == 2
        for step, truth in zip(result["steps"], exact.steps, strict=True):
            assert step["surface"] == pytest.approx(truth.surface, abs=0.06)
            for way in ("", "reverse_"):
                value, error = (step[f"{way}flux_barrier{e}_eV"] for e in ("", "_error"))
                right = getattr(truth, f"{way}flux_barrier").value
                assert abs(value - right) < 4 * error
                assert step[f"{way}rate_error_per_s"] > 0
                assert step[f"{way}rate_per_s"] > 0
        assert sum(result["populations"]) == pytest.approx(1.0)
        assert len(result["populations_error"]) == 3


def test_estimators_that_do_not_agree_say_so() -> None:
    """A force that is wrong by 0.1 eV everywhere raises the product by 0.1 eV."""
    _, found = sampled(0.2, tilt_eV=0.1)
    _, result = workflow.analyse_samples(found)
    off = [result["estimators"][name]["delta_F_eV"] for name in (MEAN_FORCE, HISTOGRAM)]
    assert off[0] - off[1] == pytest.approx(0.1, abs=0.02)
    assert result["estimators_agree"] is False


def with_earlier(found: workflow.Sampled, tilt_eV: float) -> workflow.Sampled:
    """The same with four times as many snapshots of an earlier iteration, off by a tilt."""
    _, more = sampled(0.2)
    assert more.mean_force is not None
    rng = np.random.default_rng(5)
    sums = []
    for number, force in more.mean_force:
        noise = 0.2 * np.sqrt(number / 4) * rng.normal(size=len(number))
        sums.append(4 * np.array([number, force + noise + tilt_eV * number]))
    return found._replace(earlier=freeenergy.Earlier(sums, [20], 4 * 8000))


def test_earlier_iterations_answer_if_they_agree() -> None:
    """Four times as many snapshots halve the error; with a force that is wrong they raise it."""
    _, found = sampled(0.4)
    _, alone = workflow.analyse_samples(found)
    _, result = workflow.analyse_samples(with_earlier(found, 0.0))
    assert alone["pooled_snapshots"] == 0
    assert result["estimator"] == POOLED
    assert result["pooled_snapshots"] == 32_000
    assert result["estimators_agree"] is True
    assert list(result["estimators"]) == [MEAN_FORCE, POOLED, HISTOGRAM]
    assert result["flux_barrier_error_eV"] < 0.9 * alone["flux_barrier_error_eV"]
    _, result = workflow.analyse_samples(with_earlier(found, 0.15))
    assert result["estimator"] != POOLED
    assert result["pooled_snapshots"] == 0
    errors = [result["estimators"][name]["delta_F_error_eV"] for name in (MEAN_FORCE, POOLED)]
    assert errors[1] > errors[0]  # what differs counts as an error


def test_estimators_are_compared_as_far_as_they_are_known() -> None:
    """The grid ends in the product's basin: delta F is unknown, the barrier is known."""
    _, found = sampled(0.2)
    kept = 64  # nodes: up to xi = 1.01
    grid = Grid(-0.25, -0.25 + (kept - 1) * 0.02, kept - 1)
    states = [
        replace(block, axes=(grid,), prior=block.prior[:kept], sums=block.sums[:, :kept])
        for block in found.blocks
    ]
    assert found.mean_force is not None
    short = workflow.Sampled(states, [part[:, :kept] for part in found.mean_force], found.series)
    _, result = workflow.analyse_samples(short)
    _, wrong = workflow.analyse_samples(
        short._replace(
            mean_force=[
                np.array([number, force + 0.5 * number]) for number, force in short.mean_force or []
            ]
        )
    )
    assert result["delta_F_eV"] is None
    assert result["flux_barrier_error_eV"] is not None
    assert result["estimators_agree"] is True
    assert wrong["estimators_agree"] is False
    # The populations are not known, but the times that the steps take are.
    _, whole = workflow.analyse_samples(found)
    assert result["populations"] == [None, None, None]
    assert sum(whole["populations"]) == pytest.approx(1.0)
    np.testing.assert_allclose(shares_of_time(result), shares_of_time(whole), atol=2e-3)
    times = [
        1.0 / (population * step["rate_per_s"])
        for population, step in zip(whole["populations"], whole["steps"], strict=False)
    ]
    np.testing.assert_allclose(shares_of_time(whole), np.array(times) / sum(times))
    assert workflow.surface_rate(result) == pytest.approx(workflow.surface_rate(whole), rel=0.2)


def test_what_is_missing_is_null_or_left_out() -> None:
    _, found = sampled(0.2)
    _, result = workflow.analyse_samples(found._replace(mean_force=None))
    assert result["estimator"] == HISTOGRAM
    assert list(result["estimators"]) == [HISTOGRAM]
    assert result["estimators_agree"] is None
    one = workflow.Sampled([sum(found.blocks[1:], found.blocks[0])], None, {})
    _, result = workflow.analyse_samples(one)
    assert "flux_barrier_eV" not in result
    assert workflow.summarise(result).startswith("barrier 0.")
    assert result["barrier_error_eV"] is None
    # Nothing beyond the first well: both say that they do not know.
    process = Process(gaussians([0.0, 1.0], [8.0, 9.0], [0.1, 0.1]))
    x = np.linspace(-0.2, 0.3, 2000)
    columns = {
        "ae.node-0": [x] * 4,
        "ae.gradnorm": [process.gradnorm(x)] * 4,
        "ae.invmass": [process.gradnorm(x) ** 2] * 4,
    }
    short = workflow.Sampled([process.system().state(x)] * 4, None, columns)
    _, result = workflow.analyse_samples(short)
    json.dumps(result, allow_nan=False)
    assert result["barrier_eV"] is result["flux_barrier_eV"] is result["delta_F_eV"] is None
    assert result["tst_rate_per_s"] is None
    assert result["steps"] == result["populations"] == []
    assert workflow.summarise(result) == "flux barrier unknown, barrier unknown, delta F unknown"


def test_few_crossings_widen_the_errors_of_a_histogram() -> None:
    """Student's t for the number of crossings; with one crossing, the error is unknown."""
    _, found = sampled(0.2)
    xi, gradnorm, invmass = (found.series[f"ae.{name}"] for name in COLUMNS)
    flux = freeenergy.estimate_flux(found.blocks, xi, gradnorm, invmass)
    ends = (flux.steps[0].reactant, flux.steps[-1].product)
    factors = []
    for crossings in (1, 2, 3, 10):
        there_and_back = np.resize(ends, crossings + 1)
        part = workflow.Sampled([found.blocks[0]], None, {"ae.node-0": [there_and_back]})
        factors.append(estimates.factor_of_few_crossings(part, None, (0.0, 1.0), flux))
    assert np.isnan(factors[0])
    assert factors[1:] == pytest.approx([6.48, 2.20, 1.154], rel=1e-2)
    one = workflow.Sampled(found.blocks[:2], None, {"ae.node-0": [np.zeros(1)] * 2})
    # Two walkers that never cross are two values less one.
    assert np.isnan(estimates.factor_of_few_crossings(one, [1, 1], (0.0, 1.0), flux))
    three = workflow.Sampled(found.blocks[:3], None, {"ae.node-0": [np.zeros(1)] * 3})
    assert estimates.factor_of_few_crossings(three, [1] * 3, (0.0, 1.0), flux) == factors[1]
    # Of this run, whose samples are independent, they are hardly wider, and the forces' not at all.
    answers = estimates.evaluate_estimators(found)
    assert answers[HISTOGRAM].flux.barrier.error == pytest.approx(flux.barrier.error, rel=1e-3)
    assert answers[HISTOGRAM].flux.barrier.error > flux.barrier.error


def test_walkers_change_errors_alone() -> None:
    _, found = sampled(0.2)
    numbers = [
        workflow.analyse_samples(found, walkers)[1] for walkers in (None, [10, 10], [1] * 20)
    ]
    for other in numbers[1:]:
        assert other["flux_barrier_eV"] == numbers[0]["flux_barrier_eV"]
    share = numbers[2]["flux_barrier_error_eV"] / KT
    assert 0 < share < 1
    assert numbers[2]["flux_barrier_error_eV"] <= numbers[0]["flux_barrier_error_eV"] * (1 + 1e-9)
