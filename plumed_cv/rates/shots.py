"""Trajectories that start on a dividing surface and are followed until they commit to a basin.

A shot is a pair of trajectories from one structure on the surface: one forward in time and one
backward, by the same dynamics with reversed velocities. Its structure is a snapshot of the
sampling; its velocities are those of the flux through the surface. Lengths are in angstrom, times
in fs. N atoms.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.optimize import FIRE
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import Dynamics, Engine, State, maxwell_boltzmann
from plumed_cv.structures.frame import Array

End = Literal["before", "behind", "other", "unresolved"]

INSIDE = 0.7  # share of the guard's limit below which a trajectory is back in the process
RELAXED_EV_A = 0.02  # largest force in a relaxed end
RELAXATION_STEPS = 1000


@dataclass
class Watch:
    """Observer of one trajectory: it notes crossings of a surface and ends at a committed state.

    A trajectory is committed to the side of the surface on which it has been for `residence` steps
    without a crossing, if it was in the core of the basin there at some time since the crossing.
    Read backwards in time this is the same condition, so that the crossings between two committed
    states belong together whichever of them a shot has started from.

    A trajectory has left the process when one atom has been farther than `limit_A` from its place
    on the mean path for `residence` steps, without coming back below 0.7 of that limit. While it
    is outside, the variable means nothing, and crossings do not count.

    Parameters
    ----------
    variable
        The collective variable.
    cell
        Rows are lattice vectors, (3, 3); zero without periodic boundaries.
    surface
        The value of the variable on the surface where the trajectory starts.
    cores
        The variable is below the first value in the core before the surface, and above the second
        one in the core behind it.
    limit_A
        The guard's limit, or None.
    residence
        Steps.
    is_behind
        On which side the trajectory starts.

    Attributes
    ----------
    crossings
        Numbers of the steps after which the trajectory was on the other side.
    step
        Steps seen.
    in_core
        Whether it was in the core of its side since the last crossing.
    end
        "committed", "left", or None while it is neither.
    """

    variable: CollectiveVariable
    cell: Array
    surface: float
    cores: tuple[float, float]
    limit_A: float | None
    residence: int
    is_behind: bool
    crossings: list[int] = field(default_factory=list)
    step: int = 0
    in_core: bool = False
    end: Literal["committed", "left"] | None = None
    _outside_since: int | None = None

    def see(self, positions: Array) -> bool:
        """Take in successive steps, (n, N, 3); returns whether the trajectory has ended."""
        atoms = positions[:, self.variable.serials - 1]
        u = self.variable.displacements(atoms, self.cell)
        xi = self.variable.encode(self.variable.components(u))[:, 0]
        for value in xi:
            self.step += 1
            if self._outside_since is None and self._is_committed(float(value)):
                self.end = "committed"
                return True
        if self.limit_A is not None and self._has_left(u[-1], xi[-1:]):
            self.end = "left"
        return self.end is not None

    def _is_committed(self, xi: float) -> bool:
        if (xi > self.surface) != self.is_behind:
            self.is_behind = not self.is_behind
            self.crossings.append(self.step)
            self.in_core = False
        before, behind = self.cores
        self.in_core |= xi >= behind if self.is_behind else xi <= before
        # The surface lies between the last step before a crossing and the first one after it.
        since = self.crossings[-1] - 1 if self.crossings else 0
        return self.in_core and self.step - since >= self.residence

    def _has_left(self, u: Array, xi: Array) -> bool:
        assert self.limit_A is not None
        farthest = float(np.linalg.norm(u - self.variable.path(xi), axis=-1).max())
        if self._outside_since is None:
            if farthest > self.limit_A:
                self._outside_since = self.step
        elif farthest < INSIDE * self.limit_A:
            self._outside_since = None
        return self._outside_since is not None and self.step - self._outside_since >= self.residence


class Leg(NamedTuple):
    """One trajectory from the surface to its end.

    Attributes
    ----------
    end
        "before" or "behind": committed to a basin on that side of the surface. "other": it left
        the process before it came to the core of a basin. "unresolved": the time was up.
    crossings_fs
        When it crossed the surface, by the time after its start.
    time_fs
        How long it was followed.
    left
        Whether it left the process. It belongs to the side in whose core it had been since its last
        crossing: it was there, and left by another exit.
    event
        Number of the event by which it left, from 1; 0 for none, or one that was not identified.
    """

    end: End
    crossings_fs: tuple[float, ...]
    time_fs: float
    left: bool = False
    event: int = 0


class Shot(NamedTuple):
    """A pair of trajectories from one structure.

    Attributes
    ----------
    snapshot
        Name of the segment and number of the structure in it.
    xi
        Its collective variable, on whose isosurface both start.
    speed
        The root of sum_i |grad_i xi|^2/m_i there, 1/(angstrom amu^1/2): its share of the flux.
    forward, backward
        The trajectory towards larger xi, and the one back in time, which starts towards smaller.
    n_steps
        Steps of both, and of the relaxation of ends.
    """

    snapshot: tuple[str, int]
    xi: float
    speed: float
    forward: Leg
    backward: Leg
    n_steps: int

    def as_json(self) -> dict[str, Any]:
        """What a file has of it."""
        legs = {name: getattr(self, name)._asdict() for name in ("forward", "backward")}
        return self._asdict() | legs

    @classmethod
    def of_json(cls, record: dict[str, Any]) -> "Shot":
        """What `as_json` has written."""
        legs = {
            name: Leg(**record[name] | {"crossings_fs": tuple(record[name]["crossings_fs"])})
            for name in ("forward", "backward")
        }
        segment, number = record["snapshot"]
        return cls(**record | legs | {"snapshot": (segment, number)})


class Relaxed(NamedTuple):
    """A minimum of the potential energy.

    Attributes
    ----------
    positions
        Shape (N, 3).
    energy_eV
        Its energy.
    """

    positions: Array
    energy_eV: float


class Outcome(NamedTuple):
    """A shot, and what its trajectories relaxed to if they left the process: forward, backward."""

    shot: Shot
    ends: tuple[Relaxed | None, Relaxed | None]


@dataclass(frozen=True)
class Shooter:
    """Makes shots; it can be sent to another process.

    Attributes
    ----------
    variable
        The collective variable.
    cell
        Rows are lattice vectors, (3, 3); zero without periodic boundaries.
    dynamics
        How the atoms move.
    cores
        As in `Watch`.
    limit_A
        The guard's limit, or None.
    residence_fs
        How long a trajectory stays on one side before it counts as committed.
    longest_fs
        How long it is followed at most.
    """

    variable: CollectiveVariable
    cell: Array
    dynamics: Dynamics
    cores: tuple[float, float]
    limit_A: float | None
    residence_fs: float
    longest_fs: float

    def shoot(
        self, engine: Engine, snapshot: tuple[str, int], positions: Array, seed: int
    ) -> Outcome:
        """Follow a pair of trajectories from a structure.

        Parameters
        ----------
        engine
            Runs them.
        snapshot
            As in `Shot`.
        positions
            The structure, (N, 3).
        seed
            Of velocities and thermostat.
        """
        sources = np.random.SeedSequence(seed).spawn(3)
        xi = float(
            self.variable.value(positions[self.variable.serials - 1], self.cell).reshape(-1)[0]
        )
        velocities, speed = self.velocities(
            positions, engine.masses, np.random.default_rng(sources[0])
        )
        legs, ends, steps = [], [], 0
        for sign, source in ((1.0, sources[1]), (-1.0, sources[2])):
            watch = self._watch(xi, sign > 0)
            start = State(positions, self.cell, sign * velocities)
            most = max(1, round(self.longest_fs / self.dynamics.timestep_fs))
            followed = engine.follow(
                start, self.dynamics, most, int(source.generate_state(1)[0]), watch
            )
            watch = followed.observer
            steps += followed.n_steps
            end = None
            if watch.end == "left":
                end, more = relaxed(engine, followed.end.positions, self.cell)
                steps += more
            legs.append(self._leg(watch))
            ends.append(end)
        shot = Shot(snapshot, xi, speed, legs[0], legs[1], steps)
        return Outcome(shot, (ends[0], ends[1]))

    def velocities(
        self, positions: Array, masses: Array, rng: np.random.Generator
    ) -> tuple[Array, float]:
        """Draw velocities of the flux through the isosurface on which a structure lies.

        The velocity along the mass-weighted gradient is positive and has the density of the flux,
        v exp(-v^2/2), in units of its thermal width; all else is Maxwell and Boltzmann's.

        Parameters
        ----------
        positions
            Shape (N, 3).
        masses
            amu, (N,).
        rng
            Source of the random numbers.

        Returns
        -------
        (N, 3), float
            Velocities, angstrom/fs, and the root of sum_i |grad_i xi|^2/m_i.
        """
        gradient = np.zeros_like(positions)
        chosen = self.variable.serials - 1
        gradient[chosen] = self.variable.gradient(positions[chosen], self.cell)[0]
        along = gradient / masses[:, None]
        inverse_mass = float(np.sum(gradient * along))
        if not inverse_mass > 0:
            raise UserError(
                "the collective variable has no gradient on its dividing surface, so that there is "
                "no flux; train it anew with another seed"
            )
        speed = inverse_mass**0.5
        kelvin = self.dynamics.temperature_K
        velocities = maxwell_boltzmann(rng, masses, kelvin)
        thermal = speed * (units.kB * kelvin) ** 0.5 * units.fs  # of xi, 1/fs
        wanted = thermal * np.sqrt(-2.0 * np.log1p(-rng.random()))
        velocities += along / inverse_mass * (wanted - float(np.sum(gradient * velocities)))
        return velocities, speed

    def _watch(self, surface: float, forward: bool) -> Watch:
        return Watch(
            variable=self.variable,
            cell=self.cell,
            surface=surface,
            cores=self.cores,
            limit_A=self.limit_A,
            residence=max(1, round(self.residence_fs / self.dynamics.timestep_fs)),
            is_behind=forward,
        )

    def _leg(self, watch: Watch) -> Leg:
        end: End = "behind" if watch.is_behind else "before"
        if watch.end is None:
            end = "unresolved"
        elif watch.end == "left" and not watch.in_core:
            end = "other"
        timestep = self.dynamics.timestep_fs
        crossings = tuple(timestep * step for step in watch.crossings)
        return Leg(end, crossings, timestep * watch.step, watch.end == "left")


def relaxed(engine: Engine, positions: Array, cell: Array) -> tuple[Relaxed | None, int]:
    """Find the minimum of the potential energy downhill of a structure.

    Returns
    -------
    Relaxed or None, int
        None if the forces do not vanish in `RELAXATION_STEPS` steps; and the steps that it took.
    """
    atoms = Atoms(engine.symbols, positions, cell=cell, pbc=bool(cell.any()))
    atoms.calc = engine.calculator()
    optimiser = FIRE(atoms, logfile=None)
    found = optimiser.run(fmax=RELAXED_EV_A, steps=RELAXATION_STEPS)
    steps = int(optimiser.nsteps)
    if not found:
        return None, steps
    return Relaxed(atoms.positions.copy(), float(atoms.get_potential_energy())), steps


def spread_order(number: int) -> NDArray[np.int64]:
    """Return 0, ..., number - 1 in an order of which every beginning is spread evenly.

    By the fractional parts of multiples of the golden ratio.
    """
    golden = 0.5 * (5.0**0.5 - 1.0)
    return np.argsort((golden * np.arange(number)) % 1.0)
