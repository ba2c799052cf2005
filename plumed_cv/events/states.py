"""The states of a defect at the sites of a crystal, and their relaxation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.optimize import FIRE

from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import Reporter
from plumed_cv.engines import Engine
from plumed_cv.events.catalogue import Event, write_event
from plumed_cv.events.network import (
    Crystal,
    Jump,
    Network,
    Sites,
)
from plumed_cv.events.pairs import PairJump
from plumed_cv.input_file import Config
from plumed_cv.paths import relax
from plumed_cv.rates.multiplicity import ENERGY_EV, count_equivalent_events
from plumed_cv.structures import CLOSEST_A, cell_of
from plumed_cv.structures.frame import Array, displacements

Defect = Literal["vacancy", "interstitial"]

KICK_A = 0.05  # standard deviation of the displacements before a state is relaxed


@dataclass(frozen=True)
class Supercell:
    """A supercell of a crystal for one defect.

    Parameters
    ----------
    crystal
        The crystal.
    defect, species
        Kind and element of the defect.
    repeats
        Numbers of conventional cells along their vectors.
    """

    crystal: Crystal
    defect: Defect
    species: str
    repeats: tuple[int, int, int]

    @property
    def host(self) -> Atoms:
        """All atoms without the defect, those of its species last."""
        atoms: Atoms = self.crystal.conventional.repeat(self.repeats)
        order = np.argsort(np.array(atoms.symbols) == self.species, kind="stable")
        return atoms[order]

    def state(self, place: Array, other: Array) -> Atoms:
        """Return the unrelaxed structure with the defect at a site.

        The atom that jumps is the last one: the interstitial atom, or the atom that goes from
        `other` to `place` when the vacancy goes from `place` to `other`.

        Parameters
        ----------
        place, other
            The site of the defect, and that from or to which it jumps: Cartesian, shape (3,).
        """
        atoms = self.host
        if self.defect == "interstitial":
            atoms.append(self.species)
            atoms.positions[-1] = place
            atoms.wrap()
            return atoms
        gone, mover = _nearest_atom(atoms, place), _nearest_atom(atoms, other)
        kept = [k for k in range(len(atoms)) if k not in (gone, mover)]
        return atoms[[*kept, mover]] if gone != mover else atoms[kept]

    def pair(
        self, solute: str, site: Array, place: Array | None = None, other: Array | None = None
    ) -> Atoms:
        """Return the unrelaxed structure with a solute atom, the last one, and with a vacancy.

        Parameters
        ----------
        solute, site
            Element of the solute, and its site: Cartesian, shape (3,).
        place
            Site of the vacancy; there is none if None.
        other
            Site of the atom that jumps into it, which is the last one but the solute.
        """
        atoms = self.host
        last = [_nearest_atom(atoms, site)]
        atoms.symbols[last[0]] = solute
        if other is not None and (mover := _nearest_atom(atoms, other)) != last[0]:
            last.insert(0, mover)
        gone = None if place is None else _nearest_atom(atoms, place)
        return atoms[[*(k for k in range(len(atoms)) if k not in (gone, *last)), *last]]


class Relaxer:
    """Relaxes the states of a defect and checks what they relax to."""

    def __init__(
        self, engine: Engine, supercell: Supercell, config: Config, reporter: Reporter
    ) -> None:
        self._engine = engine
        self._supercell = supercell
        self._fmax = config.path.fmax_eV_A
        self._rng = np.random.default_rng(config.iteration.seed)
        self._reporter = reporter

    def minima(self, sites: Sites, *, drop: bool) -> tuple[Sites, list[float]]:
        """Return the sites at which the defect has a minimum, and the energy of each kind, eV.

        Parameters
        ----------
        sites
            The sites.
        drop
            Whether a kind that is no minimum is left out. Otherwise it is refused.
        """
        cell = self._supercell.crystal.cell
        kept, energies = [], []
        for kind in range(sites.number_of_kinds):
            number = int(np.flatnonzero(sites.kinds == kind)[0])
            place = sites.positions[number] @ cell
            ideal = self._supercell.state(place, place)
            limit = min(CLOSEST_A, 0.5 * _nearest(sites, number, cell))
            state, energy = self.relaxed(ideal, f"site {kind}")
            if (off := self.off(ideal, state, limit)) is None:
                kept.append(kind)
                energies.append(energy)
                continue
            where = np.round(sites.positions[number], 4).tolist()
            words = f"the {self._supercell.defect} at {where} is not at a minimum: {off}"
            if not drop:
                raise UserError(f"{words[0].upper()}{words[1:]}. Name other sites.")
            self._reporter.say(f"Left out: {words}.")
        if not kept:
            raise UserError(
                "The interstitial has no minimum at any of the largest holes; name its sites "
                "(--site)."
            )
        chosen = np.isin(sites.kinds, kept)
        renumbered = np.searchsorted(kept, sites.kinds[chosen])
        return Sites(sites.positions[chosen], renumbered.astype(np.int64)), energies

    def event(
        self,
        network: Network,
        jump: Jump,
        number: int,
        energies: Sequence[float],
        content: dict[str, Any],
        folder: Path,
        output: Path,
    ) -> Event:
        """Relax both ends of a jump, check them, and write the folder of the event."""
        name = f"{self._supercell.species}-{self._supercell.defect}-{number}"
        start = network.sites.positions[jump.initial[0]] @ network.cell
        places = (start, start + jump.steps[0])
        a, b = (int(network.sites.kinds[end[0]]) for end in (jump.initial, jump.final))
        kinds = (a, b)
        initial = self._supercell.state(*places)
        final = self._supercell.state(*places[::-1])
        if self._supercell.defect == "vacancy":  # the same atoms in the same order
            final = initial.copy()
            final.positions[-1] = places[0]
            final.wrap()
        return self.jump(name, (initial, final), jump, kinds, energies, content, folder, output)

    def jump(
        self,
        name: str,
        ideal: tuple[Atoms, Atoms],
        jump: Jump | PairJump,
        kinds: tuple[int, int],
        energies: Sequence[float],
        content: dict[str, Any],
        folder: Path,
        output: Path,
    ) -> Event:
        """Relax the given ends of a jump, check them, and write the folder of the event."""
        relaxed, found_eV = [], []
        for structure, kind, word in zip(ideal, kinds, ("initial", "final"), strict=True):
            state, energy = self.relaxed(structure, f"{name}, {word} state")
            limit = min(CLOSEST_A, 0.5 * jump.length_A)
            if off := self.off(structure, state, limit):
                raise UserError(f"{name}: the {word} state is not a minimum: {off}.")
            if abs(energy - energies[kind]) > ENERGY_EV:
                remedy = (
                    "; name the sites of the stable ones (--site)"
                    if self._supercell.defect == "interstitial"
                    else ""
                )
                raise UserError(
                    f"{name}: the {word} state relaxes to an energy that differs by "
                    f"{energy - energies[kind]:+.4f} eV from that of an equivalent state, so there "
                    f"are several minima at one site{remedy}."
                )
            relaxed.append(state)
            found_eV.append(energy)
        self._check_multiplicity(name, jump, relaxed[0], relaxed[1])
        write_event(folder / name, relaxed[0], relaxed[1], content, output / name)
        energy = 0.0 if kinds[0] == kinds[1] else found_eV[1] - found_eV[0]
        return Event(name, jump, kinds, energy)

    def relaxed(self, ideal: Atoms, name: str) -> tuple[Atoms, float]:
        """Return the minimum near a structure and its energy, eV.

        The atoms are displaced at random first: a structure at a symmetric saddle point would stay
        there otherwise. The mean displacement of the minimum from the structure is zero.
        """
        state = ideal.copy()
        state.positions += self._rng.normal(scale=KICK_A, size=state.positions.shape)
        state.calc = self._engine.calculator()
        with self._reporter.task(f"relaxing {name}", None) as update:
            # Damped dynamics, unlike L-BFGS, does not converge to a saddle point.
            FIRE(state, logfile=None).run(fmax=max(self._fmax, 0.01), steps=2000)
            relax(
                state,
                self._fmax,
                name,
                progress=lambda fmax, stage: update(0, f"{fmax:.4f} eV/A"),
            )
        energy = float(state.get_potential_energy())
        cell = cell_of(ideal)
        step = displacements(state.positions, cell, ideal.positions, cell)
        minimum = ideal.copy()
        minimum.positions += step
        return minimum, energy

    def off(self, ideal: Atoms, state: Atoms, limit_A: float) -> str | None:
        """Say which atom has left its place; None if none has."""
        cell = cell_of(ideal)
        far = np.linalg.norm(displacements(state.positions, cell, ideal.positions, cell), axis=1)
        if self._supercell.defect == "interstitial" and far[-1] > limit_A:
            return f"the {self._supercell.species} atom relaxes to a place {far[-1]:.2f} A away"
        atom = int(far.argmax())
        if far[atom] > CLOSEST_A:
            return f"an atom of {state.symbols[atom]} moves by {far[atom]:.2f} A"
        return None

    def _check_multiplicity(
        self, name: str, jump: Jump | PairJump, initial: Atoms, final: Atoms
    ) -> None:
        """Refuse states whose symmetry is not that of their sites in the crystal."""
        for start, end, number, word in (
            (initial, final, jump.multiplicity, "initial"),
            (final, initial, jump.reverse_multiplicity, "final"),
        ):
            found = count_equivalent_events(start, end).events
            if found != number:
                raise UserError(
                    f"{name}: the relaxed {word} state has {found} equivalent jumps of this kind "
                    f"and its site in the crystal has {number}. Either the state breaks the "
                    "symmetry of the site, or the supercell is too small; try a larger --width."
                )


def _nearest_atom(atoms: Atoms, point: Array) -> int:
    """Number of the atom nearest to a point, (3,), angstrom."""
    apart = (atoms.positions - point) @ np.linalg.inv(cell_of(atoms))
    return int(np.linalg.norm((apart - np.round(apart)) @ atoms.cell, axis=1).argmin())


def _nearest(sites: Sites, number: int, cell: Array) -> float:
    """Distance from a site to the nearest other one, or to its own nearest image, angstrom."""
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    apart = sites.positions - sites.positions[number]
    apart -= np.round(apart)
    lengths = np.linalg.norm((apart[:, None] + shifts) @ cell, axis=2)
    return float(lengths[lengths > 1e-6].min())
