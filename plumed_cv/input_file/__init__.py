"""The input file of `plumed-cv run` (TOML).

`engines` has the keys of the engines, `sections` all others; `reading` reads and checks a file.
"""

from plumed_cv.input_file.engines import ENGINES, Ase, CalculatorSection, Gromacs, Lammps, TorchSim
from plumed_cv.input_file.reading import describe_keys, load, validate
from plumed_cv.input_file.sections import (
    CV,
    Config,
    Iteration,
    PathSection,
    Rate,
    Sampling,
    System,
)

__all__ = [
    "CV",
    "ENGINES",
    "Ase",
    "CalculatorSection",
    "Config",
    "Gromacs",
    "Iteration",
    "Lammps",
    "PathSection",
    "Rate",
    "Sampling",
    "System",
    "TorchSim",
    "describe_keys",
    "load",
    "validate",
]
