"""Snapshots beyond the limit of the model deviation, and what the limit changes in the barrier."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plumed_cv.common.files import write_text
from plumed_cv.common.numbers import energy_in_words
from plumed_cv.engines import deviation
from plumed_cv.freeenergy import perturbation, within
from plumed_cv.input_file import Config
from plumed_cv.structures.frame import Array
from plumed_cv.workflow.keys import as_json, or_none

FEWEST = 20  # snapshots in the reactant


class Compared(NamedTuple):
    """A committee, the curves of the run, and the snapshots of each segment.

    `deviations` and `names` are the model deviation (eV/angstrom) and the name of each snapshot.
    """

    committee: perturbation.Committee
    curves: perturbation.Curves
    samples: list[perturbation.Sample]
    deviations: list[Array]
    names: list[list[str]]
    walkers: Sequence[int]


def mark_snapshots(config: Config, folder: Path, found: Compared) -> dict[str, Any] | None:
    """Mark the snapshots beyond the limit of the model deviation; return what the limit changes.

    The file `marked.json` in the folder of the committee has their names with their deviations.
    None if fewer than `FEWEST` snapshots are in the reactant.
    """
    curves, basins = found.curves, found.curves.basins
    between = basins.along.order[basins.minima[0] : basins.minima[-1] + 1]
    surface = between[int(np.nanargmax(curves.F[between]))]
    xi = np.concatenate([part.xi for part in found.samples])
    every = np.concatenate(found.deviations)
    width = perturbation.WINDOW * basins.along.length
    of_reactant, of_surface = (
        every[np.abs(xi - curves.grid.nodes[node]) < width] for node in (between[0], surface)
    )
    if len(of_reactant) < FEWEST:
        return None
    limit = config.sampling.model_deviation_limit
    if isinstance(limit, str):
        limit = deviation.choose_limit(of_reactant)
    inside = [part <= limit for part in found.deviations]
    part = within.estimate_within(curves, found.samples, inside, found.walkers)
    names = [name for block in found.names for name in block]
    marked = {names[k]: float(every[k]) for k in np.flatnonzero(every > limit)}
    write_text(folder / "marked.json", json.dumps(marked, indent=1))
    outside = between[part.share[between] < 0.5]  # nan is not
    return {
        "limit": limit,
        "reactant_median": float(np.median(of_reactant)),
        "reactant_largest": float(of_reactant.max()),
        "surface_median": or_none(float(np.median(of_surface)) if len(of_surface) else np.nan),
        "marked": len(marked),
        "share_within_at_surface": or_none(float(part.share[surface])),
        "mostly_beyond_at_xi": curves.grid.nodes[[outside[0], outside[-1]]].tolist()
        if len(outside)
        else None,
        **as_json(
            {
                "flux_barrier_within_difference": part.flux_barrier,
                "delta_F_within_difference": part.delta_F,
            }
        ),
    }


def describe_marks(marks: dict[str, Any] | None) -> str:
    """What `committee.model_deviation` of result.json says, in sentences."""
    if marks is None:
        return "Model deviation: too few snapshots are in the reactant; compute more."
    at_surface = marks["share_within_at_surface"]
    change = energy_in_words(marks, "flux_barrier_within_difference", "eV")
    said = (
        f"Model deviation: {marks['marked']:,} snapshots are beyond the limit of "
        f"{marks['limit']:.3g} eV/A (reactant {marks['reactant_median']:.3g}, at most "
        f"{marks['reactant_largest']:.3g})."
    )
    if not marks["marked"] or at_surface is None:
        return said
    said += f" At the dividing surface {100 * at_surface:.0f} % are within it"
    if marks["flux_barrier_within_difference_eV"] is None:
        return f"{said}: no path over the barrier is known within the limit."
    return f"{said}. The flux barrier of the structures within the limit differs by {change}."
