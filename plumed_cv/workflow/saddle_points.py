"""Equal saddle points of one event, and which of them the dynamics of a run has crossed.

The symmetry of both states can make several saddle points out of one, such as the two tetrahedral
sites through which an interstitial atom moves between two octahedral ones. The rate of a run is the
flux through all that its dynamics crosses. Snapshots near the dividing surface tell which.
"""

from typing import Any

import numpy as np

from plumed_cv import sampling
from plumed_cv.cv import CollectiveVariable
from plumed_cv.rates.multiplicity import find_saddle_points
from plumed_cv.structures import cell_of
from plumed_cv.structures.frame import Array
from plumed_cv.structures.trajectory import read_displacements
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.mep import read_path

NEAR = 0.05  # distance in xi from the dividing surface within which snapshots count
FEWEST = 20  # snapshots
ALL = 0.5  # all are crossed if each has this fraction of its share
ONE = 0.02  # one is crossed if the others have less than this share in all


def count_crossed(files: RunDirectory, result: dict[str, Any]) -> dict[str, Any]:
    """Count the equal saddle points of an event that the dynamics of a run has crossed.

    Parameters
    ----------
    files
        The run directory.
    result
        The contents of result.json, with `equal_saddle_points`.

    Returns
    -------
    dict
        `crossed_saddle_points` (None if it is unknown), and `multiplicity_note` if there are
        several equal saddle points.
    """
    equal = result.get("equal_saddle_points")
    if equal in (None, 1):
        return {"crossed_saddle_points": equal}
    shares = _shares(files, result)
    crossed = None if shares is None else _crossed(shares)
    words = f"The path goes over one of {equal} equal saddle points between the same states, "
    if crossed == equal:
        words += "and the dynamics crosses them all. The rate contains all."
    elif crossed == 1:
        words += (
            "and the dynamics crosses this one alone. The rate is that over one of them; the rate "
            f"of the event is {equal} times as high, and the escape rate contains this."
        )
    else:
        words += (
            "and it is unknown whether the dynamics crosses the others in equilibrium. The rate of "
            f"the event is up to {equal} times as high; raise sampling.steps."
        )
    return {"crossed_saddle_points": crossed, "multiplicity_note": words}


def factor_of(result: dict[str, Any]) -> float | None:
    """Return by how much the rate of an event is higher than the rate of a run; None if unknown."""
    equal, crossed = (result.get(f"{word}_saddle_points") for word in ("equal", "crossed"))
    if equal is None:
        return 1.0
    return None if crossed is None else float(equal / crossed)


def _crossed(shares: Array) -> int | None:
    if shares.min() >= ALL / len(shares):
        return len(shares)
    return 1 if shares[1:].sum() <= ONE else None


def _shares(files: RunDirectory, result: dict[str, Any]) -> Array | None:
    """Share of the snapshots near each saddle point, that of the path first; None if unknown."""
    surface, n = result.get("dividing_surface"), result["answer_iteration"]
    if surface is None:
        return None
    images = read_path(files).images
    top = max(images, key=lambda image: image.get_potential_energy())
    variable = CollectiveVariable.load(files.cv(n - 1))
    cell, chosen = cell_of(images[0]), variable.serials - 1
    places = find_saddle_points(images[0], images[-1], top.positions) + images[0].positions
    saddles = variable.displacements(places[:, chosen], cell)
    symbols = images[0].get_chemical_symbols()
    folder = files.iteration(n)
    counts = np.zeros(len(saddles))
    for segment in sampling.list_segments(folder):
        file = segment / "snapshots.dcd"
        if file.exists():
            u = read_displacements([file], variable, cell, species=symbols).astype(np.float64)
            xi = variable.encode(variable.components(u))[:, 0]
            near = u[np.abs(xi - surface) < NEAR]
            apart = np.linalg.norm(near[:, None] - saddles, axis=(2, 3))
            counts += np.bincount(apart.argmin(axis=1), minlength=len(saddles))
    return None if counts.sum() < FEWEST else counts / counts.sum()
