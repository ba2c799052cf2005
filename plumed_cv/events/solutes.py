"""The relaxed states of a solute and a vacancy next to each other, for a catalogue."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import Reporter
from plumed_cv.events.catalogue import Event
from plumed_cv.events.network import Ints, Network
from plumed_cv.events.pairs import PairJump, Pairs
from plumed_cv.events.states import Relaxer, Supercell
from plumed_cv.structures import CLOSEST_A
from plumed_cv.structures.frame import Array

Open = Callable[[Atoms], AbstractContextManager[Relaxer]]


def relax_pairs(
    pairs: Pairs,
    network: Network,
    supercell: Supercell,
    vacancy_eV: float,
    open_relaxer: Open,
    reporter: Reporter,
    content: dict[str, Any],
    folder: Path,
    output: Path,
) -> tuple[Pairs, list[Event]]:
    """Relax all kinds of pairs and both ends of their jumps, and write the folders of the events.

    Parameters
    ----------
    pairs, network
        The pairs, and the jumps of a vacancy alone.
    supercell
        The supercell.
    vacancy_eV
        Energy of the relaxed vacancy alone in it.
    open_relaxer
        Opens what relaxes structures with the atoms of the given one.
    reporter
        Receives the energies.
    content, folder, output
        As for `catalogue.write_event`, of all events.

    Returns
    -------
    pairs, events
        The pairs with their energies, and an event for each of their jumps.

    Raises
    ------
    UserError
        If a state is no minimum, or has another symmetry than its sites.
    """
    solute = pairs.solute
    origin = network.sites.positions @ network.cell
    alone = supercell.pair(solute, origin[0])
    energies = []
    for ideal, word in ((supercell.host, "the crystal"), (alone, f"the {solute} atom alone")):
        with open_relaxer(ideal) as relaxer:
            energies.append(relaxer.relaxed(ideal, word)[1])
    separate = energies[1] + vacancy_eV - energies[0]
    first = _places(network, pairs.states[0])
    with open_relaxer(supercell.pair(solute, *first)) as relaxer:
        of_kinds = [np.nan]
        for kind in range(1, pairs.number_of_kinds + 1):
            places = _places(network, pairs.states[pairs.kinds == kind][0])
            ideal, name = supercell.pair(solute, *places), f"{solute} and vacancy, pair {kind}"
            state, energy = relaxer.relaxed(ideal, name)
            if off := relaxer.off(ideal, state, CLOSEST_A):
                raise UserError(
                    f"The vacancy at {np.linalg.norm(places[1] - places[0]):.2f} A from the "
                    f"{solute} atom is not at a minimum: {off}."
                )
            of_kinds.append(energy)
        events = []
        numbers = {True: 0, False: 0}
        for jump in pairs.jumps:
            numbers[jump.exchanges] += 1
            word = "exchange" if jump.exchanges else "pair"
            name = f"{solute}-{word}-{numbers[jump.exchanges]}"
            ends, kinds = _ends(supercell, network, solute, jump), pairs.kinds_of(jump)
            event = relaxer.jump(name, ends, jump, kinds, of_kinds, content, folder, output)
            events.append(event)
    found = replace(pairs, energies_eV=np.array([0.0, *(e - separate for e in of_kinds[1:])]))
    for kind in range(1, pairs.number_of_kinds + 1):
        site, place = _places(network, pairs.states[pairs.kinds == kind][0])
        reporter.say(
            f"{solute} and vacancy, pair {kind}: {np.linalg.norm(place - site):.3f} A, energy "
            f"{found.energies_eV[kind]:+.4f} eV relative to both far from each other."
        )
    return found, events


def _places(network: Network, state: Ints) -> tuple[Array, Array]:
    """Positions of the solute and of the vacancy, Cartesian, shape (3,)."""
    s, v, *cell = state.tolist()
    places = network.sites.positions
    return places[s] @ network.cell, (places[v] + cell) @ network.cell


def _ends(
    supercell: Supercell, network: Network, solute: str, jump: PairJump
) -> tuple[Atoms, Atoms]:
    """Return the unrelaxed states of a jump: the same atoms in the same order."""
    site, place = _places(network, jump.initial[0])
    initial = supercell.pair(solute, site, place, place + jump.steps[0])
    final = initial.copy()
    final.positions[-1 if jump.exchanges else -2] = place
    final.wrap()
    return initial, final
