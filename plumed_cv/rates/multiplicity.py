"""How many events the symmetry of the initial state makes out of one.

The operations of the space group of the initial state, with translations within the cell, map it
onto itself and the event onto events of the same rate: a vacancy in a bcc crystal has eight of them
(twelve in fcc), one for each neighbour. An event is the displacement of every atom from the initial
to the final state; events are the same if all of these are.
"""

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.geometry import minkowski_reduce

from plumed_cv.common.errors import UserError
from plumed_cv.cv import symmetry
from plumed_cv.engines import Engine
from plumed_cv.structures import cell_of
from plumed_cv.structures.frame import Array, displacements

MOST_ENERGIES = 12
ENERGY_EV = 2e-3  # structures relaxed to 1e-3 eV/A are within it


@dataclass(frozen=True)
class Multiplicity:
    """Symmetry-equivalent events.

    Attributes
    ----------
    steps
        Displacements from the initial to the final state of each event, the given one first; shape
        (number of events, N, 3), angstrom.
    operations
        Number of operations that map the initial state onto itself.
    tolerance_A
        How far an atom may lie from where another one was mapped, angstrom.
    """

    steps: Array
    operations: int
    tolerance_A: float

    @property
    def events(self) -> int:
        """How many there are."""
        return len(self.steps)


def multiplicity(
    initial: Atoms, final: Atoms, tolerance_A: float = symmetry.TOLERANCE_A
) -> Multiplicity:
    """Count the events from the initial state that are images of the one to the final state.

    Parameters
    ----------
    initial, final
        The relaxed end states: the same atoms in the same order, with a cell.
    tolerance_A
        How far an atom may lie from where another one was mapped, angstrom. Structures relaxed to
        1e-3 eV/angstrom are symmetric within a hundredth of it.

    Returns
    -------
    Multiplicity
        Of the cell as it is: where it has less symmetry than the crystal, so does the number.

    Raises
    ------
    UserError
        If there is no cell, or it depends on the tolerance which events are the same.
    """
    cell = cell_of(initial)
    if not cell.any():
        raise UserError(
            "The number of equivalent events is found for periodic structures; count those of a "
            "molecule by hand."
        )
    cell = minkowski_reduce(cell)[0]  # where rounding gives the nearest image
    species = initial.get_chemical_symbols()
    step = displacements(final.positions, cell, initial.positions, cell)
    operations = symmetry.of_structure(species, initial.positions, cell, tolerance_A)
    limit = min(2.0 * tolerance_A, 0.5 * float(np.linalg.norm(step, axis=1).max()))
    left = np.stack([operation.turn(step) for operation in operations])
    events, sizes = [], []  # how many operations lead to each
    while len(left):
        same = np.linalg.norm(left - left[0], axis=2).max(axis=1) < limit
        events.append(left[0])
        sizes.append(int(same.sum()))
        left = left[~same]
    if len(set(sizes)) > 1:
        raise UserError(
            f"The symmetry of the initial state depends on the tolerance of {tolerance_A:g} A: of "
            f"its {len(operations)} operations {min(sizes)} lead to one image of the event and "
            f"{max(sizes)} to another; relax the end states to less (path.fmax_eV_A)."
        )
    return Multiplicity(np.array(events), len(operations), tolerance_A)


def check_energies(engine: Engine, initial: Atoms, found: Multiplicity) -> None:
    """Refuse events whose final states have different energies, as in an external field.

    Parameters
    ----------
    engine
        Computes energies.
    initial
        The initial state.
    found
        The events from it; of many, a dozen are looked at.

    Raises
    ------
    UserError
        If the energies differ by more than `ENERGY_EV`.
    """
    chosen = found.steps[:: max(1, len(found.steps) // MOST_ENERGIES)][:MOST_ENERGIES]
    cell = cell_of(initial)
    energies = [engine.evaluate(initial.positions + step, cell)[0] for step in chosen]
    if max(energies) - min(energies) > ENERGY_EV:
        raise UserError(
            f"By the symmetry of the initial state there are {found.events} events, but the "
            f"energies of their final states differ by {max(energies) - min(energies):.3g} eV: the "
            "potential has less symmetry than the structure, or the tolerance of "
            f"{found.tolerance_A:g} A is too large."
        )
