"""Free energies on the plane of two CVs, with errors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import minimum_filter

from plumed_cv.common.errors import UserError
from plumed_cv.freeenergy.estimator import UNSAMPLED, State, integrate_mean_force
from plumed_cv.freeenergy.grids import Grid, at_all_nodes, edges, integrate_steps
from plumed_cv.freeenergy.jackknife import Estimate, jackknife
from plumed_cv.freeenergy.sums import check_blocks, total_of, weights_of
from plumed_cv.structures.frame import Array


@dataclass(frozen=True, eq=False)
class Surface:
    """Free energy on the plane of two CVs, zero at the lowest node.

    It has n nodes in total, and the first CV varies fastest. Energies are in eV, or in natural
    units if `energy_unit` is "natural".

    Attributes
    ----------
    arguments
        Names of the CVs.
    axes
        The nodes along each CV.
    kT_eV
        Temperature, eV.
    A_k, A_k_error
        Surface smoothed by the springs (Eqs. 7, 8) and its standard error, (n,), eV.
    A, A_error
        Surface corrected for the finite spring constants, (n,), eV; NaN in bins without samples.
    count
        Weight of the samples in the bin around each node, (n,).
    energy_unit
        That of the states: "eV", or "natural" for runs with PLUMED's UNITS NATURAL.

    Notes
    -----
    Errors are those of -kT ln of the probability of a node. Errors of differences from the lowest
    node would include that of the lowest node, which is biased low by selection.
    """

    arguments: tuple[str, ...]
    axes: tuple[Grid, ...]
    kT_eV: float
    A_k: Array
    A: Array
    A_k_error: Array
    A_error: Array
    count: Array
    energy_unit: str = "eV"

    @property
    def points(self) -> Array:
        """The nodes, (2, n)."""
        return at_all_nodes([axis.nodes for axis in self.axes])

    def on_grid(self, values: Array) -> Array:
        """Return (n,) values as (n2, n1): a row for every node along the second CV."""
        return values.reshape(len(self.axes[1].nodes), len(self.axes[0].nodes))

    def minima(self, reach: int = 4) -> list[tuple[tuple[float, float], Estimate]]:
        """Return the points where A is lowest within `reach` nodes along both CVs, and A.

        The lowest point comes first. Minima that are noise in flat regions are included.
        """
        A = self.on_grid(np.where(np.isfinite(self.A), self.A, np.inf))
        modes = ["wrap" if axis.periodic else "nearest" for axis in reversed(self.axes)]
        floor = minimum_filter(A, size=2 * reach + 1, mode=modes)
        found = np.flatnonzero(np.isfinite(A.ravel()) & (floor >= A).ravel())
        points = self.points
        return [
            (
                (float(points[0, j]), float(points[1, j])),
                Estimate(float(self.A[j]), float(self.A_error[j]), self.energy_unit),
            )
            for j in found[np.argsort(self.A[found])]
        ]


def estimate_surface(blocks: Sequence[State], *, walkers: Sequence[int] | None = None) -> Surface:
    """Return the free energy on the plane and its errors.

    Parameters
    ----------
    blocks
        As for `estimate_profile`: parts of the data in the order of time, from one estimator of two
        CVs.
    walkers
        As for `estimate_profile`.

    Returns
    -------
    Surface
        With the errors of `estimate_profile`.

    Raises
    ------
    UserError
        If there is no block, or blocks belong to different estimators, do not have two CVs, or have
        no sample on the grid.
    """
    check_blocks(blocks)
    total = total_of(blocks)
    if len(total.axes) != 2:
        raise UserError(
            f"the states have only the CV {total.arguments[0]}, and this needs two: use "
            "estimate_profile"
        )
    if not total.count.any():
        raise UserError("no sample is on the grid: the free energy needs a run that visits it")
    n = len(total.weight)

    def estimate(sums: Array) -> Array:
        both = _surfaces(replace(total, sums=sums))
        return np.concatenate([_of_all(A, total.kT_eV) for A in both])

    value, error = jackknife(
        [block.sums for block in blocks], weights_of(blocks), estimate, walkers
    )
    return Surface(
        arguments=total.arguments,
        axes=total.axes,
        kT_eV=total.kT_eV,
        A_k=value[:n] - value[:n].min(),
        A=value[n:] - np.nanmin(value[n:]),
        A_k_error=error[:n],
        A_error=error[n:],
        count=total.count,
        energy_unit=total.energy_unit,
    )


def _of_all(A: Array, kT: float) -> Array:
    """Return -kT ln of the probability of every node, (n,)."""
    lowest = np.nanmin(A)
    return np.asarray(A - lowest + kT * np.log(np.nansum(np.exp(-(A - lowest) / kT))))


def _surfaces(state: State) -> tuple[Array, Array]:
    """Return A_k and the corrected A, (n,) each, eV, up to constants.

    A_k comes from Eq. 7 without the prior if the bin of a node contains samples, and with the prior
    otherwise, where it has almost no weight. A comes from -kT d ln rho/d xi + k (<z> - xi) between
    neighbouring bins with samples. Regions that are not connected are placed at the height of A_k.
    """
    kT, weight, count = state.kT_eV, state.weight, state.count
    sampled = count > 0
    derivative = state.prior.copy()
    weighed = sampled & (weight > 0)  # A may rise so fast that the node of a bin has no weight
    derivative[:, weighed] = state.force[:, weighed] / weight[weighed]
    least = UNSAMPLED * weight[weighed].mean() if weighed.any() else 1.0
    A_k = integrate_mean_force(
        state, derivative, np.where(sampled, np.maximum(weight, least), least)
    )
    steps, weights = [], []
    with np.errstate(divide="ignore", invalid="ignore"):
        for d, (a, b) in enumerate(edges(state.axes)):
            mean = state.offset[d] / count
            half = 0.5 * state.axes[d].spacing * state.kappas_eV[d]
            step = -kT * np.log(count[b] / count[a]) + half * (mean[a] + mean[b])
            both = sampled[a] & sampled[b]
            steps.append(np.where(both, step, 0.0))
            weights.append(np.where(both, count[a] * count[b] / (count[a] + count[b]), 0.0))
    A, part = integrate_steps(state.axes, steps, weights)
    samples = np.bincount(part, count)
    with np.errstate(invalid="ignore"):
        above = np.bincount(part, count * (A_k - A)) / samples
    return A_k, np.where(sampled, A + above[part], np.nan)
