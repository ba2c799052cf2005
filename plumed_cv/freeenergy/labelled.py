"""Correction of a free energy by few structures that another potential has computed.

The run sampled with potential 0. The reference, for example density functional theory, has computed
energies E and forces of N labels: a random sample of the snapshots, whose weights are those of the
snapshots divided by the inclusion probabilities. `perturbation` finds D(xi) = A(xi) - A_0(xi) from
such snapshots. The noise of E - E_0 in few structures is large. Therefore a cheap function g of the
structure, which has learned E - E_0 from the labels, is evaluated in all snapshots:

    D = D[g; all snapshots] + D[E - E_0; labels] - D[g; labels] .

This is the difference estimator of sampling theory. A poor g makes the error larger, but no bias:
the last two terms have the noise of E - E_0 - g alone. The two sources of error are independent:
the snapshots of the run (jackknife over its blocks), and the labels (jackknife over labels).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plumed_cv.freeenergy.jackknife import Estimate, jackknife
from plumed_cv.freeenergy.perturbation import (
    FEWEST,
    WINDOW,
    Curves,
    Difference,
    Estimator,
    Sample,
    summarise,
)
from plumed_cv.structures.frame import Array

FEWEST_LABELS = 6.0  # least effective number of labels in a window after reweighting
_PER_WINDOW = 12.0  # of labels, which may need a wider window than snapshots
_WINDOWS = (WINDOW, 0.07, 0.1, 0.14)
_WAYS = ("same structures", "second order", "reweighting of the snapshots", "reweighting")


@dataclass(frozen=True, eq=False)
class Correction:
    """The reference minus the potential of the run.

    Attributes
    ----------
    ways
        Differences by the way in which they were found: "same structures", the integral of the mean
        force; "second order", two cumulants of the energies; "reweighting of the snapshots", by g,
        with two cumulants of the rest in the labels; "reweighting", of both.
    label_errors
        For each way, the part of the error of the flux barrier that comes from the number of
        labels, eV.
    effective_labels
        Least effective number of labels, after reweighting, in a window between the states.
    effective_snapshots
        The same of the snapshots after reweighting by g.
    window
        Standard deviation of the window of the labels, relative to the distance of the states.
    """

    ways: dict[str, Difference]
    label_errors: dict[str, float]
    effective_labels: float
    effective_snapshots: float
    window: float

    def trusts(self, way: str) -> bool:
        """Whether the overlap is large enough for one of the ways."""
        if way in _WAYS[2:] and self.effective_snapshots < FEWEST:
            return False
        return way != _WAYS[3] or self.effective_labels >= FEWEST_LABELS

    @property
    def by(self) -> str:
        """The way that gives the answer: the last one that can be trusted."""
        return next(way for way in reversed(_WAYS) if self.trusts(way))

    @property
    def best(self) -> Difference:
        """The answer."""
        return self.ways[self.by]

    @property
    def overlaps(self) -> bool:
        """Whether the answer is a reweighted one."""
        return self.by.startswith("reweighting")


def estimate_correction(
    curves: Curves,
    labels: Sequence[Sample],
    snapshots: Sequence[Sample],
    walkers: Sequence[int] | None = None,
) -> Correction:
    """Return the correction by labels, with its errors.

    Parameters
    ----------
    curves
        The profile of the run.
    labels
        A sample for each label, in the order of time, with three potentials: the one of the run,
        the same plus g, and the reference. `weight` is that of the snapshot divided by its
        inclusion probability.
    snapshots
        Snapshots of each block of the run with the first two of these potentials.
    walkers
        As for `estimate_profile`.
    """
    window, of_reference = _windowed(curves, labels)
    of_g = Estimator(curves, labels, 1, window)
    n = len(curves.grid.nodes)
    every = Estimator(curves, snapshots, 1)
    T, from_all, effective = every.first_order(), every.along(), every.overlap()[0]
    parts = [[k] for k in range(len(snapshots))]
    weights = [part.weight * len(part.xi) for part in snapshots]
    found = jackknife(parts, weights, lambda blocks: every.differences(blocks).ravel(), walkers)
    of_run = found[1].reshape(3, 2 + n)[[0, 1, 2, 2]]

    def estimate(chosen: list[int]) -> Array:
        rest = of_reference.first_order(chosen) - of_g.first_order(chosen)
        own = of_reference.along(chosen, T + rest) - of_g.along(chosen, T)
        same, second, exponential = from_all + own
        # In the first way, `own` is the rest of the mean force.
        mixed = from_all[2] + own[1]
        return summarise(curves, np.array([same, second, mixed, exponential])).ravel()

    value, error = jackknife(
        [[k] for k in range(len(labels))],
        [part.weight * len(part.xi) for part in labels],
        estimate,
    )
    values, errors = value.reshape(4, 2 + n), error.reshape(4, 2 + n)
    total = np.hypot(errors, of_run)
    ways = {}
    for k, name in enumerate(_WAYS):
        flux_barrier, delta_F = (
            Estimate(float(values[k, i]), float(total[k, i])) for i in range(2)
        )
        ways[name] = Difference(flux_barrier, delta_F, values[k, 2:], total[k, 2:])
    T_of_all = T + of_reference.first_order() - of_g.first_order()
    effective_labels = of_reference.overlap(T_of_all)[0]
    label_errors = {name: float(errors[k, 0]) for k, name in enumerate(_WAYS)}
    return Correction(ways, label_errors, effective_labels, effective, window)


def _windowed(curves: Curves, labels: Sequence[Sample]) -> tuple[float, Estimator]:
    """Return the narrowest window with enough labels everywhere, and the estimator with it."""
    for window in _WINDOWS:
        estimator = Estimator(curves, labels, 2, window)
        if estimator.fewest() >= _PER_WINDOW:
            break
    return window, estimator
