"""Minimum energy paths: `neb` finds them by an elastic band, `path` reads and checks them."""

from plumed_cv.paths.neb import find_minimum_energy_path, relax, with_forces
from plumed_cv.paths.path import Curve, EnergyPath, Files, load_path, name_of, read_images

__all__ = [
    "Curve",
    "EnergyPath",
    "Files",
    "find_minimum_energy_path",
    "load_path",
    "name_of",
    "read_images",
    "relax",
    "with_forces",
]
