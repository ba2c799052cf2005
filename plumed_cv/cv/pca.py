"""Principal components of displacements: the linear filter before the autoencoder (Sec. 2.2)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.extras import require
from plumed_cv.common.threads import one_thread
from plumed_cv.cv import meanpath
from plumed_cv.cv.collective_variable import CollectiveVariable
from plumed_cv.cv.meanpath import MeanPath
from plumed_cv.cv.symmetry import Operation
from plumed_cv.structures.frame import Array, Drift, chunks

SCREE = 30  # number of components in the curve of Fig. 2
FEWEST_COMPONENTS = 12

_ROUNDING = 1e-6  # of structures in single precision, as a share of the largest singular value
# Up to these numbers of coordinates 3N and of numbers in all structures, scikit-learn diagonalises
# the covariance matrix. Larger data are read in pieces and never copied as a whole.
_MOST_COORDINATES = 1500
_MOST_NUMBERS = 2**27  # 1 GiB in double precision
_LEAST_VARIANCE_A2 = 1e-12
_NO_DIFFERENCE = (
    "The structures do not differ, so there is nothing to learn from them; give structures of "
    "dynamics that goes from one state to the other."
)
_OVERSAMPLING = 10
_POWER_ITERATIONS = 10


@dataclass(frozen=True)
class PrincipalComponents:
    """The leading principal components of M structures of N atoms (Eqs. 1-2).

    Parameters
    ----------
    mean
        Mean displacement, shape (3N,), angstrom.
    components
        Orthonormal rows U_D^T, shape (D, 3N).
    variances
        Eigenvalues of the covariance matrix in decreasing order, shape (D,), A^2.
    total_variance
        Trace of the covariance matrix, A^2.
    """

    mean: Array
    components: Array
    variances: Array
    total_variance: float

    def __repr__(self) -> str:
        return (
            f"PrincipalComponents({len(self.components)} of {len(self.mean)} coordinates, "
            f"{100 * self.fraction_of_variance.sum():.1f} % of the variance)"
        )

    @property
    def fraction_of_variance(self) -> Array:
        """Fraction of variance explained by each component (Fig. 2), shape (D,)."""
        return self.variances / self.total_variance

    @property
    def localisation(self) -> Array:
        """var_{D,a} of Eq. 3: motion of each atom within the components, shape (N,), angstrom."""
        weighted = self.components**2 * self.variances[:, None]
        return np.asarray(np.sqrt(weighted.sum(axis=0).reshape(-1, 3).sum(axis=1)))

    def project(self, displacements: NDArray[Any]) -> NDArray[np.float32]:
        """Principal components of displacements (M, N, 3): shape (M, D), angstrom."""
        parts = [_centred(part, self.mean, self.components.T) for part in _parts(displacements)]
        return np.concatenate(parts).astype(np.float32)


@one_thread()
def fit(
    displacements: NDArray[Any], n_components: int, seed: int = 0, drift: Drift = "removed"
) -> PrincipalComponents:
    """Compute the leading principal components of displacements.

    Parameters
    ----------
    displacements
        Displacement-frame coordinates, shape (M, N, 3), angstrom; it may be a memory map.
    n_components
        Number of components D.
    seed
        Seed of the random projections, which only large data need.
    drift
        As for `CollectiveVariable`: whether the components have no translation.

    Raises
    ------
    UserError
        If there are fewer structures than components, or the structures do not differ.

    Notes
    -----
    Data that fit in memory go to `sklearn.decomposition.PCA`. Larger data are read in pieces, in a
    randomised subspace iteration: Halko, Martinsson and Tropp, SIAM Review 53, 217 (2011).
    """
    _check_count(displacements, n_components, drift)
    n, n_coordinates = len(displacements), 3 * displacements.shape[1]
    if n_coordinates <= _MOST_COORDINATES and n * n_coordinates <= _MOST_NUMBERS:
        return _fit_in_memory(displacements, n_components, drift)
    return _fit_in_pieces(displacements, n_components, seed, drift)


def _fit_in_memory(
    displacements: NDArray[Any], n_components: int, drift: Drift
) -> PrincipalComponents:
    """Leading principal components by the covariance matrix, in double precision."""
    decomposition = require("sklearn.decomposition")  # takes most of a second
    flat = np.asarray(displacements, dtype=np.float64).reshape(len(displacements), -1)
    with np.errstate(invalid="ignore"):  # of structures that do not differ
        found = decomposition.PCA(n_components, svd_solver="covariance_eigh").fit(flat)
    variances = np.asarray(found.explained_variance_)
    if not variances[0] > _LEAST_VARIANCE_A2:
        raise UserError(_NO_DIFFERENCE)
    total_variance = float(variances[0] / found.explained_variance_ratio_[0])
    return _principal(found.mean_, found.components_, variances, total_variance, drift)


def _fit_in_pieces(
    displacements: NDArray[Any], n_components: int, seed: int, drift: Drift
) -> PrincipalComponents:
    """Leading principal components by a randomised subspace iteration."""
    n, n_coordinates = len(displacements), 3 * displacements.shape[1]
    total, square = np.zeros(n_coordinates), 0.0
    for part in _parts(displacements):
        total += part.sum(axis=0, dtype=np.float64)
        square += float(np.vdot(part, part))
    mean = total / n
    width = min(n_components + _OVERSAMPLING, n_coordinates)
    subspace = np.random.default_rng(seed).normal(size=(n_coordinates, width))
    for _ in range(_POWER_ITERATIONS):
        subspace = np.linalg.qr(subspace)[0]
        image = np.zeros_like(subspace)
        for part in _parts(displacements):
            image += part.T @ _centred(part, mean, subspace)
        subspace = image
    subspace = np.linalg.qr(subspace)[0]
    covariance = np.zeros((width, width))
    for part in _parts(displacements):
        projected = _centred(part, mean, subspace).astype(np.float64)
        covariance += projected.T @ projected / (n - 1)
    variances, axes = np.linalg.eigh(covariance)
    leading = np.argsort(variances)[::-1][:n_components]
    total_variance = (square - n * float(mean @ mean)) / (n - 1)
    components = (subspace @ axes[:, leading]).T
    return _principal(mean, components, variances[leading], total_variance, drift)


def fit_mean_path(
    displacements: NDArray[Any],
    s: NDArray[Any],
    n_components: int,
    symmetry: Sequence[Operation] = (),
    at_rest: CollectiveVariable | None = None,
    n_functions: int | None = None,
    drift: Drift = "removed",
) -> tuple[PrincipalComponents, MeanPath]:
    """Compute the leading principal components of the mean path through the structures.

    Noise tilts the components of noisy structures. It tilts those of E[u | s] much less.

    Parameters
    ----------
    displacements
        Displacement-frame coordinates, shape (M, N, 3), angstrom.
    s
        Position of each structure along the process, shape (M,): the path parameter or the previous
        collective variable.
    n_components
        Number of components D; a mean path has at most L - 1.
    symmetry
        Symmetry operations of the mean path.
    at_rest
        Properties of the process at 0 K, as for `meanpath.fit`.
    n_functions
        Number of polynomials L, as for `meanpath.fit`.
    drift
        As for `fit`.

    Returns
    -------
    tuple
        The components, whose variances are those of the mean path, and the mean path. There may be
        fewer components than requested, for example for a path that is straight by symmetry,
        because rounding errors of the structures are not components.

    Raises
    ------
    UserError
        As for `fit` and `meanpath.fit`.
    """
    path = meanpath.fit(displacements, s, symmetry, at_rest, n_functions, drift)
    mean, modes = path.moments()
    if not 1 <= n_components <= len(modes):
        raise UserError(
            f"{n_components} principal components: a mean path of {len(modes) + 1} functions has "
            f"from 1 to {len(modes)}."
        )
    _, singular, components = np.linalg.svd(modes, full_matrices=False)
    total_variance = float((singular**2).sum() + 3.0 * path.noise.sum())
    leading = slice(min(n_components, int(np.sum(singular > _ROUNDING * singular[0]))))
    variances = singular[leading] ** 2
    return _principal(mean, components[leading], variances, total_variance, drift), path


@dataclass(frozen=True)
class Scree:
    """Fraction of variance explained by the components (Fig. 2), and the number of them to use.

    Parameters
    ----------
    fraction_of_variance
        Fractions of the leading components, at most 30.
    elbow
        Number of components above the noise.
    n_components
        D: twice the elbow (Sec. 2.2), but at least 12 and at most the available number.
    """

    fraction_of_variance: Array
    elbow: int
    n_components: int


def choose_components(
    displacements: NDArray[Any],
    seed: int = 0,
    *,
    aligned: bool = False,
    drift: Drift = "removed",
) -> Scree:
    """Choose the number of components from the elbow of the variances of the structures.

    Parameters
    ----------
    displacements
        Displacement-frame coordinates, shape (M, N, 3), angstrom.
    seed
        Seed of the random projections.
    aligned, drift
        As for `most_components`.

    Raises
    ------
    UserError
        As for `fit`.
    """
    most = most_components(displacements, aligned=aligned, drift=drift)
    found = fit(displacements, min(SCREE, most), seed, drift).fraction_of_variance
    above = elbow(found)
    return Scree(found, above, min(max(2 * above, FEWEST_COMPONENTS), most))


def most_components(
    displacements: NDArray[Any], *, aligned: bool = False, drift: Drift = "removed"
) -> int:
    """Largest number of principal components of structures, shape (M, N, 3).

    Translations are not components unless the drift is kept, and rotations are not if structures
    are aligned.
    """
    n, n_atoms = displacements.shape[:2]
    whole = 0 if drift == "kept" else 6 if aligned else 3
    return int(min(n - 1, 3 * n_atoms - whole))


def elbow(fraction_of_variance: Array) -> int:
    """Number of components above the plateau of thermal noise (elbow of Fig. 2).

    The plateau is a straight line through the second half of the logarithms. Components count up to
    the first one within five standard deviations of the residuals of the line.

    Parameters
    ----------
    fraction_of_variance
        Fractions of variance explained, in decreasing order, shape (D,) with D of about 30.
    """
    logs = np.log(fraction_of_variance)
    index = np.arange(len(logs))
    tail = index >= len(logs) // 2
    line = np.polynomial.Polynomial.fit(index[tail], logs[tail], 1)
    above = logs - line(index)
    threshold = max(5.0 * float(np.std(above[tail])), 0.02)
    below = np.flatnonzero(above < threshold)
    return max(int(below[0]) if len(below) else len(logs), 1)


def _check_count(displacements: NDArray[Any], n_components: int, drift: Drift) -> None:
    largest = most_components(displacements, drift=drift)
    if n_components < 1:
        raise UserError(f"{n_components} principal components: ask for one or more.")
    if n_components > largest:
        n, n_atoms = displacements.shape[:2]
        raise UserError(
            f"{n_components} principal components need more than {n} structures of {n_atoms} "
            f"atoms; sample longer or use at most {max(largest, 0)}."
        )


def _parts(displacements: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the structures in pieces, flat, shape (up to 1000, 3N)."""
    for part in chunks(len(displacements)):
        yield np.asarray(displacements[part]).reshape(-1, 3 * displacements.shape[1])


def _centred(part: NDArray[Any], mean: Array, axes: Array) -> NDArray[Any]:
    """Return (part - mean) @ axes without a copy of the part, in its precision."""
    return np.asarray(part @ axes.astype(part.dtype) - (mean @ axes).astype(part.dtype))


def _principal(
    mean: Array, components: Array, variances: Array, total_variance: float, drift: Drift
) -> PrincipalComponents:
    """Return orthonormal principal components without rounding errors and, if removed, drift."""
    if not variances[0] > _LEAST_VARIANCE_A2:
        raise UserError(_NO_DIFFERENCE)
    components, mean = components.reshape(len(components), -1, 3), mean.reshape(-1, 3)
    if drift == "removed":
        components = components - components.mean(axis=1, keepdims=True)
        mean = mean - mean.mean(axis=0)
    orthonormal, triangle = np.linalg.qr(components.reshape(len(components), -1).T)
    orthonormal *= np.sign(np.diag(triangle))
    return PrincipalComponents(
        mean=mean.ravel(),
        components=np.ascontiguousarray(orthonormal.T),
        variances=variances,
        total_variance=total_variance,
    )
