"""Harmonic transition state theory from Hessians at the minimum and at the saddle point.

With energies V0 + x.H0.x / 2 around the minimum and V1 + x.H1.x / 2 around the saddle point, both
without the translations of the whole (and its rotations, where there is no cell), the rate is that
of Vineyard, J. Phys. Chem. Solids 3, 121 (1957),

    k = prod_i nu_i / prod_j nu'_j exp(-(V1 - V0) / kT),

nu_i the frequencies of the minimum and nu'_j the real ones of the saddle point. A free molecule
also has the ratio of its rotational partition functions, the root of that of the products of the
moments of inertia.

The integral over the basin is exp(-V0/kT) (2 pi kT)^(M/2) / sqrt(det H0), that over a plane
through the saddle point with unit normal n is exp(-V1/kT) (2 pi kT)^((M-1)/2) /
sqrt(det H1 n.H1^-1.n). The flux barrier of this plane, with lengths in angstrom, is

    F = V1 - V0 + kT/2 ln(2 pi kT) - kT/2 ln( det H0 / (det H1 n.H1^-1.n) ).

It is highest, and the flux the lowest, when n is the unstable mode; then det H1 n.H1^-1.n is the
product of the positive eigenvalues.

Quantum corrections: partition functions of quantum oscillators, 1 / (2 sinh(h nu / 2kT)), in place
of kT / (h nu), and the first term of Wigner's tunnelling factor, 1 + (h nu_b / kT)^2 / 24 with the
imaginary frequency nu_b (Wigner, Trans. Faraday Soc. 34, 29 (1938)). Below the crossover
temperature h nu_b / (2 pi k) the transmission of a parabola diverges, and the factor says nothing.

Energies are in eV, lengths in angstrom, masses in amu. N atoms.
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

STEP_A = 0.001  # of the differences; anharmonic potentials need a small one
LARGEST_FORCE_EV_A = 1e-4  # that may be left on an atom of a stationary point
COORDINATES = 16  # displaced in one call of the engine; a file is written after each
MOST_HESSIANS = 5  # computed on the way to a stationary point
MOST_STEPS = 10  # with one Hessian
LONGEST_STEP_A = 0.1  # of an atom
LARGEST_MOVE_A = 0.5  # of an atom, from a path's highest image to the saddle point

_PLANCK_EV_S = units._hplanck * units.J


@dataclass(frozen=True)
class Expansion:
    """The energy around a stationary point to second order.

    Attributes
    ----------
    energy_eV
        Energy, eV.
    positions
        Shape (N, 3), angstrom.
    hessian
        Symmetric, shape (3N, 3N), eV/angstrom^2.
    periodic
        Whether there is a cell, so that rotations of the whole cost energy.
    asymmetry
        Root mean square of the antisymmetric part that the differences had, eV/angstrom^2: what
        noise of the forces and terms of higher order make of it.
    """

    energy_eV: float
    positions: Array
    hessian: Array
    periodic: bool = True
    asymmetry: float = 0.0

    def modes(self, masses: Array | None = None) -> tuple[Array, Array]:
        """Eigenvalues in ascending order and modes in columns, without motions of the whole.

        Parameters
        ----------
        masses
            Shape (N,), amu. With them the Hessian is weighted by masses, and the eigenvalues are
            squares of angular frequencies in ASE's unit of time, eV/(angstrom^2 amu).

        Returns
        -------
        (M,), (3N, M)
            M is 3N - 3, less the rotations where there is no cell.
        """
        root = np.ones(len(self.hessian)) if masses is None else np.sqrt(np.repeat(masses, 3))
        weighted = self.hessian / np.outer(root, root)
        whole = self._motions_of_the_whole(root)
        inside = np.eye(len(weighted)) - whole @ whole.T
        # Far above all others, so that they are the last ones.
        lift = 10.0 * np.abs(weighted).max() * len(weighted)
        values, vectors = np.linalg.eigh(inside @ weighted @ inside + lift * whole @ whole.T)
        free = len(values) - whole.shape[1]
        return values[:free], vectors[:, :free]

    def frequencies_THz(self, masses: Array) -> Array:  # noqa: N802
        """Frequencies in ascending order, shape (M,), THz; imaginary ones are negative."""
        values = self.modes(masses)[0]
        return np.sign(values) * np.sqrt(np.abs(values)) / (2.0 * np.pi) * units.second * 1e-12

    def moments_of_inertia(self, masses: Array) -> Array:
        """The moments that are not zero, amu angstrom^2: 3, or 2 of a linear molecule."""
        arms = self.positions - masses @ self.positions / masses.sum()
        square = np.einsum("i,ia,ib->ab", masses, arms, arms)
        moments = np.linalg.eigvalsh(np.trace(square) * np.eye(3) - square)
        return np.asarray(moments[moments > 1e-6 * moments[-1]])

    def log_determinant_error(self, masses: Array) -> float:
        """Standard error of ln |det H| by the asymmetry of the differences.

        A symmetric error dH of independent elements changes ln |det H| by the trace of H^-1 dH. Its
        elements are taken to be as large as those of the antisymmetric part.
        """
        values, modes = self.modes(masses)
        compliance = (modes / values) @ modes.T  # weighted by masses, as its elements are
        root = np.sqrt(np.repeat(masses, 3))
        scaled = compliance / np.outer(root, root)
        # Elements off the diagonal count twice, and those on it have twice the variance.
        return float(2**0.5 * self.asymmetry * np.linalg.norm(scaled))

    def _motions_of_the_whole(self, root: Array) -> Array:
        """Orthonormal translations, and rotations without a cell, weighted: (3N, 2 to 6)."""
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
        The energy around both.
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
        """Vineyard's prefactor, 1/s; of a molecule with the factor of its rotations."""
        at_minimum, at_saddle = self._frequencies()
        ln = np.log(at_minimum).sum() - np.log(at_saddle).sum() + self._ln_rotations()
        return float(np.exp(ln) * 1e12)

    @property
    def prefactor_error_factor(self) -> float:
        """The prefactor is within this factor by the asymmetry of the Hessians, one sigma."""
        at_minimum = self.minimum.log_determinant_error(self.masses)
        at_saddle = self.saddle.log_determinant_error(self.masses)
        return float(np.exp(0.5 * np.hypot(at_minimum, at_saddle)))

    @property
    def zero_point_barrier_eV(self) -> float:  # noqa: N802
        """The barrier between the zero-point levels, eV."""
        at_minimum, at_saddle = self._frequencies()
        zero_point = 0.5 * _PLANCK_EV_S * 1e12 * (at_saddle.sum() - at_minimum.sum())
        return self.barrier_eV + float(zero_point)

    @property
    def crossover_temperature_K(self) -> float:  # noqa: N802
        """Temperature h nu_b / (2 pi k), below which tunnelling is not a correction, K."""
        return float(_PLANCK_EV_S * 1e12 * self.imaginary_frequency_THz / (2.0 * np.pi * units.kB))

    def at(self, temperature_K: float) -> dict[str, float | None]:
        """Rates and flux barrier at a temperature, by their names in harmonic.json.

        Parameters
        ----------
        temperature_K
            Temperature, K.

        Returns
        -------
        dict
            `rate_per_s`; `flux_barrier_eV`, of the best plane; `quantum_partition_rate_per_s`, with
            partition functions of quantum oscillators; `wigner_factor`; and `quantum_rate_per_s`,
            the product of both. The last two are None below the crossover temperature.
        """
        kT = units.kB * temperature_K
        at_minimum, at_saddle = (_PLANCK_EV_S * 1e12 * nu / kT for nu in self._frequencies())
        rate = self.prefactor_per_s * np.exp(-self.barrier_eV / kT)
        # Of an oscillator: x exp(-x/2) / (1 - exp(-x)) is its quantum over its classical sum.
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
        """Those of the minimum, and the real ones of the saddle point, THz."""
        at_minimum = self.minimum.frequencies_THz(self.masses)
        at_saddle = self.saddle.frequencies_THz(self.masses)[1:]
        return at_minimum, at_saddle

    def _ln_rotations(self) -> float:
        """Logarithm of the ratio of the rotational partition functions of a free molecule."""
        if self.minimum.periodic:
            return 0.0
        moments = [x.moments_of_inertia(self.masses) for x in (self.minimum, self.saddle)]
        if len(moments[0]) != len(moments[1]):
            raise UserError(
                "The molecule is linear in one of minimum and saddle point and bent in the other; "
                "the harmonic rate of that is not implemented."
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
) -> tuple[Array, float]:
    """Hessian by central differences of forces.

    Parameters
    ----------
    engine
        Computes forces.
    positions, cell
        The structure, shapes (N, 3) and (3, 3), angstrom.
    step_A
        Displacement of a coordinate to either side, angstrom.
    update
        Is told how many of the 3N coordinates are done.
    file
        Keeps what is done (.npz), and is gone on with if it is of this structure and step.

    Returns
    -------
    (3N, 3N), float
        The symmetric part, and the root mean square of the antisymmetric part, eV/angstrom^2.
    """
    rows = np.zeros((0, positions.size)) if file is None else _rows_of(file, positions, step_A)
    while len(rows) < positions.size:
        update(len(rows))
        chosen = np.arange(len(rows), min(len(rows) + COORDINATES, positions.size))
        structures = np.repeat(positions[None], 2 * len(chosen), axis=0)
        flat = structures.reshape(len(chosen), 2, -1)
        flat[np.arange(len(chosen)), 0, chosen] += step_A
        flat[np.arange(len(chosen)), 1, chosen] -= step_A
        forces = engine.forces(structures, cell).reshape(flat.shape)
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
    """Find the minimum, or the saddle point of first order, near a structure, and expand there.

    Newton's method with Hessians by differences of forces: up along one mode, for a saddle point,
    and down along all others.

    Parameters
    ----------
    engine
        Computes energies and forces.
    positions, cell
        The structure, shapes (N, 3) and (3, 3), angstrom.
    uphill
        Direction of the path there, shape (N, 3), for a saddle point; None for a minimum.
    step_A
        As for `hessian`.
    update
        Is told how many coordinates of a Hessian are done, and which Hessian it is.
    folder
        Existing folder that keeps Hessians, as far as they came; nothing is kept if None.

    Raises
    ------
    UserError
        If there is none nearby: forces stay above `LARGEST_FORCE_EV_A`, or the number of unstable
        modes is another one.
    """
    kind = "minimum" if uphill is None else "saddle point"
    periodic = bool(np.any(cell))
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
        )
        found = Expansion(0.0, centre, H, periodic, asymmetry)
        best, energy, force = _follow(engine, found, cell, uphill)
        if np.linalg.norm(best - centre, axis=1).max() < step_A and force < LARGEST_FORCE_EV_A:
            break
    values = found.modes()[0]
    unstable = int(np.count_nonzero(values < 0.0))
    if force >= LARGEST_FORCE_EV_A:
        raise UserError(
            f"No {kind} was found: after {MOST_HESSIANS} Hessians a force of {force:.2g} eV/A is "
            f"left on an atom ({LARGEST_FORCE_EV_A:g} at most); converge the path to less "
            "(path.fmax_eV_A), or look whether the forces are smooth."
        )
    if unstable != (0 if uphill is None else 1):
        raise UserError(
            f"No {kind} was found: the stationary point there has {unstable} unstable modes "
            f"(curvatures from {values[0]:.3g} eV/A^2 on); "
            + (
                "the end state of the path is no minimum."
                if uphill is None
                else "take more images (path.images) or a path through another saddle point."
            )
        )
    return Expansion(energy, best, H, periodic, asymmetry)


def saddle_of_path(
    engine: Engine,
    path: EnergyPath,
    *,
    step_A: float = STEP_A,
    update: Callable[[int, str], None] = lambda done, note: None,
    folder: Path | None = None,
) -> Expansion:
    """Find the saddle point at the highest image of a path, and expand there.

    Parameters
    ----------
    engine, step_A, update, folder
        As for `stationary_point`.
    path
        The path.

    Raises
    ------
    UserError
        As for `stationary_point`; if the highest image is an end of the path; or if the saddle
        point found is another one, more than `LARGEST_MOVE_A` away.
    """
    top = int(path.energies.argmax())
    if top in (0, len(path.images) - 1):
        raise UserError(f"{path.name}: its highest image is an end, so it has no saddle point.")
    tangent = path.spline.derivative()(path.arc_length[top])
    highest = path.images[top].positions
    found = stationary_point(
        engine, highest, path.cell, tangent, step_A=step_A, update=update, folder=folder
    )
    moved = float(np.linalg.norm(found.positions - highest, axis=1).max())
    if moved > LARGEST_MOVE_A:
        raise UserError(
            f"{path.name}: the saddle point nearest to its highest image has an atom {moved:.2f} A "
            "elsewhere, so it is not that of this path; converge the path further "
            "(path.fmax_eV_A, path.images)."
        )
    return found


def log_ratio(minimum: Expansion, saddle: Expansion, normal: Array | None = None) -> float:
    """ln( det H0 / (det H1 n.H1^-1.n) ), lengths in angstrom and energies in eV.

    Parameters
    ----------
    minimum, saddle
        H0 and H1.
    normal
        n, shape (N, 3), of any length; the unstable mode by default.

    Raises
    ------
    ValueError
        If they are no minimum and no saddle point, or the plane does not separate its sides.
    """
    values0, _ = minimum.modes()
    values1, modes1 = saddle.modes()
    if values0[0] <= 0 or values1[0] >= 0 or values1[1] <= 0:
        raise ValueError(
            f"a minimum and a saddle point are needed, not {values0[:2]}, {values1[:2]}"
        )
    n = modes1[:, 0] if normal is None else normal.ravel() / np.linalg.norm(normal)
    compliance = float(np.sum((modes1.T @ n) ** 2 / values1))
    if compliance >= 0:
        raise ValueError("the plane does not separate the two sides of the saddle point")
    return float(np.log(values0).sum() - np.log(np.abs(values1)).sum() - np.log(-compliance))


def flux_barrier(delta_E_eV: float, ln_ratio: float, kT_eV: float) -> float:
    """Harmonic flux barrier, eV, from the energy of the saddle point and `log_ratio`."""
    return float(delta_E_eV + 0.5 * kT_eV * (np.log(2 * np.pi * kT_eV) - ln_ratio))


def _ln_quantum(x: Array) -> Array:
    """Logarithm of the quantum over the classical partition function, x = h nu / kT."""
    return np.asarray(np.log(x) - 0.5 * x - np.log(-np.expm1(-x)))


def _follow(
    engine: Engine, around: Expansion, cell: Array, uphill: Array | None
) -> tuple[Array, float, float]:
    """Newton steps with one Hessian; the best positions, their energy and largest force."""
    values, modes = around.modes()
    signs = np.ones(len(values))
    if uphill is not None:
        overlap = np.abs(modes.T @ uphill.ravel())
        if (values < 0.0).any():
            overlap[values >= 0.0] = -1.0
        signs[overlap.argmax()] = -1.0
    positions = around.positions
    best: tuple[Array, float, float] | None = None
    for _ in range(MOST_STEPS):
        energy, forces, _ = engine.evaluate(positions, cell)
        largest = float(np.linalg.norm(forces - forces.mean(axis=0), axis=1).max())
        if best is None or largest < best[2]:
            best = positions, energy, largest
        elif largest > 2.0 * best[2]:
            break
        step = modes @ (signs * (modes.T @ forces.ravel()) / np.abs(values))
        step = step.reshape(-1, 3)
        step *= min(1.0, LONGEST_STEP_A / np.linalg.norm(step, axis=1).max(initial=1e-12))
        positions = positions + step
    assert best is not None
    return best


def _kept_centre(file: Path, positions: Array) -> Array:
    """The structure of a kept Hessian if it is the same but for rounding, or the given one."""
    kept = _load(file)
    if kept is not None and kept["positions"].shape == positions.shape:
        own: Array = kept["positions"]
        if np.abs(own - positions).max() < 1e-5:
            return own
    return positions


def _rows_of(file: Path, positions: Array, step_A: float) -> Array:
    """The rows that a file has of this structure's Hessian."""
    kept = _load(file)
    if (
        kept is not None
        and np.array_equal(kept["positions"], positions)
        and float(kept["step_A"]) == step_A
    ):
        return kept["rows"]
    return np.zeros((0, positions.size))


def _load(file: Path) -> dict[str, NDArray[Any]] | None:
    try:
        with np.load(file) as content:
            return {name: content[name] for name in ("positions", "step_A", "rows")}
    except Exception:  # missing or damaged: it is computed again
        return None
