"""Rates of Langevin dynamics in one dimension, by the spectrum of the Klein-Kramers equation.

The probability of positions and velocities relaxes by dP/dt = L P. Where two wells are separated by
a barrier, the smallest rate of relaxation but zero is the sum of the rates there and back; all
others belong to motions within the wells. Brinkman's hierarchy (Risken, The Fokker-Planck Equation,
Sec. 10.3): P = exp(-V/2kT) psi_0(v) sum_n c_n(x) psi_n(v), psi_n the Hermite functions of v in
units of its thermal width u, so that

    dc_n/dt = -sqrt(n) B c_(n-1) + sqrt(n+1) B^T c_(n+1) - n gamma c_n,
    B = u exp(-V/2kT) d/dx exp(V/2kT).

Even c_n are on the points of a grid, odd ones half-way between, which makes B^T minus the other
derivative exactly. Nothing of the package is used.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import block_array, diags_array
from scipy.sparse.linalg import eigs

Array = NDArray[np.float64]


def relaxation(
    V: Callable[[Array], Array],
    ends: tuple[float, float],
    speed: float,
    friction: float,
    points: int = 240,
    functions: int = 60,
) -> float:
    """The smallest rate of relaxation but zero, in the unit of the friction.

    Parameters
    ----------
    V
        Potential over kT; `ends` are where it is so high that nothing comes there.
    speed
        Thermal velocity, the root of kT/m.
    friction
        gamma.
    points, functions
        Of the grid, and Hermite functions.
    """
    x = np.linspace(*ends, points)
    step = x[1] - x[0]
    half = 0.5 * (x[1:] + x[:-1])
    root, root_half = (np.exp(0.5 * (V(where) - V(x).min())) for where in (x, half))
    difference = diags_array([-np.ones(points - 1), np.ones(points - 1)], offsets=[0, 1],
                             shape=(points - 1, points)) / step  # fmt: skip
    up = speed * diags_array(1 / root_half) @ difference @ diags_array(root)
    # From half-way points to points; beyond the ends there is nothing.
    down = speed * diags_array(1 / root) @ -difference.T @ diags_array(root_half)
    blocks: list[list[object]] = [[None] * functions for _ in range(functions)]
    for n in range(functions):
        size = points if n % 2 == 0 else points - 1
        blocks[n][n] = diags_array(np.full(size, -n * friction))
        if n:
            B = up if n % 2 else down
            blocks[n][n - 1] = -(n**0.5) * B
            blocks[n - 1][n] = n**0.5 * B.T
    generator = block_array(blocks, format="csc")
    guess = 1e-9 * speed / (ends[1] - ends[0])
    values = eigs(generator, k=3, sigma=guess, return_eigenvectors=False)
    rates = np.sort(np.abs(values.real))
    return float(rates[1])
