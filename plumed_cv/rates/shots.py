"""Trajectories from a dividing surface, followed until they commit to a basin.

A shot is a pair of trajectories that start from one structure: one runs forward in time, the other
backward, with the same dynamics and reversed velocities. The structure is a snapshot of the
sampling. The velocities are drawn from the flux through the isosurface. Lengths are in angstrom,
times in fs, and N is the number of atoms.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms
from ase.optimize import FIRE
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import Dynamics, Engine, State, draw_velocities
from plumed_cv.structures.frame import Array

End = Literal["before", "behind", "other", "unresolved"]

GUARD_STRIDE = 10  # steps between two looks at the guard's limit
INSIDE = 0.7  # fraction of the guard's limit; below it a trajectory is back in the process
RELAXED_EV_A = 0.02  # largest force on an atom in a relaxed minimum
RELAXATION_STEPS = 1000


@dataclass
class Watch:
    """Observer of one trajectory: notes crossings of a surface; ends at a committed state.

    A trajectory is committed to one side of the surface if it has been there for `residence` steps
    without a crossing and has visited the core of the basin since its last crossing. The condition
    is the same backward in time. Therefore the crossings between two committed states belong
    together, whichever of them the shot started from.

    A trajectory has left the process if one atom has been farther than `limit_A` from its place on
    the mean path for `residence` steps, without returning to less than 0.7 of this limit. While the
    atom is outside, the variable has no meaning, and crossings are not counted.

    Parameters
    ----------
    variable
        The collective variable.
    cell
        Rows are lattice vectors, (3, 3); zero along directions without
        periodic boundaries.
    surface
        The value of the variable on the surface where the trajectory starts.
    cores
        In the core before the surface the variable is below the first value; in the core behind the
        surface it is above the second.
    limit_A
        The guard's limit, or None.
    residence
        Number of steps, see above.
    is_behind
        Whether the trajectory starts behind the surface.

    Attributes
    ----------
    crossings
        Numbers of the first steps on the other side of the surface.
    step
        Number of steps seen.
    in_core
        Whether it has been in the core on its side since the last crossing.
    end
        "committed", "left", or None if neither has happened yet.
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
        """Read successive steps, (n, N, 3); return whether the trajectory has ended."""
        atoms = positions[:, self.variable.serials - 1]
        u = self.variable.displacements(atoms, self.cell)
        xi = self.variable.encode(self.variable.components(u))[:, 0]
        for i, value in enumerate(xi):
            self.step += 1
            if self._outside_since is None and self._is_committed(float(value)):
                self.end = "committed"
                return True
            # The same steps for every engine, however many steps it returns at once.
            looks = self.limit_A is not None and self.step % GUARD_STRIDE == 0
            if looks and self._has_left(u[i], xi[i : i + 1]):
                self.end = "left"
                return True
        return False

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
        "before" or "behind": committed to the basin on that side of the surface. "other": left the
        process before it reached the core of a basin. "unresolved": neither within the time limit.
    crossings_fs
        Times of its crossings of the surface, counted from its start.
    time_fs
        Length of the trajectory.
    left
        Whether it left the process. If it had been in the core of a side since its last crossing,
        it belongs to that side and has left the basin by another exit.
    event
        Number, from 1, of the event by which it left; 0 for none or an unidentified one.
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
        Collective variable of the structure; both trajectories start on its isosurface.
    speed
        The square root of sum_i |grad_i xi|^2/m_i there, 1/(angstrom amu^1/2): its weight in the
        flux.
    forward, backward
        The trajectory that starts towards larger xi, and the one backward in time.
    n_steps
        Number of steps of both trajectories and of the relaxation of their ends.
    """

    snapshot: tuple[str, int]
    xi: float
    speed: float
    forward: Leg
    backward: Leg
    n_steps: int

    def as_json(self) -> dict[str, Any]:
        """Return the record of the shot for a file."""
        legs = {name: getattr(self, name)._asdict() for name in ("forward", "backward")}
        return self._asdict() | legs

    @classmethod
    def of_json(cls, record: dict[str, Any]) -> "Shot":
        """Return the shot from a record of `as_json`."""
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
        Its potential energy.
    """

    positions: Array
    energy_eV: float


class Outcome(NamedTuple):
    """A shot, and the minima of its trajectories if they left the process: forward, backward."""

    shot: Shot
    ends: tuple[Relaxed | None, Relaxed | None]


Task = tuple[tuple[str, int], Array, int]  # name and number of a snapshot, its positions, a seed


@dataclass(frozen=True)
class Shooter:
    """Makes shots; it can be sent to another process.

    Attributes
    ----------
    variable
        The collective variable.
    cell
        Rows are lattice vectors, (3, 3); zero along directions without
        periodic boundaries.
    dynamics
        The equations of motion.
    cores
        As in `Watch`.
    limit_A
        The guard's limit, or None.
    residence_fs
        How long a trajectory must stay on one side before it is committed.
    longest_fs
        Time limit of a trajectory.
    """

    variable: CollectiveVariable
    cell: Array
    dynamics: Dynamics
    cores: tuple[float, float]
    limit_A: float | None
    residence_fs: float
    longest_fs: float

    def shoot(self, engine: Engine, tasks: Sequence[Task]) -> list[Outcome]:
        """Follow pairs of trajectories from several structures, which an engine may run together.

        Parameters
        ----------
        engine
            Runs the trajectories.
        tasks
            Name and number of a snapshot, its positions (N, 3) and a random seed, for each pair.
        """
        origins, starts, seeds, watches = [], [], [], []
        for _, positions, seed in tasks:
            sources = np.random.SeedSequence(seed).spawn(3)
            xi = float(
                self.variable.value(positions[self.variable.serials - 1], self.cell).reshape(-1)[0]
            )
            velocities, speed = self.velocities(
                positions, engine.masses, np.random.default_rng(sources[0]), engine.held
            )
            origins.append((xi, speed))
            for sign, source in ((1.0, sources[1]), (-1.0, sources[2])):
                starts.append(State(positions, self.cell, sign * velocities))
                seeds.append(int(source.generate_state(1)[0]))
                watches.append(self._watch(xi, sign > 0))
        most = max(1, round(self.longest_fs / self.dynamics.timestep_fs))
        followed = engine.follow_all(starts, self.dynamics, most, seeds, watches)
        outcomes = []
        for k, ((snapshot, _, _), (xi, speed)) in enumerate(zip(tasks, origins, strict=True)):
            legs, ends, steps = [], [], 0
            for one in followed[2 * k : 2 * k + 2]:
                steps += one.n_steps
                end = None
                if one.observer.end == "left":
                    end, more = relax(engine, one.end.positions, self.cell)
                    steps += more
                legs.append(self._leg(one.observer))
                ends.append(end)
            shot = Shot(snapshot, xi, speed, legs[0], legs[1], steps)
            outcomes.append(Outcome(shot, (ends[0], ends[1])))
        return outcomes

    def velocities(
        self,
        positions: Array,
        masses: Array,
        rng: np.random.Generator,
        held: NDArray[np.int64] | Sequence[int] = (),
    ) -> tuple[Array, float]:
        """Draw velocities from the flux through the isosurface of a structure.

        The velocity along the mass-weighted gradient is positive. In units of its thermal width it
        has the density of the flux, v exp(-v^2/2). All other components follow the
        Maxwell-Boltzmann distribution.

        Parameters
        ----------
        positions
            Shape (N, 3).
        masses
            amu, (N,).
        rng
            Source of the random numbers.
        held
            Fixed atoms, from 0, whose velocities are zero.

        Returns
        -------
        (N, 3), float
            Velocities, angstrom/fs; the square root of sum_i |grad_i xi|^2/m_i.
        """
        gradient = np.zeros_like(positions)
        chosen = self.variable.serials - 1
        gradient[chosen] = self.variable.gradient(positions[chosen], self.cell)[0]
        gradient[list(held)] = 0.0
        along = gradient / masses[:, None]
        inverse_mass = float(np.sum(gradient * along))
        if not inverse_mass > 0:
            raise UserError(
                "the gradient of the collective variable is zero on its dividing surface, so the "
                "flux is zero; train the variable again with another seed"
            )
        speed = inverse_mass**0.5
        kelvin = self.dynamics.temperature_K
        velocities = draw_velocities(rng, masses, kelvin, held)
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


def relax(engine: Engine, positions: Array, cell: Array) -> tuple[Relaxed | None, int]:
    """Find the minimum of the potential energy downhill of a structure.

    Returns
    -------
    Relaxed or None, int
        None if the forces do not vanish in `RELAXATION_STEPS` steps; the number of steps taken.
    """
    atoms = Atoms(engine.symbols, positions, cell=cell, pbc=engine.periodic)
    atoms.set_constraint(FixAtoms(engine.held))
    atoms.calc = engine.calculator()
    optimiser = FIRE(atoms, logfile=None)
    found = optimiser.run(fmax=RELAXED_EV_A, steps=RELAXATION_STEPS)
    steps = int(optimiser.nsteps)
    if not found:
        return None, steps
    return Relaxed(atoms.positions.copy(), float(atoms.get_potential_energy())), steps


def spread_order(number: int) -> NDArray[np.int64]:
    """Return 0, ..., number - 1 in an order in which any first part is evenly spread.

    The order is that of the fractional parts of multiples of the golden ratio.
    """
    golden = 0.5 * (5.0**0.5 - 1.0)
    return np.argsort((golden * np.arange(number)) % 1.0)
