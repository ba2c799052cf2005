"""Displacements of a mean path as the elastic response of a crystal to forces near a defect.

Atoms in a crystal do not move independently. Around a defect all atoms follow the few that
rearrange, like an elastic body. Therefore the 3N displacements u are modelled as K^-1 f with a
network of springs K and random forces f. The variances of the forces are found from the data for
each atom (empirical Bayes): they are large where bonds change, and small elsewhere. The smoothness
along the path is found in the same way. Only ratios of spring constants matter, and no potential is
needed. Lengths are in angstrom, stiffnesses in units of a spring between nearest neighbours. N
atoms, F of them with forces, L modes of the path.
"""

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from plumed_cv.cv.collective_variable import CollectiveVariable
from plumed_cv.structures.frame import Array, Drift, periodic_directions
from plumed_cv.structures.neighbours import nearest_distance

MOST_SITES = 400  # largest number of atoms with forces; the cost grows with its cube
_EM_STEPS = 4  # more steps fit the noise: there are six numbers for each site
_ROUNDS = 5  # of the first guess of these numbers; ten change nothing
_DECAY = 8  # the strength of a spring decreases with this power of its length
_REACH = 1.8  # longest spring, in nearest neighbour distances: three shells in bcc, two in fcc
_ACROSS = 0.03  # stiffness of a spring across its direction; otherwise open lattices are soft
_ON_SITE = 1e-4  # holds atoms without neighbours; screens the field beyond 100 neighbours
_COLUMNS = 128  # number of columns that are solved at once


def make_network(variable: CollectiveVariable) -> sparse.csr_matrix:
    """Mean stiffness matrix of the end states of a collective variable, shape (3N, 3N)."""
    first, last = (
        stiffness(variable.reference_positions + u, variable.reference_cell)
        for u in variable.end_displacements
    )
    return 0.5 * (first + last)


def stiffness(positions: Array, cell: Array) -> sparse.csr_matrix:
    """Stiffness matrix K of a network of springs between neighbours.

    Parameters
    ----------
    positions
        Shape (N, 3), angstrom.
    cell
        Lattice vectors as rows, shape (3, 3), angstrom; zero along directions without periodicity.

    Returns
    -------
    csr_matrix
        Symmetric and positive definite, shape (3N, 3N).
    """
    n_atoms = len(positions)
    atoms = Atoms(
        numbers=np.ones(n_atoms), positions=positions, cell=cell, pbc=periodic_directions(cell)
    )
    nearest = nearest_distance(positions, cell)
    i, j, lengths, bonds = neighbor_list("ijdD", atoms, _REACH * nearest)
    axes = bonds / lengths[:, None]
    springs = axes[:, :, None] * axes[:, None, :] + _ACROSS * np.eye(3)
    springs *= np.minimum((nearest / lengths) ** _DECAY, 1.0)[:, None, None]
    here = np.tile(_ON_SITE * np.eye(3), (n_atoms, 1, 1))
    np.add.at(here, i, springs)
    every = np.arange(n_atoms)
    blocks = np.concatenate([here, -springs])
    rows, columns = (3 * np.concatenate([every, side])[:, None, None] for side in (i, j))
    rows = np.broadcast_to(rows + np.arange(3)[:, None], blocks.shape)
    columns = np.broadcast_to(columns + np.arange(3), blocks.shape)
    places = (rows.ravel(), columns.ravel())
    return sparse.coo_matrix((blocks.ravel(), places), shape=(3 * n_atoms, 3 * n_atoms)).tocsr()


def shrink(
    raw: Array,
    noise: Array,
    guess: Array,
    springs: sparse.csr_matrix,
    between: Array,
    drift: Drift = "removed",
) -> Array:
    """Posterior mean of modes c given raw = c + noise, each of shape (L, N, 3).

    The prior of the forces on an atom, L x 3, is matrix normal: covariance B between the modes,
    common to all atoms, times S_a between the directions of each atom. B is the most likely of
    several, because L^2 free numbers would fit the noise. The S_a are found by expectation
    maximisation. Only the atoms with the largest forces in a first guess have forces.

    Parameters
    ----------
    raw
        Shape (L, N, 3).
    noise
        Variance of the coordinates of each atom in it, shape (N,).
    guess
        A first guess of the posterior mean, shape (L, N, 3).
    springs
        Stiffness matrix K, shape (3N, 3N).
    between
        Candidates for B, each of trace L, shape (C, L, L).
    drift
        As for `CollectiveVariable`.
    """
    n_modes = len(raw)
    forces = (springs @ guess.reshape(n_modes, -1).T).T.reshape(raw.shape)
    sites = _strongest((forces**2).sum(axis=(0, 2)))
    forces = forces[:, sites]
    if not forces.any():
        return guess
    response = _response(springs, sites, drift)
    n_forces = response.shape[1]
    weighted = response / np.repeat(noise, 3)[:, None]
    information = (response.T @ weighted).reshape(len(sites), 3, n_forces)
    evidence = (raw.reshape(n_modes, -1) @ weighted).reshape(n_modes, len(sites), 3)
    matrices = _matrices(forces)
    spectra = list(zip(*np.linalg.eigh(between), strict=True))
    for step in range(_EM_STEPS):
        # Forces are roots @ (independent numbers). In the eigenvectors of the information about
        # these numbers in the data, and of B, all are also independent a posteriori.
        matrices += 1e-12 * np.trace(matrices.mean(axis=0)) * np.eye(3)
        roots = np.asarray(np.linalg.cholesky(matrices), dtype=np.float64)
        half = (roots.transpose(0, 2, 1) @ information).reshape(n_forces, len(sites), 3)
        known, axes = np.linalg.eigh(_times(half, roots).reshape(n_forces, n_forces))
        known = np.maximum(known, 0.0)
        seen = _times(evidence, roots).reshape(n_modes, n_forces) @ axes
        if step == 0:  # later, the S_a would adapt to a B that is too smooth and seem to confirm it
            strengths, modes = max(spectra, key=lambda b: _log_likelihood(b[0], b[1], known, seen))
        uncertainty = strengths[:, None] / (1.0 + strengths[:, None] * known)
        mean = uncertainty * (modes.T @ seen)
        axes = (roots @ axes.reshape(len(sites), 3, n_forces)).reshape(n_forces, n_forces)
        forces = mean @ axes.T
        # Estimates of S_a from the posterior.
        whitened = (forces / np.sqrt(strengths)[:, None]).reshape(n_modes, len(sites), 3)
        spread = axes * np.sqrt((uncertainty / strengths[:, None]).sum(axis=0))
        spread = spread.reshape(len(sites), 3, n_forces)
        matrices = np.einsum("kai,kaj->aij", whitened, whitened)
        matrices += spread @ spread.transpose(0, 2, 1)
        matrices /= n_modes
    return np.asarray((modes @ forces @ response.T).reshape(raw.shape))


def _matrices(forces: Array) -> Array:
    """Likely covariances S_a for forces, shape (L, F, 3), if these were exact."""
    n_modes = len(forces)
    between: Array = np.eye(n_modes)
    for _ in range(_ROUNDS):
        weighted = np.linalg.solve(between, forces.reshape(n_modes, -1)).reshape(forces.shape)
        matrices = np.einsum("lai,laj->aij", forces, weighted) / n_modes
        matrices += 1e-3 * np.trace(matrices.mean(axis=0)) * np.eye(3)
        whitened = np.linalg.solve(matrices, forces.transpose(1, 2, 0)).reshape(-1, n_modes)
        between = forces.reshape(n_modes, -1) @ whitened
        between *= n_modes / np.trace(between)
        between += 1e-10 * np.eye(n_modes)
    return np.asarray(matrices)


def _log_likelihood(strengths: Array, modes: Array, known: Array, seen: Array) -> float:
    """Log likelihood of the data for this spectrum of B, without terms common to all B."""
    gain = strengths[:, None] * known
    explained = strengths[:, None] / (1.0 + gain) * (modes.T @ seen) ** 2
    return 0.5 * float(explained.sum() - np.log1p(gain).sum())


def _strongest(strengths: Array) -> NDArray[np.int64]:
    """Indices of the largest values, including all that equal the last of them by symmetry."""
    if len(strengths) <= MOST_SITES:
        return np.arange(len(strengths))
    least = np.sort(strengths)[-MOST_SITES]
    return np.flatnonzero(strengths >= (1.0 - 1e-6) * least)


def _times(vectors: Array, roots: Array) -> Array:
    """Row vectors (..., F, 3) times the matrix of each site (F, 3, 3)."""
    return np.asarray(np.einsum("xaj,aji->xai", vectors, roots))


def _response(springs: sparse.csr_matrix, sites: NDArray[np.int64], drift: Drift) -> Array:
    """Displacements K^-1 f of all atoms for unit forces on the sites, shape (3N, 3F).

    Unless the drift is kept, forces and displacements have no mean over the atoms, as in the
    displacement frame.
    """
    n = springs.shape[0]
    factors = splu(
        springs.tocsc(),
        permc_spec="MMD_AT_PLUS_A",  # for a symmetric matrix: a third of the default's fill
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    forces = (3 * sites[:, None] + np.arange(3)).ravel()
    response = np.empty((n, len(forces)))
    for begin in range(0, len(forces), _COLUMNS):
        part = forces[begin : begin + _COLUMNS]
        unit = np.zeros((n, len(part)))
        unit[part, np.arange(len(part))] = 1.0
        if drift == "removed":
            unit = _without_mean(factors.solve(_without_mean(unit)))
        else:
            unit = factors.solve(unit)
        response[:, begin : begin + _COLUMNS] = unit
    return response


def _without_mean(columns: Array) -> Array:
    by_atom = columns.reshape(-1, 3, columns.shape[1])
    return np.asarray((by_atom - by_atom.mean(axis=0)).reshape(columns.shape))
