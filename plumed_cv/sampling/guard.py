"""The guard: it ends a trajectory in which an atom leaves the process.

A collective variable describes one process. If other jumps are possible as well (to other
neighbours of a vacancy, or by other exits of an interstitial site), one of them occurs sooner or
later, and all values of the variable then have another meaning. Therefore PLUMED ends the
trajectory when the distance of one atom from its position on the mean path exceeds a limit
(AUTOENCODER's `maxdev`). The dynamics continues from the last snapshot in which that atom was near
its position and all others were well inside the limit, with new velocities from the
Maxwell-Boltzmann distribution. The samples then have the equilibrium distribution of the structures
within the limit. A restart from the initial state would cause a current from there to the exit.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import State
from plumed_cv.structures.frame import Array
from plumed_cv.structures.neighbours import nearest_distance

# The limit as a fraction of the longest displacement of one atom along the path, and its bounds as
# fractions of the distance between nearest neighbours. Below the melting point, thermal motion
# hardly ever exceeds 0.4 of this distance (Lindemann's rule: a crystal melts when the root mean
# square displacement is 0.1 to 0.15 of it). A jump to a neighbouring site is complete at 1.
_OF_PATH = 0.6
_LOWEST, _HIGHEST = 0.4, 0.6

# Far below the melting point thermal motion is smaller: an atom next to a defect moves up to twice
# as far as the average atom, and hardly ever by more than five of its own standard deviations.
_OF_NOISE = 10.0

# Fractions of the limit below which the dynamics may continue: for all atoms, and for the atom that
# left. They are two fifths and one fifth of the longest displacement of the path. A vacancy in a
# bcc crystal has maxima at one third and at two thirds, and a well between them.
INSIDE, HOME = 0.7, 0.35


@dataclass(frozen=True)
class Departure:
    """How a trajectory left the process.

    Attributes
    ----------
    xi
        Collective variable at the end of the trajectory.
    atom
        PLUMED's serial number of the atom with the largest distance from the mean path.
    element
        Its chemical symbol.
    distance_A
        Its distance from the path, angstrom.
    displacement_A
        Its displacement from its position on the path, shape (3,), angstrom.
    deviation_A
        Distance of the whole structure from the path (Eq. 21), angstrom.
    """

    xi: float
    atom: int
    element: str
    distance_A: float
    displacement_A: list[float]
    deviation_A: float

    @classmethod
    def of(cls, variable: CollectiveVariable, end: State) -> "Departure":
        """Describe how the configuration `end`, with all atoms of the engine, left the process."""
        positions = end.positions[variable.serials - 1]
        xi, off = _off_path(variable, end)
        distances = np.linalg.norm(off, axis=1)
        farthest = int(distances.argmax())
        return cls(
            xi=xi,
            atom=int(variable.serials[farthest]),
            element=variable.species[farthest],
            distance_A=float(distances[farthest]),
            displacement_A=off[farthest].tolist(),
            deviation_A=float(variable.deviation(positions, end.cell)),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all values for JSON."""
        return asdict(self)


def choose_limit(
    setting: float | Literal["auto", "off"],
    variable: CollectiveVariable,
    noise_A2: float | None = None,
) -> float | None:
    """Largest distance of one atom from the mean path that the guard allows, angstrom.

    Parameters
    ----------
    setting
        `sampling.atom_deviation_limit_A`.
    variable
        The collective variable.
    noise_A2
        Variance of a coordinate in thermal motion, angstrom^2 (`paths.noise`); None if unknown.

    Returns
    -------
    float or None
        For "auto", 0.6 of the longest displacement of one atom along the path, but at most 0.6 of
        the median distance of an atom to its nearest neighbour, and at least 0.4 of that distance
        or ten standard deviations of the noise, whichever is smaller. None for "off", and for
        "auto" with an alignment, because a molecule that bends moves many atoms far.
    """
    if setting == "off" or (setting == "auto" and variable.is_aligned):
        return None
    if setting != "auto":
        return float(setting)
    nearest = nearest_distance(variable.reference_positions, variable.reference_cell)
    lowest = _LOWEST * nearest
    if noise_A2 is not None:
        lowest = min(lowest, _OF_NOISE * noise_A2**0.5)
    return float(np.clip(_OF_PATH * longest_displacement(variable), lowest, _HIGHEST * nearest))


def longest_displacement(variable: CollectiveVariable) -> float:
    """Longest displacement of one atom along the path of a CV, angstrom."""
    path = variable.path(np.linspace(0.0, 1.0, 101)[:, None])
    return float(np.linalg.norm(path - path[0], axis=2).max())


def describe_blindness(variable: CollectiveVariable, limit_A: float | None) -> str:
    """Sentence for a limit that the same process at another place does not exceed, or ""."""
    longest_A = longest_displacement(variable)
    if limit_A is None or limit_A < longest_A:
        return ""
    return (
        f"The guard ends a trajectory when an atom is {limit_A:.2f} A from the path, but no atom "
        f"moves by more than {longest_A:.2f} A along the path: it cannot detect the same process "
        "at another place. Set sampling.atom_deviation_limit_A between thermal motion and the "
        "next jump, or lower the temperature."
    )


def _off_path(variable: CollectiveVariable, state: State) -> tuple[float, Array]:
    """The CV of a configuration of all atoms, and the model's atoms off the mean path, (N, 3)."""
    u = variable.displacements(state.positions[variable.serials - 1], state.cell)
    xi = variable.encode(variable.components(u))
    return float(xi[0]), u - variable.path(xi)


def is_home(variable: CollectiveVariable, state: State, atom: int, limit_A: float) -> bool:
    """Whether an atom, by its serial number, is near its place on the path in a configuration."""
    _, off = _off_path(variable, state)
    distance = np.linalg.norm(off[np.flatnonzero(variable.serials == atom)[0]])
    return bool(distance < HOME * limit_A)


def find_inside(
    largest_A: Array, whole_A: Array, limit_A: float | None, whole_limit_A: float | None
) -> NDArray[np.intp]:
    """Numbers of the snapshots that are well inside the limits, in order.

    Parameters
    ----------
    largest_A, whole_A
        `maxdev` and `dev` of each snapshot, shape (M,), angstrom.
    limit_A, whole_limit_A
        Their limits, angstrom; None for no limit.
    """
    found = np.ones(len(largest_A), dtype=bool)
    if limit_A is not None:
        found &= largest_A < INSIDE * limit_A
    if whole_limit_A is not None:  # most of dev is the thermal motion of all atoms
        found &= whole_A < whole_limit_A
    return np.flatnonzero(found)
