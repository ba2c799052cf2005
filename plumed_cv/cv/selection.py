"""The atoms on which a collective variable of a solid depends, from its minimum energy path.

A process moves a few atoms far, their neighbours less, and the rest of the crystal hardly at all. A
variable of the first two is sufficient. With fewer atoms its isosurfaces are tilted against those
of all atoms, which lowers the flux barrier by about kT/2 times the share of the motion over the
barrier that the variable does not see. Lengths are in angstrom. K images of N atoms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.cv import localisation, symmetry
from plumed_cv.cv.projection import select
from plumed_cv.cv.symmetry import Operation
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures.frame import Array
from plumed_cv.structures.neighbours import Neighbours, nearest_distance

SHARE = 0.98  # least share of the motion over the barriers that "auto" chooses
_FARTHEST = 0.5  # atoms that move by this fraction of the longest displacement have a shell
_SHELL = 1.3  # radius of the shell, in distances of nearest neighbours: two shells of a bcc crystal
_ALMOST_ALL = 0.8  # a larger fraction of the atoms is as good as all of them
_EQUAL = 0.02  # relative difference of the motion of atoms that are equal by symmetry
_SAMPLES = 1000  # number of atoms whose nearest neighbours give the distance


@dataclass(frozen=True)
class Selection:
    """Atoms of a collective variable.

    Parameters
    ----------
    serials
        PLUMED's serial numbers, from 1, in increasing order, shape (n,).
    rule
        How they were chosen, in words.
    share
        Share of the motion over the highest barrier of the path that they carry, 0 to 1: the square
        of the projection of the path's tangent on them, without their drift.
    """

    serials: NDArray[np.int64]
    rule: str
    share: float


def choose_atoms(path: EnergyPath, atoms: str | float) -> Selection:
    """Choose the atoms of the collective variable of a path.

    Parameters
    ----------
    path
        The minimum energy path of all atoms, with energies.
    atoms
        "auto", "all", "heavy", a radius in angstrom, or serial numbers: as `cv.atoms` in the input.

    Raises
    ------
    UserError
        If a fixed atom or an atom that does not exist is chosen, or fewer than three atoms, or
        atoms that do not move along the path.
    """
    free = np.setdiff1d(np.arange(len(path.species)), path.held)
    moved = localisation.motion(path)
    if atoms == "auto":
        chosen, rule = _automatic(path, moved, free)
    elif isinstance(atoms, str):
        chosen, rule = select(atoms, path.species, path.held) - 1, f"cv.atoms = {atoms!r}"
    else:
        rule = f"those within {atoms:g} A of the atoms that move most along the path"
        chosen = np.intersect1d(_around(path, _farthest(moved, free), atoms), free)
        chosen = np.intersect1d(
            symmetry.close_under(chosen, symmetry.find_path_operations(path)), free
        )
    share = min(_shares(path, chosen))
    if len(chosen) < 3 or not share > 0.05:
        raise UserError(
            f"cv.atoms = {atoms!r}: these {len(chosen)} atoms carry {100 * share:.0f} % of the "
            "motion over the barrier, so they do not describe the process; give more atoms, or "
            "remove the key."
        )
    return Selection(np.sort(chosen) + 1, rule, share)


def describe_choice(record: dict[str, Any], n_atoms: int) -> str:
    """Return a sentence about the choice: `serials`, `rule` and `share_of_motion`, of N atoms."""
    return (
        f"The CV depends on {len(record['serials'])} of {n_atoms} atoms: {record['rule']}. They "
        f"carry {100 * record['share_of_motion']:.1f} % of the motion over the barrier."
    )


def _automatic(
    path: EnergyPath, moved: Array, free: NDArray[np.int64]
) -> tuple[NDArray[np.int64], str]:
    """Return the fewest atoms that are sufficient, and the rule in words."""
    operations = symmetry.find_path_operations(path)
    shell = _SHELL * _nearest(path)
    chosen = _around(path, _farthest(moved, free), shell)
    chosen = np.intersect1d(symmetry.close_under(chosen, operations), free)
    rule = f"the atoms that move most along the path and those within {shell:.1f} A of them"
    if min(_shares(path, chosen)) < SHARE:
        chosen = _with_more(path, chosen, moved, free, operations)
        rule += f", and as many others as carry {100 * SHARE:g} % of the motion over the barrier"
    if len(chosen) > _ALMOST_ALL * len(free):
        return free, "all atoms, because most of them take part"
    return chosen, rule


def _with_more(
    path: EnergyPath,
    first: NDArray[np.int64],
    moved: Array,
    free: NDArray[np.int64],
    operations: Sequence[Operation],
) -> NDArray[np.int64]:
    """Add the fewest other atoms, in the order of their motion, for a share of `SHARE`."""
    others = np.setdiff1d(free, first)
    others = others[np.argsort(-moved[others], kind="stable")]

    def chosen(n: int) -> NDArray[np.int64]:
        last = moved[others[n - 1]]
        equal = int(np.sum(moved[others] >= (1.0 - _EQUAL) * last))
        return np.intersect1d(
            symmetry.close_under(np.concatenate([first, others[:equal]]), operations), free
        )

    low, high = 0, len(others)  # too few, sufficient
    while high - low > 1:
        middle = (low + high) // 2
        if min(_shares(path, chosen(middle))) < SHARE:
            low = middle
        else:
            high = middle
    return chosen(high) if high else first


def _farthest(moved: Array, free: NDArray[np.int64]) -> NDArray[np.int64]:
    """Atoms that move at least by `_FARTHEST` of the longest displacement."""
    return np.asarray(free[moved[free] >= _FARTHEST**2 * moved[free].max()])


def _shares(path: EnergyPath, chosen: NDArray[np.int64]) -> list[float]:
    """Share of the motion that some atoms carry, at each maximum of the energy along the path."""
    curve, energies = path.curve, path.energies
    tops = [
        k
        for k in range(1, len(energies) - 1)
        if energies[k] > energies[k - 1] and energies[k] >= energies[k + 1]
    ] or [int(energies.argmax())]
    # Small humps on the way do not matter.
    tops = [k for k in tops if energies[k] > 0.5 * energies.max()] or tops
    found = []
    for top in tops:
        weights = curve.slopes[curve.at_images[top]]
        tangent = np.tensordot(weights, path.displacements, axes=1)
        own = tangent[chosen]
        if path.drift == "removed":
            own = own - own.mean(axis=0)
        found.append(float(np.sum(own**2) / np.sum(tangent**2)))
    return found


def _around(path: EnergyPath, centres: NDArray[np.int64], radius: float) -> NDArray[np.int64]:
    """Atoms within a radius of some atoms at both ends of the path or at its highest image."""
    tops = (0, int(path.energies.argmax()), len(path.images) - 1)
    found = [centres]
    for image in (path.images[top] for top in tops):
        found.append(Neighbours(image.positions, path.cell, radius).of(image.positions[centres]))
    return np.unique(np.concatenate(found))


def _nearest(path: EnergyPath) -> float:
    """Median distance of an atom to its nearest neighbour in the initial state, angstrom."""
    positions = path.images[0].positions
    some = positions[:: max(1, len(positions) // _SAMPLES)]
    return nearest_distance(positions, path.cell, some)
