"""The choice of the iteration that gives the answer, and whether the run has converged.

The collective variable is checked here, because its check compares iterations. `checks` has the
checks of the sampling of one iteration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plumed_cv.common.numbers import with_error
from plumed_cv.cv import CollectiveVariable, equivalence, symmetry
from plumed_cv.input_file import Iteration, Sampling
from plumed_cv.workflow.checks import Check, check_sampling, error_limit_eV
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.keys import points_to_compare, read_estimate
from plumed_cv.workflow.mep import read_path

AT_SURFACE = 0.05  # largest 1 - cos at the dividing surface: 18 degrees, see docs/theory.md
WORST = 0.3  # largest 1 - cos between the states: at 45 degrees a CV gives half of a slope
NOISE = 2.0  # largest difference of equivalent collective variables, in noise floors
EQUAL_EV = 1e-3  # end states with a smaller energy difference at 0 K count as equal


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
        """Checks that have not passed. A check that the data do not decide has not passed."""
        return [check for check in self.checks if not check.passed]

    @property
    def converged(self) -> bool:
        """Whether every check has passed."""
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
    of_variable = check_variable(iterations[-1], before, limits, temperature_K)
    own = [check_sampling(part, limits, settings, temperature_K, related) for part in iterations]
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
    path = read_path(files)
    if abs(path.energies[-1] - path.energies[0]) > EQUAL_EV:
        return False
    return any(operation.reverses for operation in symmetry.find_path_operations(path))


def check_variable(
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
    here, there = (read_estimate(result or {}, "flux_barrier") for result in (part, before))
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
        return k == last - 1  # `check_variable` has compared it
    if not files.cv(last).exists():
        return False
    new, old = (CollectiveVariable.load(files.cv(m)) for m in (last, k - 1))
    found = equivalence.compare_isosurfaces(new, old, **points_to_compare(iterations[k - 1]))
    floor = iterations[-1].get("similarity_floor")
    return _is_equivalent(found.mean, found.worst, found.at_surface, floor, limits.tolerance)
