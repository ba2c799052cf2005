"""Barrier of those structures of a run in which potentials agree.

A limit on a function of the structure leaves a part of the ensemble. At a value of xi, the share of
the structures within the limit is p(xi), and the share of the flux that they carry is q(xi). Their
profile is A - kT ln p, and their flux F - kT ln q. A bias along xi changes neither p nor q.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plumed_cv.freeenergy.jackknife import Estimate, jackknife
from plumed_cv.freeenergy.perturbation import WINDOW, Curves, Sample, summarise
from plumed_cv.structures.frame import Array


@dataclass(frozen=True, eq=False)
class Within:
    """The part of an ensemble within a limit.

    Attributes
    ----------
    flux_barrier, delta_F
        Results of the structures within the limit minus those of all, eV; nan if none is within it
        at some value of xi between the states.
    share
        Share of the structures within the limit at each node, (n,); nan where there are none.
    """

    flux_barrier: Estimate
    delta_F: Estimate
    share: Array


def estimate_within(
    curves: Curves,
    samples: Sequence[Sample],
    inside: Sequence[NDArray[np.bool_]],
    walkers: Sequence[int] | None = None,
) -> Within:
    """Return what a limit changes in the results of a run.

    Parameters
    ----------
    curves
        The profile of the run.
    samples
        Snapshots of each block of the run, in the order of time.
    inside
        Whether each snapshot of each block is within the limit, (M,) bool.
    walkers
        As for `estimate_profile`.
    """
    kT, n = curves.kT_eV, len(curves.grid.nodes)
    xi, gradnorm = (np.concatenate([part[i] for part in samples]) for i in range(2))
    sizes = [len(part.xi) for part in samples]
    block = np.repeat(np.arange(len(samples)), sizes)
    weight = np.repeat([part.weight for part in samples], sizes)
    within = np.concatenate(list(inside))
    offset = (xi - curves.grid.nodes[:, None]) / (WINDOW * curves.basins.along.length)
    window = np.exp(-0.5 * offset**2)

    def estimate(chosen: list[int]) -> Array:
        """The two differences, and the shares p, (2 + n)."""
        seen = window * weight * np.isin(block, chosen)
        flux = seen * gradnorm
        with np.errstate(divide="ignore", invalid="ignore"):
            p, q = (
                (each @ within) / each.sum(axis=1) if within.any() else np.zeros(n)
                for each in (seen, flux)
            )
            changes = summarise(curves, np.array([[-kT * np.log(p), -kT * np.log(q)]]))
        return np.concatenate([changes[0, :2], p])

    weights = [part.weight * len(part.xi) for part in samples]
    value, error = jackknife([[k] for k in range(len(samples))], weights, estimate, walkers)
    value[:2][~np.isfinite(value[:2])] = np.nan
    return Within(
        Estimate(float(value[0]), float(error[0])),
        Estimate(float(value[1]), float(error[1])),
        value[2:],
    )
