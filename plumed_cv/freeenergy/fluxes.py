"""Flux through the dividing surfaces along one CV: flux barriers and rates with errors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from ase import units
from numpy.typing import ArrayLike

from plumed_cv.common.errors import UserError
from plumed_cv.freeenergy.barriers import highest_of, keep_significant, top_is_known
from plumed_cv.freeenergy.basins import Basins, find, highest
from plumed_cv.freeenergy.estimator import State
from plumed_cv.freeenergy.grids import Grid
from plumed_cv.freeenergy.jackknife import UNKNOWN, Estimate, jackknife
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

FEWEST_BINS = 4  # of a basin: a standard deviation of 1.1 bins if it is harmonic


@dataclass(frozen=True)
class Step:
    """One barrier between two successive basins, in both directions.

    Attributes
    ----------
    reactant, product
        The CV in the minima of the basins before and behind the barrier.
    surface
        The dividing surface between them.
    flux_barrier, reverse_flux_barrier
        As `Flux.barrier`, with the population of the basin before the barrier alone, or of that
        behind it, eV.
    rate_per_s, reverse_rate_per_s
        Rates of transition state theory out of the two basins, 1/s.
    """

    reactant: float
    product: float
    surface: float
    flux_barrier: Estimate
    reverse_flux_barrier: Estimate
    rate_per_s: Estimate
    reverse_rate_per_s: Estimate

    def widened(self, factor: float) -> "Step":
        """Return the step with all errors times a factor."""
        return replace(
            self,
            flux_barrier=self.flux_barrier.widened(factor),
            rate_per_s=self.rate_per_s.widened(factor),
            reverse_flux_barrier=self.reverse_flux_barrier.widened(factor),
            reverse_rate_per_s=self.reverse_rate_per_s.widened(factor),
        )


@dataclass(frozen=True, eq=False)
class Flux:
    """The flux out of the reactant, which does not depend on the scale of the CV.

    P_reactant is the population of the reactant's basin alone, up to the first dividing surface,
    even if other basins follow before the product.

    Attributes
    ----------
    barrier
        Highest F(xi*) = -kT ln( rho(xi*) <|grad xi|>_xi* * 1 angstrom / P_reactant ), eV.
    activation
        Activation free energy -kT ln( h rate / kT ), eV. With one barrier it is the highest -kT ln(
        rho(xi*) <lambda>_xi* / P_reactant ) with lambda^2 = h^2 sum_i |grad_i xi|^2/m_i / (2 pi kT)
        (Dietschreit et al., J. Chem. Phys. 157, 084113 (2022), arXiv:2206.02893).
    rate_per_s
        Rate of transition state theory from the reactant to the product, an upper bound, 1/s;
        `error` is its standard error. With basins between them it is the steady current into the
        product divided by the population of the reactant's basin,

            1/k = sum_i (P_reactant / P_i) / k_i ,

        where k_i is the rate out of basin i over the barrier towards the product, and P_i its
        population.
    surface
        The dividing surface: xi* of `barrier`.
    steps
        The barriers between successive basins in their order; one if there is no basin between the
        states, none if a state was not reached.
    populations
        The share of each basin in the total population, (number of steps + 1).
    basins
        The basins along the nodes, for `estimate_profile`; None if a state was not reached.
    W
        -kT ln of the mass-weighted flux through the surface of each node, (n,), eV, up to a
        constant. The rate of a step follows from its maximum between the two basins.
    F
        The same with |grad xi|, from whose maximum the flux barrier follows.
    depths_kT
        How far F rises from the minimum of the reactant on its far side and towards the product,
        and from that of the product towards the reactant and on its far side, kT; none if a state
        was not reached.
    note
        Why the population of the product is unknown, or None.

    Notes
    -----
    Rate of the whole process: in a steady state with the probabilities c_i and none in the product,
    the current J over each barrier is c_i k_i - c_(i+1) k'_(i+1). Detailed balance gives P_i k_i =
    P_(i+1) k'_(i+1) = J_i, and thus J / J_i = c_i/P_i - c_(i+1)/P_(i+1). The sum over all barriers
    is J sum_i 1/J_i = c_1/P_1, and the rate is k = J/c_1 (the method of flux over population:
    Hanggi, Talkner and Borkovec, Rev. Mod. Phys. 62, 251 (1990)).
    """

    barrier: Estimate
    activation: Estimate
    rate_per_s: Estimate
    surface: float
    steps: tuple[Step, ...] = ()
    populations: tuple[Estimate, ...] = ()
    basins: Basins | None = None
    W: Array | None = None
    F: Array | None = None
    depths_kT: tuple[float, ...] = ()
    note: str | None = None

    def widened(self, factor: float) -> "Flux":
        """Return the flux with all errors times a factor."""
        return replace(
            self,
            barrier=self.barrier.widened(factor),
            activation=self.activation.widened(factor),
            rate_per_s=self.rate_per_s.widened(factor),
            steps=tuple(step.widened(factor) for step in self.steps),
            populations=tuple(share.widened(factor) for share in self.populations),
        )


def estimate_flux(
    blocks: Sequence[State],
    xi_series: Sequence[ArrayLike],
    gradnorm_series: Sequence[ArrayLike],
    invmass_series: Sequence[ArrayLike],
    states: tuple[float, float] = (0.0, 1.0),
    mean_force: Sequence[Array] | None = None,
    *,
    walkers: Sequence[int] | None = None,
    earlier: Earlier | None = None,
) -> Flux:
    """Return the flux out of the reactant, through the dividing surfaces with the smallest flux.

    Parameters
    ----------
    blocks
        As for `estimate_profile`.
    xi_series, gradnorm_series, invmass_series
        For every block its series of xi, of |grad xi| (1/angstrom) and of sum_i |grad_i xi|^2/m_i
        (1/(angstrom^2 amu)) from COLVAR, with any stride. Their means at given xi do not depend on
        the bias.
    states
        The CV in the reactant and in the product.
    mean_force, walkers, earlier
        As for `estimate_profile`.

    Raises
    ------
    UserError
        If the numbers of blocks or series differ, if the states are in natural units, if no sample
        is on the grid, or if the grid begins less than 2 kT above the minimum of the reactant,
        because part of the basin would be missing from its population.
    """
    check_blocks(blocks)
    if not len(blocks) == len(xi_series) == len(gradnorm_series) == len(invmass_series):
        raise UserError(
            f"{len(blocks)} blocks need as many series of xi, of |grad xi| and of invmass, not "
            f"{len(xi_series)}, {len(gradnorm_series)} and {len(invmass_series)}"
        )
    if blocks[0].energy_unit != "eV":
        raise UserError(
            "the states are of a run with UNITS NATURAL: a flux barrier and a rate need states "
            "whose energies have a value in eV"
        )
    grid, kT = blocks[0].grid, blocks[0].kT_eV
    total = total_of(blocks)
    of_blocks, weights, walkers = parts_of_data(blocks, mean_force, walkers, earlier)
    if not np.isfinite(profiles_of(total, np.sum(of_blocks, axis=0))[1]).any():
        raise UserError("no sample is on the grid: the flux barrier needs a run that visits it")
    # lambda is a thermal wavelength, and the rate is kT/h times the flux in its units.
    planck_eV_s = units._hplanck / units._e
    attempts_per_s = kT / planck_eV_s
    wave = units.second * planck_eV_s / np.sqrt(2 * np.pi * kT)
    lengths = [
        (np.asarray(gradnorm, float), wave * np.sqrt(np.asarray(invmass, float)))
        for gradnorm, invmass in zip(gradnorm_series, invmass_series, strict=True)
    ]
    moments = [bin_samples(grid, xi, *both) for xi, both in zip(xi_series, lengths, strict=True)]
    moments += [np.zeros_like(moments[0])] * (len(of_blocks) - len(moments))
    parts = [np.concatenate(both) for both in zip(of_blocks, moments, strict=True)]

    gradnorm = _smoothed_means(np.sum(parts, axis=0)[len(of_blocks[0]) :], grid.periodic)[0]
    path_length = _path_length(grid, gradnorm)

    def fluxes(sums: Array) -> tuple[Array, Array]:
        """A, (n,), and -kT ln of the fluxes with |grad xi| and with lambda, (2, n), eV."""
        of_profile, moments = np.split(sums, [len(of_blocks[0])])
        _, A = profiles_of(total, of_profile)
        W = A - kT * np.log(_smoothed_means(moments, grid.periodic))
        if mean_force is None:
            W = np.array([smooth_profile(grid, row, states, path_length) for row in W])
        return A, W

    def depths_of(some: Basins, sums: Array) -> Array:
        return some.depths(fluxes(sums)[1][0, some.along.order])

    _, W = fluxes(np.sum(parts, axis=0))
    basins = find(grid, W[0], states, kT)
    if basins is None:
        return Flux(UNKNOWN, UNKNOWN, replace(UNKNOWN, unit="1/s"), np.nan)
    if not basins.whole[0]:
        along = W[0, basins.along.order]
        depth = along[basins.first] - along[basins.minima[0]]
        raise UserError(
            f"the grid begins at {grid.nodes[basins.along.order[0]]:g}, only {depth / kT:.1f} kT "
            "above the minimum of the reactant: the flux barrier needs the whole basin, so begin "
            "the grid further out"
        )
    reactant = W[0, basins.along.order][basins.first : basins.surfaces[0] + 1]
    occupied = _number_of_bins(reactant, kT)
    if occupied < FEWEST_BINS:
        raise UserError(
            f"the grid is too coarse: the reactant occupies {occupied:.1f} bins ({FEWEST_BINS} at "
            "least); use more bins (sampling.bins)"
        )
    basins = keep_significant(basins, W[0], parts, weights, depths_of, walkers)
    order, number = basins.along.order, len(basins.surfaces)
    open_product = _doubt_about_product(grid, W[0, order], basins, kT)
    spans = list(pairwise(basins.minima))
    places = [0.0, *basins.along.position[list(basins.minima[1:-1])], basins.along.length]
    reached = list(pairwise(places))

    def estimate(sums: Array) -> Array:
        """Highest F, highest F with lambda, F over each barrier and back, populations; eV."""
        A, W = fluxes(sums)
        populations = basins.populations(A[order], kT)
        if open_product is not None:
            populations[-1] = np.nan
        tops = np.full((2, number), np.nan)
        for i, (ends, places) in enumerate(zip(spans, reached, strict=True)):
            if top_is_known(W[0, order], basins, ends, places, kT):
                tops[:, i] = [highest(row[order][ends[0] : ends[1] + 1]) for row in W]
        everywhere = populations.sum()
        basin = kT * np.log(np.where(populations > 0, populations, np.nan))
        all_known = np.isfinite(tops[1]).all()
        resistance = kT * np.logaddexp.reduce(tops[1] / kT) if all_known else np.nan
        whole = [tops[0].max() + basin[0], resistance + basin[0]]
        shares = populations / (everywhere if everywhere != 0 else np.nan)
        steps = [*(tops + basin[:-1]), *(tops + basin[1:])]
        return np.concatenate([whole, *steps, shares, tops[0] + basin[0]])

    value, error = jackknife(parts, weights, estimate, walkers)
    value[~np.isfinite(value)] = np.nan
    error[~np.isfinite(error)] = np.nan

    def rate(k: int) -> Estimate:
        """Convert an activation free energy to a rate."""
        per_s = float(attempts_per_s * np.exp(-value[k] / kT))
        return Estimate(per_s, float(per_s * error[k] / kT), "1/s")

    found = [Estimate(float(v), float(e)) for v, e in zip(value, error, strict=True)]
    xi = grid.nodes[order]
    steps = tuple(
        Step(
            reactant=float(xi[basins.minima[i]]),
            product=float(xi[basins.minima[i + 1]]),
            surface=float(xi[basins.surfaces[i]]),
            flux_barrier=found[2 + i],
            rate_per_s=rate(2 + number + i),
            reverse_flux_barrier=found[2 + 2 * number + i],
            reverse_rate_per_s=rate(2 + 3 * number + i),
        )
        for i in range(number)
    )
    each = slice(len(found) - number, None)
    best = max(basins.surfaces, key=lambda i: float(W[0, order[i]]))
    return Flux(
        barrier=highest_of(found[0], value[each], error[each]),
        activation=found[1],
        rate_per_s=rate(1),
        surface=float(xi[best]),
        steps=steps,
        populations=tuple(replace(each, unit="") for each in found[2 + 4 * number : -number]),
        basins=basins,
        W=W[1],
        F=W[0],
        depths_kT=_depths_of_states(W[0, order], basins, kT),
        note=open_product,
    )


def _depths_of_states(W: Array, basins: Basins, kT: float) -> tuple[float, ...]:
    """Return `Flux.depths_kT`; W is in the order of the path."""
    tops = W[[basins.first, basins.surfaces[0], basins.surfaces[-1], basins.last]]
    bottoms = W[[basins.minima[0]] * 2 + [basins.minima[-1]] * 2]
    return tuple(float(depth) for depth in (tops - bottoms) / kT)


def _doubt_about_product(grid: Grid, W: Array, basins: Basins, kT: float) -> str | None:
    """Say why the population of the product is unknown, if it is; W is in the order of the path."""
    unknown = "delta F and the rate back are unknown"
    if not basins.whole[1]:
        depth = (W[basins.last] - W[basins.minima[-1]]) / kT
        return (
            f"{unknown}: the grid ends at {grid.nodes[basins.along.order[basins.last]]:g}, only "
            f"{depth:.1f} kT above the minimum of the product"
        )
    occupied = _number_of_bins(W[basins.surfaces[-1] : basins.last + 1], kT)
    if occupied < FEWEST_BINS:
        return (
            f"{unknown}: the product occupies {occupied:.1f} bins of the grid ({FEWEST_BINS} at "
            "least); use more bins (sampling.bins)"
        )
    return None


def _number_of_bins(W: Array, kT: float) -> float:
    """Return (sum p)^2 / sum p^2 with p = exp(-W/kT) in the bins, (n,), of a basin."""
    p = np.nan_to_num(np.exp((np.nanmin(W) - W) / kT))
    return float(p.sum() ** 2 / (p**2).sum())


def _path_length(grid: Grid, gradnorm: Array) -> Array:
    """Return the length of the path up to each node, angstrom, as `places` of `smooth_profile`.

    In this coordinate a window has the same width as in the CV where the CV is even. Where the CV
    is compressed, a window in the CV would round off the profile.

    Parameters
    ----------
    grid
        The nodes.
    gradnorm
        Mean |grad xi| at the nodes, (n,), 1/angstrom.
    """
    around = np.append(1 / gradnorm, 1 / gradnorm[:1]) if grid.periodic else 1 / gradnorm
    steps = 0.5 * grid.spacing * (around[1:] + around[:-1])
    return np.concatenate([[0.0], np.cumsum(steps)])


def _smoothed_means(moments: Array, periodic: bool) -> Array:
    """Return means in every bin and its neighbours, (v, n), interpolated if all are empty."""
    padded = np.pad(moments, ((0, 0), (1, 1)), mode="wrap" if periodic else "constant")
    number, *sums = 0.25 * padded[:, :-2] + 0.5 * padded[:, 1:-1] + 0.25 * padded[:, 2:]
    known = np.flatnonzero(number > 0)
    if not len(known):
        return np.full((len(sums), len(number)), np.nan)
    nodes = np.arange(len(number))
    period = len(nodes) if periodic else None
    return np.array(
        [np.interp(nodes, known, total[known] / number[known], period=period) for total in sums]
    )
