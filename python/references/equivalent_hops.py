"""The CV of all equivalent hops from the present state of plain dynamics.

For each equivalent hop, a symmetry operation of the crystal maps the state onto the end states of
the run. When a vacancy hops, the atom becomes nearest to the vacant site at xi = 0.5, and the hop
back is seen with 1 - xi. Therefore the density at xi is the sum of those seen at xi and at 1 - xi.
A learned CV, which is nearly symmetric, is treated the same way, with its own |grad xi|.
Hydrogen in nickel or palladium goes from an octahedral site to a tetrahedral one. On the path the
octahedral site from which it comes is the nearest one up to the tetrahedral site, where xi = 1.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from plumed_cv import cv
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines.lammps_potential import standard_mass
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures.frame import Array, displacements
from python.references import defects, plain_dynamics

BETWEEN = (0.1, 0.9)  # the linear CV where a learned one is computed


class EquivalentHops:
    """The linear CV of all equivalent hops from any state.

    Parameters
    ----------
    case
        The crystal and its defect.
    path
        Minimum energy path of one hop.
    """

    def __init__(self, case: defects.Case, path: EnergyPath) -> None:
        self.case = case
        initial, final = path.images[0].positions, path.images[-1].positions
        self.variable = cv.linear(path.species, path.cell, initial, final)
        self.host = case.host().positions
        ends = self.variable.end_displacements
        gradient = (ends[1] - ends[0]) / np.sum((ends[1] - ends[0]) ** 2)
        masses = np.array([standard_mass(element) for element in path.species])
        self.speed = float(np.sqrt(np.sum(gradient**2 / masses[:, None])))
        n_host = len(initial) - (case.interstitial is not None)
        start = self._start = self._nearest(initial[:n_host])
        # xi is linear in the displacements of the atoms from their sites.
        weights = np.zeros_like(self.host)
        weights[start] = gradient[:n_host]
        if case.interstitial is None:
            centres = self.host
            centre = self.host[self._missing(start)]
            direction = self.host[self._missing(self._nearest(final))] - centre
            sites = self.host[start]
            own = np.zeros(3)
        else:
            centres = case.sites()[n_host : 2 * n_host]
            off = self._image(centres - initial[-1])
            centre = centres[int(np.einsum("ij,ij->i", off, off).argmin())]
            direction = final[-1] - initial[-1]
            sites, own = np.concatenate([self.host[start], centre[None]]), gradient[-1]
        edge = np.eye(3) * case.edge_A
        self._constant = -float(np.sum(gradient * displacements(initial, edge, sites, edge)))
        rotations = self._turns = self._rotations(self._image(direction))
        self._weights = np.array([weights @ rotation.T for rotation in rotations])
        self._own = np.array([rotation @ own for rotation in rotations])
        offsets = np.array([(self.host - centre) @ rotation.T for rotation in rotations])
        # Host site onto which each host site is mapped, for each centre and hop.
        self._images = np.array([self._nearest(place + offsets) for place in centres])

    def values(self, off: Array, centre: int, own: Array) -> tuple[Array, Array]:
        """Return xi of all hops from a state, and their speeds in `speed`, (neighbours,) each.

        Parameters
        ----------
        off
            Displacement of the atom on each site of the host from it, angstrom, (M, 3); 0 on a
            vacant site.
        centre
            Number of the vacant site, or of the octahedral site.
        own
            Displacement of the interstitial atom from its site, angstrom, (3,).
        """
        moved = off[self._images[centre]]
        xi = np.einsum("dij,dij->d", self._weights, moved) + self._own @ own
        return np.asarray(xi + self._constant), np.ones(len(xi))

    def frame(self, sites: plain_dynamics.Sites, positions: Array) -> tuple[Array, Array] | None:
        """Return `values` in a frame of the dynamics; None where the state is not clear."""
        off = self._image(positions - sites.positions[sites.assigned] - sites.drift_A)
        n_host = len(self.host)
        if self.case.interstitial is None:
            empty = np.setdiff1d(np.arange(n_host), sites.assigned)
            if len(empty) != 1:  # for a moment two atoms are nearest to one site
                return None
            from_sites = np.zeros((n_host, 3))
            from_sites[sites.assigned] = off
            return self.values(from_sites, int(empty[0]), np.zeros(3))
        place = positions[-1] - sites.drift_A
        octahedral = self._image(place - sites.positions[n_host : 2 * n_host])
        nearest = int(np.einsum("ij,ij->i", octahedral, octahedral).argmin())
        return self.values(off[:-1], nearest, octahedral[nearest])

    def _rotations(self, direction: Array) -> list[Array]:
        """Operations of the cubic group that map a direction onto all equivalent ones."""
        found: dict[tuple[int, ...], Array] = {}
        for order in itertools.permutations(range(3)):
            for signs in itertools.product((1.0, -1.0), repeat=3):
                rotation = np.eye(3)[list(order)] * np.array(signs)[:, None]
                turned = np.rint(8.0 * rotation @ direction / self.case.lattice_A).astype(int)
                found.setdefault(tuple(turned.tolist()), rotation)
        if len(found) != self.case.neighbours:
            raise UserError(f"{len(found)} hops are equivalent, not {self.case.neighbours}")
        return list(found.values())

    def _image(self, vectors: Array) -> Array:
        edge = self.case.edge_A
        return np.asarray(vectors - edge * np.round(vectors / edge))

    def _nearest(self, positions: Array) -> NDArray[np.int64]:
        """Sites of the host at positions of any shape (..., 3)."""
        flat = positions.reshape(-1, 3)
        off = self._image(flat[:, None] - self.host)
        return np.asarray(
            np.einsum("ijk,ijk->ij", off, off).argmin(axis=1).reshape(positions.shape[:-1])
        )

    def _missing(self, assigned: NDArray[np.int64]) -> int:
        return int(np.setdiff1d(np.arange(len(self.host)), assigned)[0])


class LearnedHops(EquivalentHops):
    """A learned CV of all hops of a vacancy from any state, where the linear one is in between.

    Parameters
    ----------
    case, path
        As for `EquivalentHops`.
    learned
        The collective variable of all atoms.
    """

    def __init__(self, case: defects.Case, path: EnergyPath, learned: CollectiveVariable) -> None:
        super().__init__(case, path)
        self._learned, self._cell = learned, path.cell

    def values(self, off: Array, centre: int, own: Array) -> tuple[Array, Array]:
        """Return xi of the hops that are between the states, and their speeds in `speed`."""
        linear, _ = super().values(off, centre, own)
        between = np.flatnonzero((linear > BETWEEN[0]) & (linear < BETWEEN[1]))
        if not len(between):
            return np.zeros(0), np.zeros(0)
        turned = [off[self._images[centre, d]][self._start] @ self._turns[d] for d in between]
        positions = self.host[self._start] + np.array(turned)
        gradient = self._learned.gradient(positions, self._cell)[:, 0]
        speed = np.sqrt(np.sum(gradient**2 / self._learned.masses[:, None], axis=(1, 2)))
        return self._learned.value(positions, self._cell)[:, 0], speed / self.speed
