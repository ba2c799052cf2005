"""Free energy profiles, barriers and fluxes along one CV, with errors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from ase import units
from numpy.typing import ArrayLike

from plumed_cv.babf.estimator import Grid, State, check_same_estimator, integral
from plumed_cv.babf.jackknife import jackknife
from plumed_cv.errors import UserError
from plumed_cv.frame import Array

SMOOTHING = 0.08  # half a window of the local cubic, in units of the distance of the states


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, eV; NaN where unknown."""

    value: float
    error: float

    def __repr__(self) -> str:
        return f"Estimate({self})"

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return "unknown"
        error = f"{self.error:.3f}" if np.isfinite(self.error) else "unknown"
        return f"{self.value:.3f} ± {error} eV"


@dataclass(frozen=True, eq=False)
class Profile:
    """Free energy along the CV, zero at the lowest node on the reactant's side of the barrier.

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
        Profile seen through the spring (Eqs. 7, 8) and its standard error, (n,), eV.
    A, A_error
        Profile corrected for the finite spring constant, (n,), eV; NaN in bins without samples.
    count
        Weight of the samples in the bin around each node, (n,).
    barrier
        Highest A between the states over the lowest on the reactant's side of it, eV; NaN if one
        of the states was not reached.
    delta_F
        A in the product over A in the reactant, eV.

    Notes
    -----
    Of a histogram, barrier and difference are those of a local cubic fit to A, for the highest of
    many noisy bins is too high; the fit rounds off what is sharper than its window. The integral of
    the mean force has hardly any noise from bin to bin and is taken as it is.
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

    def __repr__(self) -> str:
        return (
            f"Profile({self.argument} from {self.grid.minimum:g} to {self.grid.maximum:g}, "
            f"{len(self.xi)} nodes, kT = {self.kT_eV:.4f} eV: barrier {self.barrier}, "
            f"difference {self.delta_F})"
        )

    @property
    def xi(self) -> Array:
        """The nodes, (n,)."""
        return self.grid.nodes


def profile(
    blocks: Sequence[State],
    states: tuple[float, float] = (0.0, 1.0),
    mean_force: Sequence[Array] | None = None,
) -> Profile:
    """Return the free energy profile and its errors.

    Parameters
    ----------
    blocks
        Parts of the data, in the order of time: differences of successive states of one run, or
        states of independent walkers, or both one after the other. One block gives no errors.
    states
        The CV in the reactant and in the product, reactant first.
    mean_force
        For every block what `binned` makes of its snapshots, (2, n): A is then the
        integral of the mean force of the atoms, whose error is smaller than that of bABF's sums.

    Returns
    -------
    Profile
        The errors are delete-one jackknife errors over the blocks, the largest of those with
        blocks, pairs of blocks, pairs of pairs ... as long as six are left. They are NaN where the
        samples of a bin are all in one block, that of `delta_F` also if this is so at a state.

    Raises
    ------
    UserError
        If there is no block, blocks are of different estimators, or `mean_force` is of other ones.
    """
    check_blocks(blocks)
    total = total_of(blocks)
    grid, n = total.grid, len(total.grid.nodes)
    parts = _with_mean_force(blocks, mean_force)
    _, A = _profiles(total, np.sum(parts, axis=0))
    origin = _lowest_reactant(grid, A, states)
    fall = _fall_of_a_part(total, A, states)

    def estimate(sums: Array) -> Array:
        A_k, A = _profiles(total, sums)
        smooth = smoothed(grid, A, states) if mean_force is None else A
        summary = [barrier_of(grid, smooth, states, fall), difference_of(grid, smooth, states)]
        return np.concatenate([A_k - A_k[origin], A - A[origin], summary])

    value, error = jackknife(parts, weights_of(blocks), estimate)
    return Profile(
        argument=total.argument,
        grid=grid,
        kT_eV=total.kT_eV,
        states=states,
        A_k=value[:n],
        A=value[n:-2],
        A_k_error=error[:n],
        A_error=error[n:-2],
        count=total.sums[2],
        barrier=Estimate(float(value[-2]), float(error[-2])),
        delta_F=Estimate(float(value[-1]), float(error[-1])),
    )


@dataclass(frozen=True)
class Flux:
    """The flux out of the reactant, which does not depend on the form of the CV.

    Attributes
    ----------
    barrier
        Highest F(xi*) = -kT ln( rho(xi*) <|grad xi|>_xi* * 1 angstrom / P(xi < xi*) ), eV.
    activation
        Activation free energy -kT ln( h rate / kT ), eV: the highest
        -kT ln( rho(xi*) <lambda>_xi* / P(xi < xi*) ) with
        lambda^2 = h^2 sum_i |grad_i xi|^2/m_i / (2 pi kT)
        (Dietschreit et al., J. Chem. Phys. 157, 084113 (2022), arXiv:2206.02893).
    rate_per_s
        Transition state theory's rate through the best dividing surface, an upper bound of the
        true one, 1/s; `error` is its standard error.
    surface
        The dividing surface: xi* of `barrier`.
    """

    barrier: Estimate
    activation: Estimate
    rate_per_s: Estimate
    surface: float


def flux(
    blocks: Sequence[State],
    xi_series: Sequence[ArrayLike],
    gradnorm_series: Sequence[ArrayLike],
    invmass_series: Sequence[ArrayLike],
    states: tuple[float, float] = (0.0, 1.0),
    mean_force: Sequence[Array] | None = None,
) -> Flux:
    """Return the flux out of the reactant, through the dividing surface where it is least.

    Parameters
    ----------
    blocks
        As for `profile`.
    xi_series, gradnorm_series, invmass_series
        For every block its series of xi, of |grad xi| (1/angstrom) and of sum_i |grad_i xi|^2/m_i
        (1/(angstrom^2 amu)) from COLVAR, any stride. Their means at given xi do not depend on the
        bias.
    states
        The CV in the reactant and in the product, reactant first.
    mean_force
        As for `profile`.

    Raises
    ------
    UserError
        If the numbers of blocks or series differ, if no sample is on the grid, or if the grid
        begins less than 2 kT above the reactant's minimum: part of the basin would be missing
        from P.
    """
    check_blocks(blocks)
    if not len(blocks) == len(xi_series) == len(gradnorm_series) == len(invmass_series):
        raise UserError(
            f"{len(blocks)} blocks need as many series of xi, of |grad xi| and of invmass, not "
            f"{len(xi_series)}, {len(gradnorm_series)} and {len(invmass_series)}"
        )
    grid, kT = blocks[0].grid, blocks[0].kT_eV
    total = total_of(blocks)
    of_blocks = _with_mean_force(blocks, mean_force)
    _, A = _profiles(total, np.sum(of_blocks, axis=0))
    fall = _fall_of_a_part(total, A, states)
    sampled = A[np.isfinite(A)]
    if not len(sampled):
        raise UserError("no sample is on the grid: the flux barrier needs a run that visits it")
    depth = float(sampled[0] - A[_lowest_reactant(grid, A, states)])
    if depth < 2 * kT:
        raise UserError(
            f"the grid begins at {grid.minimum:g}, only {depth / kT:.1f} kT above the minimum of "
            "the reactant: the flux barrier needs the whole basin, so begin the grid further out"
        )
    # lambda is the length of a thermal wave, and so the rate kT/h times the flux in its units.
    planck_eV_s = units._hplanck / units._e
    attempts_per_s = kT / planck_eV_s
    wave = units.second * planck_eV_s / np.sqrt(2 * np.pi * kT)
    lengths = [
        (np.asarray(gradnorm, float), wave * np.sqrt(np.asarray(invmass, float)))
        for gradnorm, invmass in zip(gradnorm_series, invmass_series, strict=True)
    ]
    parts = [
        np.concatenate([sums, binned(grid, xi, *both)])
        for sums, xi, both in zip(of_blocks, xi_series, lengths, strict=True)
    ]

    def surfaces(sums: Array) -> Array:
        """F with |grad xi| and with lambda at every node, (2, n), eV; NaN where unknown."""
        of_profile, moments = np.split(sums, [len(of_blocks[0])])
        _, A = _profiles(total, of_profile)
        if mean_force is None:
            A = smoothed(grid, A, states)
        means = _smoothed_means(moments)
        A = A - np.nanmin(A)
        density = np.nan_to_num(np.exp(-A / kT))
        basin = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
        basin *= 0.5 * grid.spacing
        between = (grid.nodes > states[0]) & (grid.nodes < states[1]) & (basin > 0)
        F = np.full((2, len(A)), np.nan)
        if np.isfinite(barrier_of(grid, A, states, fall)):
            F[:, between] = A[between] - kT * np.log(means[:, between] / basin[between])
        return F

    def highest(sums: Array) -> Array:
        F = surfaces(sums)
        return np.array([np.nanmax(row) if np.isfinite(row).any() else np.nan for row in F])

    value, error = jackknife(parts, weights_of(blocks), highest)
    barrier, activation = (Estimate(float(v), float(e)) for v, e in zip(value, error, strict=True))
    rate = attempts_per_s * np.exp(-activation.value / kT)
    F = surfaces(np.sum(parts, axis=0))[0]
    return Flux(
        barrier=barrier,
        activation=activation,
        rate_per_s=Estimate(float(rate), float(rate * activation.error / kT)),
        surface=float(grid.nodes[np.nanargmax(F)]) if np.isfinite(F).any() else np.nan,
    )


def reweighted_profile(
    grid: Grid,
    kT_eV: float,
    xi_series: Sequence[ArrayLike],
    bias_series_eV: Sequence[ArrayLike],
) -> tuple[Array, Array]:
    """Return the free energy from a run under a frozen bias, weighted by exp(bias/kT), and errors.

    Parameters
    ----------
    grid
        The nodes, each with a bin around it.
    kT_eV
        Temperature, eV.
    xi_series, bias_series_eV
        For every block of the run, in the order of time, its series of xi and of the bias, eV.

    Returns
    -------
    (n,), (n,)
        The profile, eV, zero on average over the visited bins and NaN elsewhere, and its errors.
    """
    top = max(float(np.max(np.asarray(bias))) for bias in bias_series_eV)
    histograms = [
        binned(grid, xi, np.exp((np.asarray(bias, dtype=float) - top) / kT_eV))[1]
        for xi, bias in zip(xi_series, bias_series_eV, strict=True)
    ]

    def estimate(histogram: Array) -> Array:
        with np.errstate(divide="ignore"):
            A = -kT_eV * np.log(histogram)
        A[np.isinf(A)] = np.nan
        return np.asarray(A - np.nanmean(A))

    return jackknife(histograms, [len(np.asarray(xi)) for xi in xi_series], estimate)


def _with_mean_force(
    blocks: Sequence[State], mean_force: Sequence[Array] | None
) -> Sequence[Array]:
    """Return the sums of every block, (4, n), and below them, if given, its mean force, (6, n).

    Snapshots get the mean weight of their block's samples: what is left out of a jackknife's
    estimate is then the same share of both.
    """
    if mean_force is None:
        return [block.sums for block in blocks]
    shape = (2, len(blocks[0].grid.nodes))
    if len(mean_force) != len(blocks) or any(part.shape != shape for part in mean_force):
        raise UserError(
            f"{len(blocks)} blocks need as many sums of the mean force, each of shape {shape}, as "
            "babf.binned makes them on their grid"
        )
    return [
        np.concatenate([block.sums, part * (block.sums[2].sum() / max(1, block.steps))])
        for block, part in zip(blocks, mean_force, strict=True)
    ]


def _profiles(state: State, sums: Array) -> tuple[Array, Array]:
    """Return A_k and the corrected A, (n,) each, eV, up to constants.

    A_k is Eq. 7 without the prior where a node's own bin holds samples and the prior elsewhere: P_j
    never vanishes, but a mean over other bins' tails alone means nothing. A comes from
    -kT d ln rho/d xi + k (<z> - xi) between neighbouring bins, or from the mean force of the atoms
    if `sums` has it, which is interpolated in bins that were visited between snapshots only.
    Nothing is known of a bin that never was: A is NaN there, and A_k carries the energy across.

    Parameters
    ----------
    state
        Grid, temperature, spring and prior.
    sums
        As `_with_mean_force` returns them, (4, n) or (6, n).
    """
    grid, kT = state.grid, state.kT_eV
    weight, force, count, offset, *atoms = sums
    n = len(grid.nodes)
    sampled = np.flatnonzero(count > 0)
    derivative = state.prior.copy()
    weighed = sampled[weight[sampled] > 0]  # a ramp begins with the weight 0
    derivative[weighed] = force[weighed] / weight[weighed]
    A_k = integral(grid, derivative)
    A = np.full(n, np.nan)
    if not len(sampled) or (atoms and not atoms[0].any()):
        return A_k, A
    following = np.append(sampled[1:], sampled[0])
    if atoms:
        seen = atoms[0] > 0
        period = grid.maximum - grid.minimum if grid.periodic else None
        means = atoms[1][seen] / atoms[0][seen]
        mean_force = np.interp(grid.nodes[sampled], grid.nodes[seen], means, period=period)
        of_histogram = np.zeros(len(sampled))
    else:
        mean_force = state.kappa_eV * offset[sampled] / count[sampled]
        of_histogram = -kT * np.log(count[following] / count[sampled])
    steps = of_histogram + 0.5 * grid.spacing * (
        mean_force + np.append(mean_force[1:], mean_force[0])
    )
    adjacent = (following - sampled - 1) % n == 0 if grid.periodic else following == sampled + 1
    steps = np.where(adjacent, steps, A_k[following] - A_k[sampled])
    A[sampled] = np.concatenate([[0.0], np.cumsum(steps[:-1])])
    if grid.periodic:  # what is left after one turn is noise: spread it evenly
        A[sampled] -= steps.sum() * (sampled - sampled[0]) / n
    return A_k, A


def barrier_of(grid: Grid, A: Array, states: tuple[float, float], fall_eV: float = np.inf) -> float:
    """Return the highest A between the states over the lowest on the reactant's side of it.

    NaN if the top may be another one: unless A is known in both states, it must be known to fall by
    `fall_eV` behind it.
    """
    top = _highest(grid, A, states)
    if top is None:
        return np.nan
    reached = np.isfinite(difference_of(grid, A, states))
    if not reached and A[top] - np.nanmin(A[top:]) < fall_eV:
        return np.nan
    return float(A[top] - np.nanmin(A[: top + 1]))


def difference_of(grid: Grid, A: Array, states: tuple[float, float]) -> float:
    """Return A in the product over A in the reactant."""
    reactant, product = np.interp(states, grid.nodes, A, left=np.nan, right=np.nan)
    return float(product - reactant)


def _fall_of_a_part(total: State, A: Array, states: tuple[float, float]) -> float:
    """Return the `fall_eV` that `barrier_of` asks of a part of the data, if A is that of all, eV.

    Once the product was reached a part need not have been there, but on its side of the top.
    """
    reached = np.isfinite(difference_of(total.grid, A, states))
    return total.kT_eV if reached else np.inf


def _highest(grid: Grid, A: Array, states: tuple[float, float]) -> int | None:
    outside = (grid.nodes < states[0]) | (grid.nodes > states[1])
    between = np.where(outside | np.isnan(A), -np.inf, A)
    top = int(np.argmax(between))
    return top if np.isfinite(between[top]) else None


def _lowest_reactant(grid: Grid, A: Array, states: tuple[float, float]) -> int:
    top = _highest(grid, A, states)
    side = A if top is None else A[: top + 1]
    return int(np.nanargmin(side)) if np.isfinite(side).any() else 0


def smoothed(grid: Grid, A: Array, states: tuple[float, float]) -> Array:
    """Return a local cubic fit to the nodes where A is known, (n,); NaN where it is not."""
    known = np.isfinite(A)
    width = round(SMOOTHING * abs(states[1] - states[0]) / grid.spacing)
    smooth = np.full_like(A, np.nan)
    smooth[known] = _smoother(known.tobytes(), width, grid.periodic) @ A[known]
    return smooth


@lru_cache(maxsize=64)
def _smoother(known: bytes, width: int, periodic: bool) -> Array:
    """Return the linear map from known values to local cubic fits (Savitzky and Golay), (m, m)."""
    nodes = np.flatnonzero(np.frombuffer(known, dtype=bool))
    n = len(known)
    matrix = np.eye(len(nodes))
    for row, node in enumerate(nodes):
        offset = nodes - node
        if periodic:
            offset = (offset + n // 2) % n - n // 2
        near = np.flatnonzero(np.abs(offset) <= width)
        if len(near) > 4:  # as many or fewer leave the value as it is
            cubic = np.vander(offset[near] / width, 4, increasing=True)
            matrix[row] = 0.0
            matrix[row, near] = np.linalg.pinv(cubic)[0]
    return matrix


def binned(grid: Grid, xi: ArrayLike, *values: Array) -> Array:
    """Return (1 + v, n): the number of samples in the bin of each node, and sums of `values`.

    Such sums of several runs add up. With the `values` of `meanforce.instantaneous` they are the
    mean force that `profile` and `flux` take, one for each block.
    """
    j = grid.bin(np.asarray(xi, dtype=float))
    inside = j >= 0
    n = len(grid.nodes)
    number = np.bincount(j[inside], minlength=n)
    sums = [np.bincount(j[inside], value[inside], minlength=n) for value in values]
    return np.array([number, *sums])


def _smoothed_means(moments: Array) -> Array:
    """Return (v, n): means in every bin and its neighbours, interpolated where all are empty."""
    padded = np.pad(moments, ((0, 0), (1, 1)))
    number, *sums = 0.25 * padded[:, :-2] + 0.5 * padded[:, 1:-1] + 0.25 * padded[:, 2:]
    known = np.flatnonzero(number > 0)
    if not len(known):
        return np.full((len(sums), len(number)), np.nan)
    nodes = np.arange(len(number))
    return np.array([np.interp(nodes, known, total[known] / number[known]) for total in sums])


def weights_of(blocks: Sequence[State]) -> list[float]:
    """Return the weight of each block's samples."""
    return [float(block.sums[0].sum()) for block in blocks]


def total_of(blocks: Sequence[State]) -> State:
    """Return the state of all blocks together."""
    sums = np.sum([block.sums for block in blocks], axis=0)
    return replace(blocks[0], steps=sum(block.steps for block in blocks), sums=sums)


def check_blocks(blocks: Sequence[State]) -> None:
    """Refuse no blocks, and blocks of different estimators.

    Raises
    ------
    UserError
        If there is no block, or as for `check_same_estimator`.
    """
    if not blocks:
        raise UserError("a profile needs at least one state or block of a run")
    for one, other in pairwise(blocks):
        check_same_estimator(one, other)
