"""Number of events that are equivalent by the symmetry of the initial state.

The operations of the space group of the initial state, including translations within the cell, map
the state onto itself and an event onto events with the same rate. A vacancy in a bcc crystal has
eight such events (twelve in fcc), one for each nearest neighbour. An event is described by the
displacement of every atom from the initial to the final state. Two events are the same if all these
displacements are equal.
"""

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from plumed_cv.common.errors import UserError
from plumed_cv.cv import symmetry
from plumed_cv.engines import Engine
from plumed_cv.structures import cell_of, drift_of, held_atoms, kinds_of
from plumed_cv.structures.frame import Array, displacements

MOST_ENERGIES = 12
ENERGY_EV = 2e-3  # largest energy difference of equivalent structures relaxed to 1e-3 eV/A


@dataclass(frozen=True)
class Multiplicity:
    """Symmetry-equivalent events.

    Attributes
    ----------
    steps
        Displacements from the initial to the final state of each event, shape (number of events, N,
        3), angstrom. The given event is first.
    operations
        Number of operations that map the initial state onto itself.
    tolerance_A
        Largest distance of an atom from the mapped position of another one, angstrom.
    """

    steps: Array
    operations: int
    tolerance_A: float

    @property
    def events(self) -> int:
        """The number of equivalent events."""
        return len(self.steps)


def count_equivalent_events(
    initial: Atoms, final: Atoms, tolerance_A: float = symmetry.TOLERANCE_A
) -> Multiplicity:
    """Count the events that are images of the one from `initial` to `final`.

    Parameters
    ----------
    initial, final
        The relaxed end states: the same atoms in the same order, with a cell.
    tolerance_A
        Largest distance of an atom from the mapped position of another one, angstrom. Structures
        relaxed to 1e-3 eV/angstrom are symmetric to a hundredth of the default.

    Returns
    -------
    Multiplicity
        For the given cell: if the cell has less symmetry than the crystal, the number is smaller.

    Raises
    ------
    UserError
        If there is no cell, or if the tolerance decides which events are the same.
    """
    cell = cell_of(initial)
    if not cell.any():
        raise UserError(
            "The number of equivalent events can be determined only for periodic structures. For a "
            "molecule, count the events by hand."
        )
    step = displacements(final.positions, cell, initial.positions, cell, drift_of(initial))
    operations = symmetry.find_space_group(
        kinds_of(initial), initial.positions, cell, tolerance_A, held_atoms(initial)
    )
    limit = min(2.0 * tolerance_A, 0.5 * float(np.linalg.norm(step, axis=1).max()))
    left = np.stack([operation.turn(step) for operation in operations])
    events, sizes = [], []  # sizes: number of operations that lead to each event
    while len(left):
        same = np.linalg.norm(left - left[0], axis=2).max(axis=1) < limit
        events.append(left[0])
        sizes.append(int(same.sum()))
        left = left[~same]
    if len(set(sizes)) > 1:
        raise UserError(
            f"The symmetry of the initial state depends on the tolerance of {tolerance_A:g} A: of "
            f"{len(operations)} operations, {min(sizes)} lead to one image of the event and "
            f"{max(sizes)} to another. Relax the end states further (path.fmax_eV_A)."
        )
    return Multiplicity(np.array(events), len(operations), tolerance_A)


def find_saddle_points(
    initial: Atoms, final: Atoms, saddle: Array, tolerance_A: float = symmetry.TOLERANCE_A
) -> Array:
    """Find the saddle points between two states that their symmetry makes out of one.

    A saddle point beside a mirror plane of the process has an equal one on the other side.

    Parameters
    ----------
    initial, final, tolerance_A
        As for `count_equivalent_events`.
    saddle
        Positions at the saddle point, (N, 3), angstrom.

    Returns
    -------
    Array
        Displacements from the initial state to each, shape (number, N, 3), angstrom. The given one
        is first, and the only one without a cell.

    Raises
    ------
    UserError
        If the initial state is a perfect crystal with too many operations.
    """
    cell, drift = cell_of(initial), drift_of(initial)
    step, top = (
        displacements(positions, cell, initial.positions, cell, drift)
        for positions in (final.positions, saddle)
    )
    found: list[Array] = [top]
    if not cell.any():
        return np.stack(found)
    operations = symmetry.find_space_group(
        kinds_of(initial), initial.positions, cell, tolerance_A, held_atoms(initial)
    )
    limit = min(2.0 * tolerance_A, 0.5 * float(np.linalg.norm(step, axis=1).max()))
    for operation in operations:
        if _apart(operation.turn(step), step) < limit:  # it keeps both states
            image = operation.turn(top)
            if all(_apart(image, other) >= limit for other in found):
                found.append(image)
    return np.stack(found)


def _apart(u: Array, other: Array) -> float:
    """Largest distance of an atom between two structures, angstrom."""
    return float(np.linalg.norm(u - other, axis=1).max())


def check_energies(engine: Engine, initial: Atoms, found: Multiplicity) -> None:
    """Refuse events whose final states differ in energy, for example in an external field.

    Parameters
    ----------
    engine
        Computes energies.
    initial
        The initial state.
    found
        The events from it. If there are many, only a dozen are checked.

    Raises
    ------
    UserError
        If the energies differ by more than `ENERGY_EV`.
    """
    chosen = found.steps[:: max(1, len(found.steps) // MOST_ENERGIES)][:MOST_ENERGIES]
    cell = cell_of(initial)
    energies, _ = engine.evaluate_all(initial.positions + chosen, cell)
    if max(energies) - min(energies) > ENERGY_EV:
        raise UserError(
            f"By the symmetry of the initial state there are {found.events} equivalent events, but "
            f"the energies of their final states differ by {max(energies) - min(energies):.3g} eV: "
            "the potential has less symmetry than the structure, or the tolerance of "
            f"{found.tolerance_A:g} A is too large. Relax the end states further (path.fmax_eV_A), "
            "or count the events by hand."
        )
