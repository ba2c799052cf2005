"""Systems of known free energy under a constant bias, and exact and random sums of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from plumed_cv.freeenergy import (
    Estimator,
    Grid,
    State,
    prior_derivative,
)

Array = NDArray[np.float64]
KT = 0.02585


def double_well(height_kT: float) -> Callable[[Array], Array]:
    return lambda x: 16 * height_kT * KT * (x * (1 - x)) ** 2


@dataclass
class Frozen:
    """A one-dimensional system under a constant bias; exact results by quadrature."""

    grid: Grid
    potential: Callable[[Array], Array]
    bias_energy: Callable[[Array], Array]
    kappa_eV: float | None = None

    def __post_init__(self) -> None:
        prior = prior_derivative(self.grid, self.grid.nodes, self.bias_energy(self.grid.nodes))
        estimator = Estimator(self.grid, KT, kappa_eV=self.kappa_eV, tau=np.inf, prior=prior)
        self.empty = estimator.state
        fine = self.grid.spacing / 200
        margin = 0.0 if self.grid.periodic else 12 * self.grid.spacing
        low, high = self.grid.minimum - margin, self.grid.maximum + margin
        self.x = np.arange(low + fine / 2, high, fine)
        density = np.exp(-(self.potential(self.x) + self.bias(self.x)) / KT)
        self.density = density / density.sum()

    def _terms(self, x: Array) -> tuple[Array, Array]:
        distances = self.grid.nodes - x[:, None]
        if self.grid.periodic:
            length = self.grid.maximum - self.grid.minimum
            distances -= length * np.round(distances / length)
        exponents = (self.empty.energy() - 0.5 * self.empty.kappa_eV * distances**2) / KT
        return distances, exponents

    def bias(self, x: Array) -> Array:
        _, exponents = self._terms(x)
        highest = exponents.max(axis=1)
        total = np.exp(exponents - highest[:, None]).sum(axis=1)
        return np.asarray(-KT * (highest + np.log(total * self.grid.spacing)))

    def state(self, x: Array, weights: Array | None = None) -> State:
        """Return the sums of samples at x, of given weights or 1."""
        weights = np.ones(len(x)) if weights is None else weights
        distances, exponents = self._terms(x)
        P = np.exp(exponents - exponents.max(axis=1, keepdims=True))
        P /= P.sum(axis=1, keepdims=True)
        j = self.grid.bin(x)
        inside, n = j >= 0, len(self.grid.nodes)
        offset = weights * (P * distances).sum(axis=1)
        sums = np.array(
            [
                weights @ P,
                weights @ (P * self.empty.kappa_eV * distances),
                np.bincount(j[inside], weights[inside], minlength=n),
                np.bincount(j[inside], offset[inside], minlength=n),
            ]
        )
        return replace(self.empty, steps=len(x), sums=sums)

    def exact(self) -> State:
        return self.state(self.x, self.density)

    def sample(self, rng: np.random.Generator, number: int, sticky: float = 0.0) -> Array:
        """Draw a series that stays where it is with probability `sticky` at every step."""
        drawn = np.interp(rng.random(number), np.cumsum(self.density), self.x)
        moves = rng.random(number) >= sticky
        moves[0] = True
        return np.asarray(drawn[np.maximum.accumulate(np.where(moves, np.arange(number), 0))])


WIDE = Grid(-0.2, 1.2, 140)


def correlated_blocks(
    system: Frozen, rng: np.random.Generator, number: int, length: int, sticky: float
) -> list[Array]:
    return np.split(system.sample(rng, number * length, sticky), number)
