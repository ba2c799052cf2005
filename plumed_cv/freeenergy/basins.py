"""Basins of a profile along one CV: the states of a process and the basins between them.

A basin is a minimum of the profile with its surroundings up to the dividing surfaces. Basins are
determined from the free energy of the flux through the surfaces of the CV, -kT ln( rho(xi) <|grad
xi|>_xi ), which does not depend on the scale of the CV, or from A if the gradient is unknown. A
noisy profile must be smoothed before.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from plumed_cv.freeenergy.grids import Grid
from plumed_cv.structures.frame import Array

DEPTH_KT = 2.0  # a shallower minimum does not hold the system long enough to be a basin
SMOOTHING = 0.08  # half a window of the local cubic fit, relative to the distance of the states


@dataclass(frozen=True, eq=False)
class Line:
    """The nodes of a grid in the order of the process.

    Attributes
    ----------
    order
        The nodes, (n,), from behind the reactant to beyond the product. A circle is cut beyond the
        product, where the profile is unknown or highest.
    position
        Distance of each node from the reactant, (n,), in units of the CV, increasing.
    length
        Distance of the product.
    """

    order: NDArray[np.int64]
    position: Array
    length: float

    @property
    def slack(self) -> float:
        """Largest distance from a state at which a run counts as having reached it."""
        return SMOOTHING * self.length

    def reaches(self, known: NDArray[np.bool_], low: float, high: float) -> bool:
        """Whether nodes are known up to the positions `low` and `high`, or nearly so.

        Parameters
        ----------
        known
            For each node along the line, (n,).
        low, high
            Positions.
        """
        seen = self.position[known]
        return bool(len(seen)) and seen[0] <= low + self.slack and seen[-1] >= high - self.slack


def order_nodes(grid: Grid, W: Array, states: tuple[float, float]) -> Line:
    """Return the nodes in the order of the process.

    Parameters
    ----------
    grid
        The nodes.
    W
        A profile, (n,), NaN where unknown.
    states
        The CV in the reactant and in the product.
    """
    reactant, product = states
    length = abs(product - reactant)
    position = (grid.nodes - reactant) * (1.0 if product >= reactant else -1.0)
    if grid.periodic:
        turn = grid.maximum - grid.minimum
        position %= turn
        beyond = np.flatnonzero(position > length)
        if len(beyond):
            beyond = beyond[np.argsort(position[beyond])]
            position[position > position[_weakest(W[beyond], beyond)]] -= turn
    order = np.argsort(position)
    return Line(order, position[order], length)


def _weakest(W: Array, nodes: NDArray[np.int64]) -> int:
    """Return the node in the middle of the longest unknown range, or otherwise the highest one."""
    unknown = np.flatnonzero(np.isnan(W))
    if not len(unknown):
        return int(nodes[np.argmax(W)])
    stretches = np.split(unknown, np.flatnonzero(np.diff(unknown) > 1) + 1)
    longest = max(stretches, key=len)
    return int(nodes[longest[len(longest) // 2]])


@dataclass(frozen=True, eq=False)
class Basins:
    """The basins of a process. Nodes are counted along the line.

    Attributes
    ----------
    along
        The nodes in the order of the process.
    minima
        The lowest node of each basin, (b,), from the reactant to the product.
    surfaces
        The highest node between each basin and the next, (b - 1,).
    first, last
        The ends of the basins of reactant and product: the ends of the known range, or a surface
        that leads to another basin.
    whole
        Whether the profile at these ends is `DEPTH_KT` above the minima of reactant and product. If
        not, part of the basin may be missing from its population.
    """

    along: Line
    minima: tuple[int, ...]
    surfaces: tuple[int, ...]
    first: int
    last: int
    whole: tuple[bool, bool]

    def depths(self, W: Array) -> Array:
        """Return the depth of each basin between the states on its shallower side, (b - 2,), eV.

        Parameters
        ----------
        W
            The profile along the line, (n,), eV.
        """
        low, high = W[list(self.minima[1:-1])], W[list(self.surfaces)]
        return np.asarray(np.minimum(high[:-1], high[1:]) - low)

    def without(self, k: int, W: Array) -> "Basins":
        """Return the basins after merging basin `k` between the states with its neighbour.

        Parameters
        ----------
        k
            From 1.
        W
            As for `depths`.
        """
        left = W[self.surfaces[k - 1]] < W[self.surfaces[k]]
        pair = (k - 1, k) if left else (k, k + 1)
        lower = min(pair, key=lambda i: W[self.minima[i]])
        return replace(
            self,
            minima=(*self.minima[: pair[0]], self.minima[lower], *self.minima[pair[1] + 1 :]),
            surfaces=(*self.surfaces[: pair[0]], *self.surfaces[pair[0] + 1 :]),
        )

    def populations(self, A: Array, kT: float) -> Array:
        """Return the integral of exp(-A/kT) over every basin, (b,), by the trapezoidal rule.

        Parameters
        ----------
        A
            The profile along the line, (n,), eV; NaN in bins without samples.
        kT
            Temperature, eV.
        """
        density = np.nan_to_num(np.exp(-A / kT))
        steps = 0.5 * (density[1:] + density[:-1]) * np.diff(self.along.position)
        # A difference of cumulative sums would lose basins with a share below 1e-16.
        ends = pairwise([self.first, *self.surfaces, self.last])
        return np.array([steps[begin:end].sum() for begin, end in ends])


def find(grid: Grid, W: Array, states: tuple[float, float], kT: float) -> Basins | None:
    """Return the basins of reactant and product, and basins between them deeper than `DEPTH_KT`.

    A process without a barrier of `DEPTH_KT` is divided at its highest node between the states.

    Parameters
    ----------
    grid
        The nodes.
    W
        The profile, (n,), eV; NaN where unknown.
    states
        The CV in the reactant and in the product.
    kT
        Temperature, eV.

    Returns
    -------
    Basins or None
        None if one of the states was not reached, or if a highest node is next to a gap in the
        known range that is wider than `SMOOTHING`.
    """
    along = order_nodes(grid, W, states)
    W, x = W[along.order], along.position
    known = np.flatnonzero(np.isfinite(W))
    if not along.reaches(np.isfinite(W), 0.0, along.length):
        return None
    walls = [
        int(known[i])
        for i, is_top in _extremes(W[known], DEPTH_KT * kT)
        if is_top and 0 < i < len(known) - 1  # beyond the ends nothing is known
    ]
    a, b = (int(np.searchsorted(x[walls], place)) for place in (0.0, along.length))
    first = walls[a - 1] if a > 0 else int(known[0])
    last = walls[b] if b < len(walls) else int(known[-1])
    surfaces = walls[a:b]
    if not surfaces:
        inside = [i for i in known if 0.0 <= x[i] <= along.length and first <= i <= last]
        if not inside:
            return None
        surfaces = [int(max(inside, key=lambda i: W[i]))]
    edges = [first, *surfaces, last]
    minima = [
        int(min((i for i in known if low <= i <= high), key=lambda i: W[i]))
        for low, high in pairwise(edges)
    ]
    widest = max(along.slack, 1.5 * grid.spacing)
    gaps = np.diff(x[known])
    for top in np.searchsorted(known, surfaces):
        if (gaps[max(top - 1, 0) : top + 1] > widest).any():
            return None
    bottoms = W[[minima[0], minima[-1]]] + DEPTH_KT * kT
    return Basins(
        along=along,
        minima=tuple(minima),
        surfaces=tuple(surfaces),
        first=first,
        last=last,
        whole=(bool(W[first] >= bottoms[0]), bool(W[last] >= bottoms[1])),
    )


def _extremes(W: Array, depth: float) -> list[tuple[int, bool]]:
    """Return minima and maxima of a series that differ from their neighbours by at least `depth`.

    The pair of neighbours with the smallest difference is removed until no difference is smaller
    (the persistence of one-dimensional topology). The ends of the series are among the extremes.

    Returns
    -------
    list of (int, bool)
        Positions in the series, and whether it is a maximum there; the two kinds alternate.
    """
    turns = [0]
    for i in range(1, len(W)):
        if W[i] == W[turns[-1]]:
            continue
        rising = W[i] > W[turns[-1]]
        if len(turns) > 1 and rising == (W[turns[-1]] > W[turns[-2]]):
            turns[-1] = i
        else:
            turns.append(i)
    while len(turns) > 1:
        steps = np.abs(np.diff(W[turns]))
        k = int(np.argmin(steps))
        if steps[k] >= depth:
            break
        if k == 0:
            del turns[0]
        elif k == len(steps) - 1:
            del turns[-1]
        else:
            del turns[k : k + 2]
    if len(turns) == 1:
        return [(turns[0], False)]
    return [(i, bool(W[i] > W[turns[k + 1 if k == 0 else k - 1]])) for k, i in enumerate(turns)]


def highest(W: Array) -> float:
    """Return the largest known value; NaN if there is none."""
    return float(np.nanmax(W)) if np.isfinite(W).any() else np.nan
