"""Rates of a catalogue in the forms that other codes read.

    jumps.csv, jumps.json    every jump of the network, also the reverse ones
    onsager-1000K.yaml       input of the package onsager, one file for each temperature

The file for onsager has the keys of the examples in its folder bin
(https://github.com/DallasTrinkle/Onsager). A site has the probability

    Prefactor exp(-Energy / kT) ,

without its normalisation, and a jump from it has the rate

    PrefactorT exp(-EnergyT / kT) / (Prefactor exp(-Energy / kT)) .

Here all energies are zero and the prefactors contain everything, because the rates are those of one
temperature.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import write_text
from plumed_cv.events.catalogue import NAME, Catalogue
from plumed_cv.structures.frame import Array

COLUMNS = (
    *("temperature_K", "event", "initial_site", "final_site", "x_A", "y_A", "z_A"),
    *("rate_per_s", "error_factor", "multiplicity", "source"),
)
_THRESHOLD = 1e-5  # of onsager, for positions that are equivalent


@dataclass(frozen=True)
class Rates:
    """Rates of all events of a catalogue at one temperature.

    Attributes
    ----------
    temperature_K
        The temperature.
    ln_rates
        Logarithm of the rate of one forward jump of each event, in 1/s, shape (n,).
    free_energies_kT
        Free energy of one site of each kind in units of kT; the first one is zero, shape (kinds,).
    covariance
        Of both together, shape (n + kinds, n + kinds).
    sources
        Kind of rate of each event, such as "transmission coefficient".
    stretch
        Lengths at this temperature divided by those of the catalogue.
    """

    temperature_K: float
    ln_rates: Array
    free_energies_kT: Array
    covariance: Array
    sources: tuple[str, ...]
    stretch: float = 1.0

    @property
    def values(self) -> Array:
        """Logarithms of the rates and free energies, shape (n + kinds,)."""
        return np.concatenate([self.ln_rates, self.free_energies_kT])


def write_exports(folder: Path | str, catalogue: Catalogue, known: Sequence[Rates]) -> list[Path]:
    """Write the rates at all temperatures for other codes.

    Parameters
    ----------
    folder
        Made if absent.
    catalogue
        The catalogue.
    known
        Its rates, one for each temperature.

    Returns
    -------
    list
        The files.

    Raises
    ------
    UserError
        If the folder cannot be made, or the catalogue has a solute or lacks the atoms of the
        crystal.
    """
    if catalogue.pairs is not None:
        raise UserError(
            f"--export: {catalogue.root} has a solute, whose jumps the formats cannot describe; "
            "export a catalogue of the vacancy alone."
        )
    folder = Path(folder)
    rows = [row for rates in known for row in iterate_jumps(catalogue, rates)]
    texts = {"jumps.csv": _table(rows), "jumps.json": _json(catalogue, known, rows)}
    texts |= {f"onsager-{r.temperature_K:g}K.yaml": onsager_input(catalogue, r) for r in known}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}; name a folder.") from None
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def iterate_jumps(catalogue: Catalogue, rates: Rates) -> Iterator[dict[str, Any]]:
    """Yield every jump of the network from the primitive cell, forward and reverse ones.

    Yields
    ------
    dict
        `COLUMNS`: `event` has "-reverse" after its name if the jump back has a rate of its own;
        sites are numbered from 0; the vector is in angstrom; `rate_per_s` is that of this jump
        alone, and `multiplicity` the number of such jumps from the initial site.
    """
    for k, (event, jump) in enumerate(zip(catalogue.events, catalogue.network.jumps, strict=True)):
        ways = [(event.id, jump.initial, jump.final, jump.steps, jump.multiplicity, event.kinds)]
        if not jump.reverse_is_own:
            back = jump.reverse_multiplicity
            name = f"{event.id}-reverse"
            ways.append((name, jump.final, jump.initial, -jump.steps, back, event.kinds[::-1]))
        for name, initial, final, steps, multiplicity, kinds in ways:
            ln_rate, error = _rate(rates, k, event.kinds, kinds[0])
            for i, j, step in zip(initial.tolist(), final.tolist(), steps, strict=True):
                vector = (rates.stretch * step).tolist()
                values = (rates.temperature_K, name, i, j, *vector, float(np.exp(ln_rate)))
                values += (float(np.exp(error)), multiplicity, rates.sources[k])
                yield dict(zip(COLUMNS, values, strict=True))


def _rate(rates: Rates, event: int, kinds: tuple[int, int], start: int) -> tuple[float, float]:
    """Logarithm of the rate of an event, and its error, from a kind of site by detailed balance."""
    n = len(rates.ln_rates)
    weights = np.zeros(len(rates.values))
    weights[event] = 1.0
    weights[n + start] += 1.0
    weights[n + kinds[0]] -= 1.0
    return float(weights @ rates.values), float(np.sqrt(weights @ rates.covariance @ weights))


def _table(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _json(catalogue: Catalogue, known: Sequence[Rates], rows: Sequence[dict[str, Any]]) -> str:
    sites = catalogue.network.sites
    content = {
        "defect": catalogue.defect,
        "species": catalogue.species,
        "sites": [
            {"position": place.tolist(), "kind": int(kind)}
            for place, kind in zip(sites.positions, sites.kinds, strict=True)
        ],
        "temperatures": [
            {
                "temperature_K": rates.temperature_K,
                "cell_A": (rates.stretch * catalogue.network.cell).tolist(),
                "free_energies_kT": rates.free_energies_kT[sites.kinds].tolist(),
            }
            for rates in known
        ],
        "jumps": list(rows),
        "units": {
            "position": "fractional coordinates of the cell",
            "cell_A": "rows are vectors of the primitive cell, angstrom",
            "free_energies_kT": "of the defect on each site, in units of kT",
            "x_A, y_A, z_A": "vector from the initial to the final site, angstrom",
            "rate_per_s": "1/s, of this jump alone",
            "error_factor": "the rate is within this factor, one standard error",
            "multiplicity": "number of such jumps from the initial site",
        },
    }
    return json.dumps(content, indent=1, allow_nan=False)


def onsager_input(catalogue: Catalogue, rates: Rates) -> str:
    """Return the input of onsager at one temperature, YAML.

    Parameters
    ----------
    catalogue, rates
        A catalogue and its rates.

    Returns
    -------
    str
        `lattice`, `basis` and `chemistry` for `Crystal.fromdict`; `interstitial`, the number of the
        element that jumps (of the vacancy's element for a vacancy); `sitelist`, `jumpnetwork`,
        `Prefactor`, `Energy`, `PrefactorT` and `EnergyT` for `Interstitial` and `VacancyMediated`.
        Lengths are in angstrom, rates in 1/s.

    Raises
    ------
    UserError
        If the catalogue does not have the atoms of the crystal.
    """
    network = catalogue.network
    basis, moving = _basis(catalogue)
    kinds = range(network.sites.number_of_kinds)
    weights = np.exp(-rates.free_energies_kT)
    of_events = np.exp(rates.ln_rates) * weights[[event.kinds[0] for event in catalogue.events]]
    lines = [
        f"# {catalogue.defect} of {catalogue.species} at {rates.temperature_K:g} K, by plumed_cv.",
        f"# Lengths in angstrom, rates in 1/s. Rates: {', '.join(dict.fromkeys(rates.sources))}.",
        "# The prefactors contain all; this file holds at this temperature only.",
        f"lattice: {_array(rates.stretch * network.cell)}",
        f"threshold: {_THRESHOLD:.1e}",
        "basis:",
        *(f"- [{', '.join(map(_array, places))}]" for places in basis.values()),
        f"chemistry: {json.dumps(list(basis))}",
        f"interstitial: {moving}",
        f"sitelist: {[np.flatnonzero(network.sites.kinds == k).tolist() for k in kinds]}",
        f"Prefactor: {_numbers(weights)}",
        f"Energy: {_numbers(0.0 * weights)}",
        f"PrefactorT: {_numbers(of_events)}",
        f"EnergyT: {_numbers(0.0 * of_events)}",
        "jumpnetwork:",
    ]
    for jump in catalogue.network.jumps:
        first = "- "
        for i, j, step in zip(jump.initial, jump.final, rates.stretch * jump.steps, strict=True):
            ways = [(i, j, step)] if jump.reverse_is_own else [(i, j, step), (j, i, -step)]
            for begin, end, vector in ways:
                pair = f"!!python/tuple [{begin}, {end}]"
                lines.append(f"{first}- !!python/tuple [{pair}, {_array(vector)}]")
                first = "  "
    return "\n".join(lines) + "\n"


def _basis(catalogue: Catalogue) -> tuple[dict[str, Array], int]:
    """Fractional coordinates by element, and the number of the element that jumps."""
    atoms = catalogue.about["crystal"].get("atoms")
    if atoms is None:
        raise UserError(
            f"{catalogue.root / NAME}: does not have the atoms of the crystal; make the catalogue "
            "again with 'plumed-cv jumps'."
        )
    basis: dict[str, Any] = {}
    for atom in atoms:
        basis.setdefault(atom["element"], []).append(atom["position"])
    name = catalogue.species
    if catalogue.defect != "vacancy":
        name += " interstitial"
    basis[name] = catalogue.network.sites.positions
    return {key: np.array(places) for key, places in basis.items()}, list(basis).index(name)


def _numbers(values: ArrayLike) -> str:
    """Numbers as YAML 1.1 takes them: with a point and a sign of the exponent."""
    return f"[{', '.join(f'{x:.16e}' for x in np.asarray(values).tolist())}]"


def _array(values: Array) -> str:
    if values.ndim == 1:
        return f"!numpy.ndarray {_numbers(values)}"
    return f"!numpy.ndarray [{', '.join(map(_numbers, values))}]"
