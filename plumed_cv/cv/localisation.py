"""Which atoms take part in a process (Eq. 3), and what this means for an autoencoder.

Lengths are in angstrom. K images of N atoms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from plumed_cv.common.files import replacing
from plumed_cv.cv.pca import PrincipalComponents
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures.frame import Array

# Shares of the squared displacement of the path above which a process is localised, or partly.
LOCALISED, PARTLY_LOCALISED = 0.8, 0.6

N_STRUCTURES = 20_000  # the fewest that are drawn from a path; sufficient for a vacancy
_MOST = 0.98  # share of the motion of the atoms that count for the number of structures
_NOISE = 0.025  # on these atoms, relative to the path, for which N_STRUCTURES are sufficient
_MOST_COORDINATES = 250_000_000  # of all structures together: 1 GB


@dataclass(frozen=True)
class Localisation:
    """The atoms that take part in a process: those that move more than the thermal noise.

    Parameters
    ----------
    amplitude
        var_{D,a} of Eq. 3, shape (N,), angstrom.
    noise
        Standard deviation of the noise of one coordinate, angstrom.
    motion
        Squared displacement of each atom along the path without noise, about its mean and averaged
        over the path, shape (N,), A^2.
    """

    amplitude: Array
    noise: float
    motion: Array

    def __repr__(self) -> str:
        return (
            f"Localisation({self.verdict}: {100 * self.share:.0f} % of the motion on "
            f"{self.moving.sum()} of {len(self.motion)} atoms)"
        )

    @property
    def moving(self) -> NDArray[np.bool_]:
        """Atoms whose var_{D,a} exceeds the noise, shape (N,)."""
        return np.asarray(self.amplitude > self.noise)

    @property
    def share(self) -> float:
        """Share of the moving atoms in the squared displacement of the path, 0 to 1."""
        return float(self.motion[self.moving].sum() / self.motion.sum())

    @property
    def participation(self) -> float:
        """Number of atoms that share the motion, 1 to N: (sum m)^2 / sum m^2 of the motion m."""
        return float(self.motion.sum() ** 2 / (self.motion**2).sum())

    @property
    def verdict(self) -> str:
        """Localised, partly localised or extended, according to the share of the moving atoms."""
        if self.share >= LOCALISED:
            return "localised"
        return "partly localised" if self.share >= PARTLY_LOCALISED else "extended"

    @property
    def sentence(self) -> str:
        """The verdict in a sentence with its reason and its consequence."""
        expect = {
            "localised": "an autoencoder suits it",
            "partly localised": "it needs more structures than a localised one",
            "extended": "barriers are too low unless very many structures are drawn",
        }[self.verdict]
        return (
            f"The process is {self.verdict}, {expect}: {100 * self.share:.0f} % of the squared "
            f"displacement is on {self.moving.sum()} of {len(self.motion)} atoms, those that "
            f"exceed the thermal noise of {self.noise:.3f} Å (participation number "
            f"{self.participation:.1f})."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers for JSON."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "moving_atoms": int(self.moving.sum()),
            "share_of_moving_atoms": self.share,
            "participation": self.participation,
            "noise_A": self.noise,
            "var_D_A": self.amplitude.tolist(),
        }

    def write(self, output: Path | str, ends: Sequence[Atoms]) -> None:
        """Write the end states with the amplitude of each atom in a column `var_D`, A, for OVITO.

        Parameters
        ----------
        output
            The file, extended XYZ.
        ends
            The end states, with these atoms.

        Raises
        ------
        UserError
            If the file cannot be written.
        """
        ends = [atoms.copy() for atoms in ends]
        for atoms in ends:
            atoms.arrays["var_D"] = self.amplitude
        with replacing(output) as temporary:
            columns = ["symbols", "positions", "var_D"]
            ase.io.write(temporary, ends, format="extxyz", columns=columns)


def localise(path: EnergyPath, principal: PrincipalComponents, noise: float) -> Localisation:
    """Determine the atoms that take part, from the components of the noisy path (Eq. 3).

    Parameters
    ----------
    path
        The path without noise.
    principal
        Principal components of its noisy structures.
    noise
        Standard deviation of the noise of one coordinate, angstrom.
    """
    return Localisation(principal.localisation, noise, motion(path))


def motion(path: EnergyPath) -> Array:
    """Squared displacement of each atom about its mean, averaged over a path, shape (N,), A^2."""
    curve = path.curve
    weights = np.gradient(curve.parameter)
    weights[[0, -1]] *= 0.5
    weights /= weights.sum()
    positions = path.displacements.reshape(len(path.images), -1)
    moments = curve.values.T @ (weights[:, None] * curve.values)
    squares = np.sum((moments @ positions) * positions, axis=0)
    squares -= (weights @ curve.values @ positions) ** 2
    return np.asarray(np.maximum(squares, 0.0).reshape(-1, 3).sum(axis=1))


def structures_for(path: EnergyPath, variance_A2: float) -> int:
    """Number of noisy structures from which the mean of a path is known well.

    The mean of M structures has a noise of n s^2 / M on n atoms. Its ratio to the square of the
    length of the path decides how far it tilts the collective variable. The n atoms are those that
    move most and together carry 98 % of the motion: on the others the mean path is smoothed away.
    For the hop of a vacancy n is 15, for a dislocation it is more than 100.

    Parameters
    ----------
    path
        The path of the atoms of a collective variable.
    variance_A2
        Variance s^2 of the noise of a coordinate, A^2.
    """
    moved = np.sort(motion(path))[::-1].cumsum()
    n_atoms = 1 + int(np.searchsorted(moved, _MOST * moved[-1]))
    steps = np.linalg.norm(np.diff(path.displacements, axis=0), axis=(1, 2))
    needed = round(N_STRUCTURES * n_atoms * variance_A2 / (_NOISE * float(steps.sum()) ** 2))
    return max(N_STRUCTURES, min(needed, _MOST_COORDINATES // (3 * len(moved))))
