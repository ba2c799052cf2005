"""A potential that is linear in its coefficients: functions of pairs and of densities.

    g = c + sum_pairs phi(r) + sum_i sum_mn b_mn (rho_im - rho_m)(rho_in - rho_n),
    rho_im = sum_j psi_m(r_ij)

phi is a sum of Gaussians for each pair of elements, and there are coefficients b for each element.
It is not a potential for dynamics. The difference between two good potentials is much smoother than
each of them, and g learns most of it from the forces of a few dozen structures.

Lengths are in angstrom, energies in eV. N atoms, F coefficients without the constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from plumed_cv.structures.frame import Array
from plumed_cv.structures.neighbours import Neighbours

CUTOFF_A = 6.0
_CLOSEST_A = 1.0  # the first Gaussian is not at a shorter distance
_WIDTH_A = 0.45  # of a Gaussian, and the distance to the next one
_DENSITIES_A = (1.0, 2.0)  # decay lengths of the densities
_RIDGE = 1e-6  # relative to the largest eigenvalue: coefficients without data stay small


class PairBasis:
    """The functions whose coefficients are learned.

    Parameters
    ----------
    symbols
        Chemical symbols, (N,).
    positions, cell
        A structure, (N, 3) and (3, 3), whose shortest distance places the first Gaussian. Its
        densities are the reference values rho_m.
    """

    def __init__(self, symbols: Sequence[str], positions: Array, cell: Array) -> None:
        kinds = sorted(set(symbols))
        self._species = np.array([kinds.index(symbol) for symbol in symbols])
        pairs = list(combinations_with_replacement(range(len(kinds)), 2))
        self._pair = np.zeros((len(kinds), len(kinds)), dtype=np.int64)
        for k, (a, b) in enumerate(pairs):
            self._pair[a, b] = self._pair[b, a] = k
        self._kinds, self._pairs = len(kinds), len(pairs)
        i, _, r, _ = self._neighbours(positions, cell)
        first = max(_CLOSEST_A, float(r.min()) - _WIDTH_A if len(r) else CUTOFF_A)
        self._centres = np.arange(first, CUTOFF_A, _WIDTH_A)
        self._products = list(combinations_with_replacement(range(len(_DENSITIES_A)), 2))
        self._reference = np.zeros((len(symbols), len(_DENSITIES_A)))
        density = self._densities(i, r)[0]
        for kind in range(self._kinds):
            own = self._species == kind
            self._reference[own] = density[own].mean(axis=0)

    @property
    def size(self) -> int:
        """F."""
        return self._pairs * len(self._centres) + self._kinds * len(self._products)

    def features(self, positions: Array, cell: Array) -> tuple[Array, Array]:
        """Return the energies of all functions in a structure, (F,), and forces, (N, 3, F)."""
        i, j, r, towards = self._neighbours(positions, cell)
        n, centres = len(positions), len(self._centres)
        energy, forces = np.zeros(self.size), np.zeros((n, 3, self.size))
        cut, slope_of_cut = _cut(r)
        t = (r[:, None] - self._centres) / _WIDTH_A
        gaussian = np.exp(-(t**2))
        value = gaussian * cut[:, None]
        slope = gaussian * (slope_of_cut[:, None] - 2.0 * t / _WIDTH_A * cut[:, None])
        kind = self._pair[self._species[i], self._species[j]]
        for k in range(self._pairs):
            own = kind == k
            columns = slice(k * centres, (k + 1) * centres)
            energy[columns] = 0.5 * value[own].sum(axis=0)
            for axis in range(3):  # each pair is listed twice: once for each atom
                pull = slope[own] * towards[own, axis, None]
                for column in range(centres):
                    forces[:, axis, k * centres + column] = np.bincount(
                        i[own], pull[:, column], minlength=n
                    )
        density, slopes = self._densities(i, r)
        off = density - self._reference
        begin = self._pairs * centres
        for kind_of_atom in range(self._kinds):
            counts = (self._species == kind_of_atom).astype(float)
            for p, (a, b) in enumerate(self._products):
                column = begin + kind_of_atom * len(self._products) + p
                energy[column] = np.sum(counts * off[:, a] * off[:, b])
                pull = np.zeros(len(r))
                for m, other in ((a, b), (b, a)):
                    factor = counts * off[:, other]
                    pull += (factor[i] + factor[j]) * slopes[:, m]
                for axis in range(3):
                    forces[:, axis, column] = np.bincount(i, pull * towards[:, axis], minlength=n)
        return energy, forces

    def _neighbours(
        self, positions: Array, cell: Array
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Array, Array]:
        """Return atoms i and j of all pairs, their distances, and unit vectors from i to j."""
        i, j, shift = Neighbours(positions, cell, CUTOFF_A).pairs(positions)
        r = np.linalg.norm(shift, axis=1)
        return i, j, r, shift / r[:, None]

    def _densities(self, i: NDArray[np.int64], r: Array) -> tuple[Array, Array]:
        """Return the densities at the atoms, (N, m), and the slopes of all pairs."""
        cut, slope_of_cut = _cut(r)
        found, slopes = [], []
        for decay in _DENSITIES_A:
            psi = np.exp(-(r - 2.0) / decay)
            found.append(np.bincount(i, psi * cut, minlength=len(self._species)))
            slopes.append(psi * (slope_of_cut - cut / decay))
        return np.array(found, dtype=np.float64).T, np.array(slopes).T


def _cut(r: Array) -> tuple[Array, Array]:
    """Return a factor that vanishes smoothly at the cutoff, and its slope."""
    x = np.minimum(r / CUTOFF_A, 1.0)
    return (1.0 - x**2) ** 3, -6.0 * x * (1.0 - x**2) ** 2 / CUTOFF_A


@dataclass(frozen=True, eq=False)
class Sums:
    """Normal equations of structures; sums of two are those of both.

    Energies and forces count equally: each is divided by its variance and its number. The constant
    is the last coefficient.
    """

    matrix: Array
    vector: Array

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.matrix + other.matrix, self.vector + other.vector)

    def solved(self) -> Array:
        """Return the coefficients with the smallest sum of squares, (F + 1,)."""
        scale = np.sqrt(np.maximum(np.diag(self.matrix), 1e-300))
        scale[scale < 1e-9 * scale.max()] = np.inf  # a function that no structure knows
        matrix = self.matrix / scale[:, None] / scale
        matrix[np.diag_indices(len(scale))] += _RIDGE * np.linalg.eigvalsh(matrix)[-1]
        return np.asarray(np.linalg.solve(matrix, self.vector / scale) / scale)


def add_up(
    energy_features: Array, force_features: Array, energy: float, forces: Array, weights: Array
) -> Sums:
    """Return the normal equations of one structure.

    Parameters
    ----------
    energy_features, force_features
        From `PairBasis.features`.
    energy, forces
        What they are to reproduce, eV and (N, 3), eV/angstrom.
    weights
        Of the square of an energy, and of that of a force, (2,).
    """
    flat = force_features.reshape(-1, force_features.shape[-1])
    flat = np.concatenate([flat, np.zeros((len(flat), 1))], axis=1)
    row = np.append(energy_features, 1.0)
    return Sums(
        weights[0] * np.outer(row, row) + weights[1] * flat.T @ flat,
        weights[0] * row * energy + weights[1] * flat.T @ forces.ravel(),
    )
