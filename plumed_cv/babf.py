"""Bayesian adaptive biasing force: reference estimator, state files, profiles with errors.

Equation numbers are those of Baima et al., Phys. Chem. Chem. Phys. 24, 23152 (2022). The PLUMED
action BABF does the same in C++ and writes the files read here. Everything it learns is a few
sums over samples at every node of the grid. So states of independent walkers are added, successive
states of one run are subtracted, and such differences are the blocks that error bars come from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from ase import units
from numpy.typing import ArrayLike, NDArray

from plumed_cv.errors import UserError
from plumed_cv.files import write_text
from plumed_cv.frame import Array

T = TypeVar("T")

CUTOFF = 40.0  # terms below exp(-CUTOFF) of the largest are left out of Eq. 9
FEWEST_BLOCKS = 6  # a blocking that leaves fewer says little about the variance
SMOOTHING = 0.08  # half a window of the local cubic, in units of the distance of the states

_ENERGY_UNITS = {
    "eV": 1.0,
    "kj/mol": units.kJ / units.mol,
    "kcal/mol": units.kcal / units.mol,
    "j/mol": 1e-3 * units.kJ / units.mol,
    "Ha": units.Ha,
}
_SUMS = ["weight", "force", "count", "offset"]
# The action keeps in the last four what rounding took from the first: below the last digit here.
_STATE_FIELDS = [*_SUMS, "prior", *(f"{name}_rest" for name in _SUMS)]


@dataclass(frozen=True)
class Grid:
    """Nodes of the extended variable: bins + 1, or bins where the last one is the first.

    Attributes
    ----------
    minimum, maximum
        The ends, in units of the CV. The domain, if the CV is periodic.
    bins
        Number of intervals.
    periodic
        Whether the CV is.
    """

    minimum: float
    maximum: float
    bins: int
    periodic: bool = False

    @property
    def spacing(self) -> float:
        """Distance between nodes."""
        return (self.maximum - self.minimum) / self.bins

    @cached_property
    def nodes(self) -> Array:
        """The nodes, (n,)."""
        steps = np.arange(self.bins + (not self.periodic), dtype=float)
        return np.asarray(self.minimum + steps * self.spacing)

    def distances(self, xi: float) -> Array:
        """Return z_j - xi, (n,), the shortest ones on a periodic CV."""
        d = self.nodes - xi
        if self.periodic:
            length = self.maximum - self.minimum
            d -= length * np.round(d / length)
        return d

    def bin(self, xi: ArrayLike) -> NDArray[np.int64]:
        """Return the nodes nearest to `xi`, and -1 more than half a spacing outside the grid."""
        j = np.floor((np.asarray(xi) - self.minimum) / self.spacing + 0.5).astype(np.int64)
        if self.periodic:
            return j % self.bins
        return np.where((j >= 0) & (j <= self.bins), j, -1)


@dataclass(frozen=True, eq=False)
class State:
    """What an estimator has learned, and with which parameters.

    Attributes
    ----------
    argument
        Name of the CV.
    grid
        The nodes.
    kT_eV, kappa_eV
        Temperature and spring constant, eV (over the square of the CV).
    tau
        Weight of the prior, in samples; infinite for a frozen bias.
    ramp
        N of the weights min(1, s/N); 0 for equal weights.
    prior
        dA/dz of the prior at the nodes, (n,), eV.
    steps
        Number of samples.
    sums
        (4, n): w P_j; w P_j k (z_j - xi), eV; w of the samples in the bin of node j; and of these
        w (<z> - xi).
    """

    argument: str
    grid: Grid
    kT_eV: float
    kappa_eV: float
    tau: float
    ramp: float
    prior: Array
    steps: int
    sums: Array

    def __add__(self, other: "State") -> "State":
        """Return the state of both runs together, with the prior and weights of this one."""
        _check_same_estimator(self, other)
        return replace(self, steps=self.steps + other.steps, sums=self.sums + other.sums)

    def __sub__(self, other: "State") -> "State":
        """Return what a run learned after its earlier state `other`: a block."""
        _check_same_estimator(self, other)
        if other.steps > self.steps or np.any(other.sums[[0, 2]] > self.sums[[0, 2]]):
            raise UserError(
                f"the state of {other.steps} steps is not an earlier one of the run with "
                f"{self.steps} steps: give the states of one run in their order"
            )
        return replace(self, steps=self.steps - other.steps, sums=self.sums - other.sums)

    def derivative(self) -> Array:
        """Return A' as it acts in the bias, (n,), eV (Eq. 12)."""
        if np.isinf(self.tau):
            return self.prior
        weight, force = self.sums[:2]
        return np.asarray((self.tau * self.prior + force) / (self.tau + weight))

    def energy(self) -> Array:
        """Return A as it acts in the bias, (n,), eV, zero at the first node (Eq. 8)."""
        return _integrate(self.grid, self.derivative())


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, eV; NaN where unknown."""

    value: float
    error: float

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
    Barrier and difference are those of a local cubic fit to A: the highest of many noisy bins is
    too high.
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

    @property
    def xi(self) -> Array:
        """The nodes, (n,)."""
        return self.grid.nodes


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The bias at one value of the CV: eV, eV, units of the CV, and (n,) probabilities."""

    bias_eV: float
    force_eV: float
    zeta: float
    probability: Array


class Estimator:
    """Eqs. 7-10 and 12, one sample at a time: the reference for the PLUMED action BABF.

    Parameters
    ----------
    grid
        The nodes.
    kT_eV
        Temperature, eV.
    kappa_eV
        Spring constant, eV; kT over the square of the spacing by default.
    tau
        Weight of the prior, in samples; that of the first 20 samples by default.
    ramp
        N of the weights min(1, s/N) of Eq. 12; 0 for equal weights.
    prior
        dA/dz at the nodes, (n,), eV; zero by default.
    argument
        Name of the CV, for files.
    """

    def __init__(
        self,
        grid: Grid,
        kT_eV: float,
        *,
        kappa_eV: float | None = None,
        tau: float | None = None,
        ramp: float = 0,
        prior: ArrayLike | None = None,
        argument: str = "xi",
    ) -> None:
        n = len(grid.nodes)
        self.state = State(
            argument=argument,
            grid=grid,
            kT_eV=kT_eV,
            kappa_eV=kT_eV / grid.spacing**2 if kappa_eV is None else kappa_eV,
            tau=weight_of_first(20, ramp) if tau is None else tau,
            ramp=ramp,
            prior=np.zeros(n) if prior is None else np.array(prior, dtype=float),
            steps=0,
            sums=np.zeros((4, n)),
        )

    @classmethod
    def from_state(cls, state: State) -> "Estimator":
        """Return an estimator that goes on from `state`."""
        estimator = cls(state.grid, state.kT_eV)
        estimator.state = state
        return estimator

    def evaluate(self, xi: float) -> Evaluation:
        """Return the bias, its force and P_j at `xi` (Eqs. 9, 10)."""
        state = self.state
        kT, kappa = state.kT_eV, state.kappa_eV
        distances = state.grid.distances(xi)
        exponents = (state.energy() - 0.5 * kappa * distances**2) / kT
        highest = exponents.max()
        terms = np.where(exponents >= highest - CUTOFF, np.exp(exponents - highest), 0.0)
        total = terms.sum()
        probability = terms / total
        offset = float(probability @ distances)
        bias = -kT * (highest + np.log(total * state.grid.spacing))
        return Evaluation(float(bias), kappa * offset, xi + offset, probability)

    def learn(self, xi: float) -> Evaluation:
        """Evaluate at `xi`, add this sample to the sums, and return the evaluation."""
        state, now = self.state, self.evaluate(xi)
        grid, steps = state.grid, state.steps + 1
        sums = state.sums.copy()
        outside = 0.0 if grid.periodic else max(grid.minimum - xi, xi - grid.maximum, 0.0)
        if 0.5 * state.kappa_eV * outside**2 <= CUTOFF * state.kT_eV:
            w = float(_weight(steps, state.ramp))
            sums[0] += w * now.probability
            sums[1] += w * now.probability * state.kappa_eV * grid.distances(xi)
            j = int(grid.bin(xi))
            if j >= 0:
                sums[2:, j] += w, w * (now.zeta - xi)
        self.state = replace(state, steps=steps, sums=sums)
        return now


def weight_of_first(samples: int, ramp: float) -> float:
    """Return the weight of the first samples together (Eq. 12): a scale for that of a prior."""
    return float(np.sum(_weight(np.arange(1, samples + 1), ramp)))


def prior_derivative(grid: Grid, xi: ArrayLike, A: ArrayLike) -> Array:
    """Return dA/dz at the nodes, (n,), from a profile, as the action's PRIOR does.

    Parameters
    ----------
    grid
        The nodes.
    xi, A
        (m,) the profile, over the whole grid; energies in any unit.
    """
    x, y = np.asarray(xi, dtype=float), np.asarray(A, dtype=float)
    low, high = grid.nodes - 0.5 * grid.spacing, grid.nodes + 0.5 * grid.spacing
    period = grid.maximum - grid.minimum if grid.periodic else None
    if not grid.periodic:
        low, high = np.maximum(low, grid.minimum), np.minimum(high, grid.maximum)
    rise = np.interp(high, x, y, period=period) - np.interp(low, x, y, period=period)
    return np.asarray(rise / (high - low))


def blocks(states: Sequence[State]) -> list[State]:
    """Return what one run learned up to its first state and between successive states."""
    return [*states[:1], *(later - earlier for earlier, later in pairwise(states))]


def profile(blocks: Sequence[State], states: tuple[float, float] = (0.0, 1.0)) -> Profile:
    """Return the free energy profile and its errors.

    Parameters
    ----------
    blocks
        Parts of the data, in the order of time: differences of successive states of one run, or
        states of independent walkers, or both one after the other. One block gives no errors.
    states
        The CV in the reactant and in the product, reactant first.

    Returns
    -------
    Profile
        The errors are delete-one jackknife errors over the blocks, the largest of those with
        blocks, pairs of blocks, pairs of pairs ... as long as six are left. They are NaN where the
        samples of a bin are all in one block.

    Raises
    ------
    UserError
        If there is no block, or blocks are of different estimators.
    """
    _check_blocks(blocks)
    total = _total(blocks)
    grid, n = total.grid, len(total.grid.nodes)
    _, A = _profiles(total)
    origin = _lowest_reactant(grid, A, states)

    def estimate(some: Sequence[State]) -> Array:
        A_k, A = _profiles(_total(some))
        smooth = _smoothed(grid, A, states)
        summary = [_barrier(grid, smooth, states), _delta(grid, smooth, states)]
        return np.concatenate([A_k - A_k[origin], A - A[origin], summary])

    value, error = _jackknife(blocks, _weights(blocks), estimate)
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

    Raises
    ------
    UserError
        If the numbers of blocks or series differ, if no sample is on the grid, or if the grid
        begins less than 2 kT above the reactant's minimum: part of the basin would be missing
        from P.
    """
    _check_blocks(blocks)
    if not len(blocks) == len(xi_series) == len(gradnorm_series) == len(invmass_series):
        raise UserError(
            f"{len(blocks)} blocks need as many series of xi, of |grad xi| and of invmass, not "
            f"{len(xi_series)}, {len(gradnorm_series)} and {len(invmass_series)}"
        )
    grid, kT = blocks[0].grid, blocks[0].kT_eV
    _, A = _profiles(_total(blocks))
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
    moments = [
        _binned(grid, xi, np.asarray(gradnorm, float), wave * np.sqrt(np.asarray(invmass, float)))
        for xi, gradnorm, invmass in zip(xi_series, gradnorm_series, invmass_series, strict=True)
    ]

    def surfaces(some: Sequence[tuple[State, Array]]) -> Array:
        """F with |grad xi| and with lambda at every node, (2, n), eV; NaN where unknown."""
        _, A = _profiles(_total([state for state, _ in some]))
        A = _smoothed(grid, A, states)
        means = _smoothed_means(np.sum([moment for _, moment in some], axis=0))
        A = A - np.nanmin(A)
        density = np.nan_to_num(np.exp(-A / kT))
        basin = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
        basin *= 0.5 * grid.spacing
        between = (grid.nodes > states[0]) & (grid.nodes < states[1]) & (basin > 0)
        F = np.full((2, len(A)), np.nan)
        if np.isfinite(_delta(grid, A, states)):
            F[:, between] = A[between] - kT * np.log(means[:, between] / basin[between])
        return F

    def highest(some: Sequence[tuple[State, Array]]) -> Array:
        F = surfaces(some)
        return np.array([np.nanmax(row) if np.isfinite(row).any() else np.nan for row in F])

    pairs = list(zip(blocks, moments, strict=True))
    value, error = _jackknife(pairs, _weights(blocks), highest)
    barrier, activation = (Estimate(float(v), float(e)) for v, e in zip(value, error, strict=True))
    rate = attempts_per_s * np.exp(-activation.value / kT)
    F = surfaces(pairs)[0]
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
        _binned(grid, xi, np.exp((np.asarray(bias, dtype=float) - top) / kT_eV))[1]
        for xi, bias in zip(xi_series, bias_series_eV, strict=True)
    ]

    def estimate(some: Sequence[Array]) -> Array:
        with np.errstate(divide="ignore"):
            A = -kT_eV * np.log(np.sum(some, axis=0))
        A[np.isinf(A)] = np.nan
        return np.asarray(A - np.nanmean(A))

    return _jackknife(histograms, [len(np.asarray(xi)) for xi in xi_series], estimate)


def read_state(path: Path | str) -> State:
    """Read a state file of the action BABF or of `write_state`.

    Raises
    ------
    UserError
        If it is missing, foreign, cut short or damaged, or its energy unit has no value in eV.
    """
    fields, constants, rows = _read_table(path)
    header = _Header(path, constants)
    if header.text("action") != "BABF_state" or header.text("format_version") != "1":
        raise UserError(f"{path}: is not a state file of BABF in format version 1")
    argument, grid = fields[0], header.grid(fields[0])
    if fields[1:] != _STATE_FIELDS or len(rows) != len(grid.nodes):
        raise UserError(
            f"{path}: has {len(rows)} rows of {' '.join(fields)} where {len(grid.nodes)} rows of "
            f"{argument} {' '.join(_STATE_FIELDS)} belong, so it is not complete"
        )
    nodes, sums, prior = rows[:, 0], rows[:, 1:5].T.copy(), rows[:, 5].copy()
    in_place = np.allclose(nodes, grid.nodes, rtol=0, atol=1e-6 * grid.spacing)
    if not np.isfinite(rows).all() or (sums[[0, 2]] < 0).any() or not in_place:
        raise UserError(
            f"{path}: holds a number that no run writes (NaN, infinite, negative weight or wrong "
            "node), so the file is damaged"
        )
    energy = header.energy_unit()
    sums[1] *= energy
    return State(
        argument=argument,
        grid=grid,
        kT_eV=header.number("kT") * energy,
        kappa_eV=header.number("kappa") * energy,
        tau=header.number("tau"),
        ramp=header.number("ramp"),
        prior=prior * energy,
        steps=int(header.number("steps")),
        sums=sums,
    )


def write_state(path: Path | str, state: State) -> None:
    """Write a state file that `read_state` and, in eV, the action's STATE_RFILE read."""
    constants = {
        "action": "BABF_state",
        "format_version": "1",
        "energy_unit": "eV",
        "kT": _number(state.kT_eV),
        "kappa": _number(state.kappa_eV),
        "tau": _number(state.tau),
        "ramp": _number(state.ramp),
        "steps": str(state.steps),
        **_grid_constants(state.grid, state.argument),
    }
    rests = np.zeros_like(state.sums)
    columns = [state.grid.nodes, *state.sums, state.prior, *rests]
    _write_table(path, [state.argument, *_STATE_FIELDS], constants, columns)


def write_fes(path: Path | str, profile: Profile) -> None:
    """Write a profile, eV, as a PLUMED text file that PRIOR, `read_fes` and NumPy read."""
    constants = {
        "action": "BABF_fes",
        "energy_unit": "eV",
        "kT": _number(profile.kT_eV),
        "reactant": _number(profile.states[0]),
        "product": _number(profile.states[1]),
        "barrier": _number(profile.barrier.value),
        "barrier_error": _number(profile.barrier.error),
        "delta_F": _number(profile.delta_F.value),
        "delta_F_error": _number(profile.delta_F.error),
        **_grid_constants(profile.grid, profile.argument),
    }
    columns = {
        profile.argument: profile.xi,
        "A_k": profile.A_k,
        "A": profile.A,
        "A_k_error": profile.A_k_error,
        "A_error": profile.A_error,
        "count": profile.count,
    }
    _write_table(path, list(columns), constants, list(columns.values()))


def write_prior(path: Path | str, grid: Grid, xi: ArrayLike, A_eV: ArrayLike) -> None:
    """Write a profile for the action's PRIOR, from its values anywhere along the CV.

    Parameters
    ----------
    path
        The file.
    grid
        The action's grid; beyond the ends of `xi` the profile is level.
    xi, A_eV
        Places, in any order, and free energies there, eV, (m,) each.
    """
    x, y = np.asarray(xi, dtype=float), np.asarray(A_eV, dtype=float)
    order = np.argsort(x)
    A = np.interp(grid.nodes, x[order], y[order])
    constants = {"energy_unit": "eV", **_grid_constants(grid, "xi")}
    _write_table(path, ["xi", "A_k"], constants, [grid.nodes, A])


def read_fes(path: Path | str) -> Profile:
    """Read a profile written by `write_fes`, or by the action's FES_FILE, which has no errors.

    Raises
    ------
    UserError
        If the file is missing, foreign or cut short.
    """
    fields, constants, rows = _read_table(path)
    header = _Header(path, constants)
    grid = header.grid(fields[0])
    missing = {"A_k", "A", "count"} - set(fields)
    if header.text("action") != "BABF_fes" or missing or len(rows) != len(grid.nodes):
        raise UserError(f"{path}: is not a whole profile written by plumed_cv or BABF")
    columns = dict(zip(fields, rows.T, strict=True))
    energy = header.energy_unit()
    unknown = np.full(len(rows), np.nan)
    states = (header.number("reactant", 0.0), header.number("product", 1.0))
    A = columns["A"] * energy
    smooth = _smoothed(grid, A, states)
    return Profile(
        argument=fields[0],
        grid=grid,
        kT_eV=header.number("kT") * energy,
        states=states,
        A_k=columns["A_k"] * energy,
        A=A,
        A_k_error=columns.get("A_k_error", unknown) * energy,
        A_error=columns.get("A_error", unknown) * energy,
        count=columns["count"],
        barrier=Estimate(
            header.number("barrier", _barrier(grid, smooth, states)),
            header.number("barrier_error", np.nan),
        ),
        delta_F=Estimate(
            header.number("delta_F", _delta(grid, smooth, states)),
            header.number("delta_F_error", np.nan),
        ),
    )


def _weight(step: ArrayLike, ramp: float) -> Array:
    step = np.asarray(step, dtype=float)
    return np.minimum(1.0, step / ramp) if ramp > 0 else np.ones_like(step)


def _integrate(grid: Grid, derivative: Array) -> Array:
    # On a circle only a derivative without a mean has an integral.
    if grid.periodic:
        derivative = derivative - derivative.mean()
    steps = 0.5 * grid.spacing * (derivative[1:] + derivative[:-1])
    return np.concatenate([[0.0], np.cumsum(steps)])


def _profiles(state: State) -> tuple[Array, Array]:
    """Return A_k and the corrected A, (n,) each, eV, up to constants.

    A_k is Eq. 7 without the prior where a node's own bin holds samples and the prior elsewhere: P_j
    never vanishes, but a mean over other bins' tails alone means nothing. A comes from
    -kT d ln rho/d xi + k (<z> - xi) between neighbouring bins. Nothing is known of rho in an empty
    bin: A is NaN there, and A_k carries the energy across.
    """
    grid, kT = state.grid, state.kT_eV
    weight, force, count, offset = state.sums
    n = len(grid.nodes)
    sampled = np.flatnonzero(count > 0)
    derivative = state.prior.copy()
    derivative[sampled] = force[sampled] / weight[sampled]
    A_k = _integrate(grid, derivative)
    A = np.full(n, np.nan)
    if not len(sampled):
        return A_k, A
    following = np.append(sampled[1:], sampled[0])
    mean_force = state.kappa_eV * offset[sampled] / count[sampled]
    steps = -kT * np.log(count[following] / count[sampled]) + 0.5 * grid.spacing * (
        mean_force + np.append(mean_force[1:], mean_force[0])
    )
    adjacent = (following - sampled - 1) % n == 0 if grid.periodic else following == sampled + 1
    steps = np.where(adjacent, steps, A_k[following] - A_k[sampled])
    A[sampled] = np.concatenate([[0.0], np.cumsum(steps[:-1])])
    if grid.periodic:  # what is left after one turn is noise: spread it evenly
        A[sampled] -= steps.sum() * (sampled - sampled[0]) / n
    return A_k, A


def _barrier(grid: Grid, A: Array, states: tuple[float, float]) -> float:
    top = _highest(grid, A, states)
    if top is None or not np.isfinite(_delta(grid, A, states)):
        return np.nan  # as long as an end state was not reached, the top may be beyond
    return float(A[top] - np.nanmin(A[: top + 1]))


def _delta(grid: Grid, A: Array, states: tuple[float, float]) -> float:
    reactant, product = np.interp(states, grid.nodes, A, left=np.nan, right=np.nan)
    return float(product - reactant)


def _highest(grid: Grid, A: Array, states: tuple[float, float]) -> int | None:
    outside = (grid.nodes < states[0]) | (grid.nodes > states[1])
    between = np.where(outside | np.isnan(A), -np.inf, A)
    top = int(np.argmax(between))
    return top if np.isfinite(between[top]) else None


def _lowest_reactant(grid: Grid, A: Array, states: tuple[float, float]) -> int:
    top = _highest(grid, A, states)
    side = A if top is None else A[: top + 1]
    return int(np.nanargmin(side)) if np.isfinite(side).any() else 0


def _smoothed(grid: Grid, A: Array, states: tuple[float, float]) -> Array:
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


def _binned(grid: Grid, xi: ArrayLike, *values: Array) -> Array:
    """Return (1 + v, n): the number of samples in the bin of each node, and sums of `values`."""
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


def _jackknife(
    blocks: Sequence[T], weights: Sequence[float], estimate: Callable[[Sequence[T]], Array]
) -> tuple[Array, Array]:
    """Return `estimate(blocks)` and its delete-one error, the largest over re-blockings by pairs.

    Blocks of a ramped run have very different weights. To first order the estimate without a block
    of the share f is off by the block's residual over 1 - f, whatever the residual's variance; so
    the variance is m/(m-1) sum (1-f)^2 d^2, which is the textbook's for equal blocks.
    """
    value = estimate(blocks)
    groups = [[i] for i in range(len(blocks))]
    shares = np.array(weights) / np.sum(weights)
    errors = []
    while (m := len(groups)) >= 2:
        variance = np.zeros_like(value)
        for group in groups:
            without = [block for i, block in enumerate(blocks) if i not in group]
            kept = 1 - shares[group].sum()
            variance += m / (m - 1) * (kept * (estimate(without) - value)) ** 2
        errors.append(np.sqrt(variance))
        if m // 2 < FEWEST_BLOCKS:
            break
        pairs = [a + b for a, b in zip(groups[0:-1:2], groups[1::2], strict=True)]
        groups = pairs if m % 2 == 0 else [*pairs[:-1], pairs[-1] + groups[-1]]
    # A NaN stays: it says that a bin lives by one block alone.
    return value, np.max(errors, axis=0) if errors else np.full_like(value, np.nan)


def _weights(blocks: Sequence[State]) -> list[float]:
    return [float(block.sums[0].sum()) for block in blocks]


def _total(blocks: Sequence[State]) -> State:
    # Sums, never the total minus a part: an empty bin must stay exactly empty.
    sums = np.sum([block.sums for block in blocks], axis=0)
    return replace(blocks[0], steps=sum(block.steps for block in blocks), sums=sums)


def _check_blocks(blocks: Sequence[State]) -> None:
    if not blocks:
        raise UserError("a profile needs at least one state or block of a run")
    for one, other in pairwise(blocks):
        _check_same_estimator(one, other)


def _check_same_estimator(one: State, other: State) -> None:
    for name in ("argument", "grid", "kT_eV", "kappa_eV"):
        a, b = getattr(one, name), getattr(other, name)
        if not (np.isclose(a, b, rtol=1e-6) if isinstance(a, float) else a == b):
            raise UserError(
                f"two states differ in {name} ({a} and {b}): only states of the same CV, grid, "
                "temperature and spring constant can be put together"
            )


def _grid_constants(grid: Grid, argument: str) -> dict[str, str]:
    return {
        f"min_{argument}": _number(grid.minimum),
        f"max_{argument}": _number(grid.maximum),
        f"nbins_{argument}": str(grid.bins),
        f"periodic_{argument}": "true" if grid.periodic else "false",
    }


def _number(value: float) -> str:
    return "NAN" if np.isnan(value) else f"{value:.17g}"  # as PLUMED spells it


@dataclass(frozen=True)
class _Header:
    path: Path | str
    constants: dict[str, str]

    def text(self, name: str) -> str:
        if name not in self.constants:
            raise UserError(
                f"{self.path}: its header has no '#! SET {name}', so it is not a whole file of BABF"
            )
        return self.constants[name]

    def number(self, name: str, default: float | None = None) -> float:
        if default is not None and name not in self.constants:
            return default
        try:
            return float(self.text(name))
        except ValueError as error:
            raise UserError(f"{self.path}: {name}={self.text(name)} is no number") from error

    def grid(self, argument: str) -> Grid:
        bins = self.number(f"nbins_{argument}")
        minimum, maximum = self.number(f"min_{argument}"), self.number(f"max_{argument}")
        if not (bins >= 2 and bins == int(bins) and maximum > minimum):
            raise UserError(f"{self.path}: has a grid of {bins:g} bins from {minimum} to {maximum}")
        periodic = self.text(f"periodic_{argument}") == "true"
        return Grid(minimum, maximum, int(bins), periodic)

    def energy_unit(self) -> float:
        name = self.text("energy_unit")
        if name in _ENERGY_UNITS:
            return _ENERGY_UNITS[name]
        try:
            return float(name) * _ENERGY_UNITS["kj/mol"]
        except ValueError as error:
            raise UserError(f"{self.path}: the energy unit {name} has no value in eV") from error


def _read_table(path: Path | str) -> tuple[list[str], dict[str, str], Array]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file") from error
    if text and not text.endswith("\n"):
        raise UserError(
            f"{path}: ends in the middle of a line, so it is not complete; take an earlier copy"
        )
    fields: list[str] = []
    constants: dict[str, str] = {}
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if words[:2] == ["#!", "FIELDS"]:
            fields = words[2:]
        elif words[:2] == ["#!", "SET"] and len(words) == 4:
            constants[words[2]] = words[3]
        elif words and not words[0].startswith("#"):
            try:
                rows.append([float(word) for word in words])
            except ValueError as error:
                raise UserError(f"{path}: line {number} is not a row of numbers") from error
            if fields and len(words) != len(fields):
                raise UserError(
                    f"{path}: line {number} has {len(words)} numbers for the {len(fields)} names "
                    "of its '#! FIELDS' line"
                )
    if not fields:
        raise UserError(f"{path}: has no '#! FIELDS' line, so it is not a PLUMED text file")
    return fields, constants, np.array(rows, dtype=float).reshape(-1, len(fields))


def _write_table(
    path: Path | str, fields: list[str], constants: dict[str, str], columns: Sequence[Array]
) -> None:
    lines = ["#! FIELDS " + " ".join(fields)]
    lines += [f"#! SET {name} {value}" for name, value in constants.items()]
    lines += [" " + " ".join(map(_number, row)) for row in zip(*columns, strict=True)]
    write_text(path, "\n".join(lines) + "\n")
