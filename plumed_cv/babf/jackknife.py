"""Standard errors of what a correlated series says: jackknife over blocks of several lengths."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import add
from typing import TypeVar

import numpy as np

from plumed_cv.frame import Array

T = TypeVar("T")

FEWEST_BLOCKS = 6  # a blocking that leaves fewer says little about the variance


def jackknife(
    parts: Sequence[T], weights: Sequence[float], estimate: Callable[[T], Array]
) -> tuple[Array, Array]:
    """Return the estimate from all data and its delete-one error, the largest over re-blockings.

    Parts of a ramped run have very different weights. To first order the estimate without a part
    of the share f is off by the part's residual over 1 - f, whatever the residual's variance; so
    the variance is m/(m-1) sum (1-f)^2 d^2, which is the textbook's for equal parts.

    Parameters
    ----------
    parts
        (m,) the data in their order, in parts that `+` puts together: arrays, states, lists.
    weights
        (m,) how much each part holds.
    estimate
        The estimate from parts put together.

    Returns
    -------
    Array, Array
        The estimate from all parts, and its error: the largest of those without one part, one pair
        of parts, one pair of pairs ..., as long as six are left; NaN of a single part.
    """
    shares = list(np.array(weights) / np.sum(weights))
    until = list(accumulate(parts))
    value = estimate(until[-1])
    errors = []
    while (m := len(parts)) >= 2:
        # Sums, never the total minus a part: an empty bin must stay exactly empty.
        after = list(accumulate(reversed(parts), lambda later, part: part + later))[::-1]
        rests = [
            after[1],
            *map(add, until[: m - 2], after[2:]),
            until[-2],
        ]
        variance = np.zeros_like(value)
        for share, rest in zip(shares, rests, strict=True):
            variance += m / (m - 1) * ((1 - share) * (estimate(rest) - value)) ** 2
        errors.append(np.sqrt(variance))
        if m // 2 < FEWEST_BLOCKS:
            break
        parts, shares = _in_pairs(parts), _in_pairs(shares)
        until = list(accumulate(parts))
    # A NaN stays: it says that a bin lives by one block alone.
    return value, np.max(errors, axis=0) if errors else np.full_like(value, np.nan)


def _in_pairs(parts: Sequence[T]) -> list[T]:
    """Put neighbours together; of an odd number the last three."""
    pairs = list(map(add, parts[0:-1:2], parts[1::2]))
    return pairs if len(parts) % 2 == 0 else [*pairs[:-1], add(pairs[-1], parts[-1])]
