"""How far thermal motion takes the atoms of a structure, from a few forces."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.structures.frame import Array

_STEP_A = 0.05  # of a coordinate: some two thirds of a thermal displacement
_PAIRS = 4  # of displaced structures
_DEBYE = 9.0 / 5.0  # mean square frequency times the mean of its inverse, in Debye's crystal


def thermal_variance(
    positions: Array,
    held: NDArray[np.int64],
    forces: Callable[[Array], Array],
    kT_eV: float,
) -> float:
    """Variance of a coordinate in thermal motion, A^2, by the stiffness of a minimum.

    Every harmonic mode has the variance kT over its stiffness. The mean stiffness, the trace of the
    Hessian over the number of coordinates, follows from the forces on a few structures that are
    displaced at random (Hutchinson's estimator), in opposite pairs, so that the minimum itself
    drops out. Soft modes move further than the mean stiffness says: in Debye's crystal, whose
    frequencies are distributed as their square up to a highest one, by 9/5.

    Parameters
    ----------
    positions
        The minimum, shape (N, 3), angstrom.
    held
        Atoms that do not move.
    forces
        Returns the forces of structures, shape (M, N, 3) both, angstrom and eV/angstrom.
    kT_eV
        Temperature, eV.

    Raises
    ------
    UserError
        If the structure has no positive stiffness.
    """
    rng = np.random.default_rng(0)
    steps = rng.normal(scale=_STEP_A, size=(_PAIRS, *positions.shape))
    steps[:, held] = 0.0
    if not len(held):
        steps -= steps.mean(axis=1, keepdims=True)
    found = forces(np.concatenate([positions + steps, positions - steps]))
    pull = found[_PAIRS:] - found[:_PAIRS]
    stiffness = float(np.sum(pull * steps) / (2.0 * np.sum(steps**2)))
    if not stiffness > 0:
        raise UserError(
            f"The initial state has a mean stiffness of {stiffness:.3g} eV/A^2, so its thermal "
            "motion cannot be told from it; check the potential, or give path.noise_A2."
        )
    return _DEBYE * kT_eV / stiffness
