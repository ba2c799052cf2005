"""Free energy profiles and barriers along one CV, with errors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from plumed_cv.common.display import axes_or_new, draw_band, make_table
from plumed_cv.freeenergy.barriers import (
    barrier_and_delta_F,
    difference_of,
    highest_of,
    highest_tops,
    keep_significant,
    origin_of,
)
from plumed_cv.freeenergy.basins import Basins, find
from plumed_cv.freeenergy.estimator import State, unit_in_words
from plumed_cv.freeenergy.grids import Grid
from plumed_cv.freeenergy.jackknife import Estimate, jackknife
from plumed_cv.freeenergy.sums import (
    Earlier,
    bin_samples,
    check_blocks,
    parts_of_data,
    profiles_of,
    smooth_profile,
    total_of,
)
from plumed_cv.structures.frame import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class Profile:
    """Free energy along the CV, zero at the lowest node of the reactant's basin.

    Energies are in eV, or in natural units if `energy_unit` is "natural".

    Attributes
    ----------
    argument
        Name of the CV.
    grid
        The nodes.
    kT_eV
        Temperature, eV.
    states
        The CV in the reactant and in the product.
    A_k, A_k_error
        Profile smoothed by the spring (Eqs. 7, 8) and its standard error, (n,), eV.
    A, A_error
        Profile corrected for the finite spring constant, (n,), eV; NaN in bins without samples.
    count
        Weight of the samples in the bin around each node, (n,).
    barrier
        Highest A between the states minus the lowest A in the basin of the reactant, eV; NaN if one
        of the states was not reached. It depends on the scale of the CV: see `Flux`.
    delta_F
        -kT ln( P_product / P_reactant ), eV, with the populations of the two basins: the integrals
        of exp(-A/kT) up to the dividing surfaces. Also NaN if the profile rises by less than 2 kT
        before it ends in one of the basins, because part of the basin may be missing.
    A1_minus_A0
        A at the CV of the product minus A at the CV of the reactant, eV. It depends on the scale of
        the CV. In a symmetric process along a symmetric CV it is zero.
    energy_unit
        That of the states: "eV", or "natural" for runs with PLUMED's UNITS NATURAL.

    Notes
    -----
    For a histogram, barrier and A1_minus_A0 come from a local cubic fit to A, because the highest
    of many noisy bins is too high. The fit rounds off features sharper than its window. The
    integral of the mean force has hardly any noise between bins and is used directly, as are
    populations.
    """

    argument: str
    grid: Grid
    kT_eV: float
    states: tuple[float, float]
    A_k: Array
    A: Array
    A_k_error: Array
    A_error: Array
    count: Array
    barrier: Estimate
    delta_F: Estimate
    A1_minus_A0: Estimate
    energy_unit: str = "eV"

    def __repr__(self) -> str:
        return (
            f"Profile({self.argument} from {self.grid.minimum:g} to {self.grid.maximum:g}, "
            f"{len(self.xi)} nodes, kT = {self.kT_eV:.4f} {unit_in_words(self.energy_unit)}: "
            f"barrier {self.barrier}, "
            f"delta F {self.delta_F})"
        )

    @property
    def xi(self) -> Array:
        """The nodes, (n,)."""
        return self.grid.nodes

    def widened(self, factor: float) -> "Profile":
        """Return the profile with all errors times a factor."""
        return replace(
            self,
            A_k_error=self.A_k_error * factor,
            A_error=self.A_error * factor,
            barrier=self.barrier.widened(factor),
            delta_F=self.delta_F.widened(factor),
            A1_minus_A0=self.A1_minus_A0.widened(factor),
        )

    def plot(self, ax: "Axes | None" = None, **style: Any) -> "Axes":
        """Draw A with a band of one standard error.

        Parameters
        ----------
        ax
            Axes of matplotlib to draw on; those of a new figure if None.
        style
            As for `Axes.plot`: colour, label, ...

        Returns
        -------
        Axes
            With axis labels and units.
        """
        ax = axes_or_new(ax)
        draw_band(ax, self.xi, self.A, self.A_error, **style)
        ax.set_xlabel("collective variable ξ")
        ax.set_ylabel(f"free energy ({unit_in_words(self.energy_unit)})")
        return ax

    def to_dataframe(self) -> "DataFrame":
        """Return the nodes as a pandas table: A_eV, A_error_eV, A_k_eV, A_k_error_eV, count.

        The index is the CV. In natural units the columns are A_natural, ...

        Raises
        ------
        UserError
            If pandas is not installed.
        """
        columns = {
            self.argument: self.xi,
            f"A_{self.energy_unit}": self.A,
            f"A_error_{self.energy_unit}": self.A_error,
            f"A_k_{self.energy_unit}": self.A_k,
            f"A_k_error_{self.energy_unit}": self.A_k_error,
            "count": self.count,
        }
        return make_table(columns, index=self.argument)


def estimate_profile(
    blocks: Sequence[State],
    states: tuple[float, float] = (0.0, 1.0),
    mean_force: Sequence[Array] | None = None,
    *,
    walkers: Sequence[int] | None = None,
    basins: Basins | None = None,
    earlier: Earlier | None = None,
) -> Profile:
    """Return the free energy profile and its errors.

    Parameters
    ----------
    blocks
        Parts of the data in the order of time: differences of successive states of one run, or
        states of independent walkers, or both one after the other. One block gives no errors.
    states
        The CV in the reactant and in the product.
    mean_force
        For every block the result of `bin_samples` for its snapshots, (2, n). A is then the
        integral of the mean force of the atoms, whose error is smaller than that of bABF's sums.
    walkers
        Number of blocks of each walker, one walker after the other. Blocks of different walkers are
        independent. By default all blocks belong to one run.
    basins
        Basins of `Flux`; by default they are determined from A.
    earlier
        Sums of earlier iterations for the mean force; they need `mean_force`.

    Returns
    -------
    Profile
        With the errors of `jackknife`. They are NaN if all samples of a bin come from one block.
        Those of differences between the states are also NaN if only one block reached a state.

    Raises
    ------
    UserError
        If there is no block, or blocks or `mean_force` belong to different estimators.
    """
    check_blocks(blocks)
    total = total_of(blocks)
    grid, kT, n = total.grid, total.kT_eV, len(total.grid.nodes)
    parts, weights, walkers = parts_of_data(blocks, mean_force, walkers, earlier)

    def smooth_of(A: Array) -> Array:
        return smooth_profile(grid, A, states) if mean_force is None else A

    def depths_of(some: Basins, sums: Array) -> Array:
        return some.depths(smooth_of(profiles_of(total, sums)[1])[some.along.order])

    of_all = profiles_of(total, np.sum(parts, axis=0))[1]
    if basins is None:
        W = smooth_of(of_all)
        basins = find(grid, W, states, kT)
        if basins is not None:
            basins = keep_significant(basins, W, parts, weights, depths_of, walkers)
    origin = origin_of(grid, of_all, states, basins)

    def estimate(sums: Array) -> Array:
        A_k, A = profiles_of(total, sums)
        smooth = smooth_of(A)
        summary = [
            *barrier_and_delta_F(A, smooth, basins, kT),
            difference_of(grid, smooth, states),
        ]
        tops = np.zeros(0) if basins is None else highest_tops(smooth, basins)
        return np.concatenate([A_k - A_k[origin], A - A[origin], summary, tops])

    value, error = jackknife(parts, weights, estimate, walkers)
    end = 2 * n + 3
    barrier, delta_F, difference = (
        Estimate(float(value[k]), float(error[k]), total.energy_unit) for k in range(2 * n, end)
    )
    barrier = highest_of(barrier, value[end:], error[end:])
    return Profile(
        argument=total.argument,
        grid=grid,
        kT_eV=kT,
        states=states,
        A_k=value[:n],
        A=value[n : 2 * n],
        A_k_error=error[:n],
        A_error=error[n : 2 * n],
        count=total.sums[2],
        barrier=barrier,
        delta_F=delta_F,
        A1_minus_A0=difference,
        energy_unit=total.energy_unit,
    )


def reweight_profile(
    grid: Grid,
    kT_eV: float,
    xi_series: Sequence[ArrayLike],
    bias_series_eV: Sequence[ArrayLike],
    *,
    walkers: Sequence[int] | None = None,
) -> tuple[Array, Array]:
    """Return the free energy of a run with a constant bias, weighted by exp(bias/kT), and errors.

    Parameters
    ----------
    grid
        The nodes, each with a bin around it.
    kT_eV
        Temperature, eV.
    xi_series, bias_series_eV
        For every block of the run, in the order of time, its series of xi and of the bias, eV.
    walkers
        As for `estimate_profile`.

    Returns
    -------
    (n,), (n,)
        The profile, eV, zero on average over the visited bins and NaN elsewhere, and its errors.
    """
    top = max(float(np.max(np.asarray(bias))) for bias in bias_series_eV)
    histograms = [
        bin_samples(grid, xi, np.exp((np.asarray(bias, dtype=float) - top) / kT_eV))[1]
        for xi, bias in zip(xi_series, bias_series_eV, strict=True)
    ]

    def estimate(histogram: Array) -> Array:
        with np.errstate(divide="ignore"):
            A = -kT_eV * np.log(histogram)
        A[np.isinf(A)] = np.nan
        return np.asarray(A - np.nanmean(A))

    return jackknife(histograms, [len(np.asarray(xi)) for xi in xi_series], estimate, walkers)
