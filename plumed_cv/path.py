"""The minimum energy path at 0 K: nudged elastic band, spline, and noisy samples of it.

Lengths are in angstrom, energies in eV. K images of N atoms.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.mep import NEB
from ase.optimize import FIRE
from ase.optimize.optimize import Optimizer
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator

from plumed_cv.errors import UserError
from plumed_cv.files import replacing
from plumed_cv.frame import Array, displacements

# Called after every optimisation step with the largest force (eV/A) and what is being done.
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class EnergyPath:
    """A path of K images from the state q0 to the state q1.

    Parameters
    ----------
    images
        The structures, K of them, of the same atoms and cell, each with energy (eV) and forces
        (eV/A) from its calculator.
    """

    images: tuple[Atoms, ...]

    @property
    def species(self) -> tuple[str, ...]:
        """Chemical symbols of the atoms."""
        return tuple(self.images[0].get_chemical_symbols())

    @property
    def cell(self) -> Array:
        """Lattice vectors as rows, shape (3, 3), angstrom; all zero for no periodicity."""
        return cell_of(self.images[0])

    @property
    def energies(self) -> Array:
        """Energies above the first image, shape (K,), eV."""
        energies = np.array([image.get_potential_energy() for image in self.images])
        return np.asarray(energies - energies[0])

    @property
    def barrier(self) -> float:
        """The highest energy above the first image, eV."""
        return float(self.energies.max())

    @cached_property
    def displacements(self) -> Array:
        """Displacement-frame coordinates with the first image as reference, shape (K, N, 3)."""
        positions = np.stack([image.positions for image in self.images])
        return displacements(positions, self.cell, self.images[0].positions, self.cell)

    @cached_property
    def arc_length(self) -> Array:
        """Length of the path up to each image as a fraction of the whole, shape (K,)."""
        steps = np.linalg.norm(np.diff(self.displacements, axis=0), axis=(1, 2))
        return np.asarray(np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum())

    @cached_property
    def spline(self) -> Akima1DInterpolator:
        """X(lambda): Akima spline of the displacements over fractional arc length (Sec. 3.2)."""
        return Akima1DInterpolator(self.arc_length, self.displacements, axis=0)

    def noisy_samples(
        self, n_samples: int, variance_A2: float, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Displacements along the path with thermal noise: the training data of Sec. 3.2.

        Parameters
        ----------
        n_samples
            Number of structures, evenly spaced in arc length.
        variance_A2
            Variance of the Gaussian noise of each coordinate, A^2; 0.005 resembles iron at 300 K.
        rng
            Source of the noise.

        Returns
        -------
        NDArray
            Shape (n_samples, N, 3), angstrom. The noise is free of translation and of the tangent.
        """
        samples = np.empty((n_samples, *self.displacements.shape[1:]), dtype=np.float32)
        tangent_of = self.spline.derivative()
        for chunk in _chunks(n_samples):
            at = np.linspace(0.0, 1.0, n_samples)[chunk]
            noise = rng.normal(scale=variance_A2**0.5, size=samples[chunk].shape)
            noise -= noise.mean(axis=1, keepdims=True)
            tangents = tangent_of(at)
            tangents /= np.linalg.norm(tangents, axis=(1, 2), keepdims=True)
            noise -= np.sum(noise * tangents, axis=(1, 2), keepdims=True) * tangents
            samples[chunk] = self.spline(at) + noise
        return samples

    def save(self, path: Path | str) -> None:
        """Write the images with energies and forces as extended XYZ (ASE, OVITO)."""
        with replacing(path) as temporary:
            ase.io.write(temporary, list(self.images), format="extxyz")


def load_path(path: Path | str) -> EnergyPath:
    """Read a path of images with energies and forces in any format that ASE reads."""
    images = _read(path, ":")
    if len(images) < 3:
        raise UserError(f"{path}: holds {len(images)} structures; a path needs three or more.")
    for number, image in enumerate(images):
        if image.get_chemical_symbols() != images[0].get_chemical_symbols():
            raise UserError(f"{path}: image {number} has other atoms than image 0.")
        if image.calc is None or not {"energy", "forces"} <= set(image.calc.results):
            raise UserError(f"{path}: image {number} has no energy or no forces.")
    return EnergyPath(tuple(images))


def read_structure(path: Path | str) -> Atoms:
    """Read the (last) structure of a file in any format that ASE reads.

    Raises
    ------
    UserError
        If the file is missing, cannot be read, or holds positions that are not finite.
    """
    atoms: Atoms = _read(path, "-1:")[0]
    if len(atoms) < 2 or not np.isfinite(atoms.positions).all():
        raise UserError(f"{path}: needs at least two atoms with finite positions.")
    return atoms


def cell_of(atoms: Atoms) -> Array:
    """Lattice vectors as rows, shape (3, 3), angstrom; all zero for a system without borders."""
    if not atoms.pbc.any():
        return np.zeros((3, 3))
    if not atoms.pbc.all():
        raise UserError(
            "The structure is periodic along some directions only; make it periodic along all "
            "three, with vacuum where it ends."
        )
    return np.asarray(atoms.cell.array, dtype=np.float64)


def check_end_states(initial: Atoms, final: Atoms) -> None:
    """Raise a UserError unless both structures have the same atoms, in order, and cell."""
    if len(initial) != len(final):
        raise UserError(
            f"The initial state has {len(initial)} atoms and the final state {len(final)}."
        )
    for index, (a, b) in enumerate(zip(initial.symbols, final.symbols, strict=True)):
        if a != b:
            raise UserError(
                f"Atom {index + 1} is {a} in the initial and {b} in the final state; both "
                "must list the same atoms in the same order."
            )
    if not np.allclose(cell_of(initial), cell_of(final), atol=1e-6):
        raise UserError("The initial and final states have different cells; give both the same.")


def minimum_energy_path(
    initial: Atoms,
    final: Atoms,
    new_calculator: Callable[[], Calculator],
    n_images: int = 19,
    fmax_eV_A: float = 1e-3,
    max_steps: int = 5000,
    progress: Progress = lambda fmax, stage: None,
) -> EnergyPath:
    """Relax two end states and find the minimum energy path between them.

    Climbing-image nudged elastic band with improved tangents, started from the image-dependent pair
    potential's interpolation.

    Parameters
    ----------
    initial, final
        The end states; the same atoms in the same order, in the same cell.
    new_calculator
        Makes a calculator of energy (eV) and forces (eV/A); each image has its own.
    n_images
        Number of images K, end states included.
    fmax_eV_A
        Largest force left on an atom, across the path for the images, eV/A.
    max_steps
        Limit on the optimisation steps of each stage.
    progress
        Called after every optimisation step.

    Raises
    ------
    UserError
        If the end states do not fit together, relax to the same minimum, or the forces do not
        converge within `max_steps`.
    """
    check_end_states(initial, final)
    start, end = initial.copy(), final.copy()
    for name, state in (("initial state", start), ("final state", end)):
        state.calc = new_calculator()
        _minimise(FIRE(state, logfile=None), fmax_eV_A / 2, max_steps, name, progress)
        _freeze(state)
    cell = cell_of(start)
    step = displacements(end.positions, cell, start.positions, cell)
    if np.linalg.norm(step) < 0.05:
        raise UserError("The initial and final states relax to the same structure.")
    forces = end.get_forces()
    energy = end.get_potential_energy()
    end.positions = start.positions + step
    end.calc = SinglePointCalculator(end, energy=energy, forces=forces)

    images = [start, *(start.copy() for _ in range(n_images - 2)), end]
    band = NEB(images, method="improvedtangent")
    band.interpolate(method="idpp", mic=False)
    for image in images[1:-1]:
        image.calc = new_calculator()
    _minimise(FIRE(band, logfile=None), 0.05, max_steps, "elastic band", progress)
    band.climb = True
    _minimise(FIRE(band, logfile=None), fmax_eV_A, max_steps, "climbing image", progress)
    for image in images[1:-1]:
        _freeze(image)
    return EnergyPath(tuple(images))


def _minimise(
    optimiser: Optimizer, fmax: float, max_steps: int, stage: str, progress: Progress
) -> None:
    optimiser.attach(lambda: progress(_largest_force(optimiser), stage))
    if not optimiser.run(fmax=fmax, steps=max_steps):
        raise UserError(
            f"The {stage} did not converge to {fmax} eV/A in {max_steps} steps (largest force "
            f"{_largest_force(optimiser):.2g} eV/A); check the end states and the potential."
        )


def _largest_force(optimiser: Optimizer) -> float:
    forces = optimiser.optimizable.get_gradient().reshape(-1, 3)
    return float(np.sqrt((forces**2).sum(axis=1).max()))


def _freeze(atoms: Atoms) -> None:
    """Keep energy and forces with the structure, without the calculator."""
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)


def _read(path: Path | str, index: str) -> list[Atoms]:
    try:
        images = ase.io.read(path, index)
    except FileNotFoundError:
        raise UserError(f"{path}: the file does not exist.") from None
    except Exception as error:  # ASE's readers raise whatever their parsers raise
        raise UserError(f"{path}: ASE cannot read it as a structure ({error}).") from None
    return list(images)


def _chunks(n: int, size: int = 1000) -> Iterator[slice]:
    for begin in range(0, n, size):
        yield slice(begin, min(begin + size, n))
