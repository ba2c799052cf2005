"""Equivalence of two collective variables, that is equality of their isosurfaces (Eqs. 13-17)."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from plumed_cv.common.errors import UserError
from plumed_cv.cv.collective_variable import CollectiveVariable
from plumed_cv.structures.frame import Array

NEAR = 0.05  # largest distance from a dividing surface, in units of the CV


@dataclass(frozen=True)
class Difference:
    """Deviation of the isosurfaces of two collective variables from parallel: 1 - cos (Eq. 16).

    Attributes
    ----------
    mean
        Mean over the path from xi = 0 to 1 (Eq. 17).
    worst
        Largest value between the two states, where an angle costs energy.
    at_surface
        Largest value at a distance of at most `NEAR` from a dividing surface; None if none is
        known.
    """

    mean: float
    worst: float
    at_surface: float | None


def gradient_alignment(
    new: CollectiveVariable,
    old: CollectiveVariable,
    n_points: int = 101,
    along: CollectiveVariable | None = None,
) -> Array:
    """Cosine between the gradients of two collective variables on a mean path (Eq. 16).

    Parameters
    ----------
    new, old
        Collective variables of one latent dimension for the same atoms and reference structure.
    n_points
        Number of points on the path, evenly spaced in its collective variable from 0 to 1.
    along
        The collective variable that defines the mean path; the old one if None.

    Returns
    -------
    Array
        Shape (n_points,); 1 where the isosurfaces are parallel.

    Raises
    ------
    UserError
        If the two have different atoms or references, or more than one latent dimension.
    """
    if new.n_latent != 1 or old.n_latent != 1:
        raise UserError(
            f"The collective variables have {new.n_latent} and {old.n_latent} latent dimensions; "
            "only those of one can be compared, so train them with latent = 1."
        )
    if new.n_atoms != old.n_atoms or not np.allclose(
        new.reference_positions, old.reference_positions
    ):
        raise UserError(
            "The collective variables have different atoms or reference structures "
            f"({new.n_atoms} and {old.n_atoms} atoms); to compare them, learn both from the same "
            "end states with the same `atoms`."
        )
    path = (along or old).path(np.linspace(0.0, 1.0, n_points)[:, None])
    gradients = [cv.gradient_of(path).reshape(n_points, -1) for cv in (new, old)]
    norms = [np.linalg.norm(gradient, axis=1) for gradient in gradients]
    flat = np.minimum(*norms) < 1e-12  # a flat network has no direction and counts as orthogonal
    product = np.where(flat, 1.0, norms[0] * norms[1])
    return np.where(flat, 0.0, np.sum(gradients[0] * gradients[1], axis=1) / product)


def compare_isosurfaces(
    new: CollectiveVariable,
    old: CollectiveVariable,
    surfaces: Iterable[float] = (),
    between: tuple[float, float] = (0.0, 1.0),
    along: CollectiveVariable | None = None,
) -> Difference:
    """Compare the isosurfaces of two collective variables along a mean path.

    Parameters
    ----------
    new, old, along
        As for `gradient_alignment`.
    surfaces
        The dividing surfaces, as values of the collective variable of the path.
    between
        Range of this variable for `worst`.

    Raises
    ------
    UserError
        As for `gradient_alignment`.
    """
    off = 1.0 - gradient_alignment(new, old, along=along)
    xi = np.linspace(0.0, 1.0, len(off))
    inside = (xi >= between[0]) & (xi <= between[1])
    near = [off[np.abs(xi - surface) <= NEAR] for surface in surfaces]
    at_surfaces = np.concatenate([[], *near])
    return Difference(
        mean=float(off.mean()),
        worst=float(off[inside].max() if inside.any() else off.max()),
        at_surface=float(at_surfaces.max()) if len(at_surfaces) else None,
    )


def similarity(new: CollectiveVariable, old: CollectiveVariable) -> float:
    """Mean of 1 - cos along the old path; below epsilon the two CVs are equivalent (Eq. 17)."""
    return compare_isosurfaces(new, old).mean
