"""An elastic band of images, and the relaxation of a band or of a structure by its forces.

Lengths are in angstrom, energies in eV. K images of N atoms.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.mep.neb import NEB, NEBState
from ase.optimize.optimize import Optimizer
from numpy.typing import NDArray
from scipy.signal import find_peaks

from plumed_cv.common.errors import UserError

# Called after every optimisation step with the largest force (eV/A) and the name of the stage.
Progress = Callable[[float, str], None]

# Between images. With springs much softer than bonds, images accumulate at the ends of the path.
SPRING_EV_A2 = 5.0

# An image climbs if the energy falls by this much on both sides.
_PROMINENCE_EV = 0.01

# The forces still fall if the lowest of the last quarter of the steps is below this share of the
# lowest of the quarter before.
_FALLS = 0.8


class _Force(NamedTuple):
    """The largest force on an atom after a step: eV/A, and the number of its row."""

    size: float
    row: int


class Band(NEB):
    """A band of which one image climbs to each saddle point, and whose residual counts all images.

    In ASE's the highest image of each step climbs. If two saddle points are as high as each other,
    it changes between them from step to step, and the forces do not converge. ASE's residual is the
    largest component of a force, without those on the climbing image.

    Parameters
    ----------
    images
        The images with calculators.

    Attributes
    ----------
    climbers
        Numbers of the images that climb, from 0; none until `start_climbing`.
    """

    def __init__(self, images: list[Atoms]) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            images, k=SPRING_EV_A2, method="improvedtangent"
        )
        self._heights = np.zeros(len(images))
        self.climbers: set[int] = set()

    def start_climbing(self) -> bool:
        """Let an image climb at each maximum of the energy; False if all of these do so already."""
        new = self._maxima() - self.climbers
        self.climbers |= new
        return bool(new)

    def get_forces(self) -> NDArray[np.float64]:
        """Return the forces on the inner images, shape ((K - 2) N, 3), eV/A."""
        calculate_together(self.images[1:-1])
        flat = super().get_forces()  # type: ignore[no-untyped-call]
        forces = np.array(flat).reshape(self.nimages - 2, self.natoms, 3)
        self._heights = np.array(self.energies)
        self.climbers = {self._uphill(i) for i in self.climbers}
        state = NEBState(self, self.images, self._heights)
        for i in self.climbers:
            own = self.images[i].get_forces()
            springs = state.spring(i - 1), state.spring(i)
            tangent = self.neb_method.get_tangent(state, *springs, i)
            forces[i - 1] = own - 2.0 * np.vdot(own, tangent) * tangent
        self.largest = np.linalg.norm(forces, axis=2)
        return forces.reshape(-1, 3)

    def get_residual(self) -> float:
        """Return the largest force on an atom of any inner image, eV/A."""
        return float(self.largest.max())

    def _maxima(self) -> set[int]:
        """Images at a maximum of the energy: the highest one, and those well above the minima."""
        peaks, found = find_peaks(self._heights, prominence=0.0)
        high = found["prominences"] >= _PROMINENCE_EV
        return {int(i) for i in peaks[high | (self._heights[peaks] == self._heights.max())]}

    def _uphill(self, image: int) -> int:
        """Return the number of the maximum of the energy that is reached uphill from an image."""
        while True:
            near = [i for i in (image - 1, image + 1) if 0 < i < self.nimages - 1]
            best = max(near, key=lambda i: float(self._heights[i]), default=image)
            if self._heights[best] <= self._heights[image]:
                return image
            image = best


def calculate_together(images: Sequence[Atoms]) -> None:
    """Fill the calculators of images in one call, if they are those of an engine that can."""
    together = getattr(images[0].calc, "calculate_together", None)
    if together is not None:
        together(images)


def minimise(
    optimiser: Optimizer,
    fmax: float,
    max_steps: int,
    stage: str,
    progress: Progress,
    tenths: bool = False,
) -> None:
    """Relax a structure or a band.

    Parameters
    ----------
    optimiser
        An optimiser of ASE for it.
    fmax
        Largest remaining force on an atom, eV/A.
    max_steps
        Largest number of steps.
    stage
        What is relaxed, in messages.
    progress
        Called after every step.
    tenths
        Whether `fmax` is a tenth of the limit for the path (path.fmax_eV_A).

    Raises
    ------
    UserError
        If the forces do not converge. It says how they went and what to do.
    """
    course: list[_Force] = []

    def note() -> None:
        course.append(_largest_force(optimiser))
        progress(course[-1].size, stage)

    optimiser.attach(note)
    optimiser.run(fmax=fmax, steps=max_steps)
    # Not what it returns: NEBOptimizer returns True after its last step, too.
    if _largest_force(optimiser).size <= fmax:
        return
    n_atoms = getattr(getattr(optimiser, "neb", None), "natoms", None)
    raise UserError(
        f"The {stage} did not converge to {fmax:.2g} eV/A in {max(len(course) - 1, 0)} steps: "
        f"{_describe(course, n_atoms, max_steps, 10.0 if tenths else 1.0)}."
    )


def _describe(course: list[_Force], n_atoms: int | None, max_steps: int, factor: float) -> str:
    """Say how the forces of a relaxation that did not converge went, and what to do.

    Parameters
    ----------
    course
        The largest forces after all steps.
    n_atoms
        Number of atoms of an image; None for a structure.
    max_steps
        The largest number of steps.
    factor
        The limit for the path over that of the relaxation.
    """
    last = course[-1]
    where = f"atom {last.row + 1}"
    if n_atoms is not None:
        where = f"atom {last.row % n_atoms + 1} of image {last.row // n_atoms + 1}"
    says = f"the largest force is {last.size:.2g} eV/A on {where}, and it"
    sizes = np.array([force.size for force in course])
    quarter = max(1, len(sizes) // 4)
    recent, before = sizes[-quarter:], sizes[-2 * quarter : -quarter]
    enough = f"set path.fmax_eV_A to {_rounded_up(factor * recent.max()):g}"
    if len(before) and recent.min() < _FALLS * before.min():
        return (
            f"{says} still falls ({before.min():.2g} eV/A was the lowest before the last {quarter} "
            f"steps); {enough}, or start from structures nearer to the path"
        )
    how = f"{says} is {recent.min():.2g} to {recent.max():.2g} eV/A in the last {quarter} steps"
    if len(course) - 1 < max_steps:
        how += ", where no smaller step reduced it"
    others = "" if n_atoms is None else ", try another number of path.images"
    return (
        f"{how}, so the forces there do not change evenly (a cutoff of the potential, or a "
        f"calculation that is not converged); {enough}{others}, or use a smoother potential"
    )


def _rounded_up(value: float) -> float:
    """Return a number with one digit that is not below another one."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(np.ceil(value / power) * power)


def _largest_force(optimiser: Optimizer) -> _Force:
    """Return the largest force on an atom and its row."""
    forces = optimiser.optimizable.get_gradient().reshape(-1, 3)
    sizes = np.linalg.norm(forces, axis=1)
    row = int(np.argmax(sizes))
    return _Force(float(sizes[row]), row)
