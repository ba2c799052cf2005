"""The model deviation: how much several potentials disagree about the forces in a structure.

It is the quantity of active learning (DP-GEN, doi:10.1016/j.cpc.2020.107206): the standard
deviation of the force on an atom over the potentials, for the atom where it is largest. Where it is
much larger than in structures like those of the training, the models extrapolate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from plumed_cv.structures.frame import Array

FILE = "model-deviation"  # in the folder of a segment, see `Watch`

# The limit as a multiple of a high quantile in the reactant, which models know best.
_FACTOR, _QUANTILE = 2.0, 0.99


def compute_deviation(forces: Array) -> float:
    """Return the model deviation of one structure, eV/angstrom.

    Parameters
    ----------
    forces
        Forces of K potentials on N atoms, shape (K, N, 3), eV/angstrom. The variance has K - 1 in
        the denominator.
    """
    variance = forces.var(axis=0, ddof=1).sum(axis=1)
    return float(variance.max() ** 0.5)


def choose_limit(in_reactant: Array) -> float:
    """Return the limit of the model deviation: twice its 99 % quantile in the reactant.

    Parameters
    ----------
    in_reactant
        Model deviation of structures in thermal equilibrium in the reactant, shape (M,).
    """
    return _FACTOR * float(np.quantile(in_reactant, _QUANTILE))


@contextmanager
def open_table(folder: Path) -> Iterator[TextIO]:
    """Open the table of a segment, in PLUMED's text format; lines are written at once."""
    with (folder / FILE).open("w", encoding="utf-8", buffering=1) as stream:
        stream.write("#! FIELDS time deviation\n")
        yield stream
