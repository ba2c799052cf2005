"""Equivalence of two collective variables: do they have the same isosurfaces? (Eqs. 13-17)."""

import numpy as np

from plumed_cv.cv import CollectiveVariable
from plumed_cv.errors import UserError
from plumed_cv.frame import Array


def gradient_alignment(
    new: CollectiveVariable, old: CollectiveVariable, n_points: int = 101
) -> Array:
    """Cosine between the gradients of two collective variables on the old mean path (Eq. 16).

    Parameters
    ----------
    new, old
        Collective variables of one latent dimension for the same atoms and reference structure.
    n_points
        Number of points on the path, evenly spaced in the old collective variable from 0 to 1.

    Returns
    -------
    Array
        Shape (n_points,); 1 where the isosurfaces are parallel.

    Raises
    ------
    UserError
        If the two have different atoms, references or more than one latent dimension.
    """
    if new.n_latent != 1 or old.n_latent != 1:
        raise UserError("Only collective variables of one latent dimension can be compared.")
    if new.n_atoms != old.n_atoms or not np.allclose(
        new.reference_positions, old.reference_positions
    ):
        raise UserError("The collective variables have different atoms or reference structures.")
    path = old.path(np.linspace(0.0, 1.0, n_points)[:, None])
    gradients = [cv.gradient_of(path).reshape(n_points, -1) for cv in (new, old)]
    norms = [np.linalg.norm(gradient, axis=1) for gradient in gradients]
    flat = np.minimum(*norms) < 1e-12  # a flat network has no direction: orthogonal, not parallel
    product = np.where(flat, 1.0, norms[0] * norms[1])
    return np.where(flat, 0.0, np.sum(gradients[0] * gradients[1], axis=1) / product)


def similarity(new: CollectiveVariable, old: CollectiveVariable) -> float:
    """Mean of 1 - cos along the old path; below epsilon the two are equivalent (Eq. 17)."""
    return float(np.mean(1.0 - gradient_alignment(new, old)))
