"""Whether independent repetitions of an iteration have found the same."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2

from plumed_cv import sampling
from plumed_cv.workflow.results import Sampled, as_json, barriers, estimate, in_words, sampled

ODDS = 0.01  # that repetitions differ so much by chance: below it they do not agree


def compare_repetitions(folder: Path) -> dict[str, Any]:
    """What each repetition of an iteration has found by itself, and whether they agree.

    Parameters
    ----------
    folder
        The folder of an iteration.

    Returns
    -------
    dict
        `repetitions`, a list with barrier, flux barrier and A(1)-A(0) of each, empty of a single
        one; `repetitions_agree`, None if there is one, or errors are unknown; `repetitions_note`,
        what to do if they do not agree, else None.

    Notes
    -----
    Values x with errors s agree if the sum of (x - m)^2/s^2 about their weighted mean m is one that
    chi^2 exceeds with a probability of 1 % at least. The flux barrier is compared, which does not
    depend on the form of the CV; where one is unknown, the barrier.
    """
    found = [_found(part) for part in _apart(folder)]
    agree, note = None, None
    for name, words in (("flux_barrier", "flux barrier"), ("barrier", "barrier")):
        values, errors = (
            np.array([part[f"{name}{key}"] for part in found], dtype=float)  # None becomes NaN
            for key in ("_eV", "_error_eV")
        )
        if len(found) > 1 and np.isfinite(values).all() and (errors > 0).all():
            agree = bool(odds(values, errors) >= ODDS)
            if not agree:
                each = ", ".join(in_words(part, name) for part in found)
                note = (
                    f"its {len(found)} repetitions do not agree on the {words} ({each}): the error "
                    "of their mean is larger than the one given; raise sampling.steps and run again"
                )
            break
    return {
        "repetitions": found if len(found) > 1 else [],
        "repetitions_agree": agree,
        "repetitions_note": note,
    }


def odds(values: np.ndarray, errors: np.ndarray) -> float:
    """The probability that values of one truth, (m,), with errors, (m,), differ more than these."""
    weights = errors**-2.0
    mean = np.sum(weights * values) / np.sum(weights)
    return float(chi2.sf(np.sum(weights * (values - mean) ** 2), len(values) - 1))


def _apart(folder: Path) -> list[Sampled]:
    """What the segments of each repetition learned and printed."""
    together, start, parts = sampled(folder), 0, []
    for segments in sampling.by_repetition(folder):
        chosen = slice(start, start + len(segments))
        start += len(segments)
        if segments:
            parts.append(
                Sampled(
                    together.blocks[chosen],
                    None if together.mean_force is None else together.mean_force[chosen],
                    {name: columns[chosen] for name, columns in together.series.items()},
                )
            )
    return parts


def _found(part: Sampled) -> dict[str, float | None]:
    """Barriers of one repetition; the iteration's note says why one is unknown."""
    answer = estimate(part, part.mean_force)
    return barriers(answer.profile) | as_json({"flux_barrier": answer.flux.barrier})
