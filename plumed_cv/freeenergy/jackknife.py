"""Estimates and their standard errors from correlated series.

The errors are those of a jackknife with Geyer's sum over lags.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import add
from typing import TypeVar

import numpy as np

from plumed_cv.freeenergy.estimator import NATURAL, unit_in_words
from plumed_cv.structures.frame import Array

T = TypeVar("T")

FEWEST_BLOCKS = 6  # with fewer blocks, correlations between them cannot be determined


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error in some unit; NaN where unknown."""

    value: float
    error: float
    unit: str = "eV"

    def __repr__(self) -> str:
        return f"Estimate({self})"

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return "unknown"
        # Rates, exp(-energy/kT), may have any magnitude.
        in_steps = self.unit in ("eV", NATURAL, "")
        value = f"{self.value:.3f}" if in_steps else f"{self.value:.2e}"
        error = f"{self.error:.3f}" if in_steps else f"{self.error:.1e}"
        error = error if np.isfinite(self.error) else "unknown"
        return f"{value} ± {error} {unit_in_words(self.unit)}".rstrip()

    def widened(self, factor: float) -> "Estimate":
        """Return the value with its error times a factor."""
        return replace(self, error=self.error * factor)


UNKNOWN = Estimate(np.nan, np.nan)


def jackknife(
    parts: Sequence[T],
    weights: Sequence[float],
    estimate: Callable[[T], Array],
    series: Sequence[int] | None = None,
) -> tuple[Array, Array]:
    """Return the estimate from all data and its standard error.

    Parts of a ramped run have very different weights. To first order, the estimate without a part
    of the share f deviates by f/(1 - f) times the residual of the part. Therefore (1 - f) times
    this difference is the influence of the part on the estimate, whatever its weight.

    Parameters
    ----------
    parts
        The data in their order, (m,), in parts that can be added by `+`: arrays, states, lists.
    weights
        Weight of each part, (m,).
    estimate
        The estimate from added parts, (k,). Values that are not finite are unknown.
    series
        Number of parts of each independent series, one after the other, m in total. Parts of
        different series are not correlated. By default all parts form one series.

    Returns
    -------
    (k,), (k,)
        The estimate from all parts, and the error of `standard_error`; NaN for a single part, and
        if the estimate is unknown without one of the parts.
    """
    until = list(accumulate(parts))
    value = estimate(until[-1])
    m = len(parts)
    if m < 2 or not np.max(weights) > 0:
        return value, np.full_like(value, np.nan)
    # Sums, not the total minus a part: an empty bin must stay exactly empty.
    after = list(accumulate(reversed(parts), lambda later, part: part + later))[::-1]
    rests = [after[1], *map(add, until[: m - 2], after[2:]), until[-2]]
    shares = np.array(weights, dtype=float) / np.sum(weights)
    without = np.array([estimate(rest) for rest in rests])
    known = np.isfinite(without).all(axis=0) & np.isfinite(value)
    influence = np.full(without.shape, np.nan)
    influence[:, known] = (1 - shares[:, None]) * (without[:, known] - value[known])
    return value, standard_error(influence, shares, series)


def standard_error(influence: Array, shares: Array, series: Sequence[int] | None = None) -> Array:
    """Return the standard error of a sum of correlated influences.

    The variance is the sum of the products of all pairs of influences, up to a lag from Geyer's
    initial monotone sequence (Geyer, Statist. Sci. 7, 473 (1992)): products at two successive lags
    are added as long as their sum is positive, and no sum may exceed the previous one. All
    influences add up to zero, which removes the share N of the pairs from that sum. The sum is
    therefore divided by 1 - N. Lags whose pairs are more than half of all pairs are omitted. Noise
    can also make correlations negative; the error is never smaller than that of uncorrelated
    blocks.

    Parameters
    ----------
    influence
        Contribution of each block to the deviation of each estimate, (m, k).
    shares
        Share of each block in all data, (m,).
    series
        As for `jackknife`.

    Returns
    -------
    (k,)
        NaN where an influence is NaN, because all samples of a bin come from one block. All NaN if
        one block contains all data.
    """
    m = len(shares)
    if np.max(shares) >= 1:
        return np.full(influence.shape[1], np.nan)
    lengths = [m] if series is None else list(series)
    if sum(lengths) != m:
        raise ValueError(f"series with {lengths} parts in total do not match {m} parts")
    owner = np.repeat(np.arange(len(lengths)), lengths)

    def lag(k: int) -> tuple[Array, float]:
        """The products of influences at a lag, (k,), and the share of these pairs."""
        if k >= m:
            return np.zeros(influence.shape[1]), 0.0
        pairs = np.flatnonzero(owner[: m - k] == owner[k:])
        products = np.sum(influence[pairs] * influence[pairs + k], axis=0)
        return products, float(np.sum(shares[pairs] * shares[pairs + k]))

    before, share = lag(0)
    uncorrelated = before / (1 - share)
    total, variance = -before, uncorrelated
    share = -share
    positive, limit = np.ones(len(total), dtype=bool), np.full(len(total), np.inf)
    for k in range(0, max(lengths), 2):
        (even, even_share), (odd, odd_share) = lag(k), lag(k + 1)
        share += 2 * (even_share + odd_share)
        if share > 0.5 or m < FEWEST_BLOCKS:
            break
        limit = np.minimum(limit, even + odd)
        positive &= limit > 0
        if not positive.any():
            break
        total = np.where(positive, total + 2 * limit, total)
        variance = np.where(positive, total / (1 - share), variance)
    return np.asarray(np.sqrt(np.maximum(variance, uncorrelated)))
