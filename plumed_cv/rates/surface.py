"""Dividing surfaces, the cores of the basins on both sides, and snapshots near a surface."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable
from plumed_cv.freeenergy.fluxes import Flux
from plumed_cv.freeenergy.grids import Grid
from plumed_cv.structures.frame import Array

# Largest depth of snapshots below the top of W, in kT; the first with enough snapshots is used.
WINDOWS_KT = ((0.1, 400), (0.25, 400), (0.5, 200), (1.0, 50), (2.0, 10), (4.0, 1))
NEAR = 0.02  # largest distance in xi from a surface that is not the top of W


class NoShotsError(UserError):
    """The samples do not allow shots from a dividing surface."""


@dataclass(frozen=True, eq=False)
class Surface:
    """A dividing surface between two basins.

    Attributes
    ----------
    xi
        Value of the collective variable.
    cores
        The core of the basin before the surface ends at the first value; the core of the basin
        behind it begins at the second. At these values W has decreased to half of its height above
        the basin.
    top_eV
        W on the surface, as used in the rate of transition state theory.
    nodes, W_eV
        Free energy of the flux where it is known, (n,) each.
    """

    xi: float
    cores: tuple[float, float]
    top_eV: float
    nodes: Array
    W_eV: Array

    def above(self, xi: Array) -> Array:
        """W at values of the collective variable minus W on the surface, eV."""
        return np.interp(xi, self.nodes, self.W_eV) - self.top_eV

    def window(self, depth_eV: float) -> tuple[float, float]:
        """Return the interval around the surface in which W is at most this far below its top."""
        low = self.above(self.nodes) < -depth_eV
        before = self.nodes[low & (self.nodes < self.xi)]
        behind = self.nodes[low & (self.nodes > self.xi)]
        left = before.max(initial=self.cores[0])
        right = behind.min(initial=self.cores[1])
        return float(left), float(right)

    def moved_to(self, xi: float) -> "Surface":
        """Return another dividing surface between the same two basins."""
        top = float(np.interp(xi, self.nodes, self.W_eV))
        return Surface(xi, self.cores, top, self.nodes, self.W_eV)


def find_surfaces(grid: Grid, flux: Flux) -> list[Surface]:
    """Return the dividing surface of each step of a process, in order.

    Parameters
    ----------
    grid
        The nodes.
    flux
        The flux with its basins and W.

    Raises
    ------
    NoShotsError
        If a basin has no core because W does not decrease to half of its height beside the surface.
    """
    assert flux.basins is not None
    assert flux.W is not None
    order, minima = flux.basins.along.order, flux.basins.minima
    xi, W = grid.nodes[order], flux.W[order]
    known = np.isfinite(W)
    found = []
    for before, behind in pairwise(minima):
        span = np.arange(before, behind + 1)[known[before : behind + 1]]
        top = int(span[np.argmax(W[span])])
        cores = []
        for way, minimum in ((-1, before), (1, behind)):
            half = 0.5 * (W[top] + W[minimum])
            places = span[(span - top) * way > 0]
            inside = places[W[places] <= half]
            if not len(inside):
                raise NoShotsError(
                    f"the basin at xi = {xi[minimum]:.2f} is too flat to tell when a trajectory "
                    "has reached it; there is no transmission coefficient"
                )
            cores.append(float(xi[inside[np.argmin(np.abs(inside - top))]]))
        found.append(
            Surface(float(xi[top]), (cores[0], cores[1]), float(W[top]), xi[known], W[known])
        )
    return found


class Snapshot(NamedTuple):
    """A structure of the sampling near a surface.

    Attributes
    ----------
    segment
        Name of the segment of the sampling.
    number
        Number of the structure in the segment, from 0.
    xi
        Its collective variable.
    """

    segment: str
    number: int
    xi: float


def read_snapshots(
    folder: Path, segments: Sequence[Path], variable: CollectiveVariable, cell: Array, symbols: str
) -> list[Snapshot]:
    """Return all structures of an iteration with their collective variables.

    Parameters
    ----------
    folder, segments
        The folder of the iteration, and its segments in chronological order.
    variable
        The collective variable.
    cell
        Rows are lattice vectors, (3, 3).
    symbols
        Chemical symbols of all atoms.

    Raises
    ------
    UserError
        If a trajectory cannot be read.
    """
    from plumed_cv.structures.trajectory import read_displacements  # importing mdtraj takes 1 s

    found = []
    for segment in segments:
        if not (segment / "snapshots.dcd").exists():
            continue
        u = read_displacements([segment / "snapshots.dcd"], variable, cell, species=symbols)
        xi = variable.encode(variable.components(u.astype(np.float64)))[:, 0]
        name = segment.relative_to(folder).as_posix()
        found += [Snapshot(name, number, float(value)) for number, value in enumerate(xi)]
    return found


def select_snapshots(
    surface: Surface, found: Sequence[Snapshot], kT_eV: float, *, at_top: bool = True
) -> list[Snapshot]:
    """Return the snapshots from which shots start, in chronological order.

    They are those in the narrowest of `WINDOWS_KT` that contains enough snapshots; in a window, W
    is at most so far below its top. For a surface that is not the top, they are those within
    `NEAR`. The choice does not change the expected result (see `transmission`), only its variance:
    more trajectories return if they start far from the top.

    Raises
    ------
    NoShotsError
        If there is no such snapshot.
    """
    windows = [(surface.xi - NEAR, surface.xi + NEAR, 1)]
    if at_top:
        windows = [(*surface.window(depth * kT_eV), enough) for depth, enough in WINDOWS_KT]
    for low, high, enough in windows:
        chosen = [snapshot for snapshot in found if low < snapshot.xi < high]
        if len(chosen) >= enough:
            return chosen
    raise NoShotsError(
        f"no snapshot of the sampling lies near the dividing surface at xi = {surface.xi:.3f}; "
        "raise sampling.steps and run again"
    )
