"""Rates at several temperatures: activation energy, enthalpy and entropy.

ln k is fitted by weighted least squares in x = 1/kT - 1/kT0, where 1/kT0 is the mean of 1/kT,

    ln k = ln k0 - E x [+ c x^2 / 2] .

E = -d ln k / d(1/kT) at T0 is the activation energy (Arrhenius), and k0 exp(E / kT0) is the
prefactor. The activation free energy G is defined by k = (kT/h) exp(-G/kT). It follows that the
activation enthalpy is H = E - kT0 and the activation entropy is S = (H - G) / T0 (Eyring, J. Chem.
Phys. 3, 107 (1935)).

The curvature c is fitted only if it differs from zero by more than `SIGNIFICANT` standard errors.
For rates without curvature this happens once in 370 cases. Energies are in eV.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import units
from scipy.stats import chi2

from plumed_cv.structures.frame import Array

SIGNIFICANT = 3.0  # the curvature is fitted if it exceeds this number of standard errors
IMPROBABLE = 0.01  # the scatter of the rates is too large if its probability is below this

_PLANCK_EV_S = units._hplanck * units.J


@dataclass(frozen=True)
class ArrheniusFit:
    """A fit of ln k as a function of 1/kT.

    Attributes
    ----------
    temperature_K
        T0, the temperature at which energy, enthalpy and entropy hold.
    coefficients, covariance
        ln k0, -E and, if it is significant, c/2: shapes (2 or 3,) and its square; eV.
    chi2, degrees_of_freedom
        Sum of the squared deviations in units of the standard error; number of independent ones.
    """

    temperature_K: float
    coefficients: Array
    covariance: Array
    chi2: float
    degrees_of_freedom: int

    @property
    def kT_eV(self) -> float:  # noqa: N802
        """Thermal energy at T0, eV."""
        return float(units.kB * self.temperature_K)

    @property
    def activation_energy_eV(self) -> float:  # noqa: N802
        """E, eV."""
        return -float(self.coefficients[1])

    @property
    def activation_enthalpy_eV(self) -> float:  # noqa: N802
        """H = E - kT0, eV."""
        return self.activation_energy_eV - self.kT_eV

    @property
    def activation_entropy_kB(self) -> float:  # noqa: N802
        """S = (H - G) / T0, in Boltzmann's constant."""
        ln = float(self.coefficients[0]) + np.log(_PLANCK_EV_S / self.kT_eV)
        return float(ln + self.activation_enthalpy_eV / self.kT_eV)

    @property
    def is_curved(self) -> bool:
        """Whether the curvature is significant."""
        return len(self.coefficients) == 3

    def ln_rate(self, temperature_K: Array) -> Array:
        """Natural logarithm of the rate in 1/s at temperatures (n,), K."""
        x = 1.0 / (units.kB * np.asarray(temperature_K)) - 1.0 / self.kT_eV
        return np.asarray(np.vander(x, len(self.coefficients), increasing=True) @ self.coefficients)

    def as_dict(self) -> dict[str, Any]:
        """Return the fit in the format of rates.json; errors are standard errors."""
        slope = float(self.covariance[1, 1] ** 0.5)
        # Covariance with ln k0 + E / kT0, the prefactor; the entropy differs from it by a constant.
        along = np.zeros(len(self.coefficients))
        along[:2] = 1.0, -1.0 / self.kT_eV
        intercept = float((along @ self.covariance @ along) ** 0.5)
        curvature = None
        if self.is_curved:
            curvature = 2.0 * float(self.coefficients[2])
        improbable = self.degrees_of_freedom > 0 and (
            chi2.sf(self.chi2, self.degrees_of_freedom) < IMPROBABLE
        )
        return {
            "temperature_K": self.temperature_K,
            "activation_energy_eV": self.activation_energy_eV,
            "activation_energy_error_eV": slope,
            "prefactor_per_s": float(np.exp(along @ self.coefficients)),
            "prefactor_error_factor": float(np.exp(intercept)),
            "activation_enthalpy_eV": self.activation_enthalpy_eV,
            "activation_enthalpy_error_eV": slope,
            "activation_entropy_kB": self.activation_entropy_kB,
            "activation_entropy_error_kB": intercept,
            "curvature_eV2": curvature,
            "curvature_error_eV2": 2.0 * float(self.covariance[2, 2] ** 0.5)
            if self.is_curved
            else None,
            "chi2": self.chi2,
            "degrees_of_freedom": self.degrees_of_freedom,
            "note": "The rates scatter more than their errors allow: the probability of this by "
            "chance is below 1 in 100."
            if improbable
            else None,
        }


def fit(
    temperatures_K: Sequence[float], rates_per_s: Sequence[float], error_factors: Sequence[float]
) -> ArrheniusFit | None:
    """Fit the rates at several temperatures.

    Parameters
    ----------
    temperatures_K, rates_per_s
        Shapes (n,).
    error_factors
        One standard error of each rate as a factor; above 1.

    Returns
    -------
    ArrheniusFit or None
        None for fewer than two temperatures.
    """
    beta = 1.0 / (units.kB * np.asarray(temperatures_K, dtype=float))
    if len(beta) < 2:
        return None
    centre = float(beta.mean())
    y, error = np.log(rates_per_s), np.log(error_factors)
    if len(beta) > 2:
        curved = _least_squares(beta - centre, y, error, 3)
        if abs(curved[0][2]) > SIGNIFICANT * curved[1][2, 2] ** 0.5:
            return ArrheniusFit(float(1.0 / (units.kB * centre)), *curved)
    return ArrheniusFit(
        float(1.0 / (units.kB * centre)), *_least_squares(beta - centre, y, error, 2)
    )


def _least_squares(x: Array, y: Array, error: Array, terms: int) -> tuple[Array, Array, float, int]:
    """Return the coefficients, their covariance, chi^2 and the degrees of freedom."""
    design = np.vander(x, terms, increasing=True) / error[:, None]
    covariance = np.asarray(np.linalg.inv(design.T @ design), dtype=np.float64)
    coefficients = covariance @ design.T @ (y / error)
    chi_square = float(np.sum((design @ coefficients - y / error) ** 2))
    return coefficients, covariance, chi_square, len(x) - terms
