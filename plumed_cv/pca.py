"""Principal components of displacements: the linear filter before the autoencoder (Sec. 2.2)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from plumed_cv.errors import UserError
from plumed_cv.frame import Array


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
        Eigenvalues of the covariance matrix, falling, shape (D,), A^2.
    total_variance
        Its trace, A^2.
    """

    mean: Array
    components: Array
    variances: Array
    total_variance: float

    @property
    def fraction_of_variance(self) -> Array:
        """Fraction of variance explained by each component (Fig. 2), shape (D,)."""
        return self.variances / self.total_variance

    @property
    def localisation(self) -> Array:
        """var_{D,a} of Eq. 3: each atom's motion within the components, shape (N,), angstrom."""
        weighted = self.components**2 * self.variances[:, None]
        return np.asarray(np.sqrt(weighted.sum(axis=0).reshape(-1, 3).sum(axis=1)))

    def project(self, displacements: NDArray[Any]) -> NDArray[np.float32]:
        """Principal components of displacements (M, N, 3): shape (M, D), angstrom."""
        flat = displacements.reshape(len(displacements), -1)
        weights = self.components.T.astype(flat.dtype)
        offset = (self.mean @ self.components.T).astype(flat.dtype)
        return np.asarray(flat @ weights - offset, dtype=np.float32)


def fit(displacements: NDArray[Any], n_components: int, seed: int = 0) -> PrincipalComponents:
    """Leading principal components by randomised singular value decomposition.

    Parameters
    ----------
    displacements
        Displacement-frame coordinates, shape (M, N, 3), angstrom.
    n_components
        Number of components D.
    seed
        Seed of the random projections.

    Raises
    ------
    UserError
        If there are fewer structures than components or they do not differ.
    """
    flat = displacements.reshape(len(displacements), -1)
    largest = min(len(flat) - 1, flat.shape[1] - 3)
    if n_components < 1:
        raise UserError(f"{n_components} principal components: ask for one or more.")
    if n_components > largest:
        raise UserError(
            f"{n_components} principal components need more than {len(flat)} structures of "
            f"{displacements.shape[1]} atoms; sample longer or ask for at most {max(largest, 0)}."
        )
    pca = PCA(n_components, svd_solver="randomized", random_state=seed).fit(flat)
    if not pca.explained_variance_[0] > 1e-12:
        raise UserError("The structures do not differ; there is nothing to learn from them.")
    # Rounding in single precision leaves a trace of rigid translation and of skewness.
    components = pca.components_.astype(np.float64).reshape(n_components, -1, 3)
    components -= components.mean(axis=1, keepdims=True)
    orthonormal, triangle = np.linalg.qr(components.reshape(n_components, -1).T)
    orthonormal *= np.sign(np.diag(triangle))
    mean = pca.mean_.astype(np.float64).reshape(-1, 3)
    return PrincipalComponents(
        mean=(mean - mean.mean(axis=0)).ravel(),
        components=np.ascontiguousarray(orthonormal.T),
        variances=pca.explained_variance_.astype(np.float64),
        total_variance=float(flat.var(axis=0, dtype=np.float64).sum()),
    )


def elbow(fraction_of_variance: Array) -> int:
    """Number of components above the plateau of thermal noise (elbow of Fig. 2).

    The plateau is a straight line through the second half of the logarithms; components count until
    the first that lies within five standard deviations of the line's residuals.

    Parameters
    ----------
    fraction_of_variance
        Fractions of variance explained, falling, shape (D,) with D of about 30.
    """
    logs = np.log(fraction_of_variance)
    index = np.arange(len(logs))
    tail = index >= len(logs) // 2
    line = np.polynomial.Polynomial.fit(index[tail], logs[tail], 1)
    above = logs - line(index)
    threshold = max(5.0 * float(np.std(above[tail])), 0.02)
    below = np.flatnonzero(above < threshold)
    return max(int(below[0]) if len(below) else len(logs), 1)
