"""Saddle points around a defect, found from one state alone.

A search moves one atom of the defect in a random direction, relaxes the others around it for a few
steps, and follows the mode of lowest curvature to a saddle point by ASE's dimer method (Henkelman
and Jonsson, J. Chem. Phys. 111, 7010 (1999)). The saddle point belongs to the state if one of its
two sides relaxes to the state. The other side is then the final state of an event.

A start at which all atoms near the defect are displaced at random has a high energy in a solid, and
few such searches end at a low saddle point. Lengths are in angstrom, energies in eV. N atoms.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.mep.dimer import DimerControl, MinModeAtoms, MinModeTranslate
from ase.neighborlist import neighbor_list
from ase.optimize import FIRE
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.threads import one_thread
from plumed_cv.cv import symmetry
from plumed_cv.engines import Engine
from plumed_cv.engines.engine import EngineCalculator
from plumed_cv.engines.process import KilledError
from plumed_cv.paths import find_minimum_energy_path, relax
from plumed_cv.structures import cell_of, drift_of, held_atoms, kinds_of
from plumed_cv.structures.frame import Array, displacements
from plumed_cv.structures.neighbours import Neighbours, nearest_distance

Ints = NDArray[np.int64]

RADIUS_A = 4.0  # of the neighbours of the moved atom that are displaced, too
SAME_A = 0.3  # largest distance of an atom between two structures that are the same minimum
SAME_SADDLE_A = 0.15  # the same for saddle points, which are closer to each other
SAME_EV = 5e-3  # largest difference of their energies

_SHARE = 0.125  # of the atoms, those of a defect at most
_MOVE = (0.15, 0.55)  # length of the first displacement in distances of nearest neighbours
_RATTLE_A = 0.1  # standard deviation of the displacements of its neighbours
_HELD_STEPS = 10  # of the relaxation around the moved atom
FMAX_EV_A = 0.01  # at a saddle point, and where a side of it is recognised
_SIDE_A = 0.15  # displacement of the atom that moves most, from a saddle point to a side
_MOST_CALLS = 1000  # calculations of forces of one search
_SIDE_STEPS = 1000
_BAND_IMAGES, _BAND_FMAX_EV_A, _BAND_CALLS = 11, 0.05, 5000


@dataclass(frozen=True)
class Saddle:
    """A saddle point.

    Attributes
    ----------
    step
        Displacements from the reactant, shape (N, 3), angstrom.
    mode
        Mode of negative curvature, shape (N, 3), normalised.
    barrier_eV
        Energy relative to the reactant.
    """

    step: Array
    mode: Array
    barrier_eV: float


@dataclass(frozen=True)
class Outcome:
    """Result of one search.

    Attributes
    ----------
    saddle
        The saddle point, or None.
    reason
        Why there is none: "too high", "not converged" or the message of an error.
    atom
        The atom that was moved, from 0; -1 if there was none.
    calls
        Number of calculations of forces.
    """

    saddle: Saddle | None
    reason: str
    atom: int
    calls: int


class Searcher:
    """Searches for saddle points around a minimum.

    Parameters
    ----------
    engine
        Computes energies and forces.
    reactant
        The relaxed initial state.
    centres
        Atoms of which each search moves one, from 0, shape (n,).
    radius_A
        Neighbours within this distance of the moved atom are displaced, too.

    Attributes
    ----------
    energy_eV
        Energy of the reactant.
    operations
        Operations of its symmetry.
    """

    def __init__(
        self, engine: Engine, reactant: Atoms, centres: Ints, radius_A: float = RADIUS_A
    ) -> None:
        self._engine = engine
        self._reactant = reactant.copy()
        self._reactant.calc = None
        self._cell = cell_of(reactant)
        self._drift = drift_of(reactant)
        self._held = held_atoms(reactant)
        self.centres = centres
        self._radius_A = radius_A
        engine.forget()
        self.energy_eV: float = engine.evaluate(reactant.positions, self._cell)[0]
        self.operations = symmetry.find_space_group(
            kinds_of(reactant), reactant.positions, self._cell, held=self._held
        )

    @one_thread()
    def search(self, rng: np.random.Generator, ceiling_eV: float) -> Outcome:
        """Search for one saddle point.

        The result does not depend on earlier searches, to the last bit.

        Parameters
        ----------
        rng
            Random number generator, which alone determines the course.
        ceiling_eV
            The search ends if its energy is higher than this, relative to the reactant.

        Raises
        ------
        KilledError
            If the process of the engine is killed. Other errors of the engine are an outcome.
        """
        self._engine.forget()
        atom = int(rng.choice(self.centres))
        atoms = self._at(np.zeros((len(self._reactant), 3)))
        atoms.calc = watch = _Watch(self._engine, _MOST_CALLS)

        def check() -> None:
            if atoms.get_potential_energy() - self.energy_eV > ceiling_eV:
                raise _EndedError("too high")

        try:
            self.start(atoms, atom, rng)
            check()
            saddle = self._checked(atoms, self.climb(atoms, self.step(atoms), check))
        except _EndedError as end:
            return Outcome(None, str(end), atom, watch.calls)
        except KilledError:
            raise
        except UserError as error:  # of the engine, for a start with two atoms at one place
            return Outcome(None, f"error: {error}", atom, watch.calls)
        return Outcome(saddle, "", atom, watch.calls)

    def start(self, atoms: Atoms, atom: int, rng: np.random.Generator) -> None:
        """Displace the reactant to the start of a search.

        One atom moves by some tenths of a bond in a random direction, its neighbours by a little.
        They then relax around it for a few steps.

        Parameters
        ----------
        atoms
            The reactant with a calculator, which is changed.
        atom
            The atom, from 0.
        rng
            Random number generator.
        """
        places = self._reactant.positions
        bond = nearest_distance(places, self._cell, places[[atom]])
        direction = rng.standard_normal(3)
        length = bond * rng.uniform(*_MOVE)
        near = Neighbours(places, self._cell, self._radius_A).of(places[[atom]])
        step = np.zeros_like(places)
        step[near] = rng.normal(scale=_RATTLE_A, size=(len(near), 3))
        step[atom] = length * direction / np.linalg.norm(direction)
        step[self._held] = 0.0
        atoms.positions += step
        held = atoms.constraints
        atoms.set_constraint(FixAtoms([*self._held.tolist(), atom]))
        FIRE(atoms, logfile=None).run(fmax=0.05, steps=_HELD_STEPS)
        atoms.set_constraint(held)

    def climb(self, atoms: Atoms, mode: Array, check: Callable[[], None]) -> Array:
        """Follow the lowest mode from a start to a saddle point.

        Parameters
        ----------
        atoms
            The start, which is changed.
        mode
            A guess of the mode, shape (N, 3).
        check
            To be called after each step.

        Returns
        -------
        Array
            The mode, shape (N, 3).
        """
        control = DimerControl(logfile=None, eigenmode_logfile=None)
        dimer = MinModeAtoms(atoms, control, eigenmodes=[mode / np.linalg.norm(mode)])
        optimiser = MinModeTranslate(dimer, logfile=None)
        optimiser.attach(check)
        if not optimiser.run(fmax=FMAX_EV_A, steps=_MOST_CALLS):
            raise _EndedError("not converged")
        return np.array(dimer.get_eigenmode())

    def towards(self, final: Atoms) -> Outcome:
        """Find the first saddle point on the way to another minimum, by an elastic band.

        Parameters
        ----------
        final
            The other minimum, which is relaxed first: the same atoms in the same order.

        Raises
        ------
        UserError
            If it does not belong to the reactant, relaxes to it, or the band does not converge.
        """
        self._engine.forget()
        watches: list[_Watch] = []

        def new() -> Calculator:
            watches.append(_Watch(self._engine, _BAND_CALLS))
            return watches[-1]

        try:
            path = find_minimum_energy_path(
                self._reactant, final, new, n_images=_BAND_IMAGES, fmax_eV_A=_BAND_FMAX_EV_A
            )
            u, energies = path.displacements, path.energies
            u = u - u[0]
            top = next(
                (k for k in range(1, len(u) - 1) if energies[k + 1] < energies[k]), len(u) - 2
            )
            atoms = self._at(u[top])
            atoms.calc = new()
            saddle = self._checked(atoms, self.climb(atoms, u[top + 1] - u[top - 1], lambda: None))
            reason = ""
        except _EndedError as end:
            saddle, reason = None, str(end)
        return Outcome(saddle, reason, -1, sum(watch.calls for watch in watches))

    def final_state(self, saddle: Saddle) -> tuple[Array | None, int]:
        """Find the final state of the event over a saddle point.

        Returns
        -------
        step, calls
            Displacements from the reactant, shape (N, 3), or None if neither or both of the sides
            relax to the reactant; and the number of calculations of forces.
        """
        self._engine.forget()
        sides, calls = [], 0
        for sign in (1.0, -1.0):
            atoms = self._at(saddle.step)
            largest = np.linalg.norm(saddle.mode, axis=1).max()
            atoms.positions += sign * _SIDE_A / largest * saddle.mode
            atoms.calc = watch = _Watch(self._engine, _SIDE_STEPS)
            try:
                FIRE(atoms, logfile=None).run(fmax=FMAX_EV_A, steps=_SIDE_STEPS)
            except _EndedError:
                return None, calls + watch.calls
            calls += watch.calls
            sides.append(self.step(atoms))
        back = [_largest(side) < SAME_A for side in sides]
        if back[0] == back[1]:
            return None, calls
        return sides[back.index(False)], calls

    def relaxed(self, step: Array, fmax_eV_A: float, name: str) -> tuple[Array, float]:
        """Relax a state completely; return its displacements and energy above the reactant."""
        self._engine.forget()
        atoms = self._at(step)
        atoms.calc = self._engine.calculator()
        relax(atoms, fmax_eV_A, name)
        return self.step(atoms), float(atoms.get_potential_energy()) - self.energy_eV

    def step(self, atoms: Atoms) -> Array:
        """Displacements of a structure from the reactant, shape (N, 3)."""
        return displacements(
            atoms.positions, self._cell, self._reactant.positions, self._cell, self._drift
        )

    def images(self, step: Array) -> Array:
        """Return the distinct images of displacements by the symmetry of the reactant.

        Parameters
        ----------
        step
            Displacements from the reactant, shape (N, 3).

        Returns
        -------
        Array
            Shape (number of images, N, 3); the given one is first.
        """
        limit = min(SAME_SADDLE_A, 0.5 * _largest(step))
        found: list[Array] = []
        for operation in self.operations:
            image = operation.turn(step)
            if not any(_largest(image - other) < limit for other in found):
                found.append(image)
        return np.array(found)

    def _at(self, step: Array) -> Atoms:
        atoms: Atoms = self._reactant.copy()
        atoms.positions += step
        return atoms

    def _checked(self, atoms: Atoms, mode: Array) -> Saddle:
        """Return a saddle point that is not the reactant itself."""
        step = self.step(atoms)
        if _largest(step) < SAME_SADDLE_A:
            raise _EndedError("not converged")
        return Saddle(step, mode, float(atoms.get_potential_energy()) - self.energy_eV)


def find_defect_atoms(atoms: Atoms) -> Ints:
    """Find the atoms whose neighbours differ from those of most others.

    Atoms are alike if they have the same element and the same numbers of neighbours of each
    element. Neighbours are those within a distance at which the numbers of most atoms do not
    change. The rarest kinds are the defect, as many kinds as make up an eighth of the atoms; the
    atoms of a flat surface are more than that.

    Parameters
    ----------
    atoms
        A relaxed structure.

    Returns
    -------
    Ints
        Numbers of the atoms from 0, without fixed ones, shape (n,).

    Raises
    ------
    UserError
        If all atoms are alike, or if there is no kind to which many belong.
    """
    cutoff = _between_shells(atoms)
    i, j = neighbor_list("ij", atoms, cutoff)
    symbols = np.array(atoms.get_chemical_symbols())
    kinds = []
    for atom, symbol in enumerate(symbols):
        around = Counter(symbols[j[i == atom]].tolist())
        kinds.append((str(symbol), tuple(sorted(around.items()))))
    numbers = Counter(kinds)
    common, _ = numbers.most_common(1)[0]
    free = np.setdiff1d(np.arange(len(atoms)), held_atoms(atoms))
    rare = Counter(kind for kind in (kinds[k] for k in free) if kind != common)
    rare = Counter({kind: numbers[kind] for kind in rare})
    if not rare:
        raise UserError(
            "all atoms that can move have the same surroundings, so the defect cannot be found; "
            "name an atom of it (--around)."
        )
    small = sum(n for n in numbers.values() if n <= _SHARE * len(atoms))
    if numbers[common] <= _SHARE * len(atoms) or small > 0.5 * len(atoms):
        raise UserError(
            "the surroundings of the atoms are too different to tell the defect from the rest; "
            "name an atom of the defect (--around)."
        )
    chosen: list[Any] = []
    for kind, n in sorted(rare.items(), key=lambda each: (each[1], each[0])):
        if chosen and sum(numbers[each] for each in chosen) + n > _SHARE * len(atoms):
            break
        chosen.append(kind)
    return np.array([k for k in free if kinds[k] in chosen], dtype=np.int64)


def _between_shells(atoms: Atoms) -> float:
    """Distance in the largest gap between the shells of neighbours of most atoms, angstrom."""
    cell = cell_of(atoms)
    nearest = nearest_distance(atoms.positions, cell)
    found = Neighbours(atoms.positions, cell, 2.0 * nearest)
    distances = found.distances(atoms.positions, min(60, len(atoms) - 1))
    shells = np.median(distances, axis=0)
    shells = np.append(shells[np.isfinite(shells)], 2.0 * nearest)
    gaps = np.diff(shells)
    gaps[shells[:-1] > 1.75 * nearest] = 0.0
    widest = int(gaps.argmax())
    return float(shells[widest] + 0.5 * gaps[widest])


class _EndedError(Exception):
    """The reason why a search ends without a saddle point."""


class _Watch(EngineCalculator):
    """The engine's calculator that counts and ends a search that takes too long."""

    def __init__(self, engine: Engine, most: int) -> None:
        super().__init__(engine)
        self._most = most
        self.calls = 0

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        if self.calls >= self._most:
            raise _EndedError("not converged")
        self.calls += 1
        super().calculate(atoms, properties, system_changes)


def _largest(step: Array) -> float:
    """Largest displacement of an atom, angstrom."""
    return float(np.linalg.norm(step, axis=-1).max())
