"""More work for the events that matter most: cheapest factors, and a campaign with an aim."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from scipy.optimize import minimize

from plumed_cv import workflow
from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import Callback
from plumed_cv.events import find_jumps, read_catalogue
from plumed_cv.workflow.allocation import cheapest_factors, compute_errors, raise_work, round_up
from plumed_cv.workflow.campaign import write_rates
from tests import vacancy
from tests.test_diffusion import catalogue, interstitials


@pytest.mark.parametrize("seed", range(20))
def test_no_cheaper_factors(seed: int) -> None:
    """A general optimiser finds the same cost."""
    rng = np.random.default_rng(seed)
    variances, costs = np.exp(rng.normal(0.0, 2.0, (2, 5)))
    aim = rng.uniform(0.05, 0.95) * variances.sum()
    factors = cheapest_factors(variances, costs, aim)
    assert factors.min() >= 1.0
    assert (variances / factors).sum() == pytest.approx(aim)
    peer = minimize(
        lambda x: np.log(costs @ np.exp(x)),
        np.full(5, np.log(variances.sum() / aim)),
        bounds=[(0.0, None)] * 5,
        constraints={"type": "ineq", "fun": lambda x: 1.0 - (variances * np.exp(-x)).sum() / aim},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert np.log(costs @ factors) <= peer.fun + 1e-6


def test_nothing_to_do() -> None:
    assert cheapest_factors(np.array([0.1, 0.2]), np.ones(2), 0.4).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("number", "rounded"), [(7.0, 7), (149_000.0, 150_000), (1e6, 10**6)])
def test_round_up(number: float, rounded: int) -> None:
    assert round_up(number) == rounded


def result(kelvin: float, steps: int, **more: Any) -> dict[str, Any]:
    """The part of result.json that a campaign reads: the rate has an error of a factor 1.3."""
    kT = 8.617e-5 * kelvin
    return {
        "temperature_K": kelvin,
        "converged": True,
        "tst_rate_per_s": 2e10,
        "tst_rate_error_per_s": 0.2 * 2e10,
        "rate_per_s": 1e10,
        "rate_error_factor": float(np.exp(np.hypot(0.2, 0.1))),
        "transmission": 0.5,
        "delta_F_eV": 2.0 * kT,
        "delta_F_error_eV": 0.15 * kT,
        "iterations": [{"md_steps": steps}] * 2,
        "rate": {"md_steps": 40_000},
        **more,
    }


def test_parts_of_the_error(tmp_path: Path) -> None:
    """They add up to the variance of ln D; what is raised is what costs least."""
    catalogue(tmp_path, interstitials(bulk("Cu", "fcc", a=3.6)), "interstitial")
    run = tmp_path / "e0" / "run"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(result(600.0, 100_000)))
    text = vacancy.SYSTEM + vacancy.QUICK + "[sampling]\nsteps = 100_000\n"
    vacancy.write(tmp_path / "e0", text, "input.toml")
    found = read_catalogue(tmp_path)
    write_rates(found, {})
    ((error, parts),) = compute_errors(found).values()
    (row,) = workflow.compute_diffusion(tmp_path)["temperatures"]
    assert error == pytest.approx(np.log(row["error_factor"]))
    of_steps, of_shots = parts
    assert (of_steps.work, of_steps.cost) == ("steps", 200_000)
    assert (of_shots.work, of_shots.cost) == ("shots", 40_000)
    assert of_shots.variance / error**2 == pytest.approx(
        row["rates"][0]["share_of_variance"] * 0.1**2 / (0.2**2 + 0.1**2)
    )
    said: list[str] = []
    reporter = Callback(lambda *_: None)
    reporter.say = said.append  # type: ignore[assignment,method-assign]
    assert raise_work(found, 0.5, reporter) == set()
    assert raise_work(found, 0.15, reporter) == {"e0"}
    assert said[0] == f"600 K: relative error {np.expm1(error):.2g} (aim: 0.5)"
    written = tomllib.loads((tmp_path / "e0" / "input.toml").read_text())
    assert 150_000 <= written["sampling"]["steps"] <= 400_000
    assert 0.05 <= written["rate"]["error"] < 0.1
    # Also an error that is hardly too large is.
    assert raise_work(found, 0.99 * np.expm1(error), reporter) == {"e0"}


def test_no_rate_with_an_error(tmp_path: Path) -> None:
    catalogue(tmp_path, interstitials(bulk("Cu", "fcc", a=3.6)), "interstitial")
    found = read_catalogue(tmp_path)
    write_rates(found, {"e0": "the path did not converge"})
    with pytest.raises(UserError, match=r"there is no temperature .* the failures in rates.json"):
        raise_work(found, 0.5, Callback(lambda *_: None))


@pytest.mark.slow
def test_a_campaign_with_an_aim(plugin: Path, tmp_path: Path) -> None:
    """Steps are raised until the diffusion coefficient has the error that was asked for."""
    bulk("Fe", "bcc", a=2.8553).write(tmp_path / "fe.cif")
    text = vacancy.INPUT.replace('initial = "initial.xyz"\nfinal = "final.xyz"\n', "")
    text = text.replace("maximum = 2", "minimum = 1\nmaximum = 1") + "[rate]\nenabled = false\n"
    (tmp_path / "fe.toml").write_text(text)
    folder = tmp_path / "cat"
    find_jumps(tmp_path / "fe.cif", tmp_path / "fe.toml", folder, species="Fe", width_A=8.0)
    workflow.run_campaign(folder)
    first = workflow.compute_diffusion(folder)["temperatures"][0]
    aim = 0.6 * np.expm1(np.log(first["error_factor"]))
    workflow.run_campaign(folder, error=aim)
    last = workflow.compute_diffusion(folder)["temperatures"][0]
    assert np.log(last["error_factor"]) <= np.log1p(aim)
    written = tomllib.loads((folder / "Fe-vacancy-1" / "input.toml").read_text())
    assert written["sampling"]["steps"] > vacancy.STEPS
    before = (folder / "Fe-vacancy-1" / "input.toml").read_bytes()
    workflow.run_campaign(folder, error=aim)
    assert (folder / "Fe-vacancy-1" / "input.toml").read_bytes() == before
    assert workflow.compute_diffusion(folder)["temperatures"][0] == last
