"""What a walker has to do in an iteration, as the input says."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms

from plumed_cv.babf import Grid
from plumed_cv.config import Ase, Config, Gromacs, Sampling
from plumed_cv.engines import Engine, State
from plumed_cv.engines.ase import AseEngine
from plumed_cv.engines.gromacs import GromacsEngine
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.engines.lammps_program import LammpsProgram
from plumed_cv.sampling.folders import records, segments_of, steps_of

STATES = 10  # written in a segment


@dataclass(frozen=True)
class Order:
    """One walker's share of the bABF run of an iteration; it can be sent to another process.

    Attributes
    ----------
    config
        The input.
    atoms
        What the engine is set up for.
    start
        Where the walker starts.
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
        File of the profile that the bias starts from, or None.
    at_rest
        Whether `start` is a structure at 0 K, relaxed across the path.
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

    @property
    def home(self) -> Path:
        """Folder of this walker's segments."""
        several = self.config.sampling.walkers > 1
        return self.folder / f"walker-{self.walker:04d}" if several else self.folder

    @property
    def steps(self) -> int:
        """Steps of this walker; the last one takes what does not divide."""
        sampling, stride = self.config.sampling, self.config.sampling.snapshot_stride
        share = sampling.steps // sampling.walkers // stride * stride
        last = self.walker == sampling.walkers - 1
        return sampling.steps - share * self.walker if last else share

    @property
    def segment_steps(self) -> int:
        """Steps of a segment; the last ones take what does not divide."""
        sampling, stride = self.config.sampling, self.config.sampling.snapshot_stride
        number = max(1, round(sampling.segments / sampling.walkers))
        return max(stride, sampling.steps // sampling.walkers // number // stride * stride)

    @property
    def state_steps(self) -> int:
        """Steps between states, up to which a segment that is cut short counts."""
        stride = self.config.sampling.snapshot_stride
        return max(stride, self.segment_steps // STATES // stride * stride)

    @property
    def is_done(self) -> bool:
        """Whether no step is missing."""
        return steps_of(self.done()) >= self.steps

    def done(self) -> list[dict[str, Any]]:
        """The records of the whole segments, in order."""
        return records(segments_of(self.home))


def spread(images: Sequence[Atoms], walkers: int) -> list[State]:
    """Return where walkers start that are evenly spread along a path."""
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
                tpr=section.tpr,
                restraints=section.restraints,
                index=section.index,
                directory=directory,
                program=section.program,
                options=section.options,
                max_warnings=section.max_warnings,
            )
        case Ase():
            return AseEngine(
                section.calculator, atoms, arguments=section.arguments, directory=directory
            )
    if section.program is not None:
        return LammpsProgram(
            section.program,
            section.potential,
            atoms,
            species=section.species,
            directory=directory,
        )
    return LammpsEngine(
        section.potential,
        atoms,
        species=section.species,
        directory=directory,
        coupling=section.coupling,
    )


def grid(sampling: Sampling) -> tuple[float, float, int]:
    """The grid with its margins below 0 and above 1, and nodes at 0 and 1.

    Parameters
    ----------
    sampling
        Settings with a margin; of a run, those of `workflow.defaults.with_grid`.

    Returns
    -------
    Lower end, upper end and number of intervals.
    """
    bins, margin = sampling.bins, sampling.margin
    assert margin is not None
    below, above = margin if isinstance(margin, tuple) else (margin, margin)
    extra = (round(below * bins), round(above * bins))
    return (-extra[0] / bins, 1.0 + extra[1] / bins, bins + sum(extra))


def margin_of(grid: Grid) -> tuple[float, float]:
    """The margins below 0 and above 1 with which `grid` has made a grid."""
    return -grid.minimum, grid.maximum - 1.0


def ramp(sampling: Sampling) -> int:
    """Steps over which the weights grow to 1: N of Eq. 12."""
    return round(sampling.ramp * sampling.steps)
