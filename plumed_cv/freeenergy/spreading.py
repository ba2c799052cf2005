"""Random samples that are spread well, and whose inclusion probabilities are known.

A choice of structures by hand, or by an algorithm that only wants them to differ, is no sample: an
average over it is biased by an unknown amount. Here every structure has a probability p_k of being
chosen, and the sum of y_k/p_k over the chosen ones is the sum of y over all structures on average
over the choices (Horvitz and Thompson, J. Am. Stat. Assoc. 47, 663 (1952)). Neighbours nevertheless
are hardly ever chosen together (local pivotal method: Grafstrom, Lundstrom and Schelin, Biometrics
68, 514 (2012)).
"""

import numpy as np
from numpy.typing import NDArray

from plumed_cv.structures.frame import Array


def compute_probabilities(sizes: Array, number: int) -> Array:
    """Return probabilities that are proportional to sizes, and add up to a number.

    Parameters
    ----------
    sizes
        Not negative, (M,). A structure of size zero is never chosen.
    number
        Number of structures to choose. All that have a size are chosen if there are not more.

    Returns
    -------
    (M,)
        At most 1. A structure that would have more is chosen for certain, and the excess is shared
        among the others.
    """
    sizes = np.asarray(sizes, dtype=float)
    certain = np.zeros(len(sizes), dtype=bool)
    if number >= np.count_nonzero(sizes):
        return (sizes > 0).astype(float)
    while True:
        rest = number - np.count_nonzero(certain)
        open_sizes = np.where(certain, 0.0, sizes)
        probability = rest * open_sizes / open_sizes.sum()
        more = probability >= 1.0
        if not more.any():
            return np.where(certain, 1.0, probability)
        certain |= more


def choose_spread(points: Array, probability: Array, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose structures with given probabilities so that few of them are near each other.

    A random structure and its nearest neighbour share their probabilities: one gets as much as
    possible, at random, so that the expectation of both remains. This is repeated until all are 0
    or 1.

    Parameters
    ----------
    points
        Coordinates that measure how much structures differ, (M, d).
    probability
        Inclusion probabilities, (M,), with an integer sum.
    rng
        Random numbers.

    Returns
    -------
    NDArray
        The chosen ones in increasing order.
    """
    p = np.array(probability, dtype=float)
    left = np.flatnonzero((p > 0) & (p < 1))
    where = np.array(points, dtype=float)[left]
    n = len(left)
    while n > 1:
        a = int(rng.integers(n))
        distance = np.sum((where[:n] - where[a]) ** 2, axis=1)
        distance[a] = np.inf
        b = int(np.argmin(distance))
        i, j = left[a], left[b]
        both = p[i] + p[j]
        if both < 1.0:
            high, low, chance = both, 0.0, p[i] / both
        else:
            high, low, chance = 1.0, both - 1.0, (1.0 - p[j]) / max(2.0 - both, 1e-300)
        p[i], p[j] = (high, low) if rng.random() < chance else (low, high)
        for k in sorted((a, b), reverse=True):
            if not 1e-12 < p[left[k]] < 1.0 - 1e-12:
                n -= 1
                left[k], where[k] = left[n], where[n]
    if n == 1:  # rounding, if the probabilities add up to an integer
        p[left[0]] = float(rng.random() < p[left[0]])
    return np.flatnonzero(p > 0.5)


def choose_farthest(
    points: Array, chosen: NDArray[np.int64], weights: Array, number: int
) -> NDArray[np.int64]:
    """Choose more structures, each as far as possible from all before (farthest-point sampling).

    Parameters
    ----------
    points
        As for `choose_spread`.
    chosen
        Those that are already there.
    weights
        Factors of the distances, (M,); zero for structures that must not be chosen.
    number
        Number of structures.

    Returns
    -------
    NDArray
        In the order of their choice; fewer if no others are left.
    """
    nearest = np.full(len(points), np.inf)
    for k in chosen:
        nearest = np.minimum(nearest, np.sum((points - points[k]) ** 2, axis=1))
    found: list[int] = []
    for _ in range(number):
        score = np.sqrt(nearest) * weights
        k = int(np.argmax(np.nan_to_num(score, posinf=np.finfo(float).max)))
        if not score[k] > 0:
            break
        found.append(k)
        nearest = np.minimum(nearest, np.sum((points - points[k]) ** 2, axis=1))
    return np.array(found, dtype=np.int64)
