"""Checks of the sampling of one iteration.

They read the result.json of the iteration and compute no results themselves. A key that is absent
there means "unknown".
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from ase import units

from plumed_cv.common.numbers import with_error
from plumed_cv.freeenergy.basins import DEPTH_KT
from plumed_cv.input_file import Iteration, Sampling
from plumed_cv.workflow.keys import read_estimate
from plumed_cv.workflow.mep import LEAST_BARRIER_KT

CROSSINGS = 10  # the relative error of an error bar from n events is 1/sqrt(2n): 22 %
LEAST_ERROR_EV = 0.01  # an error need not be smaller than this, even if kT/2 is
HOT = 0.03  # allowed relative deviation of the temperature of the CV, for any error
KNOWN = 0.25  # three standard errors of this temperature, relative to it, at most
OUTSIDE = 0.5  # largest share of steps that the guard discards
_BINS = "Use more bins (sampling.bins) in a new directory."


class Check(NamedTuple):
    """One check of an answer.

    Attributes
    ----------
    name
        Subject of the check.
    passed
        Result; None if the data do not decide it.
    sentence
        The result in words.
    remedy
        What the user can do; empty if the check has passed.
    mend
        What can correct it: another iteration, more steps in every iteration, or another input.
    """

    name: str
    passed: bool | None
    sentence: str
    remedy: str = ""
    mend: Literal["iterations", "steps", "input"] = "iterations"

    def as_dict(self) -> dict[str, Any]:
        """Return the check for result.json."""
        return {"name": self.name, "passed": self.passed, "sentence": self.sentence}


def check_sampling(
    part: dict[str, Any],
    limits: Iteration,
    settings: Sampling,
    temperature_K: float,
    related: bool,
) -> list[Check]:
    """Check the sampling of an iteration.

    Parameters
    ----------
    part
        Content of its result.json.
    limits, settings, temperature_K
        Values of the input.
    related
        Whether the end states have the same free energy by symmetry.

    Returns
    -------
    list
        The checks that apply to this iteration.
    """
    kT_eV = units.kB * temperature_K
    limit = error_limit_eV(limits, temperature_K)
    needed = _needed_steps(part, settings.steps, limit, temperature_K)
    more = f"Raise sampling.steps to about {needed:,} and run again."
    mend: Literal["iterations", "steps"] = "iterations" if needed <= 2 * settings.steps else "steps"
    checks = [
        _end_states(part, more),
        _crossings(part, more, mend),
        _error(part, limit, kT_eV, more, mend),
        _depths(part),
        _halves(part, more),
        _estimators(part, more),
        _repetitions(part, more),
        *(_symmetry(part, kT_eV, more) if related else ()),
        _temperature(part, temperature_K, more, mend),
        _guard(part),
    ]
    return [check for check in checks if check is not None]


def error_limit_eV(limits: Iteration, temperature_K: float) -> float:  # noqa: N802
    """Largest error of the flux barrier of a converged run, eV."""
    return limits.barrier_tolerance_eV or max(LEAST_ERROR_EV, 0.5 * units.kB * temperature_K)


def _needed_steps(part: dict[str, Any], steps: int, limit_eV: float, temperature_K: float) -> int:
    """Number of steps with which an iteration would pass, two digits; by default twice as many.

    The error is proportional to the inverse square root of the steps, and crossings are
    proportional to the steps. The result is at most ten times the present number, because an error
    that is far too large, or a lack of crossings, allows no better estimate.
    """
    factors = []
    error, crossings = part.get("flux_barrier_error_eV"), part.get("crossings")
    if error is not None and error > limit_eV:
        factors.append((error / limit_eV) ** 2)
    if crossings is not None and crossings < CROSSINGS:
        factors.append(CROSSINGS / max(crossings, 1))
    error_K = part.get("cv_temperature_error_K")
    if error_K is not None and 3.0 * error_K > KNOWN * temperature_K:
        factors.append((3.0 * error_K / (KNOWN * temperature_K)) ** 2)
    factor = min(max(factors, default=2.0), 10.0)
    needed = max(1.2, factor) * steps
    digits = 10 ** (int(np.log10(needed)) - 1)
    return int(np.ceil(needed / digits) * digits)


def _end_states(part: dict[str, Any], more: str) -> Check:
    if part.get("barrier_eV") is None:
        sentence = "The dynamics did not reach both end states, so there is no barrier."
        return Check("end states", False, sentence, more, "steps")
    return Check("end states", True, "The dynamics reached both end states.")


def _crossings(part: dict[str, Any], more: str, mend: Literal["iterations", "steps"]) -> Check:
    number = part.get("crossings")
    if number is None:
        return Check("crossings", None, "The number of crossings is unknown.", more)
    passed = number >= CROSSINGS
    sentence = (
        f"The dynamics went from one end state to the other {number} times ({CROSSINGS} at least)."
    )
    return Check("crossings", passed, sentence, "" if passed else more, mend)


def _error(
    part: dict[str, Any],
    limit_eV: float,
    kT_eV: float,
    more: str,
    mend: Literal["iterations", "steps"],
) -> Check:
    name, (value, error) = "flux barrier", read_estimate(part, "flux_barrier")
    if value is None:
        note = part.get("note")
        sentence = f"The flux barrier is unknown{f': {note}' if note else ''}".rstrip(".") + "."
        height = part.get("barrier_eV")
        if height is not None and height < LEAST_BARRIER_KT * kT_eV:
            remedy = (
                f"The barrier is only {height / kT_eV:.1f} kT ({LEAST_BARRIER_KT:g} at least): "
                "lower temperature_K, or choose deeper minima as end states, in a new directory."
            )
            return Check(name, False, sentence, remedy, "input")
        if note:
            more = "Set a larger sampling.margin in a new directory." if "grid" in note else ""
        return Check(name, False, sentence, more)
    if error is None:
        sentence = "The error of the flux barrier is unknown: there are too few independent parts."
        return Check(name, False, sentence, more)
    passed = error <= limit_eV
    sentence = (
        f"The error of the flux barrier is {error:.2g} eV or {error / kT_eV:.2g} kT "
        f"({limit_eV:.2g} eV at most)."
    )
    return Check(name, passed, sentence, "" if passed else more, mend)


def _depths(part: dict[str, Any]) -> Check | None:
    """Check of both states: delta F and both rates need minima that hold the system.

    None if the flux barrier is unknown, whose check gives the reason, or without the depths.
    """
    depths = part.get("depths_kT")
    if not depths or part.get("flux_barrier_eV") is None:
        return None
    behind_reactant, reactant, product, behind_product = depths
    sentence = (
        f"The profile rises by {behind_reactant:.1f} and {reactant:.1f} kT on both sides of the "
        f"reactant and by {product:.1f} and {behind_product:.1f} kT on both sides of the product "
        f"({DEPTH_KT:g} at least)."
    )
    if min(reactant, product) < DEPTH_KT:
        state = "initial" if reactant < DEPTH_KT else "final"
        remedy = (
            "The system does not stay in this state: lower temperature_K, or choose the next "
            f"deeper minimum as the {state} state, in a new directory."
        )
        return Check("states", False, sentence, remedy, "input")
    if min(behind_reactant, behind_product) < DEPTH_KT:
        state = "initial" if behind_reactant < DEPTH_KT else "final"
        remedy = (
            f"Set a larger sampling.margin; if the profile falls again behind the {state} state, "
            "choose the deeper minimum there as this state. Both need a new directory."
        )
        return Check("states", False, sentence, remedy)
    note = part.get("note")
    if note and part.get("delta_F_eV") is None:
        return Check("states", False, f"{note[0].upper()}{note[1:]}.", _BINS, "input")
    return Check("states", True, sentence)


def _halves(part: dict[str, Any], more: str) -> Check | None:
    halves = [read_estimate(part, f"{half}_half_flux_barrier") for half in ("first", "second")]
    if None in (*halves[0], *halves[1]):
        return None
    (first, first_error), (second, second_error) = halves
    off = abs(first - second) / np.hypot(first_error, second_error)
    sentence = (
        f"The first half of the steps gives a flux barrier of {with_error(first, first_error)}, "
        f"the second {with_error(second, second_error)}: {off:.1f} standard errors apart (3 at "
        "most)."
    )
    return Check("halves", bool(off <= 3.0), sentence, "" if off <= 3.0 else more)


def _estimators(part: dict[str, Any], more: str) -> Check | None:
    agree = part.get("estimators_agree")
    if agree is None:
        return None
    values = ", ".join(
        f"{name} {with_error(*read_estimate(found, 'flux_barrier'))}"
        for name, found in (part.get("estimators") or {}).items()
    )
    says = "agree" if agree else "do not agree"
    sentence = f"The estimators of the flux barrier {says}{f': {values}' if values else ''}."
    return Check("estimators", bool(agree), sentence, "" if agree else more)


def _repetitions(part: dict[str, Any], more: str) -> Check | None:
    agree = part.get("repetitions_agree")
    if agree is None:
        return None
    values = ", ".join(
        with_error(*read_estimate(found, "flux_barrier")) for found in part.get("repetitions") or ()
    )
    says = "agree" if agree else "do not agree"
    sentence = f"The repetitions {says} on the flux barrier{f': {values}' if values else ''}."
    return Check("repetitions", bool(agree), sentence, "" if agree else more)


def _symmetry(part: dict[str, Any], kT_eV: float, more: str) -> list[Check]:
    """Checks of zeros by symmetry. A(1) - A(0) also depends on the scale of the CV at both ends."""
    checks = []
    for key, words in (("delta_F", "delta F"), ("A1_minus_A0", "A(1) - A(0)")):
        value, error = read_estimate(part, key)
        if value is None or error is None:
            continue
        scale = 0.5 * kT_eV if key == "A1_minus_A0" else 0.0
        passed: bool | None = abs(value) <= max(3.0 * error, scale)
        if passed and error > 2.0 * kT_eV:
            passed = None  # an error of this size would hide a violation
        sentence = (
            f"By symmetry {words} is 0; the run gives {with_error(value, error)}, "
            f"{abs(value) / error:.1f} standard errors away (3 at most)."
        )
        checks.append(Check(f"symmetry of {words}", passed, sentence, "" if passed else more))
    return checks


def _temperature(
    part: dict[str, Any], temperature_K: float, more: str, mend: Literal["iterations", "steps"]
) -> Check | None:
    """Check of the kinetic temperature; None for several CVs, or if constraints change it."""
    value, error = (part.get(f"cv_temperature_{key}") for key in ("K", "error_K"))
    if value is None:
        return None
    off = abs(value - temperature_K)
    sentence = (
        f"The kinetic temperature along the collective variable is "
        f"{with_error(value, error, 'K')}; that of the thermostat is {temperature_K:g} K."
    )
    if error is None or (3.0 * error > KNOWN * temperature_K and off <= 3.0 * error):
        sentence = (
            f"{sentence[:-1]} (the standard error must be below "
            f"{KNOWN / 3.0 * temperature_K:.2g} K)."
        )
        return Check("temperature", None, sentence, more, mend)
    passed = off <= max(HOT * temperature_K, 3.0 * error)
    remedy = (
        "The bias heats the collective variable: raise sampling.friction_per_ps, and sampling.ramp "
        "if it is below 1, in a new directory."
        if value > temperature_K
        else "The thermostat does not keep its temperature: reduce sampling.timestep_fs, in a new "
        "directory."
    )
    return Check("temperature", passed, sentence, "" if passed else remedy, "input")


def _guard(part: dict[str, Any]) -> Check | None:
    """Check of the share of steps on a way out of the process; None if no trajectory left it."""
    restarts, share = part.get("restarts"), part.get("outside_fraction")
    if not restarts or share is None:
        return None
    passed = share <= OUTSIDE
    sentence = (
        f"The guard ended {restarts} trajectories that left the process; {100 * share:.2g} % of "
        f"the steps were on a way out and do not count ({100 * OUTSIDE:g} % at most)."
    )
    remedy = (
        "The system leaves the process most of the time, or the limit of the guard is too small: "
        "see which atoms left (restarted_at in result.json), and set "
        "sampling.atom_deviation_limit_A between thermal motion and the next jump, in a new "
        "directory."
    )
    return Check("guard", passed, sentence, "" if passed else remedy, "input")
