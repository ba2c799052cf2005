"""Minima and saddle points, and the Hessians there, from the forces of an engine.

Lengths are in angstrom, energies in eV. N is the number of atoms, F of free atoms.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import replacing
from plumed_cv.engines import Engine
from plumed_cv.paths.path import EnergyPath
from plumed_cv.rates.harmonic import Expansion
from plumed_cv.structures.frame import Array

STEP_A = 0.001  # displacement for the differences; anharmonic potentials need a small one
LARGEST_FORCE_EV_A = 1e-4  # largest force on an atom at a stationary point
COORDINATES = 16  # coordinates displaced in one call of the engine; each call updates the file
MOST_HESSIANS = 5  # Hessians computed in the search for a stationary point
MOST_STEPS = 10  # Newton steps with one Hessian
LONGEST_STEP_A = 0.1  # largest displacement of an atom in one step
LARGEST_MOVE_A = 0.5  # largest distance of an atom between the highest image and the saddle point


def compute_hessian(
    engine: Engine,
    positions: Array,
    cell: Array,
    step_A: float = STEP_A,
    update: Callable[[int], None] = lambda done: None,
    file: Path | None = None,
    free: NDArray[np.int64] | None = None,
) -> tuple[Array, float]:
    """Compute the Hessian by central differences of forces.

    Parameters
    ----------
    engine
        Computes forces.
    positions, cell
        The structure, shapes (N, 3) and (3, 3), angstrom.
    step_A
        Displacement of a coordinate in each direction, angstrom.
    update
        Is called with the number of coordinates done, out of 3F.
    file
        Stores finished coordinates (.npz). A file of the same structure, cell, step and free atoms
        is continued; the potential must be the same.
    free
        Atoms that move, from 0, shape (F,); if None, all.

    Returns
    -------
    (3F, 3F), float
        The symmetric part; the root mean square of the antisymmetric part, eV/angstrom^2.
    """
    own = np.arange(positions.size)
    if free is not None:
        own = (3 * free[:, None] + np.arange(3)).ravel()
    rows = np.zeros((0, len(own)))
    if file is not None:
        rows = _rows_of(file, positions, cell, step_A, own)
    while len(rows) < len(own):
        update(len(rows))
        chosen = own[len(rows) : len(rows) + COORDINATES]
        structures = np.repeat(positions[None], 2 * len(chosen), axis=0)
        flat = structures.reshape(len(chosen), 2, -1)
        flat[np.arange(len(chosen)), 0, chosen] += step_A
        flat[np.arange(len(chosen)), 1, chosen] -= step_A
        forces = engine.forces(structures, cell).reshape(flat.shape)[..., own]
        rows = np.concatenate([rows, (forces[:, 1] - forces[:, 0]) / (2.0 * step_A)])
        if file is not None:
            with replacing(file) as temporary, temporary.open("wb") as stream:
                np.savez(
                    stream,
                    positions=positions,
                    cell=cell,
                    step_A=step_A,
                    coordinates=own,
                    rows=rows,
                )
    update(len(rows))
    off = 0.5 * (rows - rows.T)
    return 0.5 * (rows + rows.T), float(np.sqrt(np.mean(off**2)))


def find_stationary_point(
    engine: Engine,
    positions: Array,
    cell: Array,
    uphill: Array | None = None,
    *,
    step_A: float = STEP_A,
    update: Callable[[int, str], None] = lambda done, note: None,
    folder: Path | None = None,
) -> Expansion:
    """Find the minimum or first-order saddle point near a structure, and expand there.

    This is Newton's method with finite-difference Hessians. For a saddle point it goes up along one
    mode and down along all others.

    Parameters
    ----------
    engine
        Computes energies and forces.
    positions, cell
        The structure, shapes (N, 3) and (3, 3), angstrom.
    uphill
        For a saddle point: the direction of the path there, shape (N, 3). For a minimum: None.
    step_A
        As for `compute_hessian`.
    update
        Is called with the number of coordinates done and the name of the Hessian.
    folder
        Existing folder that stores Hessians, also unfinished ones; if None, nothing is stored.

    Raises
    ------
    UserError
        If none is found nearby: forces stay above `LARGEST_FORCE_EV_A`, or the number of unstable
        modes is wrong.
    """
    kind = "minimum" if uphill is None else "saddle point"
    periodic = bool(np.any(cell))
    free = None
    if len(engine.held):
        free = np.setdiff1d(np.arange(len(positions)), engine.held)
    best, force = positions, np.inf
    for number in range(1, MOST_HESSIANS + 1):
        file = None if folder is None else folder / f"hessian-{kind.split()[0]}-{number}.npz"
        centre = best if file is None else _kept_centre(file, best, cell)
        H, asymmetry = compute_hessian(
            engine,
            centre,
            cell,
            step_A,
            lambda done, number=number: update(done, f"{kind}, Hessian {number}"),  # type: ignore[misc]
            file,
            free,
        )
        found = Expansion(0.0, centre, H, periodic, asymmetry, free)
        best, energy, force = _follow(engine, found, cell, uphill)
        if np.linalg.norm(best - centre, axis=1).max() < step_A and force < LARGEST_FORCE_EV_A:
            break
    values = found.modes()[0]
    unstable = int(np.count_nonzero(values < 0.0))
    if force >= LARGEST_FORCE_EV_A:
        raise UserError(
            f"No {kind} was found: after {MOST_HESSIANS} Hessians the largest force on an atom is "
            f"{force:.2g} eV/A ({LARGEST_FORCE_EV_A:g} at most). Converge the path to less "
            "(path.fmax_eV_A), or check whether the forces are smooth."
        )
    if unstable != (0 if uphill is None else 1):
        if uphill is None:
            remedy = "the end state of the path is not a minimum."
        elif unstable == 0:
            remedy = "use more images (path.images), so that one is near the highest point."
        else:
            remedy = (
                "the path runs along a ridge between lower saddle points. Give a path (path.file) "
                "whose middle images are displaced by about 0.1 A to one side of the ridge."
            )
        raise UserError(
            f"No {kind} was found: the stationary point there has {unstable} unstable modes "
            f"(lowest curvature {values[0]:.3g} eV/A^2); {remedy}"
        )
    return Expansion(energy, best, H, periodic, asymmetry, free)


def find_saddle(
    engine: Engine,
    path: EnergyPath,
    *,
    step_A: float = STEP_A,
    update: Callable[[int, str], None] = lambda done, note: None,
    folder: Path | None = None,
) -> Expansion:
    """Find the saddle point near the highest image of a path, and expand there.

    Parameters
    ----------
    engine, step_A, update, folder
        As for `find_stationary_point`.
    path
        The path.

    Raises
    ------
    UserError
        As for `find_stationary_point`. Also if the highest image is an end of the path, or if the
        saddle point is more than `LARGEST_MOVE_A` away and therefore a different one.
    """
    top = int(path.energies.argmax())
    if top in (0, len(path.images) - 1):
        raise UserError(
            f"{path.name}: the highest image is an end, so there is no saddle point between the "
            "end states; choose two minima with a barrier between them."
        )
    tangent = path.spline.derivative()(path.arc_length[top])
    highest = path.images[top].positions
    found = find_stationary_point(
        engine, highest, path.cell, tangent, step_A=step_A, update=update, folder=folder
    )
    moved = float(np.linalg.norm(found.positions - highest, axis=1).max())
    if moved > LARGEST_MOVE_A:
        raise UserError(
            f"{path.name}: the saddle point nearest to the highest image has an atom {moved:.2f} A "
            "away from its place in the image, so it is not the saddle point of this path. "
            "Converge the path further (path.fmax_eV_A, path.images)."
        )
    return found


def _follow(
    engine: Engine, around: Expansion, cell: Array, uphill: Array | None
) -> tuple[Array, float, float]:
    """Take Newton steps with one Hessian; return the best positions, energy, largest force."""
    values, modes = around.modes()
    chosen = slice(None) if around.free is None else around.free
    signs = np.ones(len(values))
    if uphill is not None:
        overlap = np.abs(modes.T @ uphill[chosen].ravel())
        if (values < 0.0).any():
            overlap[values >= 0.0] = -1.0
        signs[overlap.argmax()] = -1.0
    positions = around.positions
    best: tuple[Array, float, float] | None = None
    for _ in range(MOST_STEPS):
        energy, forces, _ = engine.evaluate(positions, cell)
        own = forces[chosen]
        if around.free is None:
            own = own - own.mean(axis=0)
        largest = float(np.linalg.norm(own, axis=1).max())
        if best is None or largest < best[2]:
            best = positions, energy, largest
        elif largest > 2.0 * best[2]:
            break
        step = modes @ (signs * (modes.T @ own.ravel()) / np.abs(values))
        step = step.reshape(-1, 3)
        step *= min(1.0, LONGEST_STEP_A / np.linalg.norm(step, axis=1).max(initial=1e-12))
        positions = positions.copy()
        positions[chosen] += step
    assert best is not None
    return best


def _kept_centre(file: Path, positions: Array, cell: Array) -> Array:
    """Return the structure of a stored Hessian if it equals the given one up to rounding."""
    kept = _load(file)
    if kept is not None and kept["positions"].shape == positions.shape:
        own: Array = kept["positions"]
        if np.abs(own - positions).max() < 1e-5 and np.array_equal(kept["cell"], cell):
            return own
    return positions


def _rows_of(
    file: Path, positions: Array, cell: Array, step_A: float, coordinates: NDArray[np.int64]
) -> Array:
    """Return the rows of this structure's Hessian that a file contains."""
    kept = _load(file)
    if (
        kept is not None
        and np.array_equal(kept["positions"], positions)
        and np.array_equal(kept["cell"], cell)
        and float(kept["step_A"]) == step_A
        and np.array_equal(kept["coordinates"], coordinates)
    ):
        return kept["rows"]
    return np.zeros((0, len(coordinates)))


def _load(file: Path) -> dict[str, NDArray[Any]] | None:
    names = ("positions", "cell", "step_A", "coordinates", "rows")
    try:
        with np.load(file) as content:
            return {name: content[name] for name in names}
    except Exception:  # missing, damaged or of an earlier version: it is computed again
        return None
