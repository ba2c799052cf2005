"""The energy at 0 K along a path, from the forces along a collective variable (Eqs. 18-20).

All integrals are along the path itself, where the conditional average of Eq. 18 has one member.
With g = grad xi and the tangent t of the path, the energy rises by t . P grad V per length, where P
is the projection on g (Eq. 20) or, with several latent dimensions, on all gradients (Eq. 19). Along
a minimum energy path grad V is parallel to t. A collective variable therefore loses the share 1 -
cos^2 of the angle between g and t, and a linear subspace loses the part of t outside of it.

Lengths are in angstrom, energies in eV. K images of N atoms, D components, d latent dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase import units
from scipy.integrate import trapezoid
from scipy.interpolate import CubicHermiteSpline

from plumed_cv.common.errors import UserError
from plumed_cv.cv.collective_variable import CollectiveVariable
from plumed_cv.paths.path import Curve, EnergyPath
from plumed_cv.structures.frame import Array

# Largest error of the work due to distant images, relative to the range of the energies, with a
# note.
_LARGEST_ERROR = 0.35

# Units in eV and angstrom in which forces and energies are given by mistake.
_FORCE_UNITS = {
    "Ry/bohr": units.Ry / units.Bohr,
    "Ha/bohr": units.Ha / units.Bohr,
    "eV/bohr": 1.0 / units.Bohr,
    "eV/nm": 1.0 / units.nm,
    "kcal/mol/A": units.kcal / units.mol,
    "kJ/mol/A": units.kJ / units.mol,
    "kJ/mol/nm": units.kJ / units.mol / units.nm,
}
_ENERGY_UNITS = {
    "Ry": units.Ry,
    "Ha": units.Ha,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
}


@dataclass(frozen=True)
class EnergyProfile:
    """Energy relative to the first image along a path.

    Parameters
    ----------
    parameter
        Fractional arc length, shape (G,).
    energy
        Shape (G,), eV.
    """

    parameter: Array
    energy: Array

    def __repr__(self) -> str:
        return f"EnergyProfile(barrier {self.barrier:.4f} eV, end point {self.end_point:+.4f} eV)"

    @property
    def barrier(self) -> float:
        """The highest energy relative to the first image, eV."""
        return float(self.energy.max())

    @property
    def end_point(self) -> float:
        """Energy of the last image relative to the first, eV."""
        return float(self.energy[-1])

    def deviation_from(self, other: "EnergyProfile") -> float:
        """Root mean square difference from another profile along the path, eV."""
        square = (self.energy - other.energy) ** 2
        return float(trapezoid(square, self.parameter) ** 0.5)


def along_variable(path: EnergyPath, variable: CollectiveVariable) -> EnergyProfile:
    """Energy along a path from the force along a collective variable (Eqs. 18-20).

    E rises by F . dxi with F = S^-1 (grad xi . grad V) and the Gram matrix S = grad xi grad xi^T.
    With one latent dimension, F = grad xi . grad V / |grad xi|^2. The paper sums trapezoids between
    images. Here cubic splines interpolate images and forces first, which reduces the error of 27
    images of a vacancy jump from 1 % to below 0.1 %. Atoms that are not in the variable follow the
    path: the work of the forces on them is added.

    Parameters
    ----------
    path
        Images with forces.
    variable
        A collective variable of these atoms or some of them.

    Raises
    ------
    UserError
        If the variable belongs to other atoms.
    """
    x, slopes, gradients = in_components(path, variable)
    jacobian = variable.encoder_jacobian(x)  # (G, d, D)
    dxi = jacobian @ slopes[..., None]
    gram = jacobian @ np.swapaxes(jacobian, -1, -2)
    # The pseudo-inverse: where a latent dimension is flat, the force along it does not count.
    mean_force = np.linalg.pinv(gram, hermitian=True) @ (jacobian @ gradients[..., None])
    along = np.sum(dxi * mean_force, axis=(1, 2))
    return _integral(path, along + _slope_of_others(path, variable))


def along_components(path: EnergyPath, variable: CollectiveVariable) -> EnergyProfile:
    """Energy along a path from the force within the principal components, P grad V, P = U_D U_D^T.

    It is that of a perfect collective variable of these components: the `PCA` of Figs. 5 and 6.
    """
    _, slopes, gradients = in_components(path, variable)
    along = np.sum(slopes * gradients, axis=1)
    return _integral(path, along + _slope_of_others(path, variable))


def along_path(path: EnergyPath) -> EnergyProfile:
    """Energy along a path from the complete forces; it must equal the energies of the images."""
    return _integral(path, _slope(path, path.curve))


def interpolate_images(path: EnergyPath) -> EnergyProfile:
    """The images' energies, between them by cubic polynomials with the slope of their forces."""
    curve = path.curve
    flat = (len(path.images), -1)
    tangents = curve.slopes[curve.at_images] @ path.displacements.reshape(flat)
    slopes = -np.sum(tangents * path.forces.reshape(flat), axis=1)
    spline = CubicHermiteSpline(path.arc_length, path.energies, slopes)
    return EnergyProfile(curve.parameter, spline(curve.parameter))


def compute_margins(
    path: EnergyPath,
    variable: CollectiveVariable,
    kT_eV: float,
    least: tuple[float, float] = (0.0, 0.0),
) -> tuple[float, float]:
    """Margins of a grid below xi = 0 and above 1 that contain the thermal motion in both states.

    A state is taken to be as wide on its far side as it is towards the barrier: its margin is the
    distance in xi from the state to where the path's energy is 6 kT above it. Three ten-thousandths
    of a harmonic basin are beyond that. No margin is longer than 0.6 of the distance to the first
    barrier of more than 2 kT: if the process repeats itself, the barrier behind the state is as far
    away. A margin that a sampling has shown to be necessary may be 0.85 of that distance.

    Parameters
    ----------
    path
        The minimum energy path.
    variable
        A collective variable of its atoms with one latent dimension.
    kT_eV
        Temperature, eV.
    least
        Margins that a sampling has shown to be needed, in units of xi.

    Returns
    -------
    tuple
        The margins below 0 and above 1, in units of xi, each 0.05 at least.
    """
    xi, energy = values_along(path, variable), interpolate_images(path).energy
    return (
        _margin(xi, energy - energy[0], kT_eV, least[0]),
        _margin(1.0 - xi[::-1], energy[::-1] - energy[-1], kT_eV, least[1]),
    )


def _margin(xi: Array, energy: Array, kT_eV: float, least: float) -> float:
    """The margin of a state at xi = 0 from the energies above it along the path, shape (G,)."""
    highest = np.maximum.accumulate(energy)
    behind = np.flatnonzero((highest > 2.0 * kT_eV) & (energy < highest - 2.0 * kT_eV))
    rise = energy[: behind[0]] if len(behind) else energy
    peaks = np.flatnonzero(
        (rise >= np.append(rise[1:], -np.inf))
        & (rise >= np.append(-np.inf, rise[:-1]))
        & (rise >= rise.max() - kT_eV)
    )
    top = int(peaks[0])
    high = np.flatnonzero(rise[: top + 1] >= 6.0 * kT_eV)
    reach = int(high[0]) if len(high) else top
    expected, needed = (
        min(float(xi[reach]), 0.6 * float(xi[top])),
        min(least, 0.85 * float(xi[top])),
    )
    return max(0.05, expected, needed)


def values_along(path: EnergyPath, variable: CollectiveVariable) -> Array:
    """The first latent dimension along the path, on the fine grid of its curve, shape (G,)."""
    x, _, _ = in_components(path, variable)
    return np.asarray(variable.encode(x)[:, 0])


def values_at_images(path: EnergyPath, variable: CollectiveVariable) -> Array:
    """The first latent dimension in the images of a path of all atoms, shape (K,)."""
    return variable.encode(_components(path.of_atoms(variable.serials), variable))[:, 0]


def measure_fall(path: EnergyPath, variable: CollectiveVariable) -> float:
    """Largest fall of a collective variable along a path, in units of its rise from 0 to 1.

    Zero if it rises all the way: only then does it have one value for each point of the path.
    """
    xi = values_along(path, variable)
    return float((np.maximum.accumulate(xi) - xi).max())


def force_across(path: EnergyPath) -> float:
    """The largest force on an atom across the path (eV/A): near 0 on a minimum energy path.

    On the end states, which should be minima, all of the force counts. Atoms that the images hold
    at their places do not count. The direction of the path in an image is that of the splines or
    that of an elastic band, whichever leaves less force: if images are far apart, the two differ,
    and a band that has converged has forces across the splines.
    """
    curve = path.curve
    u = path.displacements.reshape(len(path.images), -1)
    free = path.forces.copy()
    free[:, path.held] = 0.0
    forces = free.reshape(u.shape)
    largest = []
    for tangents in (curve.slopes[curve.at_images] @ u, _band_tangents(u, path.energies)):
        tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
        tangents[[0, -1]] = 0.0
        across = forces - np.sum(forces * tangents, axis=1, keepdims=True) * tangents
        largest.append(np.linalg.norm(across.reshape(free.shape), axis=2).max(axis=1))
    return float(np.min(largest, axis=0).max())


def _band_tangents(u: Array, energies: Array) -> Array:
    """Tangents of an elastic band: the step to the higher one of the images beside each.

    At a maximum or minimum of the energy, the two steps are weighted by the differences of the
    energies (Henkelman and Jonsson, J. Chem. Phys. 113, 9978 (2000), Eqs. 8-11).

    Parameters
    ----------
    u
        Displacements of the images, shape (K, 3N), angstrom.
    energies
        Shape (K,), eV.
    """
    steps, rises = np.diff(u, axis=0), np.diff(energies)
    before, after = rises[:-1], rises[1:]
    sizes = np.abs([before, after]) + 1e-12  # flat: any weight is right, but none is not
    more, less = sizes.max(axis=0), sizes.min(axis=0)
    extremum = before * after <= 0
    up = after > -before  # whether the next image is higher than the previous one
    weight_after = np.where(extremum, np.where(up, more, less), after > 0)
    weight_before = np.where(extremum, np.where(up, less, more), after <= 0)
    inner = weight_before[:, None] * steps[:-1] + weight_after[:, None] * steps[1:]
    return np.concatenate([steps[:1], inner, steps[-1:]])


def check_forces(path: EnergyPath) -> float:
    """Compare the forces, integrated along the path, with the energies of the images.

    Returns
    -------
    float
        The error of the barrier that the forces give, as a fraction of the energies' range: what
        the images are too far apart for.

    Raises
    ------
    UserError
        If forces have another sign or unit than the energies, or do not belong to them, or if the
        images are too far apart.
    """
    curve = path.curve
    work = along_path(path).energy[curve.at_images]
    energies = path.energies
    spread = float(np.ptp(energies))
    if spread < 1e-6:
        raise UserError(
            f"{path.name}: all images have the same energy; give the energy of each (eV)."
        )
    ratio = float(work @ energies / (energies @ energies))
    norms = float(np.linalg.norm(work) * np.linalg.norm(energies))
    alike = abs(float(work @ energies)) / norms if norms > 0 else 0.0
    if 0.8 < ratio < 1.25 and alike > 0.9:
        return float(np.abs(work - energies).max() / spread)
    for expected, remedy in _mistakes():
        if alike > 0.9 and abs(ratio / expected - 1.0) < 0.05:
            raise UserError(f"{path.name}: {remedy}, for eV and eV/A are expected.")
    error = float(np.abs(work - energies).max() / spread)
    if alike > 0 and error < _error_of_images(path, work):
        if error < _LARGEST_ERROR:
            return error
        raise UserError(
            f"{path.name}: {len(path.images)} images are too far apart: their forces along the "
            f"path give the energies with an error of {100 * error:.0f} % of the range; give more "
            "images."
        )
    raise UserError(
        f"{path.name}: the forces along the path add up to {ratio:.3g} times the energies of the "
        f"images, which is more than the distances of {len(path.images)} images explain; give "
        "forces in eV/A of the same calculation as the energies, or more images."
    )


def _error_of_images(path: EnergyPath, work: Array) -> float:
    """Error of the work of the forces due to the distances of images, relative to its range.

    Bound from above by what leaving out every second image does.
    """
    last = len(path.images) - 1
    kept = sorted({*range(0, last, 2), last})
    coarse = EnergyPath(tuple(path.images[k] for k in kept), path.name)
    coarse_work = along_path(coarse).energy[coarse.curve.at_images]
    return float(np.abs(coarse_work - work[kept]).max() / np.ptp(path.energies))


def in_components(path: EnergyPath, variable: CollectiveVariable) -> tuple[Array, Array, Array]:
    """Components x, dx/dlambda and U_D^T grad V on the grid, each of shape (G, D)."""
    part = path.of_atoms(variable.serials)
    if variable.species != part.species:
        raise UserError(
            f"{path.name}: the collective variable is one of other atoms; learn one from "
            "structures of these atoms."
        )
    x = _components(part, variable)
    gradients = -part.forces.reshape(len(x), -1) @ variable.pca_components.T
    curve = path.curve
    return curve.values @ x, curve.slopes @ x, curve.values @ gradients


def _components(part: EnergyPath, variable: CollectiveVariable) -> Array:
    """Components of the images of a path of the variable's atoms, shape (K, D)."""
    positions = np.stack([image.positions for image in part.images])
    return variable.components(variable.displacements(positions, part.cell))


def _mistakes() -> Iterator[tuple[float, str]]:
    """Other quantities that agree with the work of the forces, and the remedy for each."""
    for unit, factor in _FORCE_UNITS.items():
        yield 1.0 / factor, f"the forces are in {unit}: multiply them by {factor:.6g}"
        yield -1.0 / factor, f"the forces are gradients in {unit}: multiply them by {-factor:.6g}"
    for unit, factor in _ENERGY_UNITS.items():
        yield factor, f"the energies are in {unit}: multiply them by {factor:.6g}"
    yield -1.0, "the forces are gradients, they point uphill: multiply them by -1"


def _slope(path: EnergyPath, curve: Curve) -> Array:
    """Slope of the energy along a path by the forces on its atoms, on the grid, shape (G,), eV."""
    flat = (len(path.images), -1)
    work = -path.displacements.reshape(flat) @ path.forces.reshape(flat).T  # (K, K)
    return np.asarray(np.sum((curve.slopes @ work) * curve.values, axis=1))


def _slope_of_others(path: EnergyPath, variable: CollectiveVariable) -> Array:
    """Part of the slope by the forces on atoms that are not in a collective variable, (G,), eV."""
    return _slope(path, path.curve) - _slope(path.of_atoms(variable.serials), path.curve)


def _integral(path: EnergyPath, slope: Array) -> EnergyProfile:
    """The profile of given slopes dE/dlambda: the trapezoid of Eq. 20 on the fine grid."""
    parameter = path.curve.parameter
    steps = 0.5 * (slope[1:] + slope[:-1]) * np.diff(parameter)
    return EnergyProfile(parameter, np.concatenate([[0.0], np.cumsum(steps)]))
