"""Minimum energy paths by the nudged elastic band method, and forces of the images of a path.

Lengths are in angstrom, energies in eV.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.mep.neb import NEB, NEBOptimizer
from ase.optimize import FIRE, LBFGS
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from plumed_cv.common.errors import UserError
from plumed_cv.paths.band import SPRING_EV_A2, Band, Progress, calculate_together, minimise
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures import (
    cell_of,
    check_end_states,
    check_range,
    drift_of,
    held_atoms,
    hold,
)
from plumed_cv.structures.frame import displacements, nearest_images
from plumed_cv.structures.neighbours import Neighbours

# Steps that L-BFGS remembers, and the numbers that it keeps at most in a large system.
_MEMORY, _LEAST_MEMORY, _MOST_NUMBERS = 100, 5, 30_000_000

# The image-dependent pair potential keeps these atoms apart: those that move by more than the first
# number, and those within the second one of them (angstrom), but not more than the third.
_MOVES_A, _NEAR_A, _MOST_APART = 0.1, 6.0, 1000

# A band between symmetric states begins on their symmetry element and feels no force away from it.
# If the highest image has a second mode with a curvature (eV/A^2) below this number, the band is on
# a ridge. It is then moved along this mode, the atom that moves most by so many angstrom.
_RIDGE_EV_A2, _PUSH_A, _MOST_PUSHES = -0.1, 0.1, 3

# Length of the displacements for curvatures, over all atoms, angstrom; curvature that motions of
# the whole structure get, eV/A^2, so that they are not among the lowest modes.
_PROBE_A, _STIFF_EV_A2 = 0.03, 10.0

# Of a state when all its atoms are moved together: what is more is no error of the calculator's.
# Where it is, the final state stays where it is, which does no harm.
MOST_CHANGE_EV, MOST_PULL_EV_A = 1e-4, 1e-3

# No tolerance of the relaxation is smaller than so many times the noise of the forces.
_ABOVE_NOISE = 5.0
MOST_NOISE_EV_A = 0.01
_NOISE_STEP_A = 1e-3


def find_minimum_energy_path(
    initial: Atoms,
    final: Atoms,
    new_calculator: Callable[[], Calculator],
    n_images: int = 19,
    fmax_eV_A: float = 1e-3,
    max_steps: int = 5000,
    progress: Progress = lambda fmax, stage: None,
    interpolation: Literal["idpp", "linear"] = "idpp",
    begin: EnergyPath | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> EnergyPath:
    """Relax two end states and find the minimum energy path between them.

    Climbing-image nudged elastic band with improved tangents. Atoms that are fixed in the end
    states (`FixAtoms`) do not move. If the energy does not change when all atoms move together,
    the final state is shifted so that the band does not drift. In an external field or between
    walls it is not shifted. If the highest image is on a ridge, as between two symmetric paths, the
    band is moved to one side and relaxed again.

    Parameters
    ----------
    initial, final
        The end states; the same atoms in the same order, in the same cell.
    new_calculator
        Returns a calculator of energy (eV) and forces (eV/A); each image has its own.
    n_images
        Number of images K, end states included.
    fmax_eV_A
        Largest remaining force on an atom, eV/A. For the images, the force orthogonal to the path.
        It is larger if the noise of the forces demands it, as in single precision.
    max_steps
        Largest number of optimisation steps in each stage.
    progress
        Called after every optimisation step.
    interpolation
        The initial path: "idpp" is the image-dependent pair potential, which keeps atoms apart. In
        a large system it acts on the atoms that move most and on those near them. "linear" is a
        straight line, which is sufficient if no atom passes another.
    begin
        The initial path: a path of the same process with as many images, for example in a slightly
        different cell. It replaces `interpolation`.
    say
        Called with a sentence if the tolerance is larger than `fmax_eV_A`.

    Raises
    ------
    UserError
        If the end states do not belong together, relax to the same minimum, fix other atoms or
        fix them at other positions, if the noise of the forces is too large, or if the forces do
        not converge within `max_steps`.
    """
    check_end_states(initial, final)
    check_range(initial, final)
    held = held_atoms(initial)
    start, end = initial.copy(), final.copy()
    hold(end, start)
    fmax_eV_A = _above_noise(start, new_calculator, fmax_eV_A, say)
    for name, state in (("initial state", start), ("final state", end)):
        state.calc = new_calculator()
        relax(state, fmax_eV_A, name, max_steps, progress)
    cell = cell_of(start)
    step = displacements(end.positions, cell, start.positions, cell, drift_of(start))
    if np.linalg.norm(step) < 0.05:
        raise UserError(
            "The initial and final states relax to the same structure; give two structures nearer "
            "to different minima."
        )
    # With fixed atoms the band does not drift.
    if not len(held) and _is_somewhere(end, start.positions + step, new_calculator):
        step += _drift(end, start, step)
    energy, forces = end.calc.results["energy"], end.calc.results["forces"]
    end.positions = start.positions + step
    end.calc = SinglePointCalculator(end, energy=energy, forces=forces)

    images = [start, *(start.copy() for _ in range(n_images - 2)), end]
    band = Band(images)
    if begin is not None and len(begin.images) == n_images:
        # The deviation of the path from the straight line between its ends.
        u = begin.displacements
        share = np.linspace(0.0, 1.0, n_images)[:, None, None]
        bent = u - u[0] - share * (u[-1] - u[0])
        for image, across, part in zip(images[1:-1], bent[1:-1], share[1:-1], strict=True):
            image.positions = start.positions + part * step + across
    else:
        band.interpolate(mic=False)  # type: ignore[no-untyped-call]
        if interpolation == "idpp":
            _keep_apart(images)
    for image in images[1:-1]:
        image.calc = new_calculator()
    coarse = max(fmax_eV_A, 0.05)
    for pushes in range(_MOST_PUSHES + 1):
        band.climbers.clear()
        minimise(FIRE(band, logfile=None), coarse, max_steps, "elastic band", progress)
        band.start_climbing()
        for _ in range(n_images):
            # FIRE needs more steps for more images, and L-BFGS diverges in shallow valleys.
            adaptive = NEBOptimizer(band, logfile=None)
            minimise(adaptive, fmax_eV_A, max_steps, "climbing image", progress)
            if not band.start_climbing():
                break
        away = None
        if pushes < _MOST_PUSHES:
            away = _away_from_ridge(images, new_calculator)
        if away is None:
            break
        for image, share in zip(images[1:-1], np.linspace(0.0, 1.0, n_images)[1:-1], strict=True):
            image.positions += _PUSH_A * np.sin(np.pi * share) * away
    for image in images[1:-1]:
        _keep(image)
    return EnergyPath(tuple(images))


def measure_noise(state: Atoms, calculator: Calculator) -> float:
    """Return the noise of the forces near a structure, eV/A: standard deviation of a component.

    Third differences of the forces at four structures in a row, 0.001 A from one to the next, are
    noise: what the potential itself contributes is smaller by a factor of 1e-9/A^3. Their median
    counts, so that a few atoms that cross the cutoff of a potential are no noise.

    Parameters
    ----------
    state
        The structure.
    calculator
        Computes its forces.
    """
    direction = np.random.default_rng(0).normal(size=(len(state), 3))
    direction /= np.linalg.norm(direction, axis=1)[:, None]
    third = np.zeros((len(state), 3))
    for k, factor in enumerate((1.0, -3.0, 3.0, -1.0)):
        moved = state.copy()
        moved.positions = state.positions + k * _NOISE_STEP_A * direction
        moved.calc = calculator
        third += factor * moved.get_forces(apply_constraint=False)
    return float(np.median(np.abs(third)) / (0.6745 * np.sqrt(20.0)))


def _above_noise(
    state: Atoms,
    new_calculator: Callable[[], Calculator],
    fmax_eV_A: float,
    say: Callable[[str], None],
) -> float:
    """Return the tolerance of the band, such that a tenth of it is well above the noise.

    Raises
    ------
    UserError
        If the noise is so large that no path can be found.
    """
    noise = measure_noise(state, new_calculator())
    if noise > MOST_NOISE_EV_A:
        raise UserError(
            f"The forces have a noise of {noise:.2g} eV/A: they do not change evenly when atoms "
            "move by 0.001 A, so that no path can be found; compute them in double precision, or "
            "converge them better."
        )
    least = 10.0 * _ABOVE_NOISE * noise
    if least <= fmax_eV_A:
        return fmax_eV_A
    say(
        f"The forces have a noise of {noise:.1g} eV/A, so the path is relaxed to {least:.2g} eV/A "
        f"instead of {fmax_eV_A:g} eV/A."
    )
    return least


def _keep_apart(images: Sequence[Atoms]) -> None:
    """Move atoms of a straight band by the image-dependent pair potential.

    Parameters
    ----------
    images
        The band, whose inner images are changed.
    """
    chosen = np.arange(len(images[0]))
    if len(chosen) > _MOST_APART:
        chosen = _around_the_motion(images[0], images[-1])
    parts = [image[chosen] for image in images]
    NEB(parts, k=SPRING_EV_A2, method="improvedtangent").interpolate(method="idpp", mic=False)
    for image, part in zip(images[1:-1], parts[1:-1], strict=True):
        image.positions[chosen] = part.positions


def _around_the_motion(start: Atoms, end: Atoms) -> NDArray[np.int64]:
    """Atoms that move most between two states and those near them, `_MOST_APART` at most."""
    moves = np.linalg.norm(end.positions - start.positions, axis=1)
    order = np.argsort(-moves, kind="stable")
    moving = order[: min(_MOST_APART, int((moves > _MOVES_A).sum()))]
    near = Neighbours(start.positions, cell_of(start), _NEAR_A).of(start.positions[moving])
    more = order[np.isin(order, np.setdiff1d(near, moving))]
    return np.sort(np.concatenate([moving, more])[:_MOST_APART])


def relax(
    state: Atoms,
    fmax_eV_A: float = 1e-3,
    name: str = "structure",
    max_steps: int = 5000,
    progress: Progress = lambda fmax, stage: None,
) -> None:
    """Move a structure to the minimum near it, as the end states of a path are.

    Parameters
    ----------
    state
        The structure with a calculator. In the end it has the energy and the forces instead.
    fmax_eV_A
        The largest remaining force on an atom is a tenth of this, eV/A.
    name
        Its name in messages.
    max_steps, progress
        As for `find_minimum_energy_path`.

    Raises
    ------
    UserError
        If the forces do not converge within `max_steps`.
    """
    minimise(FIRE(state, logfile=None), max(fmax_eV_A, 0.05), max_steps, name, progress)
    # In a long soft valley, small forces still mean energies that matter for a low barrier.
    memory = min(_MEMORY, max(_LEAST_MEMORY, _MOST_NUMBERS // (6 * len(state))))
    newton = LBFGS(state, logfile=None, memory=memory)  # type: ignore[arg-type]
    minimise(newton, fmax_eV_A / 10, max_steps, name, progress, tenths=True)
    _keep(state)


def with_forces(
    images: Sequence[Atoms],
    new_calculator: Callable[[], Calculator],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Atoms]:
    """Copies of images with energies and forces from one calculator, which replace existing ones.

    Parameters
    ----------
    images
        The structures.
    new_calculator
        Returns a calculator of energy (eV) and forces (eV/A).
    progress
        Called with the number of completed images.
    """
    complete = [image.copy() for image in images]
    for atoms in complete:
        atoms.calc = new_calculator()
    calculate_together(complete)
    for done, atoms in enumerate(complete, 1):
        _keep(atoms)
        progress(done)
    return complete


def _away_from_ridge(
    images: Sequence[Atoms], new_calculator: Callable[[], Calculator]
) -> NDArray[np.float64] | None:
    """Direction in which a band falls from a ridge; None if it is not on a ridge.

    At a saddle point of the first order only the mode along the path has a negative curvature.

    Parameters
    ----------
    images
        The converged band, with energies.
    new_calculator
        Makes a calculator.

    Returns
    -------
    ndarray or None
        The second unstable mode of the highest image without its part along the path, (N, 3). The
        longest displacement of an atom is 1.
    """
    top = int(np.argmax([image.get_potential_energy() for image in images]))
    if top in (0, len(images) - 1):
        return None
    probe, place = images[top].copy(), images[top].positions
    probe.calc = new_calculator()
    held = held_atoms(probe)
    free = np.setdiff1d(np.arange(len(probe)), held)

    def curve(direction: NDArray[np.float64]) -> NDArray[np.float64]:
        """Product of the Hessian and a direction, (3F,), by central differences of forces."""
        step = np.zeros_like(place)
        step[free] = direction.reshape(-1, 3)
        shift = np.zeros(3) if len(held) else step.mean(axis=0)
        step[free] -= shift
        length = np.linalg.norm(step)
        forces = []
        for sign in (1.0, -1.0):
            probe.positions = place + sign * _PROBE_A * step / max(length, 1e-12)
            forces.append(probe.get_forces()[free])
        product = (forces[1] - forces[0]) * length / (2.0 * _PROBE_A)
        if not len(held):
            product -= product.mean(axis=0)
        return np.ravel(product + _STIFF_EV_A2 * shift)

    size = 3 * len(free)
    try:
        curvatures, modes = eigsh(
            LinearOperator((size, size), matvec=curve, dtype=float),
            k=2,
            which="SA",
            v0=np.random.default_rng(0).normal(size=size),
            ncv=min(20, size),
            maxiter=10,
            tol=0.1,
        )
    except ArpackNoConvergence:  # modes near zero, so there is no second one far below it
        return None
    if curvatures.max() > _RIDGE_EV_A2:
        return None
    tangent = (images[top + 1].positions - images[top - 1].positions)[free].ravel()
    along = modes.T @ tangent
    away = np.zeros_like(place)
    away[free] = (modes @ (-along[1], along[0])).reshape(-1, 3)
    return np.asarray(away / np.linalg.norm(away, axis=1).max())


def _is_somewhere(
    state: Atoms, moved: NDArray[np.float64], new_calculator: Callable[[], Calculator]
) -> bool:
    """Whether a state has another energy or other forces when all its atoms are moved together.

    Parameters
    ----------
    state
        With energy and forces.
    moved
        Its positions elsewhere, (N, 3), angstrom, but for lattice vectors.
    new_calculator
        Makes a calculator.
    """
    there = state.copy()
    there.positions = moved
    there.calc = new_calculator()
    energy, forces = there.get_potential_energy(), there.get_forces(apply_constraint=False)
    before = state.calc.results
    off = np.linalg.norm((forces - before["forces"]).sum(axis=0))
    return bool(abs(energy - before["energy"]) > MOST_CHANGE_EV or off > MOST_PULL_EV_A)


def _drift(end: Atoms, start: Atoms, step: NDArray[np.float64]) -> NDArray[np.float64]:
    """Common displacement of all atoms from start to end, (3,), angstrom, less lattice vectors.

    Parameters
    ----------
    end, start
        The end states.
    step
        Displacements without their mean, (N, 3), angstrom.
    """
    drift = end.positions[0] - start.positions[0] - step[0]
    return nearest_images(drift, cell_of(start))


def _keep(atoms: Atoms) -> None:
    """Replace the calculator by the energy and the forces, including those on fixed atoms."""
    energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
