"""Propagation of errors to first order, by finite differences."""

from collections.abc import Callable

import numpy as np

from plumed_cv.structures.frame import Array

_STEP = 1e-3  # of the logarithm of a rate, for derivatives


def propagate_error(function: Callable[[Array], float], values: Array, covariance: Array) -> float:
    """Standard error of a function of quantities with a covariance, to first order."""
    return error_of(compute_slopes(function, values, covariance), covariance)


def error_of(slopes: Array, covariance: Array) -> float:
    """Standard error of a function of quantities with a covariance, from its derivatives, (n,)."""
    return float(np.sqrt(slopes @ covariance @ slopes))


def compute_slopes(function: Callable[[Array], float], values: Array, covariance: Array) -> Array:
    """Derivatives of a function with respect to the quantities that have an error, (n,)."""
    slopes = np.zeros(len(values))
    for k in np.flatnonzero(np.diag(covariance) > 0):
        step = np.zeros(len(values))
        step[k] = _STEP
        slopes[k] = (function(values + step) - function(values - step)) / (2.0 * _STEP)
    return slopes
