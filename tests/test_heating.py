"""The bias must not heat the collective variable while it is learned."""

from plumed_cv.freeenergy.estimator import SOLVE_STRIDE
from python.benchmarks.heating import temperatures


def test_a_bias_that_waits_does_not_heat() -> None:
    """Quarters of 10 ps hold some 50 independent kinetic energies: their means are within 20 %.

    Three such errors allow for 1.6; one set in 400 is outside. An update in every step heats the
    first half to more than twice the temperature (docs/theory.md).
    """
    waits, follows = temperatures(SOLVE_STRIDE, seed=1), temperatures(1, seed=1)
    assert max(waits[1:]) < 1.6
    assert follows[:2].mean() > 1.5 * waits[:2].mean()
