"""The rate of a process from the transmission coefficients of its steps."""

from typing import Any

import numpy as np

from plumed_cv import input_file, rates
from plumed_cv.structures.frame import Array
from plumed_cv.workflow.keys import or_none, relative_populations
from plumed_cv.workflow.results import UNKNOWN_RATE

UNRESOLVED = 0.05  # fraction of trajectories above which the rate is doubtful


def shares_of_time(result: dict[str, Any]) -> Array:
    """Fraction of the total time that each step takes, by transition state theory.

    Parameters
    ----------
    result
        The contents of result.json.

    Returns
    -------
    (number of steps,)
    """
    steps = result["steps"]
    populations = relative_populations(steps)
    assert populations is not None  # the rate of the whole would be unknown, too
    times = 1.0 / (populations * [step["rate_per_s"] for step in steps])
    return np.asarray(times / times.sum())


def combine_steps(
    result: dict[str, Any], found: list[rates.Transmission], shares: Array, kT_eV: float
) -> dict[str, Any]:
    """Return the rate from transition state theory and the transmission coefficients.

    Parameters
    ----------
    result
        The contents of result.json.
    found
        The transmission coefficient of each step.
    shares
        Result of `shares_of_time`.
    kT_eV
        Temperature, eV.

    Returns
    -------
    The keys of result.json with the rate and the steps; what is unknown is None.
    """
    kappa = np.array([each.kappa.value for each in found])
    errors = np.array([each.kappa.error for each in found])
    bound, of_bound = (result[f"tst_rate{key}_per_s"] for key in ("", "_error"))
    rate = dict(UNKNOWN_RATE)
    rate["steps"] = [
        step | {"transmission": or_none(value), "transmission_error": or_none(error)}
        for step, value, error in zip(result["steps"], kappa, errors, strict=True)
    ]
    if not (kappa > 0).all():
        return rate
    times = shares / kappa
    transmission = 1.0 / times.sum()
    relative = float(np.sqrt(np.sum((times * transmission * errors / kappa) ** 2)))
    rate["transmission"] = float(transmission)
    rate["transmission_error"] = or_none(transmission * relative)
    rate["rate_per_s"] = float(transmission * bound)
    rate["rate_error_factor"] = factor_of(relative, of_bound and of_bound / bound)
    back, of_back = _reverse(result, kT_eV)
    if back is not None:
        rate["reverse_rate_per_s"] = float(transmission * back)
        rate["reverse_rate_error_factor"] = factor_of(relative, of_back)
    return rate


def find_doubts(
    rate: dict[str, Any], found: list[rates.Transmission], settings: input_file.Rate
) -> str | None:
    """Return why a rate is doubtful or unknown, or None.

    Parameters
    ----------
    rate
        Result of `combine_steps`.
    found
        The transmission coefficient of each step.
    settings
        The section [rate] of the input.
    """
    value, error = rate["transmission"], rate["transmission_error"]
    is_precise = bool(value and error is not None and error <= settings.error * value)
    notes = []
    for k, each in enumerate(found, 1):
        if not is_precise and each.relative_error > settings.error:
            of_step = f" of step {k}" if len(found) > 1 else ""
            notes.append(
                f"the transmission coefficient{of_step} is {each.kappa} after {each.shots} shots "
                f"from {each.snapshots} snapshots; increase rate.shots, or sampling.steps if there "
                "are few snapshots"
            )
        if each.returns > rates.MOST_RETURNS:
            notes.append(
                f"{100 * each.returns:.0f} % of the transitions are undone by chance within "
                f"rate.residence_ps = {settings.residence_ps:g}, so the rate is not that of "
                "independent transitions; lower it, or the temperature"
            )
        if each.unresolved > UNRESOLVED:
            notes.append(
                f"{100 * each.unresolved:.2g} % of the trajectories did not reach a basin "
                f"within rate.longest_ps = {settings.longest_ps:g}; increase it"
            )
        if each.other > UNRESOLVED:
            notes.append(
                f"{100 * each.other:.2g} % of the trajectories left the process before they "
                "reached a basin: other events cross the same dividing surface"
            )
        if each.kappa.value - 2.0 * each.kappa.error > 1.0:
            notes.append(
                f"the transmission coefficient is {each.kappa}, and it cannot exceed 1: the "
                "free energy at the dividing surface is wrong; increase sampling.steps"
            )
        apart = abs(each.kappa.value - each.reactive_flux.value)
        if apart > 4.0 * np.hypot(each.kappa.error, each.reactive_flux.error):
            notes.append(
                f"the reactive flux gives {each.reactive_flux} and the crossings give "
                f"{each.kappa}; use a smaller sampling.timestep_fs in a new directory"
            )
    return "; ".join(notes) or None


def describe_rate(steps: int) -> str:
    """Return what the rate of a process with this number of steps is, in words."""
    if steps == 1:
        return (
            "from the reactant to the product over the dividing surface, per unit of time that the "
            "system spends in the basin of the reactant"
        )
    return (
        f"from the reactant to the product over {steps} steps: the steady current into the product "
        "divided by the population of the reactant's basin; each step has its own transmission "
        "coefficient"
    )


def factor_of(relative: float, other: float | None) -> float | None:
    """One standard error of a rate, as a factor; None if unknown."""
    if other is None or not np.isfinite(relative):
        return None
    return float(np.exp(np.hypot(relative, other)))


def _reverse(result: dict[str, Any], kT_eV: float) -> tuple[float | None, float | None]:
    """Reverse rate of transition state theory, 1/s, and its relative error."""
    steps, populations = result["steps"], result["populations"]
    if len(steps) == 1:
        rate, error = (steps[0][f"reverse_rate{key}_per_s"] for key in ("", "_error"))
        return rate, error and rate and error / rate
    if populations[-1] in (None, 0):
        return None, None
    bound, error = (result[f"tst_rate{key}_per_s"] for key in ("", "_error"))
    of_states = result.get("delta_F_error_eV")
    relative = None
    if error is not None and of_states is not None:
        relative = float(np.hypot(error / bound, of_states / kT_eV))
    return bound * populations[0] / populations[-1], relative
