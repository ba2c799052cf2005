"""Harmonic transition state theory from Hessians at the minimum and at the saddle point.

The energy is V0 + x.H0.x / 2 near the minimum and V1 + x.H1.x / 2 near the saddle point. Overall
translations are removed, and without a cell also overall rotations. The rate is that of Vineyard,
J. Phys. Chem. Solids 3, 121 (1957),

    k = prod_i nu_i / prod_j nu'_j exp(-(V1 - V0) / kT),

where nu_i are the frequencies of the minimum and nu'_j the real frequencies of the saddle point.
For a free molecule, the ratio of the rotational partition functions is a further factor: the square
root of the ratio of the products of the moments of inertia.

The integral over the basin is exp(-V0/kT) (2 pi kT)^(M/2) / sqrt(det H0). The integral over a plane
through the saddle point with unit normal n is exp(-V1/kT) (2 pi kT)^((M-1)/2) / sqrt(det H1
n.H1^-1.n). With lengths in angstrom, the flux barrier of this plane is

    F = V1 - V0 + kT/2 ln(2 pi kT) - kT/2 ln( det H0 / (det H1 n.H1^-1.n) ).

The barrier is highest, and the flux lowest, if n is the unstable mode. Then det H1 n.H1^-1.n is the
product of the positive eigenvalues.

There are two quantum corrections. The partition functions of quantum oscillators, 1 / (2 sinh(h nu
/ 2kT)), replace kT / (h nu). The tunnelling factor is the first term of Wigner's, 1 + (h nu_b /
kT)^2 / 24, with the imaginary frequency nu_b (Wigner, Trans. Faraday Soc. 34, 29 (1938)). Below the
crossover temperature h nu_b / (2 pi k) the transmission of a parabola diverges, and the factor is
meaningless.

Fixed atoms do not take part: the Hessians are those of the free atoms, and there are no overall
motions.

Energies are in eV, lengths in angstrom, masses in amu. N is the number of atoms, F of free atoms.
"""

from dataclasses import dataclass

import numpy as np
from ase import units
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.structures.frame import Array

_PLANCK_EV_S = units._hplanck * units.J


@dataclass(frozen=True)
class Expansion:
    """Second-order expansion of the energy around a stationary point.

    Attributes
    ----------
    energy_eV
        Energy, eV.
    positions
        Shape (N, 3), angstrom.
    hessian
        Symmetric, shape (3F, 3F), eV/angstrom^2.
    periodic
        Whether there is a cell; only then do overall rotations change the energy.
    free
        Atoms that are not fixed, from 0, shape (F,); if None, all. The Hessian is that of these.
    asymmetry
        Root mean square of the antisymmetric part of the finite-difference Hessian, eV/angstrom^2.
        It is caused by noise of the forces and by terms of higher order.
    """

    energy_eV: float
    positions: Array
    hessian: Array
    periodic: bool = True
    asymmetry: float = 0.0
    free: NDArray[np.int64] | None = None

    def modes(self, masses: Array | None = None) -> tuple[Array, Array]:
        """Return eigenvalues in ascending order and modes in columns, without overall motions.

        Parameters
        ----------
        masses
            Shape (N,), amu. If given, the Hessian is mass-weighted, and the eigenvalues are squares
            of angular frequencies in ASE's unit of time, eV/(angstrom^2 amu).

        Returns
        -------
        (M,), (3F, M)
            M is 3F with fixed atoms, and 3N - 3 without; without a cell, the number of rotations is
            subtracted too.
        """
        root = self._root(masses)
        weighted = self.hessian / np.outer(root, root)
        whole = self._motions_of_the_whole(root)
        inside = np.eye(len(weighted)) - whole @ whole.T
        # Shifted far above all others, so that they come last.
        lift = 10.0 * np.abs(weighted).max() * len(weighted)
        values, vectors = np.linalg.eigh(inside @ weighted @ inside + lift * whole @ whole.T)
        free = len(values) - whole.shape[1]
        return values[:free], vectors[:, :free]

    def frequencies_THz(self, masses: Array) -> Array:  # noqa: N802
        """Frequencies in ascending order, shape (M,), THz; imaginary ones are negative."""
        values = self.modes(masses)[0]
        return np.sign(values) * np.sqrt(np.abs(values)) / (2.0 * np.pi) * units.second * 1e-12

    def moments_of_inertia(self, masses: Array) -> Array:
        """The nonzero moments, amu angstrom^2: three, or two for a linear molecule."""
        arms = self.positions - masses @ self.positions / masses.sum()
        square = np.einsum("i,ia,ib->ab", masses, arms, arms)
        moments = np.linalg.eigvalsh(np.trace(square) * np.eye(3) - square)
        return np.asarray(moments[moments > 1e-6 * moments[-1]])

    def log_determinant_error(self, masses: Array) -> float:
        """Standard error of ln |det H|, estimated from the asymmetry of the differences.

        A symmetric error dH with independent elements changes ln |det H| by the trace of H^-1 dH.
        Its elements are assumed to be as large as those of the antisymmetric part.
        """
        values, modes = self.modes(masses)
        compliance = (modes / values) @ modes.T  # weighted by masses, as its elements are
        root = self._root(masses)
        scaled = compliance / np.outer(root, root)
        # Elements off the diagonal count twice, and those on it have twice the variance.
        return float(2**0.5 * self.asymmetry * np.linalg.norm(scaled))

    def _root(self, masses: Array | None) -> Array:
        """Square roots of the masses of the coordinates, shape (3F,); ones without masses."""
        if masses is None:
            return np.ones(len(self.hessian))
        own = masses if self.free is None else masses[self.free]
        return np.asarray(np.sqrt(np.repeat(own, 3)))

    def _motions_of_the_whole(self, root: Array) -> Array:
        """Orthonormal translations, and rotations if there is no cell, weighted: (3F, 0 to 6)."""
        if self.free is not None:
            return np.zeros((len(root), 0))
        n = len(root) // 3
        motions = [np.tile(axis, (n, 1)) for axis in np.eye(3)]
        if not self.periodic:
            weights = root.reshape(n, 3)[:, :1] ** 2
            arms = self.positions - (weights * self.positions).sum(axis=0) / weights.sum()
            motions += [np.cross(axis, arms) for axis in np.eye(3)]
        columns = root[:, None] * np.reshape(motions, (len(motions), -1)).T
        u, singular, _ = np.linalg.svd(columns, full_matrices=False)
        return np.asarray(u[:, singular > 1e-4 * singular[0]])


@dataclass(frozen=True)
class HarmonicTheory:
    """Harmonic transition state theory of one event.

    Attributes
    ----------
    minimum, saddle
        The expansions at the two points.
    masses
        Shape (N,), amu.
    """

    minimum: Expansion
    saddle: Expansion
    masses: Array

    @property
    def barrier_eV(self) -> float:  # noqa: N802
        """Energy of the saddle point above the minimum, eV."""
        return self.saddle.energy_eV - self.minimum.energy_eV

    @property
    def imaginary_frequency_THz(self) -> float:  # noqa: N802
        """Size of the imaginary frequency at the saddle point, THz."""
        return -float(self.saddle.frequencies_THz(self.masses)[0])

    @property
    def prefactor_per_s(self) -> float:
        """Vineyard's prefactor, 1/s; for a molecule including the factor of its rotations."""
        at_minimum, at_saddle = self._frequencies()
        ln = np.log(at_minimum).sum() - np.log(at_saddle).sum() + self._ln_rotations()
        return float(np.exp(ln) * 1e12)

    @property
    def prefactor_error_factor(self) -> float:
        """One standard error of the prefactor, as a factor, from the asymmetry of the Hessians."""
        at_minimum = self.minimum.log_determinant_error(self.masses)
        at_saddle = self.saddle.log_determinant_error(self.masses)
        return float(np.exp(0.5 * np.hypot(at_minimum, at_saddle)))

    @property
    def zero_point_barrier_eV(self) -> float:  # noqa: N802
        """The difference of the zero-point levels, eV."""
        at_minimum, at_saddle = self._frequencies()
        zero_point = 0.5 * _PLANCK_EV_S * 1e12 * (at_saddle.sum() - at_minimum.sum())
        return self.barrier_eV + float(zero_point)

    @property
    def crossover_temperature_K(self) -> float:  # noqa: N802
        """Crossover temperature h nu_b / (2 pi k), K; below it Wigner's correction is invalid."""
        return float(_PLANCK_EV_S * 1e12 * self.imaginary_frequency_THz / (2.0 * np.pi * units.kB))

    def at(self, temperature_K: float) -> dict[str, float | None]:
        """Return rates and flux barrier at a temperature, under their names in harmonic.json.

        Parameters
        ----------
        temperature_K
            Temperature, K.

        Returns
        -------
        dict
            `rate_per_s`; `flux_barrier_eV`, for the best plane; `quantum_partition_rate_per_s`,
            with partition functions of quantum oscillators; `wigner_factor`; and
            `quantum_rate_per_s`, the product of both. The last two are None below the crossover
            temperature.
        """
        kT = units.kB * temperature_K
        at_minimum, at_saddle = (_PLANCK_EV_S * 1e12 * nu / kT for nu in self._frequencies())
        rate = self.prefactor_per_s * np.exp(-self.barrier_eV / kT)
        # For one oscillator, x exp(-x/2) / (1 - exp(-x)) is the ratio of quantum to classical.
        correction = _ln_quantum(at_saddle).sum() - _ln_quantum(at_minimum).sum()
        quantum = rate * np.exp(correction)
        wigner = None
        if temperature_K > self.crossover_temperature_K:
            x = _PLANCK_EV_S * 1e12 * self.imaginary_frequency_THz / kT
            wigner = 1.0 + float(x) ** 2 / 24.0
        return {
            "temperature_K": temperature_K,
            "rate_per_s": float(rate),
            "flux_barrier_eV": compute_flux_barrier(
                self.barrier_eV, log_ratio(self.minimum, self.saddle), kT
            ),
            "quantum_partition_rate_per_s": float(quantum),
            "wigner_factor": wigner,
            "quantum_rate_per_s": None if wigner is None else float(quantum * wigner),
        }

    def _frequencies(self) -> tuple[Array, Array]:
        """The frequencies of the minimum and the real frequencies of the saddle point, THz."""
        at_minimum = self.minimum.frequencies_THz(self.masses)
        at_saddle = self.saddle.frequencies_THz(self.masses)[1:]
        return at_minimum, at_saddle

    def _ln_rotations(self) -> float:
        """Logarithm of the ratio of the rotational partition functions of a free molecule."""
        if self.minimum.periodic or self.minimum.free is not None:
            return 0.0
        moments = [x.moments_of_inertia(self.masses) for x in (self.minimum, self.saddle)]
        if len(moments[0]) != len(moments[1]):
            raise UserError(
                "The molecule is linear at one of the minimum and the saddle point and bent at the "
                "other; the harmonic rate is not implemented for this case, so use 'plumed-cv run'."
            )
        at_minimum, at_saddle = (
            0.5 * np.log(own).sum() if len(own) == 3 else np.log(own).mean() for own in moments
        )
        return float(at_saddle - at_minimum)


def log_ratio(minimum: Expansion, saddle: Expansion, normal: Array | None = None) -> float:
    """Return ln( det H0 / (det H1 n.H1^-1.n) ), lengths in angstrom and energies in eV.

    Parameters
    ----------
    minimum, saddle
        The expansions with H0 and H1.
    normal
        n, shape (N, 3), of any length. The default is the unstable mode.

    Raises
    ------
    ValueError
        If the points are not a minimum and a saddle point, or the plane does not separate them.
    """
    values0, _ = minimum.modes()
    values1, modes1 = saddle.modes()
    if values0[0] <= 0 or values1[0] >= 0 or values1[1] <= 0:
        raise ValueError(
            f"a minimum and a saddle point are needed, not {values0[:2]}, {values1[:2]}"
        )
    n = modes1[:, 0]
    if normal is not None:
        own = normal if saddle.free is None else normal[saddle.free]
        n = own.ravel() / np.linalg.norm(own)
    compliance = float(np.sum((modes1.T @ n) ** 2 / values1))
    if compliance >= 0:
        raise ValueError("the plane does not separate the two sides of the saddle point")
    return float(np.log(values0).sum() - np.log(np.abs(values1)).sum() - np.log(-compliance))


def compute_flux_barrier(delta_E_eV: float, ln_ratio: float, kT_eV: float) -> float:
    """Harmonic flux barrier, eV, from the energy of the saddle point and `log_ratio`."""
    return float(delta_E_eV + 0.5 * kT_eV * (np.log(2 * np.pi * kT_eV) - ln_ratio))


def _ln_quantum(x: Array) -> Array:
    """Logarithm of the ratio of quantum to classical partition function, x = h nu / kT."""
    return np.asarray(np.log(x) - 0.5 * x - np.log(-np.expm1(-x)))
