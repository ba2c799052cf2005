"""Unknown errors are NaN, without a warning of NumPy."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from plumed_cv.freeenergy.jackknife import jackknife, standard_error


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def mean_and_log(sums: np.ndarray) -> np.ndarray:
    """The mean, and the logarithm of another sum: minus infinity where that is zero."""
    with np.errstate(divide="ignore"):
        return np.array([sums[1] / sums[0], np.log(sums[2])])


def test_what_one_part_alone_knows_has_no_error() -> None:
    rng = np.random.default_rng(1)
    parts = [np.array([1.0, x, 0.0]) for x in rng.normal(size=12)]
    parts[5][2] = 1.0
    value, error = jackknife(parts, [1.0] * 12, mean_and_log)
    assert np.isfinite(value).all()
    assert error[0] > 0
    assert np.isnan(error[1])
    parts[5][2] = 0.0  # nobody knows it
    value, error = jackknife(parts, [1.0] * 12, mean_and_log)
    assert error[0] > 0
    assert np.isnan(error[1])


@pytest.mark.parametrize("weights", [[1.0, *[0.0] * 11], [0.0] * 12])
def test_data_of_one_part_have_no_error(weights: list[float]) -> None:
    parts = [np.array([1.0, x, 1.0]) for x in np.random.default_rng(2).normal(size=12)]
    value, error = jackknife(parts, weights, mean_and_log)
    assert np.isfinite(value).all()
    assert np.isnan(error).all()


def test_unknown_influences_leave_the_others_alone() -> None:
    influence = np.random.default_rng(3).normal(size=(12, 3))
    shares = np.full(12, 1 / 12)
    expected = standard_error(influence, shares)
    influence[4, 1] = np.nan
    found = standard_error(influence, shares)
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
    assert np.isnan(found[1])
