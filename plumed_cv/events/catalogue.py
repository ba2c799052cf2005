"""A catalogue of events: a folder with `catalogue.json` and one folder for each event.

    catalogue.json          crystal, sites, and all jumps of each event
    Fe-vacancy-1/           an event, as `plumed-cv run Fe-vacancy-1/input.toml` takes it
        initial.xyz, final.xyz, input.toml

The events are the jumps of a defect that differ by symmetry. With a solute, the jumps of a vacancy
far from it come first, and then those near it. Together with the rates they determine
the diffusion coefficient, so the file also has every jump of an event as a vector. The events that
were discovered from one state (`events.discovery`) have no sites and no such vectors.
"""

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from ase import Atoms

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import replacing, write_text
from plumed_cv.common.toml import as_toml
from plumed_cv.events.network import Ints, Jump, Network, Sites
from plumed_cv.events.pairs import PairJump, Pairs
from plumed_cv.input_file import Config, Gromacs, load, validate

FORMAT = "plumed_cv catalogue"
VERSION = 1
NAME = "catalogue.json"
INPUT = "input.toml"


@dataclass(frozen=True)
class Numbers:
    """Data of equivalent events without a network of sites.

    Attributes
    ----------
    length_A
        Displacement of the atom that moves most, angstrom.
    multiplicity, reverse_multiplicity
        Number of equivalent events from the initial state, and of reverse ones from the final one.
    reverse_is_own
        Whether the reverse event is one of the equivalent ones.
    """

    length_A: float
    multiplicity: int
    reverse_multiplicity: int
    reverse_is_own: bool


@dataclass(frozen=True)
class Event:
    """A jump of a defect, and with it all that are equivalent by symmetry.

    Attributes
    ----------
    id
        Name of the event and of its folder.
    jump
        All equivalent jumps.
    kinds
        Kinds of the initial and of the final site, numbered from 0; near a solute, those of
        `pairs.Pairs`.
    energy_eV
        Potential energy of the relaxed final state relative to the initial one.
    """

    id: str
    jump: Jump | PairJump | Numbers
    kinds: tuple[int, int]
    energy_eV: float

    @property
    def is_symmetric(self) -> bool:
        """Whether both sites are of one kind, so that forward and reverse rates are equal."""
        return self.kinds[0] == self.kinds[1]


@dataclass(frozen=True)
class Catalogue:
    """The content of a catalogue.

    Attributes
    ----------
    root
        Its folder.
    defect
        "vacancy", "interstitial", or "given" if the events were discovered from one state.
    species
        Element of the vacancy, of the interstitial atom, or of all atoms.
    sites_and_jumps
        One jump for each event, in the same order; None if the events were discovered.
    pairs
        Jumps near a solute, one for each event after those of `sites_and_jumps`; None without one.
    events
        The events.
    about
        The whole content of catalogue.json.
    """

    root: Path
    defect: str
    species: str
    sites_and_jumps: Network | None
    pairs: Pairs | None
    events: tuple[Event, ...]
    about: dict[str, Any]

    @property
    def network(self) -> Network:
        """Sites and jumps.

        Raises
        ------
        UserError
            If the events were discovered from one state, whose sites are unknown.
        """
        if self.sites_and_jumps is None:
            raise UserError(
                f"{self.root}: has the events of one state, without the sites of a crystal, so "
                "there is no diffusion coefficient; use a catalogue of 'plumed-cv jumps'."
            )
        return self.sites_and_jumps

    def folder(self, event: Event) -> Path:
        """Folder of an event."""
        return self.root / event.id

    def config(self, event: Event) -> Config:
        """Read the input of an event."""
        return load(self.folder(event) / INPUT)


def write_catalogue(
    folder: Path,
    network: Network | None,
    events: Sequence[Event],
    about: dict[str, Any],
    more: Mapping[str, dict[str, Any]] = MappingProxyType({}),
    pairs: Pairs | None = None,
) -> None:
    """Write catalogue.json.

    Parameters
    ----------
    folder
        The folder of the catalogue.
    network, events
        The network, if there is one, and one event for each of its jumps, followed by one for each
        of the jumps near a solute.
    about
        What else is known: `defect`, `species`, `crystal` and more.
    more
        What else is known of an event, by its name.
    pairs
        The jumps near a solute, if there is one.
    """
    content = {
        "format": FORMAT,
        "format_version": VERSION,
        **about,
        **_sites_of(network),
        **_pairs_of(pairs),
        "events": [
            {
                "id": event.id,
                "kind": about["defect"],
                "initial_site": event.kinds[0],
                "final_site": event.kinds[1],
                "length_A": event.jump.length_A,
                "multiplicity": event.jump.multiplicity,
                "reverse_multiplicity": event.jump.reverse_multiplicity,
                "energy_eV": event.energy_eV,
                "initial": f"{event.id}/initial.xyz",
                "final": f"{event.id}/final.xyz",
                "input": f"{event.id}/{INPUT}",
                "reverse_is_own": event.jump.reverse_is_own,
                **more.get(event.id, {}),
                **_jumps_of(event.jump),
            }
            for event in events
        ],
        "units": {
            "cell_A": "rows are vectors of the primitive cell, angstrom",
            "position": "fractional coordinates of this cell",
            "jumps": "numbers of both sites from 0, and the vector between them, angstrom",
            "energy_eV": "final minus initial state, relaxed, eV",
            "pairs": "site of the solute, site and cell of the vacancy; energies without jumps",
            "pair_jumps": "both pairs, and the vector of the vacancy, angstrom",
        },
    }
    write_text(folder / NAME, json.dumps(content, indent=1, allow_nan=False))


def _sites_of(network: Network | None) -> dict[str, Any]:
    if network is None:
        return {"cell_A": None, "sites": []}
    sites = network.sites
    return {
        "cell_A": network.cell.tolist(),
        "sites": [
            {"position": place.tolist(), "kind": int(kind)}
            for place, kind in zip(sites.positions, sites.kinds, strict=True)
        ],
    }


def _pairs_of(pairs: Pairs | None) -> dict[str, Any]:
    if pairs is None:
        return {}
    kinds = range(1, pairs.number_of_kinds + 1)
    return {
        "solute": pairs.solute,
        "pairs": [
            {
                "kind": kind,
                "energy_eV": float(pairs.energies_eV[kind]),
                "states": pairs.states[pairs.kinds == kind].tolist(),
            }
            for kind in kinds
        ],
    }


def _jumps_of(jump: Jump | PairJump | Numbers) -> dict[str, Any]:
    if isinstance(jump, Numbers):
        return {"jumps": []}
    if isinstance(jump, Jump):
        return {"jumps": _rows(jump)}
    ends = zip(jump.initial.tolist(), jump.final.tolist(), jump.steps.tolist(), strict=True)
    return {"exchanges": jump.exchanges, "pair_jumps": [[a, b, step] for a, b, step in ends]}


def _rows(jump: Jump) -> list[list[float]]:
    return [
        [int(i), int(j), *map(float, step)]
        for i, j, step in zip(jump.initial, jump.final, jump.steps, strict=True)
    ]


def read_catalogue(folder: Path | str) -> Catalogue:
    """Read a catalogue.

    Raises
    ------
    UserError
        If the folder has none, or if it is damaged or has a newer format.
    """
    root = Path(folder)
    file = root / NAME
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read: {error.strerror}; 'plumed-cv jumps' writes a catalogue, "
            "and so does 'plumed-cv discover'."
        ) from None
    except ValueError as error:
        raise UserError(f"{file}: is damaged ({error}); make the catalogue again.") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(
            f"{file}: is not a catalogue of plumed_cv; 'plumed-cv jumps' and 'plumed-cv discover' "
            "write one."
        )
    if about.get("format_version") != VERSION:
        raise UserError(
            f"{file}: has format version {about.get('format_version')}, and this plumed_cv reads "
            f"version {VERSION}; use the plumed_cv that wrote it."
        )
    try:
        return _parsed(root, about)
    except UserError as error:
        raise UserError(f"{file}: {error}; make the catalogue again.") from None
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{file}: is damaged ({type(error).__name__}: {error}); make the catalogue again."
        ) from None


def _parsed(root: Path, about: dict[str, Any]) -> Catalogue:
    sites = Sites(
        np.array([site["position"] for site in about["sites"]], dtype=float).reshape(-1, 3),
        np.array([site["kind"] for site in about["sites"]], dtype=np.int64),
    )
    events, jumps, near = [], [], []
    pairs = _parsed_pairs(about, len(sites)) if "solute" in about else None
    for each in about["events"]:
        if about["cell_A"] is None:
            events.append(_discovered(each))
            continue
        if pairs is not None and "pair_jumps" in each:
            of_pair = _pair_jump(each, pairs)
            near.append(of_pair)
            ends_of = pairs.kinds_of(of_pair)
            events.append(Event(each["id"], of_pair, ends_of, float(each["energy_eV"])))
            continue
        rows = np.array(each["jumps"], dtype=float).reshape(-1, 5)
        ends = rows[:, :2].astype(np.int64)
        if not len(rows) or ends.min() < 0 or ends.max() >= len(sites):
            raise UserError(f"event {each['id']} has jumps between sites that do not exist")
        jump = Jump(ends[:, 0], ends[:, 1], rows[:, 2:], bool(each["reverse_is_own"]))
        kinds = tuple(int(sites.kinds[end[0]]) for end in (jump.initial, jump.final))
        events.append(Event(each["id"], jump, (kinds[0], kinds[1]), float(each["energy_eV"])))
        jumps.append(jump)
    if not events or len({event.id for event in events}) < len(events):
        raise UserError("has no events, or two with the same id")
    network = None
    if about["cell_A"] is not None:
        network = Network(np.array(about["cell_A"], dtype=float).reshape(3, 3), sites, tuple(jumps))
    if pairs is not None:
        pairs = replace(pairs, jumps=tuple(near))
        if any(isinstance(event.jump, PairJump) for event in events[: len(jumps)]):
            raise UserError("has jumps near the solute before those far from it")
    return Catalogue(root, about["defect"], about["species"], network, pairs, tuple(events), about)


def _parsed_pairs(about: dict[str, Any], sites: int) -> Pairs:
    """Pairs of a catalogue, without their jumps."""
    states = [state for each in about["pairs"] for state in each["states"]]
    kinds = [each["kind"] for each in about["pairs"] for _ in each["states"]]
    energies = [0.0, *(float(each["energy_eV"]) for each in about["pairs"])]
    rows = np.array(states, dtype=np.int64).reshape(-1, 5)
    if not len(rows) or rows[:, :2].min() < 0 or rows[:, :2].max() >= sites:
        raise UserError("has pairs on sites that do not exist")
    if sorted(set(kinds)) != list(range(1, len(energies))):
        raise UserError("has kinds of pairs that are not numbered from 1")
    of_kinds: Ints = np.array(kinds, dtype=np.int64)
    return Pairs(about["solute"], rows, of_kinds, np.array(energies), ())


def _pair_jump(each: dict[str, Any], pairs: Pairs) -> PairJump:
    initial, final = (
        np.array([row[k] for row in each["pair_jumps"]], dtype=np.int64).reshape(-1, 5)
        for k in (0, 1)
    )
    known = set(map(tuple, pairs.states.tolist()))
    if not len(initial) or not known.issuperset(map(tuple, [*initial.tolist(), *final.tolist()])):
        raise UserError(f"event {each['id']} has jumps between pairs that do not exist")
    steps = np.array([row[2] for row in each["pair_jumps"]], dtype=float).reshape(-1, 3)
    own = bool(each["reverse_is_own"])
    return PairJump(initial, final, steps, own, bool(each["exchanges"]))


def _discovered(each: dict[str, Any]) -> Event:
    numbers = Numbers(
        float(each["length_A"]),
        int(each["multiplicity"]),
        int(each["reverse_multiplicity"]),
        bool(each["reverse_is_own"]),
    )
    kinds = (int(each["initial_site"]), int(each["final_site"]))
    return Event(each["id"], numbers, kinds, float(each["energy_eV"]))


def read_template(file: Path) -> tuple[dict[str, Any], Config]:
    """Read the input that all events have in common.

    Returns
    -------
    content, config
        Sections and keys, with the names of the end states of an event; and the same as a
        configuration whose engine finds its files.

    Raises
    ------
    UserError
        If the file cannot be read or used.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: is not valid TOML: {error}.") from None
    system = {**content.get("system", {}), "initial": "initial.xyz", "final": "final.xyz"}
    system.pop("reorder", None)
    content = {"system": system, **{k: v for k, v in content.items() if k != "system"}}
    if "file" in content.get("path", {}):
        raise UserError(f"{file}: path.file belongs to one event; remove it.")
    config = validate(content, file)
    if isinstance(config.engine, Gromacs):
        raise UserError(
            f"{file}: engine.name = 'gromacs' needs a topology for each structure; use lammps or "
            "ase."
        )
    if config.cv.alignment != "none":
        raise UserError(f"{file}: cv.alignment = 'optimal' is for molecules; remove it.")
    base = file.absolute().parent
    scheduler = config.sampling.scheduler
    if scheduler is not None and "://" not in scheduler:
        content["sampling"]["scheduler"] = str(base / scheduler)
    directory = base / (config.engine.directory or ".")
    content["engine"] = {**content["engine"], "directory": str(directory)}
    engine = config.engine.model_copy(update={"directory": directory})
    return content, config.model_copy(update={"engine": engine})


def write_event(
    folder: Path, initial: Atoms, final: Atoms, content: dict[str, Any], output: Path
) -> None:
    """Write the folder of an event: its end states and its input.

    Parameters
    ----------
    folder
        The folder, which is made.
    initial, final
        The relaxed end states.
    content
        The input that all events have in common, as `read_template` returns it.
    output
        Where the folder will be, to which `engine.directory` is relative.
    """
    folder.mkdir(exist_ok=True)
    for state, word in ((initial, "initial"), (final, "final")):
        with replacing(folder / f"{word}.xyz") as temporary:
            state.write(temporary, format="extxyz")
    directory = os.path.relpath(content["engine"]["directory"], output.absolute())
    engine = {**content["engine"], "directory": Path(directory).as_posix()}
    write_text(folder / INPUT, as_toml({**content, "engine": engine}))
