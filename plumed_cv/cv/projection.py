"""The linear collective variable, and the choice of atoms on which a variable depends."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.cv.collective_variable import CollectiveVariable
from plumed_cv.cv.network import Layer
from plumed_cv.structures.frame import (
    Drift,
    align,
    displacements,
    make_whole,
)

# A choice of atoms, see `select`.
Chosen = str | Sequence[int] | NDArray[np.int64]


def linear(
    species: Sequence[str],
    cell: NDArray[Any],
    initial: NDArray[Any],
    final: NDArray[Any],
    alignment: str = "none",
    atoms: Chosen = "all",
    drift: Drift = "removed",
) -> CollectiveVariable:
    """Return the projection on the line between two end states, step 0 of Sec. 2.4.

    Parameters
    ----------
    species
        Chemical symbols of all atoms.
    cell
        Lattice vectors as rows, shape (3, 3), angstrom; zero along directions without periodicity.
    initial, final
        Positions of all atoms in the end states q0 and q1, shape (M, 3), angstrom.
    alignment
        "none" for solids, "optimal" for molecules, which rotate.
    atoms
        Atoms on which it depends, as for `select`.
    drift
        As for `CollectiveVariable`.

    Raises
    ------
    UserError
        If the end states have different atoms or are the same structure in the selected atoms, and
        as for `select`.
    """
    serials = select(atoms, species)
    cell = np.asarray(cell, dtype=np.float64)
    initial, final = (np.asarray(end, dtype=np.float64) for end in (initial, final))
    if not initial.shape == final.shape == (len(species), 3):
        raise UserError(
            f"There are {len(species)} species, but positions of shapes {initial.shape} and "
            f"{final.shape}; both end states need all atoms."
        )
    initial, final = initial[serials - 1], final[serials - 1]
    if alignment == "optimal":
        if cell.any():
            initial = make_whole(initial, cell, initial)
        step, reference_cell = align(final, cell, initial)[0], np.zeros((3, 3))
    else:
        step, reference_cell = displacements(final, cell, initial, cell, drift), cell
    length = float(np.linalg.norm(step))
    if length < 1e-3:
        raise UserError(
            "The initial and final states are the same structure, so there is no path; give two "
            "different minima."
        )
    one, zero = np.ones((1, 1)), np.zeros(1)
    return CollectiveVariable(
        serials=serials,
        species=tuple(species[serial - 1] for serial in serials),
        reference_positions=initial,
        reference_cell=reference_cell,
        pca_mean=np.zeros(step.size),
        pca_components=step.reshape(1, -1) / length,
        encoder=(Layer(one, zero),),
        decoder=(Layer(one, zero),),
        activation="relu",
        latent_shift=zero,
        latent_scale=np.array([1.0 / length]),
        end_displacements=np.stack([np.zeros_like(step), step]),
        kind="linear",
        alignment=alignment,
        drift=drift,
    )


def select(
    selection: Chosen, species: Sequence[str], held: NDArray[np.int64] | Sequence[int] = ()
) -> NDArray[np.int64]:
    """PLUMED's serial numbers, from 1, of the selected atoms.

    Parameters
    ----------
    selection
        "all", "heavy" (no hydrogen), or serial numbers: as text with ranges as in PLUMED
        ("1-10,15"), or as integers, shape (N,), such as `CollectiveVariable.serials`.
    species
        Chemical symbols of all atoms.
    held
        Fixed atoms, from 0, which are not part of "all" and "heavy".

    Raises
    ------
    UserError
        If the selection is invalid, names atoms that do not exist or are fixed, or has fewer than
        three atoms.
    """
    every = np.setdiff1d(np.arange(len(species)), held) + 1
    if not isinstance(selection, str):
        chosen = np.asarray(selection, dtype=np.int64)
    elif selection == "all":
        return every
    elif selection == "heavy":
        chosen = every[[species[serial - 1] not in ("H", "D") for serial in every]]
    else:
        try:
            parts = [[int(end) for end in part.split("-")] for part in selection.split(",")]
        except ValueError:
            raise UserError(
                f"atoms = {selection!r}: give all, heavy, or serial numbers such as 1-10,15."
            ) from None
        if any(len(part) > 2 for part in parts):
            raise UserError(f"atoms = {selection!r}: give each atom once, and ranges such as 1-10.")
        ranges = [np.arange(part[0], part[-1] + 1) for part in parts]
        chosen = np.concatenate([np.zeros(0, dtype=np.int64), *ranges])
    if len(np.unique(chosen)) < len(chosen):
        raise UserError(f"atoms = {selection!r}: give each atom once, and ranges such as 1-10.")
    if len(chosen) < 3 or chosen.min() < 1 or chosen.max() > len(species):
        raise UserError(
            f"atoms = {selection!r}: needs at least three atoms, from 1 to {len(species)}."
        )
    if fixed := np.setdiff1d(chosen, every).tolist():
        raise UserError(f"atoms = {selection!r}: atom {fixed[0]} is fixed; leave it out.")
    return chosen.astype(np.int64)
