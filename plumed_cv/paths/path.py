"""Paths at 0 K: reading and checking images, the curve through them, and noisy samples.

Lengths are in angstrom, energies in eV. K images of N atoms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator, CubicSpline

from plumed_cv.common.display import axes_or_new
from plumed_cv.common.errors import UserError, naming
from plumed_cv.common.files import replacing
from plumed_cv.structures import (
    CLOSEST_A,
    cell_of,
    check_held,
    drift_of,
    find_misplaced,
    has_forces,
    held_atoms,
    hold,
    orient,
    read_structures,
    split_index,
)
from plumed_cv.structures.frame import Array, Drift, chunks, displacements

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One file with all images of a path, or several files in order.
Files = Path | str | Sequence[Path | str]

SUBDIVISIONS = 32  # grid intervals between two images of the path


class Curve:
    """Cubic splines through images: weights of the K images on a fine grid of the path.

    The product of the weights and any property of the images is a spline of this property, or its
    derivative. The grid therefore needs no arrays of the size of a structure.

    Parameters
    ----------
    knots
        Fractional arc length of the images, shape (K,).

    Attributes
    ----------
    parameter
        Fractional arc length on the grid, shape (G,).
    values, slopes
        The weights of the spline of a property, and of its derivative with respect to the arc
        length, shape (G, K).
    at_images
        Indices of the images on the grid, shape (K,).
    """

    def __init__(self, knots: Array) -> None:
        fractions = np.arange(SUBDIVISIONS) / SUBDIVISIONS
        grid = (knots[:-1, None] + np.diff(knots)[:, None] * fractions).ravel()
        spline = CubicSpline(knots, np.eye(len(knots)))
        self.parameter = np.append(grid, 1.0)
        self.values = spline(self.parameter)
        self.slopes = spline(self.parameter, 1)
        self.at_images = np.arange(len(knots)) * SUBDIVISIONS


@dataclass(frozen=True)
class EnergyPath:
    """A path of K images from the state q0 to the state q1.

    Parameters
    ----------
    images
        The structures, K of them, of the same atoms and cell, each with energy (eV) and forces
        (eV/A) from its calculator.
    name
        Name of the path in messages: its file.
    is_held
        Whether fixed atoms that are not in the images hold the structure.
    """

    images: tuple[Atoms, ...]
    name: str = "the path"
    is_held: bool = False

    def __repr__(self) -> str:
        return (
            f"EnergyPath({self.name}: {len(self.images)} images of {len(self.images[0])} atoms, "
            f"barrier {self.barrier:.4f} eV, end point {self.energies[-1]:+.4f} eV)"
        )

    @property
    def species(self) -> tuple[str, ...]:
        """Chemical symbols of the atoms."""
        return tuple(self.images[0].get_chemical_symbols())

    @property
    def cell(self) -> Array:
        """Lattice vectors as rows, (3, 3), angstrom; zero along directions without periodicity."""
        return cell_of(self.images[0])

    @cached_property
    def held(self) -> NDArray[np.int64]:
        """Numbers of the fixed atoms, from 0."""
        return held_atoms(self.images[0])

    @property
    def drift(self) -> Drift:
        """Whether the mean displacement is subtracted, or fixed atoms hold the structure."""
        return "kept" if self.is_held or len(self.held) else "removed"

    def of_atoms(self, serials: NDArray[np.int64]) -> "EnergyPath":
        """Return the same path with some of its atoms only, by their serial numbers, (n,), from 1.

        Unless fixed atoms hold the structure, the displacements are then relative to the mean of
        these atoms. The energies stay those of
        all atoms.

        Raises
        ------
        UserError
            If the path has fewer atoms.
        """
        n_atoms = len(self.images[0])
        if serials.max() > n_atoms:
            raise UserError(
                f"{self.name}: has {n_atoms} atoms, so there is no atom {serials.max()}; choose "
                "others."
            )
        if np.array_equal(serials, np.arange(1, n_atoms + 1)):
            return self
        images = []
        for image in self.images:
            part = image[serials - 1]
            forces = image.get_forces(apply_constraint=False)[serials - 1]
            energy = image.get_potential_energy()
            part.calc = SinglePointCalculator(part, energy=energy, forces=forces)
            images.append(part)
        return EnergyPath(tuple(images), self.name, self.drift == "kept")

    @property
    def energies(self) -> Array:
        """Energies relative to the first image, shape (K,), eV."""
        energies = np.array([image.get_potential_energy() for image in self.images])
        return np.asarray(energies - energies[0])

    @cached_property
    def forces(self) -> Array:
        """Forces on all atoms, also on fixed ones, shape (K, N, 3), eV/A.

        Their mean is subtracted unless fixed atoms hold the structure.
        """
        forces = np.stack([image.get_forces(apply_constraint=False) for image in self.images])
        if self.drift == "removed":
            forces -= forces.mean(axis=1, keepdims=True)
        return np.asarray(forces)

    @property
    def barrier(self) -> float:
        """The highest energy relative to the first image, eV."""
        return float(self.energies.max())

    @cached_property
    def displacements(self) -> Array:
        """Displacement-frame coordinates with the first image as reference, shape (K, N, 3)."""
        positions = np.stack([image.positions for image in self.images])
        reference = self.images[0].positions
        return displacements(positions, self.cell, reference, self.cell, self.drift)

    @cached_property
    def arc_length(self) -> Array:
        """Length of the path up to each image as a fraction of its total length, shape (K,)."""
        steps = np.linalg.norm(np.diff(self.displacements, axis=0), axis=(1, 2))
        length = np.concatenate([[0.0], np.cumsum(steps)])
        return np.asarray(length / length[-1])  # exactly 1 at the end: the spline ends there

    @cached_property
    def spline(self) -> Akima1DInterpolator:
        """X(lambda): Akima spline of the displacements in fractional arc length (Sec. 3.2)."""
        return Akima1DInterpolator(self.arc_length, self.displacements, axis=0)

    @cached_property
    def curve(self) -> Curve:
        """Cubic splines through the images, on a fine grid."""
        return Curve(self.arc_length)

    def noisy_samples(
        self, n_samples: int, variance_A2: float, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Displacements along the path with thermal noise: the training data of Sec. 3.2.

        Parameters
        ----------
        n_samples
            Number of structures, evenly spaced in arc length.
        variance_A2
            Variance of the Gaussian noise of each coordinate, A^2; 0.005 is that of iron at 300 K.
        rng
            Random number generator of the noise.

        Returns
        -------
        NDArray
            Shape (n_samples, N, 3), angstrom. The noise has no component along the tangent, none on
            fixed atoms, and without these no translation.
        """
        samples = np.empty((n_samples, *self.displacements.shape[1:]), dtype=np.float32)
        tangent_of = self.spline.derivative()
        for chunk in chunks(n_samples):
            at = np.linspace(0.0, 1.0, n_samples)[chunk]
            noise = rng.normal(scale=variance_A2**0.5, size=samples[chunk].shape)
            noise[:, self.held] = 0.0
            if self.drift == "removed":
                noise -= noise.mean(axis=1, keepdims=True)
            tangents = tangent_of(at)
            tangents /= np.linalg.norm(tangents, axis=(1, 2), keepdims=True)
            noise -= np.sum(noise * tangents, axis=(1, 2), keepdims=True) * tangents
            samples[chunk] = self.spline(at) + noise
        return samples

    def plot(self, ax: "Axes | None" = None, **style: Any) -> "Axes":
        """Draw the energies of the images (eV) over fractional arc length.

        Parameters
        ----------
        ax
            On which axes of matplotlib's; those of a new figure if None.
        style
            As for `Axes.plot`.
        """
        ax = axes_or_new(ax)
        ax.plot(self.arc_length, self.energies, **{"marker": "o"} | style)
        ax.set_xlabel("arc length along the path")
        ax.set_ylabel("energy (eV)")
        return ax

    def save(self, path: Path | str) -> None:
        """Write the images with energies and forces as extended XYZ (ASE, OVITO)."""
        with replacing(path) as temporary:
            ase.io.write(temporary, list(self.images), format="extxyz")


def load_path(
    files: Files,
    say: Callable[[str], None] = lambda text: None,
    species: Sequence[str] | None = None,
) -> EnergyPath:
    """Read a path of images with energies (eV) and forces (eV/A); see `read_images`.

    Raises
    ------
    UserError
        If `read_images` refuses the file, or if an image has no energy or no forces.
    """
    name = name_of(files)
    images = read_images(files, say, species)
    for number, image in enumerate(images):
        if not has_forces(image):
            raise UserError(
                f"{name}: image {number} has no energy or no forces (in extended XYZ: energy= in "
                "the second line, and a column forces); name an engine to compute them."
            )
    return EnergyPath(tuple(images), name)


def files_of_band(folder: Path | str) -> list[Path]:
    """Files of the images in a folder of VASP's elastic bands, in order.

    Parameters
    ----------
    folder
        Contains folders with numbers as names: 00, 01, ... In each, OUTCAR is used if there is one,
        otherwise CONTCAR, otherwise POSCAR. Empty files do not count.

    Raises
    ------
    UserError
        If there are no such folders, or one has none of the files.
    """
    numbered = [each for each in Path(folder).iterdir() if each.name.isdigit() and each.is_dir()]
    files = []
    for image in sorted(numbered, key=lambda each: int(each.name)):
        given = [image / name for name in ("OUTCAR", "CONTCAR", "POSCAR")]
        there = [file for file in given if file.is_file() and file.stat().st_size]
        if not there:
            raise UserError(
                f"{image}: has no OUTCAR, CONTCAR or POSCAR; name a folder that has one for each "
                "image."
            )
        files.append(there[0])
    if not files:
        raise UserError(
            f"{folder}: is a folder without the folders 00, 01, ... of an elastic band; give the "
            "file of the path, or a list with one file for each image."
        )
    return files


def read_images(
    files: Files,
    say: Callable[[str], None] = lambda text: None,
    species: Sequence[str] | None = None,
) -> list[Atoms]:
    """Read the images of a path, with or without energies and forces; see `read_structures`.

    Atoms may cross the borders of the cell and images may drift as a whole, because only the
    displacement frame matters. Images are rotated as by `orient`. Repeated images are removed.

    Parameters
    ----------
    files
        One file with all images, a folder as for `files_of_band`, or several files in order. Each
        of several files gives its last structure, like the OUTCAR files of an elastic band.
    say
        Called with a sentence about each change of the images.
    species
        Chemical symbols of LAMMPS types 1, 2, ...

    Returns
    -------
    list[Atoms]
        At least three images. Fixed atoms are the same in all of them, at the same positions.

    Raises
    ------
    UserError
        If a file is missing or cannot be read, if the images differ in their atoms, the order of
        the atoms, the cell or the fixed atoms, if numbers are not finite, if an atom moves by half
        of the cell, if a file contains several bands, or if there are other constraints.
    """
    if isinstance(files, Path | str) and Path(files).is_dir():
        files = files_of_band(files)
    name = name_of(files)
    if isinstance(files, Path | str):
        given = read_structures(files, species=species)
        _check_one_band(files, given)
        names = [f"{name}: image {number}" for number in range(len(given))]
    else:
        given = [read_structures(file, "-1:", species)[-1] for file in files]
        names = [f"{file}: image {number}" for number, file in enumerate(files)]
    images = []
    for image_name, atoms in zip(names, given, strict=True):
        with naming(image_name):
            images.append(orient(atoms))
            held = held_atoms(atoms)
            images[-1].set_constraint(FixAtoms(held) if len(held) else None)
        _check_same_atoms(image_name, images[-1], images[0])
        hold(images[-1], images[0])
    if not np.allclose(images[0].cell.array, given[0].cell.array):
        say(f"{name}: rotated: first cell vector along x, second in the xy plane.")

    kept, last = [images[0]], np.zeros((len(images[0]), 3))
    steps = [np.zeros((len(images[0]), 3))]
    for number in range(1, len(images)):
        _check_order(names[number], images[number], images[number - 1])
        steps.append(_displacements(images[number], images[number - 1]))
    unwrapped = np.cumsum(steps, axis=0)
    for image_name, image, u in zip(names, images, unwrapped, strict=True):
        off = np.linalg.norm(u - _displacements(image, images[0]), axis=1)
        if off.max() > CLOSEST_A:
            raise UserError(
                f"{image_name}: atom {off.argmax() + 1} has moved by half of the cell since image "
                "0; a larger displacement is not unique in a periodic cell, so use a larger cell."
            )
    shortest = 1e-3 * np.linalg.norm(steps, axis=(1, 2)).sum() / len(steps)
    for image, u in zip(images[1:], unwrapped[1:], strict=True):
        if np.linalg.norm(u - last) > shortest:
            kept.append(image)
            last = u
    if len(kept) < 3:
        raise UserError(
            f"{name}: contains {len(kept)} different structures; give three images or more."
        )
    if len(kept) < len(images):
        say(f"{name}: {len(images) - len(kept)} of {len(images)} images are repeated and removed.")
    return kept


def name_of(files: Files) -> str:
    """Name of the files of the images in messages."""
    return str(files) if isinstance(files, Path | str) else f"{files[0]} ... {files[-1]}"


def _displacements(atoms: Atoms, reference: Atoms) -> Array:
    cell = cell_of(reference)
    return displacements(atoms.positions, cell, reference.positions, cell, drift_of(reference))


def _check_same_atoms(name: str, atoms: Atoms, first: Atoms) -> None:
    """Refuse an image with other atoms, another cell, or numbers that are not finite."""
    if len(atoms) != len(first) or len(atoms) < 2:
        raise UserError(
            f"{name} has {len(atoms)} atoms and image 0 has {len(first)}; give all images of a "
            "path the same atoms, two or more."
        )
    symbols, expected = list(atoms.symbols), list(first.symbols)
    if symbols != expected:
        differs = next(i for i, (a, b) in enumerate(zip(symbols, expected, strict=True)) if a != b)
        how = "the atoms in another order" if sorted(symbols) == sorted(expected) else "other atoms"
        raise UserError(
            f"{name} has {how} than image 0: atom {differs + 1} is {symbols[differs]} there and "
            f"{expected[differs]} in image 0; give all images the same order of atoms."
        )
    if not np.isfinite(atoms.positions).all():
        raise UserError(f"{name} contains positions that are not finite; write this image again.")
    if not np.allclose(cell_of(atoms), cell_of(first), atol=1e-4):
        raise UserError(f"{name} has another cell than image 0; give all images the same cell.")
    try:
        check_held(first, atoms)
    except UserError as error:
        raise UserError(f"{name} against image 0, as initial state: {error}") from None
    if has_forces(atoms):
        results = atoms.calc.results
        if not np.isfinite(results["energy"]) or not np.isfinite(results["forces"]).all():
            raise UserError(
                f"{name} has an energy or a force that is not finite; repeat its calculation, or "
                "name an engine to compute all of them."
            )


def _check_order(name: str, atoms: Atoms, before: Atoms) -> None:
    """Refuse an image with an atom at the position of another atom in the previous image."""
    if found := find_misplaced(before, atoms):
        raise UserError(
            f"{name} has the atoms in another order: atom {found.atom} is at the position of atom "
            f"{found.place} in the previous image; give all images the same order of atoms, or "
            "more images if the atoms do change places."
        )


def _check_one_band(file: Path | str, images: Sequence[Atoms]) -> None:
    """Refuse a file with the bands of all iterations, which ASE's `NEB` writes.

    The end states of a band do not move, so each band has the same first and last image.
    """
    first = images[0]
    again = [
        number
        for number, image in enumerate(images)
        if len(image) == len(first) and np.array_equal(image.positions, first.positions)
    ]
    if len(again) < 2:
        return
    size = again[1]
    if size < 3 or len(images) % size or again != list(range(0, len(images), size)):
        return
    path, _ = split_index(file)
    raise UserError(
        f"{file}: contains {len(images) // size} bands of {size} images, as an optimisation writes "
        f"them; select the last one by {path.name}@-{size}:"
    )
