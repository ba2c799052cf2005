"""Harmonic transition state theory from Hessians at the minimum and at the saddle point.

The energy is V0 + x.H0.x / 2 near the minimum and V1 + x.H1.x / 2 near the saddle point. Overall
translations are removed, and without a cell also overall rotations. The rate is that of Vineyard,
J. Phys. Chem. Solids 3, 121 (1957),

    k = prod_i nu_i / prod_j nu'_j exp(-(V1 - V0) / kT),

where nu_i are the frequencies of the minimum and nu'_j the real frequencies of the saddle point.
For a free molecule, the ratio of the rotational partition functions is a further factor: the square
root of the ratio of the products of the moments of inertia.

The integral over the basin is exp(-V0/kT) (2 pi kT)^(M/2) / sqrt(det H0). The integral over a plane
through the saddle point with unit normal n is exp(-V1/kT) (2 pi kT)^((M-1)/2) / sqrt(det H1
n.H1^-1.n). With lengths in angstrom, the flux barrier of this plane is

    F = V1 - V0 + kT/2 ln(2 pi kT) - kT/2 ln( det H0 / (det H1 n.H1^-1.n) ).

The barrier is highest, and the flux lowest, if n is the unstable mode. Then det H1 n.H1^-1.n is the
product of the positive eigenvalues.

There are two quantum corrections. The partition functions of quantum oscillators, 1 / (2 sinh(h nu
/ 2kT)), replace kT / (h nu). The tunnelling factor is the first term of Wigner's, 1 + (h nu_b /
kT)^2 / 24, with the imaginary frequency nu_b (Wigner, Trans. Faraday Soc. 34, 29 (1938)). Below the
crossover temperature h nu_b / (2 pi k) the transmission of a parabola diverges, and the factor is
meaningless.

Fixed atoms do not take part: the Hessians are those of the free atoms, and there are no overall
motions.

Energies are in eV, lengths in angstrom, masses in amu. N is the number of atoms, F of free atoms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import replacing
from plumed_cv.engines import Engine
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures.frame import Array

STEP_A = 0.001  # displacement for the differences; anharmonic potentials need a small one
LARGEST_FORCE_EV_A = 1e-4  # largest force on an atom at a stationary point
COORDINATES = 16  # coordinates displaced in one call of the engine; each call updates the file
MOST_HESSIANS = 5  # Hessians computed in the search for a stationary point
MOST_STEPS = 10  # Newton steps with one Hessian
LONGEST_STEP_A = 0.1  # largest displacement of an atom in one step
LARGEST_MOVE_A = 0.5  # largest distance of an atom between the highest image and the saddle point

_PLANCK_EV_S = units._hplanck * units.J


@dataclass(frozen=True)
class Expansion:
    """Second-order expansion of the energy around a stationary point.

    Attributes
    ----------
    energy_eV
        Energy, eV.
    positions
        Shape (N, 3), angstrom.
    hessian
        Symmetric, shape (3F, 3F), eV/angstrom^2.
    periodic
        Whether there is a cell; only then do overall rotations change the energy.
    free
        Atoms that are not fixed, from 0, shape (F,); if None, all. The Hessian is that of these.
    asymmetry
        Root mean square of the antisymmetric part of the finite-difference Hessian, eV/angstrom^2.
        It is caused by noise of the forces and by terms of higher order.
    """

    energy_eV: float
    positions: Array
    hessian: Array
    periodic: bool = True
    asymmetry: float = 0.0
    free: NDArray[np.int64] | None = None

    def modes(self, masses: Array | None = None) -> tuple[Array, Array]:
        """Return eigenvalues in ascending order and modes in columns, without overall motions.

        Parameters
        ----------
        masses
            Shape (N,), amu. If given, the Hessian is mass-weighted, and the eigenvalues are squares
            of angular frequencies in ASE's unit of time, eV/(angstrom^2 amu).

        Returns
        -------
        (M,), (3F, M)
            M is 3F with fixed atoms, and 3N - 3 without; without a cell, the number of rotations is
            subtracted too.
        """
        root = self._root(masses)
        weighted = self.hessian / np.outer(root, root)
        whole = self._motions_of_the_whole(root)
        inside = np.eye(len(weighted)) - whole @ whole.T
        # Shifted far above all others, so that they come last.
        lift = 10.0 * np.abs(weighted).max() * len(weighted)
        values, vectors = np.linalg.eigh(inside @ weighted @ inside + lift * whole @ whole.T)
        free = len(values) - whole.shape[1]
        return values[:free], vectors[:, :free]

    def frequencies_THz(self, masses: Array) -> Array:  # noqa: N802
        """Frequencies in ascending order, shape (M,), THz; imaginary ones are negative."""
        values = self.modes(masses)[0]
        return np.sign(values) * np.sqrt(np.abs(values)) / (2.0 * np.pi) * units.second * 1e-12

    def moments_of_inertia(self, masses: Array) -> Array:
        """The nonzero moments, amu angstrom^2: three, or two for a linear molecule."""
        arms = self.positions - masses @ self.positions / masses.sum()
        square = np.einsum("i,ia,ib->ab", masses, arms, arms)
        moments = np.linalg.eigvalsh(np.trace(square) * np.eye(3) - square)
        return np.asarray(moments[moments > 1e-6 * moments[-1]])

    def log_determinant_error(self, masses: Array) -> float:
        """Standard error of ln |det H|, estimated from the asymmetry of the differences.

        A symmetric error dH with independent elements changes ln |det H| by the trace of H^-1 dH.
        Its elements are assumed to be as large as those of the antisymmetric part.
        """
        values, modes = self.modes(masses)
        compliance = (modes / values) @ modes.T  # weighted by masses, as its elements are
        root = self._root(masses)
        scaled = compliance / np.outer(root, root)
        # Elements off the diagonal count twice, and those on it have twice the variance.
        return float(2**0.5 * self.asymmetry * np.linalg.norm(scaled))

    def _root(self, masses: Array | None) -> Array:
        """Square roots of the masses of the coordinates, shape (3F,); ones without masses."""
        if masses is None:
            return np.ones(len(self.hessian))
        own = masses if self.free is None else masses[self.free]
        return np.asarray(np.sqrt(np.repeat(own, 3)))

    def _motions_of_the_whole(self, root: Array) -> Array:
        """Orthonormal translations, and rotations if there is no cell, weighted: (3F, 0 to 6)."""
        if self.free is not None:
            return np.zeros((len(root), 0))
        n = len(root) // 3
        motions = [np.tile(axis, (n, 1)) for axis in np.eye(3)]
        if not self.periodic:
            weights = root.reshape(n, 3)[:, :1] ** 2
            arms = self.positions - (weights * self.positions).sum(axis=0) / weights.sum()
            motions += [np.cross(axis, arms) for axis in np.eye(3)]
        columns = root[:, None] * np.reshape(motions, (len(motions), -1)).T
        u, singular, _ = np.linalg.svd(columns, full_matrices=False)
        return np.asarray(u[:, singular > 1e-4 * singular[0]])


@dataclass(frozen=True)
class HarmonicTheory:
    """Harmonic transition state theory of one event.

    Attributes
    ----------
    minimum, saddle
        The expansions at the two points.
    masses
        Shape (N,), amu.
    """

    minimum: Expansion
    saddle: Expansion
    masses: Array

    @property
    def barrier_eV(self) -> float:  # noqa: N802
        """Energy of the saddle point above the minimum, eV."""
        return self.saddle.energy_eV - self.minimum.energy_eV

    @property
    def imaginary_frequency_THz(self) -> float:  # noqa: N802
        """Size of the imaginary frequency at the saddle point, THz."""
        return -float(self.saddle.frequencies_THz(self.masses)[0])

    @property
    def prefactor_per_s(self) -> float:
        """Vineyard's prefactor, 1/s; for a molecule including the factor of its rotations."""
        at_minimum, at_saddle = self._frequencies()
        ln = np.log(at_minimum).sum() - np.log(at_saddle).sum() + self._ln_rotations()
        return float(np.exp(ln) * 1e12)

    @property
    def prefactor_error_factor(self) -> float:
        """One standard error of the prefactor, as a factor, from the asymmetry of the Hessians."""
        at_minimum = self.minimum.log_determinant_error(self.masses)
        at_saddle = self.saddle.log_determinant_error(self.masses)
        return float(np.exp(0.5 * np.hypot(at_minimum, at_saddle)))

    @property
    def zero_point_barrier_eV(self) -> float:  # noqa: N802
        """The difference of the zero-point levels, eV."""
        at_minimum, at_saddle = self._frequencies()
        zero_point = 0.5 * _PLANCK_EV_S * 1e12 * (at_saddle.sum() - at_minimum.sum())
        return self.barrier_eV + float(zero_point)

    @property
    def crossover_temperature_K(self) -> float:  # noqa: N802
        """Crossover temperature h nu_b / (2 pi k), K; below it Wigner's correction is invalid."""
        return float(_PLANCK_EV_S * 1e12 * self.imaginary_frequency_THz / (2.0 * np.pi * units.kB))

    def at(self, temperature_K: float) -> dict[str, float | None]:
        """Return rates and flux barrier at a temperature, under their names in harmonic.json.

        Parameters
        ----------
        temperature_K
            Temperature, K.

        Returns
        -------
        dict
            `rate_per_s`; `flux_barrier_eV`, for the best plane; `quantum_partition_rate_per_s`,
            with partition functions of quantum oscillators; `wigner_factor`; and
            `quantum_rate_per_s`, the product of both. The last two are None below the crossover
            temperature.
        """
        kT = units.kB * temperature_K
        at_minimum, at_saddle = (_PLANCK_EV_S * 1e12 * nu / kT for nu in self._frequencies())
        rate = self.prefactor_per_s * np.exp(-self.barrier_eV / kT)
        # For one oscillator, x exp(-x/2) / (1 - exp(-x)) is the ratio of quantum to classical.
        correction = _ln_quantum(at_saddle).sum() - _ln_quantum(at_minimum).sum()
        quantum = rate * np.exp(correction)
        wigner = None
        if temperature_K > self.crossover_temperature_K:
            x = _PLANCK_EV_S * 1e12 * self.imaginary_frequency_THz / kT
            wigner = 1.0 + float(x) ** 2 / 24.0
        return {
            "temperature_K": temperature_K,
            "rate_per_s": float(rate),
            "flux_barrier_eV": flux_barrier(
                self.barrier_eV, log_ratio(self.minimum, self.saddle), kT
            ),
            "quantum_partition_rate_per_s": float(quantum),
            "wigner_factor": wigner,
            "quantum_rate_per_s": None if wigner is None else float(quantum * wigner),
        }

    def _frequencies(self) -> tuple[Array, Array]:
        """The frequencies of the minimum and the real frequencies of the saddle point, THz."""
        at_minimum = self.minimum.frequencies_THz(self.masses)
        at_saddle = self.saddle.frequencies_THz(self.masses)[1:]
        return at_minimum, at_saddle

    def _ln_rotations(self) -> float:
        """Logarithm of the ratio of the rotational partition functions of a free molecule."""
        if self.minimum.periodic or self.minimum.free is not None:
            return 0.0
        moments = [x.moments_of_inertia(self.masses) for x in (self.minimum, self.saddle)]
        if len(moments[0]) != len(moments[1]):
            raise UserError(
                "The molecule is linear at one of the minimum and the saddle point and bent at the "
                "other; the harmonic rate is not implemented for this case."
            )
        at_minimum, at_saddle = (
            0.5 * np.log(own).sum() if len(own) == 3 else np.log(own).mean() for own in moments
        )
        return float(at_saddle - at_minimum)


def hessian(
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
        Stores finished coordinates (.npz). A file of the same structure and step is continued.
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
        rows = _rows_of(file, positions, step_A, len(own))
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
                np.savez(stream, positions=positions, step_A=step_A, rows=rows)
    update(len(rows))
    off = 0.5 * (rows - rows.T)
    return 0.5 * (rows + rows.T), float(np.sqrt(np.mean(off**2)))


def stationary_point(
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
        As for `hessian`.
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
        centre = best if file is None else _kept_centre(file, best)
        H, asymmetry = hessian(
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
        raise UserError(
            f"No {kind} was found: the stationary point there has {unstable} unstable modes "
            f"(lowest curvature {values[0]:.3g} eV/A^2); "
            + (
                "the end state of the path is not a minimum."
                if uphill is None
                else "use more images (path.images), or a path through another saddle point."
            )
        )
    return Expansion(energy, best, H, periodic, asymmetry, free)


def saddle_of_path(
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
        As for `stationary_point`.
    path
        The path.

    Raises
    ------
    UserError
        As for `stationary_point`. Also if the highest image is an end of the path, or if the saddle
        point is more than `LARGEST_MOVE_A` away and therefore a different one.
    """
    top = int(path.energies.argmax())
    if top in (0, len(path.images) - 1):
        raise UserError(f"{path.name}: the highest image is an end; there is no saddle point.")
    tangent = path.spline.derivative()(path.arc_length[top])
    highest = path.images[top].positions
    found = stationary_point(
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


def log_ratio(minimum: Expansion, saddle: Expansion, normal: Array | None = None) -> float:
    """Return ln( det H0 / (det H1 n.H1^-1.n) ), lengths in angstrom and energies in eV.

    Parameters
    ----------
    minimum, saddle
        The expansions with H0 and H1.
    normal
        n, shape (N, 3), of any length. The default is the unstable mode.

    Raises
    ------
    ValueError
        If the points are not a minimum and a saddle point, or the plane does not separate them.
    """
    values0, _ = minimum.modes()
    values1, modes1 = saddle.modes()
    if values0[0] <= 0 or values1[0] >= 0 or values1[1] <= 0:
        raise ValueError(
            f"a minimum and a saddle point are needed, not {values0[:2]}, {values1[:2]}"
        )
    n = modes1[:, 0]
    if normal is not None:
        own = normal if saddle.free is None else normal[saddle.free]
        n = own.ravel() / np.linalg.norm(own)
    compliance = float(np.sum((modes1.T @ n) ** 2 / values1))
    if compliance >= 0:
        raise ValueError("the plane does not separate the two sides of the saddle point")
    return float(np.log(values0).sum() - np.log(np.abs(values1)).sum() - np.log(-compliance))


def flux_barrier(delta_E_eV: float, ln_ratio: float, kT_eV: float) -> float:
    """Harmonic flux barrier, eV, from the energy of the saddle point and `log_ratio`."""
    return float(delta_E_eV + 0.5 * kT_eV * (np.log(2 * np.pi * kT_eV) - ln_ratio))


def _ln_quantum(x: Array) -> Array:
    """Logarithm of the ratio of quantum to classical partition function, x = h nu / kT."""
    return np.asarray(np.log(x) - 0.5 * x - np.log(-np.expm1(-x)))


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


def _kept_centre(file: Path, positions: Array) -> Array:
    """Return the structure of a stored Hessian if it equals the given one up to rounding."""
    kept = _load(file)
    if kept is not None and kept["positions"].shape == positions.shape:
        own: Array = kept["positions"]
        if np.abs(own - positions).max() < 1e-5:
            return own
    return positions


def _rows_of(file: Path, positions: Array, step_A: float, n_coordinates: int) -> Array:
    """Return the rows of this structure's Hessian that a file contains."""
    kept = _load(file)
    if (
        kept is not None
        and np.array_equal(kept["positions"], positions)
        and float(kept["step_A"]) == step_A
        and kept["rows"].shape[1] == n_coordinates
    ):
        return kept["rows"]
    return np.zeros((0, n_coordinates))


def _load(file: Path) -> dict[str, NDArray[Any]] | None:
    try:
        with np.load(file) as content:
            return {name: content[name] for name in ("positions", "step_A", "rows")}
    except Exception:  # missing or damaged: the Hessian is computed again
        return None
