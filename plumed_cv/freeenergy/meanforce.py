"""The mean force along a collective variable from the forces on the atoms of snapshots.

The derivative of the free energy is an average over the structures with one value of the variable,

    A'(xi) = < -f . w - kT div w >_xi,   w = grad xi / |grad xi|^2,

with the forces f of the potential alone (den Otter, J. Chem. Phys. 112, 7283 (2000)). A bias along
xi does not change such an average. Snapshots of any biased run can therefore be used, as long as
the other coordinates are in equilibrium. A histogram of the same run is accurate only after the
variable has diffused back and forth. The forces give the slope in every snapshot, without the noise
of the thermostat, and therefore a smaller error from the same steps (docs/theory.md).

Lengths are in angstrom, energies and forces along xi (which has no unit) in eV. M structures of N
atoms.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import replacing
from plumed_cv.common.tables import read_table
from plumed_cv.cv import CollectiveVariable
from plumed_cv.structures.frame import Array

_FIELDS = ["xi", "mean_force_eV"]


def is_known(variable: CollectiveVariable) -> bool:
    """Whether the mean force can be computed: one latent dimension, no alignment, no kinks."""
    return variable.n_latent == 1 and not variable.is_aligned and variable.has_curvature


def compute_instantaneous(
    variable: CollectiveVariable,
    displacements: NDArray[Any],
    forces: NDArray[Any],
    kT_eV: float,
) -> tuple[Array, Array]:
    """The variable and the term of its mean force for each structure.

    Parameters
    ----------
    variable
        The collective variable.
    displacements
        Displacement-frame coordinates, shape (M, N, 3), angstrom.
    forces
        Forces of the potential, without any bias, shape (M, N, 3), eV/angstrom.
    kT_eV
        Temperature of the run, eV.

    Returns
    -------
    (M,), (M,)
        xi, and -f . w - kT div w, eV.

    Raises
    ------
    UserError
        If `is_known` is false, or shapes do not fit.
    """
    if not is_known(variable):
        raise UserError(
            f"{variable}: the mean force from forces on atoms needs one latent dimension, no "
            "alignment, and an activation other than relu."
        )
    displacements, forces = np.asarray(displacements), np.asarray(forces, dtype=np.float64)
    if displacements.shape != forces.shape or forces.shape[1:] != (variable.n_atoms, 3):
        raise UserError(
            f"displacements of shape {displacements.shape} and forces of shape {forces.shape}: "
            f"both must be (M, {variable.n_atoms}, 3)."
        )
    x = variable.components(displacements)
    gradient = variable.encoder_jacobian(x)[:, 0]
    pull = forces.reshape(-1, 3 * variable.n_atoms) @ variable.pca_components.T  # (M, D)
    along = np.sum(pull * gradient, axis=1) / np.sum(gradient**2, axis=1)
    return variable.encode(x)[:, 0], -along - kT_eV * variable.flow_divergence(x)


def compute_forces(
    variable: CollectiveVariable,
    file: Path,
    cell: Array,
    forces: Callable[[Array, Array], Array],
) -> tuple[Array, Array]:
    """Positions of the atoms of a variable in the snapshots of a run, and the forces on them.

    Parameters
    ----------
    variable
        The collective variable, of all atoms of the trajectory or some of them.
    file
        Trajectory of all atoms (DCD).
    cell
        Lattice vectors as rows, shape (3, 3), angstrom.
    forces
        Returns the forces of structures of all atoms in a cell, like `Engine.forces`.

    Returns
    -------
    (M, N, 3), (M, N, 3)
        Angstrom, eV/angstrom.

    Raises
    ------
    UserError
        As for `trajectory.iterate_positions`.
    """
    from plumed_cv.structures.trajectory import iterate_positions  # imports mdtraj: a second

    chosen = variable.serials - 1
    places, pulls = [], []
    for positions in iterate_positions(file):
        places.append(positions[:, chosen])
        pulls.append(forces(positions, cell)[:, chosen])
    return np.concatenate(places), np.concatenate(pulls)


def read_instantaneous(
    variable: CollectiveVariable, file: Path, cell: Array, kT_eV: float
) -> tuple[Array, Array]:
    """Return the result of `compute_instantaneous` for the file of `write_atoms`, at constant cell.

    Parameters
    ----------
    variable
        A collective variable of these atoms.
    file
        The file.
    cell
        Lattice vectors as rows, shape (3, 3), angstrom.
    kT_eV
        Temperature of the run, eV.

    Raises
    ------
    UserError
        As for `read_atoms` and `compute_instantaneous`.
    """
    positions, forces = read_atoms(file, variable.n_atoms)
    return compute_instantaneous(variable, variable.displacements(positions, cell), forces, kT_eV)


def write_atoms(file: Path, positions: Array, forces: Array) -> None:
    """Write positions and forces, (M, N, 3) each, in single precision."""
    with replacing(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, positions=positions.astype(np.float32), forces=forces.astype(np.float32))


def read_atoms(file: Path, n_atoms: int) -> tuple[Array, Array]:
    """Read positions (angstrom) and forces (eV/angstrom), (M, N, 3) each, of `write_atoms`.

    Raises
    ------
    UserError
        If the file is missing, damaged, or of another number of atoms.
    """
    try:
        with np.load(file) as content:
            found = [content[name].astype(np.float64) for name in ("positions", "forces")]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: cannot be read ({error}).") from None
    for array in found:
        if array.shape[1:] != (n_atoms, 3) or not np.isfinite(array).all():
            raise UserError(
                f"{file}: has values of shape {array.shape}, or some that are not numbers, but the "
                f"CV has {n_atoms} atoms."
            )
    return found[0], found[1]


def write(path: Path, xi: Array, mean_force: Array) -> None:
    """Write the result of `compute_instantaneous` as a table in PLUMED's format, all digits."""
    with replacing(path) as temporary:
        header = " ".join(["#! FIELDS", *_FIELDS])
        table = np.array([xi, mean_force]).T
        np.savetxt(temporary, table, fmt="%.17g", header=header, comments="")


def read(path: Path) -> tuple[Array, Array]:
    """Read a file written by `write`.

    Raises
    ------
    UserError
        If the file is missing, damaged or of another kind.
    """
    table = read_table(path)
    if table.fields != _FIELDS:
        raise UserError(
            f"{path}: is not a table of mean forces with the columns {' '.join(_FIELDS)}."
        )
    xi, mean_force = table.rows.T
    if not (np.isfinite(xi).all() and np.isfinite(mean_force).all()):
        raise UserError(f"{path}: contains a value that is not a number.")
    return xi, mean_force
