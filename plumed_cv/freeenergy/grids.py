"""Grids of nodes along CVs, and the potential on them whose slopes are closest to a mean force."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

from plumed_cv.structures.frame import Array


@dataclass(frozen=True)
class Grid:
    """Nodes of the extended variable on one CV: bins + 1, or bins for a periodic CV.

    Attributes
    ----------
    minimum, maximum
        The ends, in units of the CV; the domain if the CV is periodic.
    bins
        Number of intervals.
    periodic
        Whether the CV is periodic.
    """

    minimum: float
    maximum: float
    bins: int
    periodic: bool = False

    @property
    def spacing(self) -> float:
        """Distance between nodes."""
        return (self.maximum - self.minimum) / self.bins

    @cached_property
    def nodes(self) -> Array:
        """The nodes, (n,)."""
        steps = np.arange(self.bins + (not self.periodic), dtype=float)
        return np.asarray(self.minimum + steps * self.spacing)

    def distances(self, xi: float) -> Array:
        """Return z_j - xi, (n,), the shortest ones on a periodic CV."""
        d = self.nodes - xi
        if self.periodic:
            length = self.maximum - self.minimum
            d -= length * np.round(d / length)
        return d

    def bin(self, xi: ArrayLike) -> NDArray[np.int64]:
        """Return the nodes nearest to `xi`, and -1 more than half a spacing outside the grid."""
        j = np.floor((np.asarray(xi) - self.minimum) / self.spacing + 0.5).astype(np.int64)
        if self.periodic:
            return j % self.bins
        return np.where((j >= 0) & (j <= self.bins), j, -1)


def at_all_nodes(along: Sequence[Array]) -> Array:
    """Return values along each CV, (n1,), (n2,), at all nodes, (d, n).

    The first CV varies fastest.
    """
    planes = np.meshgrid(*reversed(along), indexing="ij")
    return np.array([plane.ravel() for plane in reversed(planes)])


def edges(axes: Sequence[Grid]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return for each CV the pairs of neighbouring nodes along it, lower and upper nodes."""
    shape = [len(axis.nodes) for axis in reversed(axes)]
    numbers = np.arange(number_of_nodes(axes)).reshape(shape)
    pairs = []
    for d, axis in enumerate(axes):
        along = len(axes) - 1 - d
        upper = np.roll(numbers, -1, axis=along)
        last = slice(None) if axis.periodic else slice(-1)
        kept = tuple(last if i == along else slice(None) for i in range(len(axes)))
        pairs.append((numbers[kept].ravel(), upper[kept].ravel()))
    return pairs


def integrate_steps(
    axes: Sequence[Grid], steps: Sequence[Array], weights: Sequence[Array]
) -> tuple[Array, NDArray[np.int64]]:
    """Return the A whose differences between neighbours are closest to given steps.

    It minimises the sum of weight (A_b - A_a - step)^2 over all edges. With equal weights this is
    the Poisson equation with Neumann conditions at the ends of a CV that is not periodic.

    Parameters
    ----------
    axes
        The nodes along two CVs.
    steps, weights
        For each CV the steps of A along each edge of `edges`, and their weights.

    Returns
    -------
    (n,), (n,)
        A, and the number of the connected part of the grid of each node. A is zero at the first
        node of each part.
    """
    n = number_of_nodes(axes)
    pairs = edges(axes)
    a, b = np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])
    w, step = np.concatenate(weights), np.concatenate(steps)
    real = w > 0
    a, b, w, step = a[real], b[real], w[real], step[real]
    flow = np.bincount(b, w * step, minlength=n) - np.bincount(a, w * step, minlength=n)
    graph = coo_array((w, (a, b)), shape=(n, n))
    _, part = connected_components(graph, directed=False)
    _, anchors = np.unique(part, return_index=True)
    free = np.ones(n, dtype=bool)
    free[anchors] = False
    A = np.zeros(n)
    if free.any():
        diagonal = np.bincount(a, w, minlength=n) + np.bincount(b, w, minlength=n)
        values = np.concatenate([-w, -w, diagonal])
        rows, columns = np.concatenate([a, b, np.arange(n)]), np.concatenate([b, a, np.arange(n)])
        matrix = coo_array((values, (rows, columns)), shape=(n, n)).tocsc()
        # Symmetric and diagonally dominant: no pivoting, and an ordering that preserves sparsity.
        factors = splu(
            matrix[free][:, free].tocsc(),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        A[free] = factors.solve(flow[free])
    return A, part.astype(np.int64)


def integrate_steps_on_line(
    grid: Grid, steps: Array, weights: Array
) -> tuple[Array, NDArray[np.int64]]:
    """Return the result of `integrate_steps` along one CV.

    Parameters
    ----------
    grid
        The nodes.
    steps, weights
        What A is to rise from each node to the next, and how much that counts, (n,). The last ones
        are from the last node to the first; they count only if the CV is periodic.
    """
    n, joined = len(grid.nodes), weights > 0
    if (
        grid.periodic and joined.all()
    ):  # least squares: what is left after a turn goes with 1/weight
        steps = steps - steps.sum() * (1 / weights) / np.sum(1 / weights)
    A = np.concatenate([[0.0], np.cumsum(np.where(joined, steps, 0.0)[:-1])])
    part = np.concatenate([[0], np.cumsum(~joined[:-1])])
    if grid.periodic and joined[-1] and part[-1] > 0:  # the last part continues in the first
        last = part == part[-1]
        A[last] -= A[n - 1] + steps[-1]
        part[last] = 0
    return A, part


def number_of_nodes(axes: Sequence[Grid]) -> int:
    """Return n, the number of nodes of all CVs together."""
    return int(np.prod([len(axis.nodes) for axis in axes]))


def distances_to_nodes(axes: Sequence[Grid], xi: Array) -> Array:
    """Return z_j - xi, (d, n)."""
    return at_all_nodes([axis.distances(float(x)) for axis, x in zip(axes, xi, strict=True)])
