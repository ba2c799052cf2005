"""The snapshots from which labels are chosen, and what decides which of them are chosen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumed_cv import sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json
from plumed_cv.cv import CollectiveVariable
from plumed_cv.freeenergy import perturbation
from plumed_cv.structures.frame import Array
from plumed_cv.workflow.committee import (
    choose_snapshots,
    estimate_curves,
    name_segment,
    name_snapshot,
    refusal,
)
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.samples import read_samples

_CELLS = 8  # neighbours along xi that differ in other coordinates
_COORDINATES = 3  # other coordinates in which labels are spread
_FOCUS = 0.08  # standard deviation around states and surfaces, relative to their distance


@dataclass(frozen=True, eq=False)
class Candidates:
    """Snapshots of the iteration that gives the answer.

    Attributes
    ----------
    files, result, variable, curves
        The run and what it has found.
    iteration
        Folder of the iteration.
    walkers
        Number of segments of each walker.
    segments
        Folders of the segments in the order of time.
    wanted
        Numbers of the snapshots in each segment that has some.
    names
        Names of the snapshots, (M).
    block
        Number of the segment of each, (M,).
    weight
        Weight of each in averages, (M,).
    """

    files: RunDirectory
    result: dict[str, Any]
    variable: CollectiveVariable
    curves: perturbation.Curves
    iteration: Path
    walkers: Sequence[int]
    segments: list[Path]
    wanted: dict[Path, list[int]]
    names: list[str]
    block: NDArray[np.int64]
    weight: Array

    def positions(self) -> Iterator[Array]:
        """Positions of the snapshots of each segment, (m, N, 3), angstrom."""
        from plumed_cv.structures.trajectory import (
            read_all_positions,  # importing mdtraj takes a second
        )

        for segment, frames in self.wanted.items():
            yield read_all_positions(segment / "snapshots.dcd")[frames]

    def components(self, cell: Array) -> Array:
        """Principal components of the snapshots, (M, D), angstrom."""
        chosen = self.variable.serials - 1
        u = [self.variable.displacements(part[:, chosen], cell) for part in self.positions()]
        return self.variable.components(np.concatenate(u))


def find_candidates(
    files: RunDirectory,
    number: int,
    directory: Path | str,
    segments: Sequence[str] | None = None,
) -> Candidates:
    """Return the snapshots from which labels are chosen.

    Parameters
    ----------
    files
        A run that has ended.
    number
        Their number, if there are as many.
    directory
        The run directory as the user calls it, for messages.
    segments
        Names of the segments that had been sampled when labels were chosen; all if None. The last
        iteration may have been sampled on since.

    Raises
    ------
    UserError
        If the result of the run cannot be corrected (`committee.refusal`).
    """
    result = read_json(files.result)
    if reason := refusal(files, result):
        raise UserError(f"{directory}: {reason}.")
    iteration = files.iteration(result["answer_iteration"])
    data, walkers = read_samples(iteration), sampling.count_segments(iteration)
    every = sampling.list_segments(iteration)
    then = [part for part in every if segments is None or name_segment(iteration, part) in segments]
    wanted = choose_snapshots(then, number)
    weights = [block.sums[2].sum() / max(1, block.steps) for block in data.blocks]
    names, of_snapshot = [], []
    for k, segment in enumerate(every):
        own = wanted.get(segment, [])
        names += [name_snapshot(iteration, segment, i) for i in own]
        of_snapshot += [k] * len(own)
    block = np.array(of_snapshot, dtype=np.int64)
    return Candidates(
        files=files,
        result=result,
        variable=CollectiveVariable.load(files.cv(result["answer_iteration"] - 1)),
        curves=estimate_curves(iteration, result, data, walkers),
        iteration=iteration,
        walkers=walkers,
        segments=every,
        wanted=wanted,
        names=names,
        block=block,
        weight=np.array(weights)[block],
    )


def read_positions_of(found: Candidates, rows: Sequence[dict[str, Any]]) -> list[Array]:
    """Return the positions of snapshots by their names, (N, 3) each."""
    from plumed_cv.structures.trajectory import read_positions  # importing mdtraj takes a second

    places = []
    for row in rows:
        segment, _, i = row["name"].rpartition(":")
        places.append(read_positions(found.iteration / segment / "snapshots.dcd", int(i)))
    return places


def compute_sizes(found: Candidates, xi: Array) -> Array:
    """Return what inclusion probabilities are proportional to, apart from the committee.

    Per unit of xi, half of the labels are spread evenly from basin to basin. The other half are
    around the minima of the states and the highest dividing surface, whose energies decide. All
    labels at one xi then have the same weight.
    """
    curves = found.curves
    basins, nodes = curves.basins, curves.grid.nodes
    order, along = basins.along.order, basins.along
    W = curves.F[order]
    top = max(basins.surfaces, key=lambda k: W[k])
    place = np.interp(xi, nodes, _position_of_nodes(curves))
    low, high = along.position[basins.minima[0]], along.position[basins.minima[-1]]
    slack = 0.15 * along.length
    even = np.where((place > low - slack) & (place < high + slack), 1.0, 0.2)
    centres = [low, along.position[top], high]
    width = _FOCUS * along.length
    focus = sum(np.exp(-0.5 * ((place - centre) / width) ** 2) for centre in centres)
    wanted = even / along.length / 1.3 + focus / (3 * np.sqrt(2 * np.pi) * width)
    bins = curves.grid.bin(xi)
    density = np.bincount(bins[bins >= 0], found.weight[bins >= 0], len(nodes))
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 2.0) ** 2)
    density = np.convolve(density, kernel / kernel.sum(), mode="same")
    size = found.weight * wanted / np.maximum(density[bins], 1e-300)
    return np.where(bins >= 0, size, 0.0)


def _position_of_nodes(curves: perturbation.Curves) -> Array:
    """Return the distance of each node from the reactant, (n,)."""
    along = curves.basins.along
    position = np.empty(len(along.order))
    position[along.order] = along.position
    return position


def compute_points(found: Candidates, xi: Array, x: Array, number: int) -> Array:
    """Return coordinates in which labels are to differ, (M, 1 + k).

    The first is xi, with number/8 labels' distances between the states. The others are the
    principal components of the structures without their mean at this xi, in units of standard
    deviations.
    """
    length = found.curves.basins.along.length
    t = xi / length
    powers = t[:, None] ** np.arange(6)
    rest = x - powers @ np.linalg.lstsq(powers, x, rcond=None)[0]
    _, _, directions = np.linalg.svd(rest - rest.mean(axis=0), full_matrices=False)
    others = rest @ directions[:_COORDINATES].T
    others /= np.maximum(others.std(axis=0), 1e-12)
    return np.concatenate([1.5 * max(1.0, number / _CELLS) * t[:, None], others], axis=1)


def measure_disagreement(found: Candidates, xi: Array) -> Array:
    """Return how far the members of the committee disagree in each snapshot, (M,), 1 on average.

    This is the standard deviation of their energies without the mean at this xi, of all potentials;
    1 everywhere without a committee.
    """
    folder = found.iteration / "committee"
    energies = []
    for file in sorted(folder.glob("potential-*.npz")):
        try:
            with np.load(file) as content:
                energy = content["values"][:, 2]
                values = dict(zip(content["snapshots"].tolist(), energy, strict=True))
        except Exception as error:  # NumPy has many for a damaged file
            raise UserError(
                f"{file}: cannot be read ({error}); remove it, and compute its values again with "
                "'plumed-cv committee'."
            ) from None
        energies.append([values.get(name, np.nan) for name in found.names])
    table = np.array(energies)
    known = np.isfinite(table).all(axis=0) if len(table) > 1 else np.zeros(len(xi), dtype=bool)
    if known.sum() < 100:
        return np.ones(len(xi))
    powers = xi[known, None] ** np.arange(6)
    differences = (table[1:, known] - table[0, known]).T
    rest = differences - powers @ np.linalg.lstsq(powers, differences, rcond=None)[0]
    spread = np.sqrt(np.mean(rest**2, axis=1))
    found_spread = np.ones(len(xi))
    found_spread[known] = spread / spread.mean()
    return found_spread
