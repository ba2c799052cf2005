"""Structures that leave a run, and labels that come back to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import replacing
from plumed_cv.structures import cell_of, find_meant_order, has_forces, orient
from plumed_cv.structures.frame import Array, nearest_images
from plumed_cv.workflow.label_candidates import Candidates, read_positions_of

CORRECTION, TRAINING = "correction", "training"  # uses of a label
_SAME_A = 0.02  # a label is at the positions of its snapshot


def make_structure(initial: Atoms, positions: Array, row: dict[str, Any]) -> Atoms:
    """Return a structure to be written."""
    atoms = initial.copy()
    atoms.calc = None
    atoms.set_positions(positions, apply_constraint=False)
    atoms.info = {
        "label": row["name"],
        "label_xi": row["xi"],
        "label_weight": row["weight"],
        "label_use": row["use"],
    }
    return atoms  # type: ignore[no-any-return]


def write_structures(file: Path, structures: list[Atoms]) -> None:
    """Write structures as extended XYZ, with fixed atoms."""
    with replacing(file) as temporary:
        columns = ["symbols", "positions"]
        if structures[0].constraints:
            columns.append("move_mask")
        ase.io.write(temporary, structures, format="extxyz", columns=columns)


class Label(NamedTuple):
    """A structure that has come back, in the order and at the positions of its snapshot.

    Attributes
    ----------
    row
        What selection.json says of it.
    positions
        Of its snapshot, (N, 3), angstrom.
    energy_eV
        Energy of the reference.
    forces
        Forces of the reference, (N, 3), eV/angstrom.
    """

    row: dict[str, Any]
    positions: Array
    energy_eV: float
    forces: Array


def match_labels(
    file: Path,
    structures: Sequence[Atoms],
    found: Candidates,
    record: dict[str, Any],
    initial: Atoms,
) -> list[Label]:
    """Return the labels in the order of time.

    Parameters
    ----------
    file, structures
        The file that came back, and its structures.
    found
        The candidates.
    record
        The contents of selection.json.
    initial
        The initial state of the run.

    Raises
    ------
    UserError
        If a structure was not chosen, has other atoms, another cell, or no energy and forces, or if
        two are the same snapshot. A structure without the name of its snapshot is found by its
        positions.
    """
    rows = {row["name"]: row for row in record["labels"]}
    names = list(rows)
    places = np.array(read_positions_of(found, list(rows.values())))
    labels: dict[str, Label] = {}
    numbers: dict[str, int] = {}
    for k, atoms in enumerate(structures):
        where = f"{file}: structure {k + 1}"
        if not has_forces(atoms):
            raise UserError(f"{where} has no energy and forces; leave it out, or compute it.")
        try:
            turned = orient(atoms)
        except UserError as error:
            raise UserError(f"{where}: {error}.") from None
        if sorted(turned.symbols) != sorted(initial.symbols):
            raise UserError(f"{where} has other atoms than the run; leave it out.")
        if not np.allclose(cell_of(turned), cell_of(initial), atol=1e-3):
            raise UserError(
                f"{where} has another cell than the run; compute it in the cell that was written."
            )
        name = atoms.info.get("label")
        if name is not None and name not in rows:
            raise UserError(
                f"{where} ({name}) is not one of those that were chosen last; choose them again "
                "with the same number and seed."
            )
        options = range(len(names)) if name is None else [names.index(name)]
        by_species = [_distance(turned, initial, places[i]) for i in options]
        best = int(np.argmin([off for off, _ in by_species]))
        off, order = by_species[best]
        if off > _SAME_A:  # the atoms may have been sorted
            shuffled = [_reordered(turned, initial, places[i]) for i in options]
            best = int(np.argmin([far for far, _ in shuffled]))
            off, order = shuffled[best]
        best = options[best]
        if off > _SAME_A:
            raise UserError(
                f"{where} is no snapshot that was chosen: an atom is {off:.2g} angstrom from its "
                "position there. Compute the structures without relaxing them."
            )
        results = atoms.calc.results
        energy = float(results.get("free_energy", results["energy"]))  # what forces belong to
        if not np.isfinite(energy):
            raise UserError(f"{where} has an energy that is no number; leave it out, or repeat it.")
        if (name := names[best]) in labels:
            raise UserError(
                f"{where} is the same snapshot ({name}) as structure {numbers[name]}; leave one of "
                "them out."
            )
        numbers[name] = k + 1
        labels[name] = Label(
            rows[name],
            places[best],
            energy,
            np.asarray(turned.calc.results["forces"], dtype=float)[order],
        )
    rank = {name: k for k, name in enumerate(found.names)}
    return sorted(labels.values(), key=lambda label: rank[label.row["name"]])


def _distance(atoms: Atoms, initial: Atoms, places: Array) -> tuple[float, NDArray[np.int64]]:
    """Return the largest distance of an atom from its place, and the order of the atoms.

    Programs may sort atoms by element, and keep their order within each element.
    """
    order = np.arange(len(initial))
    if tuple(atoms.symbols) != tuple(initial.symbols):
        rank = np.argsort(np.argsort(initial.symbols, kind="stable"), kind="stable")
        order = np.argsort(atoms.symbols, kind="stable")[rank]
    off = nearest_images(atoms.positions[order] - places, cell_of(initial))
    return float(np.linalg.norm(off, axis=1).max()), order


def _reordered(atoms: Atoms, initial: Atoms, places: Array) -> tuple[float, NDArray[np.int64]]:
    """Return the same after the atoms of each element have been assigned to the places."""
    snapshot = initial.copy()
    snapshot.set_constraint()
    snapshot.positions = places
    first = _distance(atoms, initial, places)[1]
    order = first[find_meant_order(snapshot, atoms[first])]
    off = nearest_images(atoms.positions[order] - places, cell_of(initial))
    return float(np.linalg.norm(off, axis=1).max()), order
