"""One step of dynamics, for an engine whose forces are computed by a calculator.

The integrators are BAOAB for Langevin dynamics (Leimkuhler and Matthews, doi:10.1093/amrx/abs010),
Euler's method for Brownian dynamics, and velocity Verlet without a thermostat.
"""

import numpy as np
from ase import units
from numpy.typing import NDArray

from plumed_cv.engines.segments import Dynamics
from plumed_cv.structures.frame import Array


class Integrator:
    """Moves atoms by one step at a time. Fixed atoms have no velocity, force or noise.

    `begin` moves the atoms. `end` needs the forces at the new positions. Between the two, the
    forces of several trajectories can be computed together.

    Parameters
    ----------
    dynamics
        Equations of motion.
    masses
        amu, shape (N,).
    held
        Fixed atoms, from 0.
    rng
        Source of the noise.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        masses: Array,
        held: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> None:
        self._rng = rng
        self._thermostat = dynamics.thermostat
        self._dt = dynamics.timestep_fs
        friction = dynamics.friction_per_ps / 1000  # 1/fs
        kT = units.kB * dynamics.temperature_K
        mass = masses[:, None] / units.fs**2  # eV fs^2/angstrom^2
        self._half_kick = 0.5 * self._dt / mass
        self._kept = np.exp(-friction * self._dt)
        self._kick = np.sqrt((1 - self._kept**2) * kT / mass)
        self._drift = self._dt / (mass * friction)
        self._jump = np.sqrt(2 * kT * self._drift)
        for factors in (self._half_kick, self._kick, self._drift, self._jump):
            factors[held] = 0.0

    def begin(self, x: Array, v: Array, forces: Array) -> tuple[Array, Array]:
        """Return the new positions (angstrom), and the velocities (angstrom/fs) for `end`.

        Parameters
        ----------
        x, v, forces
            Positions, velocities, and forces at the positions (eV/angstrom), shape (N, 3).
        """
        if self._thermostat == "brownian":  # Euler-Maruyama; the velocities have no meaning
            noise = self._jump * self._rng.standard_normal(x.shape)
            return x + self._drift * forces + noise, v
        v = v + self._half_kick * forces
        if self._thermostat == "none":
            return x + self._dt * v, v
        x = x + 0.5 * self._dt * v
        v = self._kept * v + self._kick * self._rng.standard_normal(x.shape)
        return x + 0.5 * self._dt * v, v

    def end(self, v: Array, forces: Array) -> Array:
        """Return the velocities after the step.

        Parameters
        ----------
        v
            The velocities that `begin` has returned.
        forces
            At the new positions.
        """
        return v if self._thermostat == "brownian" else v + self._half_kick * forces
