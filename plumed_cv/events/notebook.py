"""The searches for the events of a state, what they found, and the catalogue made of it.

Shallow minima. If the way back from a final state is less than `SHALLOW` of the barrier, it is not
a state for the rates. If the symmetry of this minimum makes more events out of the way back, these
are the ways on, and the final states of the event are where they lead: images of the initial state.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write

import plumed_cv
from plumed_cv.common.errors import UserError
from plumed_cv.common.files import parse_json, read_json, replacing, write_text
from plumed_cv.cv import symmetry
from plumed_cv.cv.projection import linear
from plumed_cv.engines.process import KilledError
from plumed_cv.events.catalogue import INPUT, Event, Numbers, write_catalogue, write_event
from plumed_cv.events.confidence import Confidence
from plumed_cv.events.saddles import SAME_A, SAME_EV, SAME_SADDLE_A, Outcome, Saddle, Searcher
from plumed_cv.input_file import Config
from plumed_cv.rates.multiplicity import count_equivalent_events
from plumed_cv.structures import OF_DYNAMICS, cell_of, drift_of, held_atoms, kinds_of
from plumed_cv.structures.frame import Array

ABOVE_LOWEST = 1.5  # default limit of the barriers, in units of the lowest one
SHALLOW = 0.2  # barrier back from a minimum that is passed, in units of the barrier
CEILING_EV = 2.0  # searches above this energy end; or above twice the limit of the barriers


def ceiling_of(limit_eV: float | None) -> float:
    """Energy above which a search for events below a barrier ends, eV."""
    return max(CEILING_EV, 2.0 * (limit_eV or 0.0))


@dataclass
class _Known:
    """A saddle point that was found: its images by symmetry, and the event if it has one."""

    number: int
    images: Array
    barrier_eV: float
    final: Array | None
    energy_eV: float

    @property
    def is_event(self) -> bool:
        return self.final is not None

    @property
    def depth_eV(self) -> float:  # noqa: N802
        """Barrier from the final state back."""
        return self.barrier_eV - self.energy_eV


@dataclass(frozen=True)
class _End:
    """A final state of an event, and the shallow minimum before it if there is one."""

    step: Array
    energy_eV: float
    passed: _Known | None


class Notebook:
    """The searches of a folder and their results."""

    def __init__(self, folder: Path, reactant: Atoms, searcher: Searcher, fmax_eV_A: float) -> None:
        self._folder = folder
        self._reactant = reactant
        self._searcher = searcher
        self._fmax = fmax_eV_A
        self._file = folder / "searches.jsonl"
        self._lines: list[dict[str, Any]] = []
        self._known: list[_Known] = []
        if self._file.exists():
            text = self._file.read_text(encoding="utf-8", errors="replace")
            remedy = f"remove {folder}."
            self._lines = [parse_json(line, self._file, remedy) for line in text.splitlines()]
        self._given_file = folder / "given.json"
        self._given: list[dict[str, Any]] = []
        if self._given_file.exists():
            self._given = read_json(self._given_file, f"remove {folder}.")["minima"]
        numbers = {line["saddle"] for line in [*self._lines, *self._given]} - {None}
        self._known = [self._load(number) for number in sorted(numbers)]

    @property
    def done(self) -> int:
        """Number of searches."""
        return len(self._lines)

    def events(self, limit_eV: float | None = None) -> list[_Known]:
        """Events below a barrier, in the order in which they were found."""
        limit = np.inf if limit_eV is None else limit_eV
        return [known for known in self._known if known.is_event and known.barrier_eV <= limit]

    def n_events(self, limit_eV: float | None) -> int:
        """Number of events below a barrier."""
        return len(self.events(limit_eV))

    def limit(self, given_eV: float | None) -> float | None:
        """Largest barrier of the events that count; None if none is known."""
        if given_eV is not None:
            return given_eV
        barriers = [known.barrier_eV for known in self.events()]
        return ABOVE_LOWEST * min(barriers) if barriers else None

    def confidence(self, limit_eV: float | None) -> Confidence:
        """Confidence that no event below a barrier is missing.

        Searches that ended at a lower energy than those for this barrier do not count.
        """
        counted = {known.number for known in self.events(limit_eV)}
        found = self._found(ceiling_of(limit_eV))
        return Confidence.of([n for n in found if n in counted], counted)

    def add(self, outcome: Outcome, ceiling_eV: float) -> dict[str, Any]:
        """Write down the result of the next search, which went on up to an energy."""
        line: dict[str, Any] = {
            "search": self.done + 1,
            "atom": outcome.atom + 1,
            "ceiling_eV": ceiling_eV,
            "reason": outcome.reason,
            "barrier_eV": None,
            "saddle": None,
            "copy": None,
            "new_event": False,
            "force_calls": outcome.calls,
        }
        if outcome.saddle is not None:
            known, copy = self._recognised(outcome.saddle)
            if known is None:
                known, calls = self._new(outcome.saddle)
                line["force_calls"] += calls
                line["new_event"] = known.is_event
            line |= {"barrier_eV": outcome.saddle.barrier_eV, "saddle": known.number, "copy": copy}
            if not known.is_event:
                line["reason"] = "not connected"
        self._lines.append(line)
        write_text(self._file, "".join(json.dumps(each) + "\n" for each in self._lines))
        return line

    def towards(self, name: str, other: Atoms) -> str:
        """Find the event towards another minimum, unless this was done; say what was found."""
        identity = checksum(other)
        known = next((each for each in self._given if each["structure"] == identity), None)
        if known is None:
            try:
                outcome = self._searcher.towards(other)
            except KilledError:
                raise
            except UserError as error:
                return f"no event towards it: {error}"
            number, connected, barrier, calls = None, False, None, outcome.calls
            if outcome.saddle is not None:
                found, _ = self._recognised(outcome.saddle)
                if found is None:
                    found, more = self._new(outcome.saddle)
                    calls += more
                number, connected, barrier = found.number, found.is_event, found.barrier_eV
            known = {
                "file": name,
                "structure": identity,
                "saddle": number,
                "connected": connected,
                "barrier_eV": barrier,
                "reason": outcome.reason,
                "force_calls": calls,
            }
            self._given.append(known)
            write_text(self._given_file, json.dumps({"minima": self._given}, indent=1))
        if known["saddle"] is None:
            return f"no saddle point towards it: {known['reason']}"
        if not known["connected"]:
            return "the saddle point towards it is of another state"
        return f"an event towards it, barrier {known['barrier_eV']:.4f} eV"

    def write(
        self,
        output: Path,
        structure: Path,
        content: dict[str, Any],
        config: Config,
        limit_eV: float,
        target: float,
        searches: int,
    ) -> dict[str, Any]:
        """Write the catalogue of the events below a barrier and return its content."""
        symbols = np.array(self._reactant.get_chemical_symbols())
        events: list[Event] = []
        more: dict[str, dict[str, Any]] = {}
        aside: list[dict[str, Any]] = []
        kinds = _FinalKinds(self._searcher, self._reactant)
        for number, known in enumerate(self.events(), 1):
            assert known.final is not None
            base = f"{symbols[_moves(known.final).argmax()]}-event-{number}"
            if known.barrier_eV > limit_eV:
                aside.append({"id": base, "barrier_eV": known.barrier_eV, "reason": "high barrier"})
                continue
            ends = self._ends(known)
            for end, letter in zip(ends, ascii_lowercase, strict=False):
                name = base if len(ends) == 1 else base + letter
                final, saddle = self._state(end.step), self._state(known.images[0])
                try:
                    forward = count_equivalent_events(self._reactant, final).events
                    reverse = count_equivalent_events(final, self._reactant).events
                except UserError as error:
                    reason = {"barrier_eV": known.barrier_eV, "reason": str(error)}
                    aside.append({"id": name, **reason})
                    continue
                kind, same = kinds.of(name, end.step, end.energy_eV, final)
                numbers = Numbers(float(_moves(end.step).max()), forward, reverse, kind == 0)
                energy = 0.0 if kind == 0 else end.energy_eV
                events.append(Event(name, numbers, (0, kind), energy))
                write_event(output / name, self._reactant, final, content, output / name)
                self._write_state(output / name / "saddle.xyz", saddle)
                passes = None
                if end.passed is not None:
                    passed = end.passed
                    passes = {"energy_eV": passed.energy_eV, "depth_eV": passed.depth_eV}
                    self._write_state(output / name / "passed.xyz", self._state(known.final))
                found = [line["copy"] for line in self._lines if line["saddle"] == known.number]
                more[name] = {
                    "barrier_eV": known.barrier_eV,
                    "saddle": f"{name}/saddle.xyz",
                    "passes": passes,
                    "times_found": len(found),
                    "copies": len(known.images),
                    "copies_found": len(set(found)),
                    "same_final_as": same,
                }
        now = self.confidence(limit_eV)
        formula = self._reactant.get_chemical_formula()
        about = {
            "written_by": f"plumed_cv {plumed_cv.__version__}",
            "defect": "given",
            "species": formula,
            "crystal": {"file": structure.name, "formula": formula},
            "supercell": {"atoms": len(self._reactant)},
            "directions": None,
            "expansion": config.system.expansion,
            "discovery": {
                "searches": self.done,
                "searches_allowed": searches,
                "ended_at_a_saddle": sum(line["saddle"] is not None for line in self._lines),
                "connected": len(self._found()),
                "counted": now.counted,
                "known_since_last_new": now.known,
                "rarest_found": now.rarest,
                "missing_if_equal": now.missing_equal,
                "missing_if_rare": now.missing_rare,
                "confidence": now.value,
                "confidence_target": target,
                "max_barrier_eV": limit_eV,
                "shallow": SHALLOW,
                "force_calls": sum(line["force_calls"] for line in [*self._lines, *self._given]),
                "operations": len(self._searcher.operations),
                "left_out": aside,
            },
        }
        if not events:
            raise UserError(f"{structure}: no event can be used: {aside[-1]['reason']}")
        events.sort(key=lambda event: more[event.id]["barrier_eV"])
        write_catalogue(output, None, events, about, more)
        rows = [
            {
                "id": event.id,
                "initial_site": 0,
                "final_site": event.kinds[1],
                "length_A": event.jump.length_A,
                "multiplicity": event.jump.multiplicity,
                "reverse_multiplicity": event.jump.reverse_multiplicity,
                "energy_eV": event.energy_eV,
                "input": f"{event.id}/{INPUT}",
                **more[event.id],
            }
            for event in events
        ]
        return {**about, "events": rows}

    def _ends(self, known: _Known) -> list[_End]:
        """Return the final states of an event; several if it passes a shallow minimum."""
        assert known.final is not None
        own = [_End(known.final, known.energy_eV, None)]
        if known.depth_eV > SHALLOW * known.barrier_eV:
            return own
        operations = symmetry.find_space_group(
            kinds_of(self._reactant),
            self._reactant.positions + known.final,
            cell_of(self._reactant),
            held=held_atoms(self._reactant),
        )
        found: list[_End] = []
        seen: list[Array] = [np.zeros((1, *known.final.shape))]  # the way back is none
        for operation in operations:
            step = known.final - operation.turn(known.final)
            if any(np.linalg.norm(e - step, axis=2).max(axis=1).min() < SAME_A for e in seen):
                continue
            step, energy = self._searcher.relaxed(step, self._fmax, "state behind a minimum")
            seen.append(self._searcher.images(step))
            found.append(_End(step, energy, known))
        return found or own

    def _write_state(self, file: Path, state: Atoms) -> None:
        with replacing(file) as temporary:
            state.write(temporary, format="extxyz")

    def _found(self, ceiling_eV: float = 0.0) -> list[int]:
        """Numbers of the saddle points of the searches that ended at an event, in their order.

        Only of searches that went on up to this energy.
        """
        events = {known.number for known in self.events()}
        lines = [line for line in self._lines if line["ceiling_eV"] >= ceiling_eV]
        return [line["saddle"] for line in lines if line["saddle"] in events]

    def _recognised(self, saddle: Saddle) -> tuple[_Known | None, int]:
        """Return the known saddle point that this is an image of, and the number of the image."""
        for known in self._known:
            if abs(known.barrier_eV - saddle.barrier_eV) > SAME_EV:
                continue
            apart = np.linalg.norm(known.images - saddle.step, axis=2).max(axis=1)
            if apart.min() < SAME_SADDLE_A:
                return known, int(apart.argmin())
        return None, 0

    def _new(self, saddle: Saddle) -> tuple[_Known, int]:
        """Find the event of a new saddle point and keep its structures."""
        number = len(self._known) + 1
        final, calls = self._searcher.final_state(saddle)
        energy = 0.0
        if final is not None:
            try:
                final, energy = self._searcher.relaxed(final, self._fmax, f"state {number}")
            except KilledError:
                raise
            except UserError:  # a state without a minimum
                final = None
            if final is not None and _moves(final).max() < SAME_A:
                final = None
        frames = [self._state(saddle.step)]
        frames[0].info["barrier_eV"] = saddle.barrier_eV
        if final is not None:
            frames.append(self._state(final))
            frames[1].info["energy_eV"] = energy
        with replacing(self._saddle_file(number)) as temporary:
            write(temporary, frames, format="extxyz")
        known = self._load(number)  # as it is after a stop, to the last digit
        self._known.append(known)
        return known, calls

    def _load(self, number: int) -> _Known:
        file = self._saddle_file(number)
        try:
            frames = read(file, ":")
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read ({error}); remove {self._folder}.") from None
        assert isinstance(frames, list)
        saddle, *rest = (each.positions - self._reactant.positions for each in frames)
        return _Known(
            number,
            self._searcher.images(saddle),
            float(frames[0].info["barrier_eV"]),
            rest[0] if rest else None,
            float(frames[-1].info.get("energy_eV", 0.0)),
        )

    def _saddle_file(self, number: int) -> Path:
        return self._folder / f"saddle-{number}.xyz"

    def _state(self, step: Array) -> Atoms:
        atoms: Atoms = self._reactant.copy()
        atoms.positions += step
        return atoms


class _FinalKinds:
    """Numbers of the final states that differ by symmetry; 0 is equivalent to the reactant."""

    def __init__(self, searcher: Searcher, reactant: Atoms) -> None:
        self._searcher = searcher
        self._reactant = reactant
        self._seen: list[tuple[str, Array, float, int]] = []

    def of(self, name: str, step: Array, energy_eV: float, final: Atoms) -> tuple[int, str | None]:
        """Return the number of the final state of an event.

        Parameters
        ----------
        name
            Name of the event.
        step, energy_eV, final
            The final state: displacements, energy relative to the reactant, and structure.

        Returns
        -------
        kind, other
            The number, and an earlier event with an equivalent final state, or None.
        """
        for other, images, energy, kind in self._seen:
            apart = np.linalg.norm(images - step, axis=2).max(axis=1)
            if abs(energy - energy_eV) < SAME_EV and apart.min() < SAME_A:
                return kind, other
        kind = (
            0 if self._is_reactant(final) else 1 + max((each[3] for each in self._seen), default=0)
        )
        self._seen.append((name, self._searcher.images(step), energy_eV, kind))
        return kind, None

    def _is_reactant(self, final: Atoms) -> bool:
        """Whether an operation of the symmetry exchanges a final state and the reactant."""
        reactant = self._reactant
        line = linear(
            kinds_of(reactant),
            cell_of(reactant),
            reactant.positions,
            final.positions,
            drift=drift_of(reactant),
        )
        operations = symmetry.find_operations(line, held=held_atoms(reactant))
        return any(operation.reverses for operation in operations)


def checksum(atoms: Atoms) -> str:
    """CRC-32 of a structure and of what its dynamics depends on, to 1e-6 angstrom."""
    others = [atoms.arrays[name].tolist() for name in OF_DYNAMICS if name in atoms.arrays]
    text = json.dumps(
        [
            *others,
            atoms.get_chemical_symbols(),
            (np.round(atoms.positions, 6) + 0.0).tolist(),
            (np.round(cell_of(atoms), 6) + 0.0).tolist(),
            atoms.pbc.tolist(),
            held_atoms(atoms).tolist(),
        ]
    )
    return f"{zlib.crc32(text.encode()):08x}"


def _moves(step: Array) -> Array:
    """Length of the displacement of each atom, (N,), angstrom."""
    return np.asarray(np.linalg.norm(step, axis=1))
