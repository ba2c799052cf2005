"""The work of a walker in an iteration, according to the input."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from ase import Atoms, units

from plumed_cv import freeenergy
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import Engine, State
from plumed_cv.engines.ase import AseEngine
from plumed_cv.engines.gromacs import GromacsEngine
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.engines.lammps_program import LammpsProgram
from plumed_cv.freeenergy import meanforce
from plumed_cv.input_file import CalculatorSection, Config, Gromacs, Lammps, Sampling
from plumed_cv.sampling import guard
from plumed_cv.sampling.folders import (
    count_steps,
    list_segments,
    list_segments_of,
    number_of,
    read_end,
    read_records,
)

MOST_BYTES = 2_000_000_000  # of the whole snapshots of an iteration
_BYTES_PER_ATOM = 12  # in a DCD file
STATES = 10  # number of states that are written in a segment
MARGIN = 0.2  # of the grid at both ends, if there is no path that determines it
MAX_PHASE = 0.3  # omega dt of the extended variable's spring; a stiffer one heats light atoms


class Parameters(NamedTuple):
    """The parameters of bABF, which are constant from the first step of a run to the last.

    Attributes
    ----------
    ramp
        N of Eq. 12, steps.
    grid
        Lower end, upper end and number of intervals.
    kappa_eV
        Spring constant of the extended variable, eV; the default of the action if None.
    tau
        Weight of the prior, in samples; the default of the action if None.
    """

    ramp: int
    grid: tuple[float, float, int]
    kappa_eV: float | None
    tau: float | None

    @classmethod
    def of_input(
        cls,
        sampling: Sampling,
        temperature_K: float,
        variable: CollectiveVariable,
        *,
        prior: bool = False,
    ) -> Self:
        """Parameters of a run that starts now with this input, with or without a prior.

        Raises
        ------
        UserError
            As for `choose_coupling`.
        """
        steps = choose_ramp(sampling)
        tau = freeenergy.weight_of_first(sampling.prior_samples, steps) if prior else None
        return cls(
            steps, make_grid(sampling), choose_coupling(sampling, temperature_K, variable), tau
        )

    @classmethod
    def of_state(cls, state: freeenergy.State) -> Self:
        """Parameters of a run that continues from a state, which would be refused with others."""
        axis = state.grid
        limits = (axis.minimum, axis.maximum, axis.bins)
        return cls(round(state.ramp), limits, state.kappa_eV, state.tau)


@dataclass(frozen=True)
class WalkerTask:
    """Share of one walker in the bABF run of an iteration; it can be sent to another process.

    Attributes
    ----------
    config
        The input.
    atoms
        Atoms for which the engine is set up.
    start
        Configuration from which the walker starts.
    model
        File of the collective variable.
    plugin
        The plugin with the actions.
    iteration
        Number of the iteration.
    folder
        Folder of the iteration.
    walker
        Number of the walker, from 0.
    prior
        File of the initial profile of the bias, or None.
    at_rest
        Whether `start` is a structure at 0 K, relaxed orthogonal to the path.
    repetition
        Number of the independent repetition of the iteration, from 0.
    """

    config: Config
    atoms: Atoms
    start: State
    model: Path
    plugin: Path
    iteration: int
    folder: Path
    walker: int
    prior: Path | None = None
    at_rest: bool = False
    repetition: int = 0

    @property
    def number(self) -> int:
        """Number of the share in the iteration, from 0, over the walkers of all repetitions."""
        return self.repetition * self.config.sampling.walkers + self.walker

    @property
    def base(self) -> Path:
        """Folder of this repetition; its walkers share one estimate."""
        name = f"repetition-{self.repetition:04d}"
        return self.folder / name if self.repetition else self.folder

    @property
    def shared(self) -> Path:
        """Folder of the exchange between the walkers of this repetition."""
        return self.base / "shared"

    @property
    def home(self) -> Path:
        """Folder of this walker's segments."""
        several = self.config.sampling.walkers > 1
        return self.base / f"walker-{self.walker:04d}" if several else self.base

    @property
    def previous(self) -> Path | None:
        """The last complete segment."""
        whole = list_segments_of(self.home)
        return whole[-1] if whole else None

    @property
    def next(self) -> int:
        """Number of the segment after the last complete one."""
        return 0 if self.previous is None else number_of(self.previous) + 1

    @property
    def parameters(self) -> Parameters:
        """Parameters of bABF: those at the start of this repetition, or otherwise of the input.

        The `steps` of the input may have changed since, and with them the ramp.
        """
        if whole := list_segments(self.base):
            return Parameters.of_state(read_end(whole[0]))
        return Parameters.of_input(
            self.config.sampling,
            self.config.system.temperature_K,
            self.variable,
            prior=self.prior is not None,
        )

    @property
    def steps(self) -> int:
        """Steps of this walker; the last walker takes the remainder of the division.

        They may be raised during the sampling or later.
        """
        sampling, stride = self.config.sampling, self.config.sampling.snapshot_stride
        share = sampling.steps // sampling.walkers // stride * stride
        last = self.walker == sampling.walkers - 1
        return sampling.steps - share * self.walker if last else share

    @property
    def segment_steps(self) -> int:
        """Steps of a segment; the last segments take the remainder."""
        sampling, stride = self.config.sampling, self.config.sampling.snapshot_stride
        number = max(1, round(sampling.segments / sampling.walkers))
        return max(stride, sampling.steps // sampling.walkers // number // stride * stride)

    @property
    def wants_forces(self) -> bool:
        """Whether the mean force is computed from the forces on the atoms of the variable.

        It is not if the input does not want it, if it is not possible, if the input leaves it open
        and the engine takes too long, or if a bias is not part of the forces of the potential.
        """
        wanted = self.config.sampling.mean_force
        if wanted is False or self.config.sampling.extra_biases:
            return False
        return bool(wanted) or (
            self.config.engine.name != "gromacs" and meanforce.is_known(self.variable)
        )

    @property
    def records(self) -> bool:
        """Whether the engine writes these forces while it runs; otherwise they are computed."""
        engine = self.config.engine
        able = isinstance(engine, CalculatorSection) or (
            isinstance(engine, Lammps) and engine.program is None and engine.coupling != "plumed"
        )
        return able and self.wants_forces

    @property
    def whole_steps(self) -> int:
        """Steps between whole snapshots: fewer of them if all would need more than `MOST_BYTES`.

        If the forces are not recorded, whole snapshots are needed to compute them.
        """
        sampling = self.config.sampling
        stride = sampling.snapshot_stride
        if not self.records:
            return stride
        number = sampling.steps * sampling.repetitions / stride
        fewer = -(-int(number * _BYTES_PER_ATOM * len(self.atoms)) // MOST_BYTES)
        return stride * max(1, min(fewer, self.segment_steps // stride))

    @property
    def state_steps(self) -> int:
        """Steps between states; a segment that is cut short counts up to its last state."""
        stride = self.whole_steps
        return max(stride, self.segment_steps // STATES // stride * stride)

    @cached_property
    def variable(self) -> CollectiveVariable:
        """The collective variable."""
        return CollectiveVariable.load(self.model)

    @cached_property
    def atom_limit_A(self) -> float | None:  # noqa: N802
        """Limit of the guard: largest distance of an atom from the mean path; None if off."""
        return guard.choose_limit(self.config.sampling.atom_deviation_limit_A, self.variable)

    @property
    def is_done(self) -> bool:
        """Whether no step is missing."""
        return count_steps(self.done()) >= self.steps

    def done(self) -> list[dict[str, Any]]:
        """Records of the complete segments, in order."""
        return read_records(list_segments_of(self.home))


def choose_coupling(
    sampling: Sampling, temperature_K: float, variable: CollectiveVariable
) -> float | None:
    """Spring constant of the extended variable, eV, from the input or the time step.

    None if the default of BABF, kT over the square of the grid spacing, is soft enough for the time
    step.

    Raises
    ------
    UserError
        If the input gives a spring that is too stiff for the time step.
    """
    fastest = 1.0 / (sampling.timestep_fs**2 * _inverse_mass(variable))  # omega dt = 1
    given = sampling.kappa_eV
    if given is not None and given > fastest:
        raise UserError(
            f"sampling.kappa_eV = {given:g}: oscillates with omega dt = "
            f"{(given / fastest) ** 0.5:.2g} along the collective variable, but it must be below "
            f"1; give {fastest * MAX_PHASE**2:.3g} or less, or reduce sampling.timestep_fs."
        )
    slow = MAX_PHASE**2 * fastest
    default = units.kB * temperature_K * sampling.bins**2
    return given or (slow if default > slow else None)


def _inverse_mass(variable: CollectiveVariable) -> float:
    """Largest sum of |grad_i xi|^2/m_i along the mean path, in 1/(eV fs^2)."""
    path = variable.path(np.linspace(0.0, 1.0, 101)[:, None])
    if variable.is_aligned:
        gradients = np.stack([variable.gradient_of(u)[0] for u in path])
    else:
        gradients = variable.gradient_of(path)[:, 0]
    squares = np.einsum("pia,pia,i->p", gradients, gradients, 1.0 / variable.masses)
    return float(squares.max() * units.fs**2)


def spread(images: Sequence[Atoms], walkers: int) -> list[State]:
    """Return initial configurations of walkers, evenly spread along a path."""
    return [State.of(images[int((k + 0.5) / walkers * len(images))]) for k in range(walkers)]


def open_engine(config: Config, atoms: Atoms) -> Engine:
    """Open the engine of the input for `atoms`."""
    section = config.engine
    directory = section.directory or Path()
    match section:
        case Gromacs():
            return GromacsEngine(
                section.mdp,
                section.topology,
                section.structure,
                atoms,
                restraints=section.restraints,
                index=section.index,
                directory=directory,
                program=section.program,
                options=section.options,
                max_warnings=section.max_warnings,
            )
        case CalculatorSection():
            watches = config.sampling.model_deviation_limit != "off"
            others = section.members if watches and section.uncertainty is None else []
            calculator, arguments = section.maker
            return AseEngine(
                calculator,
                atoms,
                arguments=arguments,
                members=[
                    (*each.maker, each.directory or Path())
                    for each in others
                    if isinstance(each, CalculatorSection)
                ],
                uncertainty=section.uncertainty if watches else None,
                batch=section.batch,
                directory=directory,
            )
    if section.program is not None:
        return LammpsProgram(
            section.program,
            section.potential,
            atoms,
            species=section.species,
            directory=directory,
            units=section.units,
        )
    return LammpsEngine(
        section.potential,
        atoms,
        species=section.species,
        directory=directory,
        units=section.units,
        coupling=section.coupling,
    )


def make_grid(sampling: Sampling) -> tuple[float, float, int]:
    """The grid with its margins below 0 and above 1, and with nodes at 0 and 1.

    Parameters
    ----------
    sampling
        Settings; for a run, those of `workflow.with_defaults`. Without a margin, it is 0.2.

    Returns
    -------
    Lower end, upper end and number of intervals.
    """
    bins, margin = sampling.bins, sampling.margin
    if margin is None:
        margin = MARGIN
    below, above = margin if isinstance(margin, tuple) else (margin, margin)
    extra = (round(below * bins), round(above * bins))
    return (-extra[0] / bins, 1.0 + extra[1] / bins, bins + sum(extra))


def choose_ramp(sampling: Sampling) -> int:
    """Steps over which the weights grow to 1: N of Eq. 12."""
    return round(sampling.ramp * sampling.steps)
