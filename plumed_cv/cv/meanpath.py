"""The mean path E[u | s]: noisy structures after averaging over the thermal motion.

Structures u_m with positions s_m along the process (the path parameter at 0 K, the previous
collective variable at finite temperature) are regressed on smooth functions of s. Most of the 3N
coordinates hardly take part in the process, and their regression is noise. A hierarchical model
finds from the data how far, in which directions and how smoothly each atom moves, and shrinks its
coefficients accordingly (empirical Bayes, a refinement of the estimator of James and Stein).
Coordinates that are equal by the symmetry of the process are averaged first. At 0 K the end states
are known and the noise of the atoms is independent. Atoms are then also required to move like
neighbours in a crystal (`elastic`). Lengths are in angstrom. M structures of N atoms, L functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray
from scipy.integrate import cumulative_trapezoid
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from plumed_cv.common.errors import UserError
from plumed_cv.cv import elastic
from plumed_cv.cv.collective_variable import CollectiveVariable
from plumed_cv.cv.symmetry import Operation
from plumed_cv.structures.frame import Array, Drift, chunks

# At finite temperature, a tilt of isosurfaces that varies along the process is amplified in the
# next iteration, and more so the faster it varies (docs/theory.md). Few functions keep the
# iterations stable.
N_FUNCTIONS = 6
AT_REST_FUNCTIONS = 16
_MOST_FUNCTIONS = 48  # with sufficient structures; the prior suppresses unnecessary functions
_HOP_A = 2.5  # length of the path of one jump, for which N_FUNCTIONS are sufficient
_OUTERMOST = 0.03  # fraction of the structures at each end, where the slope is uncertain
_EM_STEPS = 60
_LENGTHS = 0.05 * 2.0 ** (np.arange(16) / 3.0)  # correlation lengths, in units of the path
_STRETCH = 0.95  # of the coordinate towards the ends: 0 is none, 1 without bounds
_END_WEIGHT = 1.0  # of a known end state, in units of the weight of all structures


@dataclass(frozen=True)
class MeanPath:
    """A smooth path through noisy structures: Legendre polynomials of s on [lower, upper].

    Parameters
    ----------
    coefficients
        Coefficients of the Legendre polynomials of degree 0 to L - 1, shape (L, 3N), angstrom.
    lower, upper
        Range of s in which the polynomials are orthogonal.
    first, last
        Range of s beyond which the path is straight, along its tangents.
    noise
        Variance of the coordinates of each atom around the path, shape (N,), A^2.
    triangle
        Upper triangular factor R of the polynomials over the structures, shape (L, L): R^T R is the
        mean of their products.
    """

    coefficients: Array
    lower: float
    upper: float
    first: float
    last: float
    noise: Array
    triangle: Array

    def moments(self) -> tuple[Array, Array]:
        """Mean over the positions of the structures, shape (3N,), and modes, (L - 1, 3N), angstrom.

        The product of the transposed modes with the modes is the covariance of the points of the
        path. The modes are those of the polynomials, also beyond `first` and `last`.
        """
        orthogonal = self.triangle @ self.coefficients
        return orthogonal[0] * np.sign(self.triangle[0, 0]), orthogonal[1:]

    def points(self, s: NDArray[Any], onto: Array | None = None) -> Array:
        """Displacements on the path, shape (M, 3N), or their components along rows of `onto`."""
        inside = np.clip(np.asarray(s, dtype=np.float64), self.first, self.last)
        points = legendre.legval(self._scaled(inside), self._series(onto)).T
        beyond = np.asarray(s) - inside
        outside = np.flatnonzero(beyond)
        if len(outside):
            tangents = self.tangents(inside[outside], onto)
            points[outside] += beyond[outside, None] * tangents
        return np.asarray(points)

    def tangents(self, s: NDArray[Any], onto: Array | None = None) -> Array:
        """Derivatives of the points with respect to s, shapes as for `points`."""
        slope = legendre.legder(self._series(onto), scl=2.0 / (self.upper - self.lower))
        inside = np.clip(np.asarray(s, dtype=np.float64), self.first, self.last)
        return np.asarray(legendre.legval(self._scaled(inside), slope).T)

    def lengths(self, s: NDArray[Any], onto: Array | None = None) -> Array:
        """Length of the path from s = 0 up to each s, negative before, shape (M,), angstrom."""
        grid = np.linspace(self.first, self.last, 2001)
        speed = np.linalg.norm(self.tangents(grid, onto), axis=1)
        length = cumulative_trapezoid(speed, grid, initial=0.0)
        s = np.append(np.asarray(s, dtype=np.float64), 0.0)
        beyond = s - np.clip(s, self.first, self.last)
        along = np.interp(s, grid, length) + beyond * np.where(beyond < 0.0, speed[0], speed[-1])
        return np.asarray(along[:-1] - along[-1])

    def _series(self, onto: Array | None) -> Array:
        return self.coefficients if onto is None else self.coefficients @ onto.T

    def _scaled(self, s: Array) -> Array:
        return (2.0 * s - self.lower - self.upper) / (self.upper - self.lower)


def functions_for(length_A: float) -> int:
    """Number of polynomials for a path at finite temperature: 2 + 4 for each jump of 2.5 A.

    At least 6 and at most 48. With 6 for every length, the tangents of a path of several jumps are
    wrong. More for each jump make the iterations unstable.

    Parameters
    ----------
    length_A
        Arc length of the minimum energy path: the sum of the norms of the displacements of all
        atoms between its images, angstrom.
    """
    return min(max(N_FUNCTIONS, round(2 + 4 * length_A / _HOP_A)), _MOST_FUNCTIONS)


def functions_at_rest(n_structures: int) -> int:
    """Number of polynomials at 0 K, where the smoothness is determined from the structures."""
    return AT_REST_FUNCTIONS if n_structures < 40 * _MOST_FUNCTIONS else _MOST_FUNCTIONS


def fit(
    displacements: NDArray[Any],
    s: NDArray[Any],
    symmetry: Sequence[Operation] = (),
    at_rest: CollectiveVariable | None = None,
    n_functions: int | None = None,
    drift: Drift = "removed",
) -> MeanPath:
    """Regress displacements on Legendre polynomials of s, and reduce the noise by shrinkage.

    Parameters
    ----------
    displacements
        Displacement-frame coordinates, shape (M, N, 3), angstrom. They are read in pieces, in one
        pass, so they may be a memory map.
    s
        Position of each structure along the process, shape (M,), 0 and 1 at the end states.
    symmetry
        Symmetry operations of the process, which the path will have. None if empty.
    at_rest
        At 0 K, any collective variable of the process. The path then passes through its end states,
        and displacements are the response of an elastic crystal (`elastic.shrunk`). None at finite
        temperature, where the mean structure of a state is not its minimum. Thermal motion is
        itself elastic, and the prior would mistake it for the process.
    n_functions
        Number of polynomials L. If None, 6. With `at_rest`, where the smoothness is determined from
        the data, 48, or 16 with fewer than 40 structures for each of these.
    drift
        As for `CollectiveVariable`.

    Raises
    ------
    UserError
        If there are too few structures, all are at one position, or a value is not finite.
    """
    s = np.asarray(s, dtype=np.float64)
    if s.shape != (len(displacements),) or not np.isfinite(s).all():
        raise UserError(
            f"There are {np.size(s)} positions along the process for {len(displacements)} "
            "structures, or some that are not finite; give one finite position for each structure."
        )
    if n_functions is None and at_rest is None:
        n_functions = N_FUNCTIONS
    elif n_functions is None:
        n_functions = functions_at_rest(len(s))
    if len(s) < 4 * n_functions:
        raise UserError(
            f"A mean path needs at least {4 * n_functions} structures, not {len(s)}; sample longer."
        )
    lower, upper = float(s.min()), float(s.max())
    if upper - lower < 1e-6:
        raise UserError(
            f"All {len(s)} structures are at one position of the process, so there is no path; "
            "give structures of the whole process."
        )
    outermost = 0.0 if at_rest is not None else _OUTERMOST
    first, last = np.quantile(s, [outermost, 1.0 - outermost])
    if any(operation.reverses for operation in symmetry):
        lower, first = min(lower, 1.0 - upper), min(first, 1.0 - last)
        upper, last = 1.0 - lower, 1.0 - first
    scaled = (2.0 * s - lower - upper) / (upper - lower)
    basis = legendre.legvander(scaled, n_functions - 1)
    n_atoms = displacements.shape[1]
    moments = np.zeros((n_functions, 3 * n_atoms))
    squares = np.zeros(3 * n_atoms)
    for part in chunks(len(s)):
        flat = np.asarray(displacements[part]).reshape(-1, 3 * n_atoms)
        moments += basis[part].astype(flat.dtype).T @ flat
        squares += np.einsum("mi,mi->i", flat, flat)
    if not np.isfinite(moments).all():
        raise UserError(
            "The displacements contain NaN or infinite values; remove the structures that have "
            "them."
        )
    products, sums = basis.T @ basis, basis.sum(axis=0)
    measure = _triangle(products)
    raw = solve_triangular(measure, moments, trans="T")
    residual = (squares - (raw**2).sum(axis=0)) / (len(s) - n_functions)
    noise = np.maximum(residual.reshape(n_atoms, 3).mean(axis=1), 1e-12)
    moments = moments.reshape(n_functions, n_atoms, 3)
    if at_rest is not None:
        at_ends = (2.0 * np.array([0.0, 1.0]) - lower - upper) / (upper - lower)
        known = legendre.legvander(at_ends, n_functions - 1) * (_END_WEIGHT * len(s)) ** 0.5
        products = products + known.T @ known
        known *= (_END_WEIGHT * len(s)) ** 0.5
        sums = sums + known.sum(axis=0)
        moments += np.einsum("el,eai->lai", known, at_rest.end_displacements)
    noise_of_sums = noise
    if symmetry:
        products, moments = _symmetrised(products, moments, sums, symmetry, drift)
        images = np.stack([operation.image for operation in symmetry])
        orbit = np.array([len(np.unique(image)) for image in images.T])
        noise_of_sums = noise[images].mean(axis=0) / orbit
    triangle = _triangle(products)
    raw = solve_triangular(triangle, moments.reshape(n_functions, -1), trans="T")
    # The first orthogonal polynomial is constant: the mean over the structures is not shrunk.
    modes = raw[1:].reshape(-1, n_atoms, 3)
    posterior = _shrunk(modes, noise_of_sums)
    if at_rest is not None:
        springs = elastic.make_network(at_rest)
        posterior = elastic.shrink(
            modes, noise_of_sums, posterior, springs, _smooth(triangle), drift
        )
    raw[1:] = posterior.reshape(raw[1:].shape)
    coefficients = solve_triangular(triangle, raw)
    return MeanPath(
        coefficients, lower, upper, float(first), float(last), noise, measure / len(s) ** 0.5
    )


def _smooth(triangle: Array) -> Array:
    """Covariances between the orthogonal polynomials of random functions, shape (C, L - 1, L - 1).

    There is one for each of several correlation lengths. The functions are a Gaussian process with
    a Matern kernel (nu = 7/2) of a coordinate that is stretched at the ends: near a minimum a path
    turns into the softest direction, more sharply than elsewhere.

    Parameters
    ----------
    triangle
        Upper triangular factor of the polynomials, shape (L, L), see `_triangle`.
    """
    n = len(triangle)
    nodes = np.cos(np.pi * (np.arange(n) + 0.5) / n)  # of Chebyshev's interpolation
    places = np.arcsin(_STRETCH * nodes) / (2.0 * np.arcsin(_STRETCH))  # from -1/2 to 1/2
    coefficients = (triangle @ np.linalg.inv(legendre.legvander(nodes, n - 1)))[1:]
    apart = 7**0.5 * abs(places[:, None] - places) / _LENGTHS[:, None, None]
    kernel = (1.0 + apart + 0.4 * apart**2 + apart**3 / 15.0) * np.exp(-apart)
    between = coefficients @ kernel @ coefficients.T
    between *= (n - 1) / np.trace(between, axis1=1, axis2=2)[:, None, None]
    return np.asarray(between + 1e-9 * np.eye(n - 1))


def _triangle(products: Array) -> Array:
    """Upper triangular factor R of R^T R, the polynomials' products summed over structures."""
    try:
        return np.asarray(cholesky(products))
    except LinAlgError:
        raise UserError(
            "The structures are at too few positions of the process for a smooth path; give "
            "structures of the whole process, or fewer functions."
        ) from None


def _symmetrised(
    products: Array, moments: Array, sums: Array, symmetry: Sequence[Operation], drift: Drift
) -> tuple[Array, Array]:
    """Products and moments as if all operations had been applied to all structures, per operation.

    Parameters
    ----------
    products, moments, sums
        Sums of products of the polynomials with each other, shape (L, L), with the displacements,
        shape (L, N, 3), and of the polynomials, shape (L,).
    """
    parity = (-1.0) ** np.arange(len(sums))  # ratio of P_l(-x) to P_l(x)
    all_products, all_moments = np.zeros_like(products), np.zeros_like(moments)
    for operation in symmetry:
        sign = parity if operation.reverses else np.ones_like(parity)
        turned = operation.turn(moments) + sums[:, None, None] * operation.offset
        if drift == "removed":
            turned -= turned.mean(axis=1, keepdims=True)
        all_products += sign[:, None] * products * sign
        all_moments += sign[:, None, None] * turned
    return all_products / len(symmetry), all_moments / len(symmetry)


def _shrunk(raw: Array, noise: Array) -> Array:
    """Posterior mean of coefficients c given raw = c + noise, both of shape (L, N, 3).

    The prior of c_a, the L x 3 coefficients of an atom, is matrix normal: covariance B between the
    polynomials, common to all atoms, times S_a between the directions of each atom. Both are found
    by expectation maximisation.
    """
    n_degrees, n_atoms, _ = raw.shape
    strengths = (raw**2).sum(axis=(1, 2)) / (3.0 * noise.sum()) - 1.0
    between = np.diag(np.maximum(strengths, 1e-2))
    between *= n_degrees / np.trace(between)
    matrices = np.einsum("lai,laj->aij", raw, raw) / (2.0 * n_degrees)
    matrices += 1e-3 * noise[:, None, None] * np.eye(3)
    for _ in range(_EM_STEPS):
        # In the eigenvectors of B and S_a all coefficients are independent.
        strengths, modes = np.linalg.eigh(between)
        strengths = np.maximum(strengths, 1e-10 * strengths[-1])
        variances, axes = np.linalg.eigh(matrices)
        variances = np.maximum(variances, 1e-12 * noise[:, None])
        along = np.einsum("lk,laj->kaj", modes, np.einsum("lai,aij->laj", raw, axes))
        prior = strengths[:, None, None] * variances
        kept = prior / (prior + noise[:, None])
        mean = kept * along
        uncertainty = kept * noise[:, None]
        # Estimates of B and S_a from the posterior.
        weighted = mean / np.sqrt(variances)
        between = np.einsum("kaj,laj->kl", weighted, weighted)
        between += np.diag((uncertainty / variances).sum(axis=(1, 2)))
        between = modes @ between @ modes.T / (3.0 * n_atoms)
        weighted = mean / np.sqrt(strengths)[:, None, None]
        matrices = np.einsum("kai,kaj->aij", weighted, weighted)
        matrices[:, range(3), range(3)] += (uncertainty / strengths[:, None, None]).sum(axis=0)
        matrices = axes @ (matrices / n_degrees) @ axes.transpose(0, 2, 1)
        scale = np.trace(between) / n_degrees
        between, matrices = between / scale, matrices * scale
    return np.asarray(np.einsum("lk,kaj,aij->lai", modes, mean, axes, optimize=True))
