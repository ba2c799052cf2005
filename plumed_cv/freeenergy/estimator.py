"""The reference estimator: Eqs. 7-10 and 12 on one or two CVs, one sample at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from plumed_cv.common.errors import UserError
from plumed_cv.freeenergy.grids import (
    Grid,
    distances_to_nodes,
    edges,
    integrate_steps,
    integrate_steps_on_line,
    number_of_nodes,
)
from plumed_cv.structures.frame import Array

T = TypeVar("T")

CUTOFF = 40.0  # terms below exp(-CUTOFF) of the largest term are omitted in Eq. 9
UNSAMPLED = 1e-4  # weight in A_k of a node without samples, relative to the mean of the others
NATURAL = "natural"  # energy unit of PLUMED's UNITS NATURAL, which has no value in eV
SOLVE_STRIDE = 1000  # largest number of samples between two updates of the bias


@dataclass(frozen=True, eq=False)
class State:
    """The sums of an estimator and its parameters.

    For d CVs, 1 or 2, with n nodes in total. On two CVs the first one varies fastest. Energies are
    in eV, or in natural units if `energy_unit` is "natural".

    Attributes
    ----------
    arguments
        Names of the CVs, (d,).
    axes
        The nodes along each CV, (d,).
    kT_eV
        Temperature, eV.
    kappas_eV
        Spring constants, eV over the square of the CV, (d,).
    tau
        Weight of the prior, in samples; infinite for a constant bias.
    ramp
        N of the weights min(1, s/N); 0 for equal weights.
    prior
        dA/dz of the prior at the nodes, (n,) or for two CVs (2, n), eV.
    steps
        Number of samples.
    sums
        (2 + 2d, n): w P_j; for each CV w P_j k (z_j - xi), eV; w of the samples in the bin of node
        j; and for each CV w (<z> - xi) of these samples.
    energy_unit
        "eV", or "natural" for a run with PLUMED's UNITS NATURAL.
    length_unit
        PLUMED's unit of those CVs that are lengths; empty if unknown.
    """

    arguments: tuple[str, ...]
    axes: tuple[Grid, ...]
    kT_eV: float
    kappas_eV: tuple[float, ...]
    tau: float
    ramp: float
    prior: Array
    steps: int
    sums: Array
    energy_unit: str = "eV"
    length_unit: str = ""

    def __repr__(self) -> str:
        axes = (
            f"{name} from {axis.minimum:g} to {axis.maximum:g}"
            for name, axis in zip(self.arguments, self.axes, strict=True)
        )
        kT = f"{self.kT_eV:.4f} {unit_in_words(self.energy_unit)}"
        return f"State({', '.join(axes)}; {self.steps:,} samples at kT = {kT})"

    @property
    def argument(self) -> str:
        """Name of the only CV."""
        return self._only(self.arguments)

    @property
    def grid(self) -> Grid:
        """The nodes along the only CV."""
        return self._only(self.axes)

    @property
    def kappa_eV(self) -> float:  # noqa: N802
        """Spring constant of the only CV, eV over its square."""
        return self._only(self.kappas_eV)

    def _only(self, of_each: tuple[T, ...]) -> T:
        if len(self.axes) > 1:
            raise UserError(
                f"the states have two CVs, {' and '.join(self.arguments)}, and this needs one: use "
                "freeenergy.estimate_surface"
            )
        return of_each[0]

    @property
    def weight(self) -> Array:
        """Sum of w P_j, (n,)."""
        return np.asarray(self.sums[0])

    @property
    def force(self) -> Array:
        """Sums of w P_j k (z_j - xi), (d, n), eV."""
        return self.sums[1 : 1 + len(self.axes)]

    @property
    def count(self) -> Array:
        """Weight of the samples in the bin of each node, (n,)."""
        return np.asarray(self.sums[1 + len(self.axes)])

    @property
    def offset(self) -> Array:
        """Sums of w (<z> - xi) over the samples in the bin of each node, (d, n)."""
        return self.sums[2 + len(self.axes) :]

    def __add__(self, other: "State") -> "State":
        """Return the state of both runs together, with the prior and weights of this one."""
        check_same_estimator(self, other)
        return replace(self, steps=self.steps + other.steps, sums=self.sums + other.sums)

    def __sub__(self, other: "State") -> "State":
        """Return the contribution of a run after its earlier state `other`: a block."""
        check_same_estimator(self, other)
        more = np.any(other.weight > self.weight) or np.any(other.count > self.count)
        if other.steps > self.steps or more:
            raise UserError(
                f"the state of {other.steps} steps is not an earlier one of the run with "
                f"{self.steps} steps: give the states of one run in their order, or states of "
                "independent runs as such (--walkers, in Python independent=True)"
            )
        return replace(self, steps=self.steps - other.steps, sums=self.sums - other.sums)

    def derivative(self) -> Array:
        """Return A' of the bias, in the shape of `prior`, eV (Eq. 12)."""
        if np.isinf(self.tau):
            return self.prior
        slopes = (self.tau * self.prior + self.force) / (self.tau + self.weight)
        return np.asarray(slopes.reshape(self.prior.shape))

    def energy(self) -> Array:
        """Return A from the sums, (n,), eV, zero at the first node (Eq. 8).

        On two CVs it is the least-squares solution for all differences between neighbours: see
        `integrate_steps`. On a circle as well, so that the error of closure goes where the
        uncertainty is largest.
        """
        weight = np.ones_like(self.weight) if np.isinf(self.tau) else self.tau + self.weight
        derivative = self.derivative()
        if len(self.axes) > 1:
            return integrate_mean_force(self, derivative, weight)
        steps = 0.5 * self.grid.spacing * (derivative + np.roll(derivative, -1))
        known = np.ones_like(weight)  # on a line A does not depend on the weights
        if self.grid.periodic:
            known = weight * np.roll(weight, -1) / (weight + np.roll(weight, -1))
        return integrate_steps_on_line(self.grid, steps, known)[0]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The bias at one point, eV; force in eV per unit of each CV, zeta, (d,); probabilities, (n,).

    On one CV force and zeta are numbers.
    """

    bias_eV: float
    force_eV: Array
    zeta: Array
    probability: Array


class Estimator:
    """Eqs. 7-10 and 12, one sample at a time: the reference for the PLUMED action BABF.

    Parameters
    ----------
    grid
        The nodes; for two CVs one grid for each.
    kT_eV
        Temperature, eV.
    kappa_eV
        Spring constant, eV; kT over the square of the spacing by default. For two CVs one for each.
    tau
        Weight of the prior, in samples; that of the first 20 samples by default.
    ramp
        N of the weights min(1, s/N) of Eq. 12; 0 for equal weights.
    prior
        dA/dz at the nodes, (n,) or for two CVs (2, n), eV; zero by default.
    argument
        Name of the CV, for files; for two CVs one name for each.
    solve_stride
        Largest number of samples between two updates of the bias.
    """

    def __init__(
        self,
        grid: Grid | Sequence[Grid],
        kT_eV: float,
        *,
        kappa_eV: float | Sequence[float] | None = None,
        tau: float | None = None,
        ramp: float = 0,
        prior: ArrayLike | None = None,
        argument: str | Sequence[str] | None = None,
        solve_stride: int = SOLVE_STRIDE,
    ) -> None:
        axes = (grid,) if isinstance(grid, Grid) else tuple(grid)
        if kappa_eV is None:
            kappas = tuple(kT_eV / axis.spacing**2 for axis in axes)
        else:
            kappas = tuple(float(kappa) for kappa in np.atleast_1d(kappa_eV))
        names = argument or ("xi" if len(axes) == 1 else ("xi-0", "xi-1"))
        n = number_of_nodes(axes)
        shape = (n,) if len(axes) == 1 else (len(axes), n)
        self.solve_stride = solve_stride
        self._go_on_from(
            State(
                arguments=(names,) if isinstance(names, str) else tuple(names),
                axes=axes,
                kT_eV=kT_eV,
                kappas_eV=kappas,
                tau=weight_of_first(20, ramp) if tau is None else tau,
                ramp=ramp,
                prior=np.zeros(shape) if prior is None else np.array(prior, dtype=float),
                steps=0,
                sums=np.zeros((2 + 2 * len(axes), n)),
            )
        )

    @classmethod
    def from_state(cls, state: State) -> "Estimator":
        """Return an estimator that continues from `state`."""
        estimator = cls(state.axes, state.kT_eV)
        estimator._go_on_from(state)
        return estimator

    def _go_on_from(self, state: State) -> None:
        self.state = state
        self.energy = state.energy()  # the profile that is used as bias
        self._solved = state.steps

    def evaluate(self, xi: ArrayLike) -> Evaluation:
        """Return the bias, its force and P_j at `xi`, a number or (d,) (Eqs. 9, 10)."""
        state, point = self.state, np.asarray(xi, dtype=float)
        kT, kappas = state.kT_eV, np.array(state.kappas_eV)
        distances = distances_to_nodes(state.axes, np.atleast_1d(point))
        exponents = (self.energy - 0.5 * kappas @ distances**2) / kT
        highest = exponents.max()
        terms = np.where(exponents >= highest - CUTOFF, np.exp(exponents - highest), 0.0)
        total = terms.sum()
        probability = terms / total
        offset = distances @ probability
        cell = np.prod([axis.spacing for axis in state.axes])
        bias = -kT * (highest + np.log(total * cell))
        force, zeta = (kappas * offset).reshape(point.shape), point + offset.reshape(point.shape)
        return Evaluation(float(bias), force, zeta, probability)

    def learn(self, xi: ArrayLike) -> Evaluation:
        """Evaluate at `xi`, add this sample to the sums, and return the evaluation."""
        state, now = self.state, self.evaluate(xi)
        point, steps = np.atleast_1d(np.asarray(xi, dtype=float)), state.steps + 1
        d, sums = len(state.axes), state.sums.copy()
        wall = sum(
            0.5 * kappa * max(axis.minimum - x, x - axis.maximum, 0.0) ** 2
            for axis, kappa, x in zip(state.axes, state.kappas_eV, point, strict=True)
            if not axis.periodic
        )
        if wall <= CUTOFF * state.kT_eV:
            w = float(_weight(steps, state.ramp))
            distances = distances_to_nodes(state.axes, point)
            sums[0] += w * now.probability
            sums[1 : 1 + d] += (
                w * now.probability * (np.array(state.kappas_eV)[:, None] * distances)
            )
            bins = [int(axis.bin(x)) for axis, x in zip(state.axes, point, strict=True)]
            if min(bins) >= 0:
                shape = tuple(len(axis.nodes) for axis in state.axes)
                j = int(np.ravel_multi_index(tuple(bins), shape, order="F"))
                sums[1 + d, j] += w
                sums[2 + d :, j] += w * (np.atleast_1d(now.zeta) - point)
        self.state = replace(state, steps=steps, sums=sums)
        # Not in every step, because this would do work on the CV and heat it.
        wait = np.clip(steps // 20, max(1, self.solve_stride // 20), self.solve_stride)
        if steps - self._solved >= wait and not np.isinf(state.tau):
            self.energy, self._solved = self.state.energy(), steps
        return now


def unit_in_words(unit: str) -> str:
    """Return an energy unit as it is printed after a number."""
    return "natural units" if unit == NATURAL else unit


def weight_of_first(samples: int, ramp: float) -> float:
    """Return the total weight of the first samples (Eq. 12), a scale for the weight of a prior."""
    return float(np.sum(_weight(np.arange(1, samples + 1), ramp)))


def prior_derivative(grid: Grid, xi: ArrayLike, A: ArrayLike) -> Array:
    """Return dA/dz at the nodes, (n,), from a profile, like the action's PRIOR.

    Parameters
    ----------
    grid
        The nodes.
    xi, A
        The profile over the whole grid, (m,); energies in any unit.
    """
    x, y = np.asarray(xi, dtype=float), np.asarray(A, dtype=float)
    low, high = grid.nodes - 0.5 * grid.spacing, grid.nodes + 0.5 * grid.spacing
    period = grid.maximum - grid.minimum if grid.periodic else None
    if not grid.periodic:
        low, high = np.maximum(low, grid.minimum), np.minimum(high, grid.maximum)
    rise = np.interp(high, x, y, period=period) - np.interp(low, x, y, period=period)
    return np.asarray(rise / (high - low))


def split_into_blocks(states: Sequence[State]) -> list[State]:
    """Return the contributions of one run up to its first state and between successive states."""
    return [*states[:1], *(later - earlier for earlier, later in pairwise(states))]


def integrate_mean_force(state: State, derivative: Array, weight: Array) -> Array:
    """Return the A on two CVs whose slopes are closest to a mean force at the nodes, (n,), eV.

    Parameters
    ----------
    state
        It gives the grid.
    derivative
        The mean force, (2, n), eV.
    weight
        The weight of its samples, (n,). The variance of a step between two nodes is proportional to
        the sum of 1/weight of both.
    """
    steps, weights = [], []
    for d, (a, b) in enumerate(edges(state.axes)):
        h = state.axes[d].spacing
        steps.append(0.5 * h * (derivative[d][a] + derivative[d][b]))
        stiffness = state.kT_eV / (state.kappas_eV[d] * h**2)
        weights.append(stiffness * weight[a] * weight[b] / (weight[a] + weight[b]))
    A, _ = integrate_steps(state.axes, steps, weights)
    return A


def check_same_estimator(one: State, other: State) -> None:
    """Refuse states that do not belong to one estimator.

    Raises
    ------
    UserError
        If they differ in the units, the CVs, the grid, the temperature or the spring constants.
    """
    for unit in ("energy_unit", "length_unit"):
        units = (getattr(one, unit), getattr(other, unit))
        if all(units) and units[0] != units[1]:
            raise UserError(
                f"two states differ in {unit} ({units[0]} and {units[1]}): only states of runs "
                "with the same UNITS can be combined"
            )
    for name, word in (
        ("arguments", "argument"),
        ("axes", "grid"),
        ("kT_eV", "kT_eV"),
        ("kappas_eV", "kappa_eV"),
    ):
        a, b = getattr(one, name), getattr(other, name)
        same = a == b
        if name in ("kT_eV", "kappas_eV"):
            same = np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-6, atol=0)
        if not same:
            if isinstance(a, tuple) and len(a) == len(b) == 1:
                (a,), (b,) = a, b
            raise UserError(
                f"two states differ in {word} ({a} and {b}): only states of the same CV, grid, "
                "temperature and spring constant can be combined"
            )


def _weight(step: ArrayLike, ramp: float) -> Array:
    step = np.asarray(step, dtype=float)
    return np.minimum(1.0, step / ramp) if ramp > 0 else np.ones_like(step)
