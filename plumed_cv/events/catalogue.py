"""A catalogue of events: a folder with `catalogue.json` and one folder for each event.

    catalogue.json          crystal, sites, and all jumps of each event
    Fe-vacancy-1/           an event, as `plumed-cv run Fe-vacancy-1/input.toml` takes it
        initial.xyz, final.xyz, input.toml

The events are the jumps of a defect that differ by symmetry. Together with the rates they determine
the diffusion coefficient, so the file also has every jump of an event as a vector.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import write_text
from plumed_cv.config import Config, load
from plumed_cv.events.network import Jump, Network, Sites

FORMAT = "plumed_cv catalogue"
VERSION = 1
NAME = "catalogue.json"
INPUT = "input.toml"


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
        Kinds of the initial and of the final site, numbered from 0.
    energy_eV
        Potential energy of the relaxed final state relative to the initial one.
    """

    id: str
    jump: Jump
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
        "vacancy" or "interstitial".
    species
        Element of the vacancy or of the interstitial atom.
    network
        Sites and jumps; one jump for each event, in the same order.
    events
        The events.
    about
        The whole content of catalogue.json.
    """

    root: Path
    defect: str
    species: str
    network: Network
    events: tuple[Event, ...]
    about: dict[str, Any]

    def folder(self, event: Event) -> Path:
        """Folder of an event."""
        return self.root / event.id

    def config(self, event: Event) -> Config:
        """Read the input of an event."""
        return load(self.folder(event) / INPUT)


def write_catalogue(
    folder: Path, network: Network, events: Sequence[Event], about: dict[str, Any]
) -> None:
    """Write catalogue.json.

    Parameters
    ----------
    folder
        The folder of the catalogue.
    network, events
        The network, and one event for each of its jumps.
    about
        What else is known: `defect`, `species`, `crystal` and more.
    """
    sites = network.sites
    content = {
        "format": FORMAT,
        "format_version": VERSION,
        **about,
        "cell_A": network.cell.tolist(),
        "sites": [
            {"position": place.tolist(), "kind": int(kind)}
            for place, kind in zip(sites.positions, sites.kinds, strict=True)
        ],
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
                "jumps": [
                    [int(i), int(j), *map(float, step)]
                    for i, j, step in zip(
                        event.jump.initial, event.jump.final, event.jump.steps, strict=True
                    )
                ],
            }
            for event in events
        ],
        "units": {
            "cell_A": "rows are vectors of the primitive cell, angstrom",
            "position": "fractional coordinates of this cell",
            "jumps": "numbers of both sites from 0, and the vector between them, angstrom",
            "energy_eV": "final minus initial state, relaxed, eV",
        },
    }
    write_text(folder / NAME, json.dumps(content, indent=1, allow_nan=False))


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
            f"{file}: cannot be read: {error.strerror}; 'plumed-cv jumps' writes a catalogue."
        ) from None
    except ValueError as error:
        raise UserError(f"{file}: is damaged ({error}); make the catalogue again.") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{file}: is not a catalogue of plumed_cv.")
    if about.get("format_version") != VERSION:
        raise UserError(
            f"{file}: has format version {about.get('format_version')}, and this plumed_cv reads "
            f"version {VERSION}; use the plumed_cv that wrote it."
        )
    try:
        return _parsed(root, about)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{file}: is damaged ({type(error).__name__}: {error}); make the catalogue again."
        ) from None


def _parsed(root: Path, about: dict[str, Any]) -> Catalogue:
    sites = Sites(
        np.array([site["position"] for site in about["sites"]], dtype=float).reshape(-1, 3),
        np.array([site["kind"] for site in about["sites"]], dtype=np.int64),
    )
    events = []
    for each in about["events"]:
        rows = np.array(each["jumps"], dtype=float).reshape(-1, 5)
        ends = rows[:, :2].astype(np.int64)
        if not len(rows) or ends.min() < 0 or ends.max() >= len(sites):
            raise UserError(f"event {each['id']} has jumps between sites that do not exist.")
        jump = Jump(ends[:, 0], ends[:, 1], rows[:, 2:], bool(each["reverse_is_own"]))
        kinds = tuple(int(sites.kinds[end[0]]) for end in (jump.initial, jump.final))
        events.append(Event(each["id"], jump, (kinds[0], kinds[1]), float(each["energy_eV"])))
    if not events or len({event.id for event in events}) < len(events):
        raise UserError("has no events, or two with the same id.")
    network = Network(
        np.array(about["cell_A"], dtype=float).reshape(3, 3),
        sites,
        tuple(event.jump for event in events),
    )
    return Catalogue(root, about["defect"], about["species"], network, tuple(events), about)
