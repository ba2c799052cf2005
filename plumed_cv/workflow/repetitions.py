"""Agreement of independent repetitions of an iteration."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2

from plumed_cv import sampling
from plumed_cv.workflow.estimates import estimate
from plumed_cv.workflow.keys import as_json, profile_as_json
from plumed_cv.workflow.results import in_words
from plumed_cv.workflow.samples import Sampled, read_samples

ODDS = 0.01  # repetitions disagree if such differences are less probable than this


def compare_repetitions(folder: Path) -> dict[str, Any]:
    """Return the results of each repetition of an iteration, and whether they agree.

    Parameters
    ----------
    folder
        The folder of an iteration.

    Returns
    -------
    dict
        `repetitions`, a list with barrier, flux barrier and A(1)-A(0) of each, empty if there is
        only one; `repetitions_agree`, None if there is only one or errors are unknown;
        `repetitions_note`, the remedy if they do not agree, otherwise None.

    Notes
    -----
    Values x with errors s agree if chi^2 exceeds the sum of (x - m)^2/s^2 about their weighted mean
    m with a probability of at least 1 %. The flux barrier is compared, because it does not depend
    on the scale of the CV; if it is unknown for one, the barrier is compared.
    """
    found = [_found(part) for part in _apart(folder)]
    agree, note = None, None
    for name, words in (("flux_barrier", "flux barrier"), ("barrier", "barrier")):
        values, errors = (
            np.array([part[f"{name}{key}"] for part in found], dtype=float)  # None becomes NaN
            for key in ("_eV", "_error_eV")
        )
        if len(found) > 1 and np.isfinite(values).all() and (errors > 0).all():
            agree = bool(compute_odds(values, errors) >= ODDS)
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


def compute_odds(values: np.ndarray, errors: np.ndarray) -> float:
    """Probability that values of one quantity, (m,), with errors, (m,), differ more than these."""
    weights = errors**-2.0
    mean = np.sum(weights * values) / np.sum(weights)
    return float(chi2.sf(np.sum(weights * (values - mean) ** 2), len(values) - 1))


def _apart(folder: Path) -> list[Sampled]:
    """Learned sums and printed values of the segments of each repetition."""
    together, start, parts = read_samples(folder), 0, []
    for segments in sampling.list_repetitions(folder):
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
    """Barriers of one repetition; the iteration's note gives the reason if one is unknown."""
    answer = estimate(part, part.mean_force)
    return profile_as_json(answer.profile) | as_json({"flux_barrier": answer.flux.barrier})
