"""Checks of the iterations of a run, and the choice of the iteration that gives the answer.

The checks read the result.json of an iteration and compute no results themselves. A key that is
absent there means "unknown".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from ase import units

from plumed_cv.common.numbers import with_error
from plumed_cv.config import Iteration, Sampling
from plumed_cv.cv import CollectiveVariable, equivalence, symmetry
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.mep import LEAST_BARRIER_KT, path_of

CROSSINGS = 10  # the relative error of an error bar from n events is 1/sqrt(2n): 22 %
AT_SURFACE = 0.05  # largest 1 - cos at the dividing surface: 18 degrees, see docs/theory.md
WORST = 0.3  # largest 1 - cos between the states: at 45 degrees a CV gives half of a slope
NOISE = 2.0  # largest difference of equivalent collective variables, in noise floors
LEAST_ERROR_EV = 0.01  # an error need not be smaller than this, even if kT/2 is
HOT = 0.03  # allowed relative deviation of the temperature of the CV, for any error
OUTSIDE = 0.5  # largest share of steps that the guard discards
EQUAL_EV = 1e-3  # end states with a smaller energy difference at 0 K count as equal

_NECESSARY = ("end states", "crossings", "flux barrier", "collective variable")


class Check(NamedTuple):
    """One check of an answer.

    Attributes
    ----------
    name
        Subject of the check.
    passed
        Result; None if the check could not be made.
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


@dataclass(frozen=True)
class Verdict:
    """The answer of a run and its checks.

    Attributes
    ----------
    answer
        Number of the iteration that gives the answer, from 1.
    because
        Reason for this choice.
    checks
        Checks of this iteration, and the check of the last collective variable.
    """

    answer: int
    because: str
    checks: Sequence[Check]

    @property
    def failed(self) -> list[Check]:
        """Checks that have not passed, and necessary checks without a result."""
        return [
            check
            for check in self.checks
            if check.passed is False or (check.passed is None and check.name in _NECESSARY)
        ]

    @property
    def converged(self) -> bool:
        """Whether no check has failed and all necessary checks have passed."""
        return not self.failed

    @property
    def advice(self) -> str | None:
        """What the user can do if the run has not converged.

        If the input must change, only the remedies with a new input are given.
        """
        causes = [check for check in self.failed if check.mend == "input"]
        remedies = [check.remedy for check in causes or self.failed if check.remedy]
        return " ".join(dict.fromkeys(remedies)) or None

    def as_dict(self, number: int, limits: Iteration) -> dict[str, Any]:
        """Return the verdict after `number` iterations for result.json."""
        return {
            "converged": self.converged,
            "stopped_by": stopped_by(self, number, limits) or "iteration limit",
            "advice": self.advice,
            "answer_iteration": self.answer,
            "answer_because": self.because,
            "checks": [check.as_dict() for check in self.checks],
        }


def judge(
    files: RunDirectory,
    iterations: Sequence[dict[str, Any]],
    limits: Iteration,
    settings: Sampling,
    temperature_K: float,
) -> Verdict:
    """Choose the iteration that gives the answer, and check it.

    It is the iteration with the smallest error of the flux barrier, among those that have passed
    their own checks along a collective variable equivalent to the last one. If there is none, it
    is the last iteration.

    Parameters
    ----------
    files
        The run directory.
    iterations
        Results of the iterations, at least one.
    limits, settings, temperature_K
        Values of the input.
    """
    related = related_by_symmetry(files)
    last = len(iterations)
    before = iterations[-2] if last > 1 else None
    of_variable = variable_check(iterations[-1], before, limits, temperature_K)
    own = [of_sampling(part, limits, settings, temperature_K, related) for part in iterations]
    good = [
        k
        for k in range(1, last + 1)
        if Verdict(k, "", [*own[k - 1], of_variable]).converged
        and (k == last or _is_like_the_last(files, k, iterations, limits))
    ]
    if not good:
        return Verdict(last, "it is the last iteration", [*own[-1], of_variable])
    answer = min(good, key=lambda k: float(iterations[k - 1]["flux_barrier_error_eV"]))
    if len(good) == 1:
        because = "only this iteration passed all checks along a CV equivalent to the last one"
    else:
        because = (
            "its flux barrier has the smallest error of the iterations "
            f"{', '.join(map(str, good))}, which passed all checks along equivalent CVs"
        )
    return Verdict(answer, because, [*own[answer - 1], of_variable])


def stopped_by(verdict: Verdict, number: int, limits: Iteration) -> str | None:
    """Reason why the iterations end after `number` of them; None if they must continue."""
    if number < limits.minimum:
        return None
    if verdict.converged:
        return "all checks passed"
    if any(check.mend == "iterations" for check in verdict.failed):
        return None
    names = ", ".join(check.name for check in verdict.failed)
    return f"another iteration cannot correct the failed checks: {names}"


def related_by_symmetry(files: RunDirectory) -> bool:
    """Whether a symmetry operation exchanges the end states and maps the path onto itself.

    The states then have the same free energy. Equal energies at 0 K are not sufficient.
    """
    if not files.path.exists():
        return False
    path = path_of(files)
    if abs(path.energies[-1] - path.energies[0]) > EQUAL_EV:
        return False
    return any(operation.reverses for operation in symmetry.of_path(path))


def of_sampling(
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
    needed = _needed_steps(part, settings.steps, limit)
    more = f"Raise sampling.steps to about {needed:,} and run again."
    mend: Literal["iterations", "steps"] = "iterations" if needed <= 2 * settings.steps else "steps"
    checks = [
        _end_states(part, more),
        _crossings(part, more, mend),
        _error(part, limit, kT_eV, more, mend),
        _halves(part, more),
        _estimators(part, more),
        _repetitions(part, more),
        *(_symmetry(part, kT_eV, more) if related else ()),
        _temperature(part, temperature_K),
        _guard(part),
    ]
    return [check for check in checks if check is not None]


def error_limit_eV(limits: Iteration, temperature_K: float) -> float:  # noqa: N802
    """Largest error of the flux barrier of a converged run, eV."""
    return limits.barrier_tolerance_eV or max(LEAST_ERROR_EV, 0.5 * units.kB * temperature_K)


def variable_check(
    part: dict[str, Any],
    before: dict[str, Any] | None,
    limits: Iteration,
    temperature_K: float,
) -> Check:
    """Check whether the collective variable no longer changes, by the criterion of the input.

    Parameters
    ----------
    part, before
        Results of the last iteration and of the previous one.
    limits, temperature_K
        Values of the input.
    """
    name = "collective variable"
    on = f"Raise iteration.maximum above {limits.maximum} and run again."
    if limits.criterion == "barrier":
        limit = error_limit_eV(limits, temperature_K)
        return _same_barrier(name, part, before, on, limit)
    mean = part.get("similarity")
    if mean is None:
        return Check(name, None, "No collective variable was learned from this iteration yet.")
    worst, surface, floor = (
        part.get(f"similarity_{key}") for key in ("worst", "at_surface", "floor")
    )
    passed = _is_equivalent(mean, worst, surface, floor, limits.tolerance)
    if _is_close(mean, floor, limits.tolerance) and surface is None:
        return Check(
            name,
            None,
            f"1 - cos of the learned collective variable is {mean:.3f} on average (equivalent up "
            f"to {limits.tolerance:g}), but the dividing surface is unknown.",
            mend="steps",
        )
    noise = "" if floor is None else f" or {NOISE:g} times its noise, {floor:.3f}"
    words = [f"{mean:.3f} on average (equivalent up to {limits.tolerance:g}{noise})"]
    for value, place, most in (
        (surface, "at the dividing surface", AT_SURFACE),
        (worst, "at worst between the states", WORST),
    ):
        words.append(f"unknown {place}" if value is None else f"{value:.3f} {place} ({most:g})")
    says = "is equivalent to the previous one" if passed else "still changes"
    sentence = f"The learned collective variable {says}: 1 - cos is {', '.join(words)}."
    earlier = None if before is None else before.get("similarity")
    if earlier is not None and mean > max(1.5 * earlier, limits.tolerance):
        on = "1 - cos grows: set cv.functions = 4 in a new directory."
    elif floor is not None and mean <= NOISE * floor:
        on = "The noise of the snapshots is too large: raise sampling.steps and run again."
    return Check(name, passed, sentence, "" if passed else on)


def _is_equivalent(
    mean: float, worst: float | None, surface: float | None, floor: float | None, tolerance: float
) -> bool:
    """Whether two collective variables are equivalent, by their values of 1 - cos."""
    if worst is None or surface is None:
        return False
    return _is_close(mean, floor, tolerance) and worst <= WORST and surface <= AT_SURFACE


def _is_close(mean: float, floor: float | None, tolerance: float) -> bool:
    """Whether the mean of 1 - cos is that of equivalent variables."""
    return mean <= max(tolerance, NOISE * (floor or 0.0))


def _same_barrier(
    name: str, part: dict[str, Any], before: dict[str, Any] | None, on: str, limit_eV: float
) -> Check:
    """Check whether two iterations have the same flux barrier; a large error hides a difference."""
    here, there = (_estimate(result or {}, "flux_barrier") for result in (part, before))
    if None in (*here, *there):
        return Check(name, False, "Two iterations with a known flux barrier are needed.", on)
    (value, error), (earlier, earlier_error) = here, there
    off = abs(value - earlier) / np.hypot(error, earlier_error)
    largest = max(error, earlier_error)
    sentence = (
        f"The flux barrier of the previous iteration was {with_error(earlier, earlier_error)}, "
        f"{off:.1f} standard errors away (2 at most). The larger of the two errors is "
        f"{largest:.2g} eV ({limit_eV:.2g} eV at most)."
    )
    passed = bool(off < 2.0 and largest <= limit_eV)
    return Check(name, passed, sentence, "" if passed else on)


def _is_like_the_last(
    files: RunDirectory, k: int, iterations: Sequence[dict[str, Any]], limits: Iteration
) -> bool:
    """Whether iteration k sampled a variable that is equivalent to the last learned one."""
    last = len(iterations)
    if limits.criterion == "barrier":
        return k == last - 1  # `variable_check` has compared it
    if not files.cv(last).exists():
        return False
    new, old = (CollectiveVariable.load(files.cv(m)) for m in (last, k - 1))
    found = equivalence.difference(new, old, **where(iterations[k - 1]))
    floor = iterations[-1].get("similarity_floor")
    return _is_equivalent(found.mean, found.worst, found.at_surface, floor, limits.tolerance)


def surfaces_of(part: dict[str, Any]) -> list[float]:
    """Dividing surfaces of an iteration, as values of its collective variable."""
    found = [step.get("surface") for step in part.get("steps") or ()]
    found.append(part.get("dividing_surface"))
    return sorted({surface for surface in found if surface is not None})


def minima_of(part: dict[str, Any]) -> list[float]:
    """Minima of the basins of an iteration, as values of its CV; empty if unknown."""
    steps = part.get("steps") or ()
    found = [step.get(key) for step in steps for key in ("reactant_xi", "product_xi")]
    return sorted({minimum for minimum in found if minimum is not None})


def where(part: dict[str, Any]) -> dict[str, Any]:
    """Points along the collective variable of an iteration for the comparison by `difference`."""
    return {
        "surfaces": surfaces_of(part),
        "between": tuple(part.get("flanks") or (0.0, 1.0)),
    }


def _needed_steps(part: dict[str, Any], steps: int, limit_eV: float) -> int:
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
    factor = min(max(factors, default=2.0), 10.0)
    needed = max(1.2, factor) * steps
    digits = 10 ** (int(np.log10(needed)) - 1)
    return int(np.ceil(needed / digits) * digits)


def _estimate(part: dict[str, Any], name: str) -> tuple[Any, Any]:
    return part.get(f"{name}_eV"), part.get(f"{name}_error_eV")


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
    name, (value, error) = "flux barrier", _estimate(part, "flux_barrier")
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


def _halves(part: dict[str, Any], more: str) -> Check | None:
    halves = [_estimate(part, f"{half}_half_flux_barrier") for half in ("first", "second")]
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
        f"{name} {with_error(*_estimate(found, 'flux_barrier'))}"
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
        with_error(*_estimate(found, "flux_barrier")) for found in part.get("repetitions") or ()
    )
    says = "agree" if agree else "do not agree"
    sentence = f"The repetitions {says} on the flux barrier{f': {values}' if values else ''}."
    return Check("repetitions", bool(agree), sentence, "" if agree else more)


def _symmetry(part: dict[str, Any], kT_eV: float, more: str) -> list[Check]:
    """Checks of zeros by symmetry. A(1) - A(0) also depends on the scale of the CV at both ends."""
    checks = []
    for key, words in (("delta_F", "delta F"), ("A1_minus_A0", "A(1) - A(0)")):
        value, error = _estimate(part, key)
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


def _temperature(part: dict[str, Any], temperature_K: float) -> Check | None:
    value, error = (part.get(f"cv_temperature_{key}") for key in ("K", "error_K"))
    if note := part.get("constraints_note"):
        return Check("temperature", None, f"{note}.", mend="input")
    if value is None:
        return None
    allowed = max(HOT * temperature_K, 3.0 * (error or 0.0))
    off = abs(value - temperature_K)
    passed: bool | None = off <= allowed
    if passed and allowed > 0.1 * temperature_K:
        passed = None  # an error of this size would hide a violation
    sentence = (
        f"The kinetic temperature along the collective variable is "
        f"{with_error(value, error, 'K')}; that of the thermostat is {temperature_K:g} K."
    )
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
