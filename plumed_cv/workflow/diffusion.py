"""Diffusion coefficients of a catalogue from the rates of its events, with errors.

    diffusion.csv, diffusion.json   one row for each temperature
    diffusion.png                   the coefficients over 1/T

The rates of all events enter with their errors, and where sites are of several kinds, so do the
differences of their free energies. The errors are propagated to first order, as independent ones.
Each row says which kind of rate it used for each event.

A catalogue with a solute also gives the coefficient of the solute. The free energies of all pairs
follow from the runs up to one of them, that of the farthest pair, for which its relaxed energy is
taken.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from scipy.stats import chi2

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json, write_text
from plumed_cv.events.catalogue import Catalogue, Event, read_catalogue
from plumed_cv.events.diffusion import (
    compute_correlation_factors,
    compute_diffusivity,
)
from plumed_cv.events.exports import Rates, write_exports
from plumed_cv.figures import plot_diffusion
from plumed_cv.rates import arrhenius
from plumed_cv.structures.frame import Array
from plumed_cv.workflow.formation import Formation
from plumed_cv.workflow.propagation import compute_slopes, error_of, propagate_error
from plumed_cv.workflow.solute_diffusion import (
    compute_solute,
    describe_farthest_pair,
    walk_of,
)

SOURCES = ("transmission coefficient", "transition state theory", "harmonic")

_TO_M2 = 1e-20  # angstrom^2 to m^2
_COLUMNS = (
    *("temperature_K", "D_m2_per_s", "error_factor", "D_xx_m2_per_s", "D_yy_m2_per_s"),
    *("D_zz_m2_per_s", "D_tracer_m2_per_s", "tracer_error_factor", "correlation_factor"),
    *("concentration", "D_solute_m2_per_s", "solute_error_factor", "solute_correlation_factor"),
    *("solute_to_tracer", "solute_to_tracer_error_factor", "source"),
)


def compute_diffusion(
    folder: Path | str,
    *,
    source: str | None = None,
    formation: Formation | None = None,
    export: Path | str | None = None,
) -> dict[str, Any]:
    """Compute the diffusion coefficients at all temperatures at which every event has a rate.

    Parameters
    ----------
    folder
        A catalogue with rates.json.
    source
        Kind of rates to use, one of `SOURCES`. If None, the rate of each event is that with its
        transmission coefficient, or that of transition state theory if it has none. If an event
        has neither at a temperature, harmonic rates are used for all.
    formation
        Free energy of formation of a vacancy. With it, the coefficients of tracer atoms are
        computed.
    export
        Folder for the same rates in the forms that other codes read (`events.exports`).

    Returns
    -------
    dict
        The content of diffusion.json: `temperatures`, one row for each with the `rates` that were
        used, `fit`, `tracer_fit`, `solute_fit`.

    Raises
    ------
    UserError
        If there are no rates, or none with which all events are complete at one temperature.
    """
    catalogue = read_catalogue(folder)
    file = catalogue.root / "rates.json"
    if not file.exists():
        raise UserError(f"{file}: does not exist; 'plumed-cv campaign {folder}' writes it.")
    if formation is not None and catalogue.defect != "vacancy":
        raise UserError(
            f"--formation: the diffusion coefficient of an {catalogue.defect} atom does not depend "
            "on its concentration; leave this option out."
        )
    rows, used, notes = compute_coefficients(catalogue, source, formation)
    if not rows:
        raise UserError(f"{file}: there is no diffusion coefficient. {' '.join(notes)}".rstrip())
    if export is not None:
        write_exports(export, catalogue, used)
    content = {
        "defect": catalogue.defect,
        "species": catalogue.species,
        "solute": None if catalogue.pairs is None else catalogue.pairs.solute,
        "temperatures": rows,
        "fit": _fit(rows, "D_m2_per_s", "error_factor"),
        "tracer_fit": _fit(rows, "D_tracer_m2_per_s", "tracer_error_factor"),
        "solute_fit": _fit(rows, "D_solute_m2_per_s", "solute_error_factor"),
        "notes": notes,
        "units": {
            "D_m2_per_s": f"m^2/s, of one {catalogue.defect}; the mean of the three directions",
            "D_tensor_m2_per_s": "m^2/s, in the axes of the conventional cell",
            "D_tracer_m2_per_s": "m^2/s, of an atom by all vacancies in equilibrium",
            "error_factor": "the coefficient is within this factor, one standard error",
            "concentration": "vacancies per site in equilibrium, far from solutes",
            "D_solute_m2_per_s": "m^2/s, of a solute atom by all vacancies in equilibrium",
            "solute_to_tracer": "D of the solute divided by that of a tracer of the crystal",
        },
    }
    write_text(catalogue.root / "diffusion.json", json.dumps(content, indent=2, allow_nan=False))
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(
        row | {f"D_{x}{x}_m2_per_s": row["D_tensor_m2_per_s"][k][k] for k, x in enumerate("xyz")}
        for row in rows
    )
    write_text(catalogue.root / "diffusion.csv", text.getvalue())
    title = f"{catalogue.defect} of {catalogue.species}, {catalogue.about['crystal']['formula']}"
    plot_diffusion(catalogue.root / "diffusion.png", rows, title)
    return content


def compute_coefficients(
    catalogue: Catalogue,
    source: str | None = None,
    formation: Formation | None = None,
    *,
    tracer: bool = True,
) -> tuple[list[dict[str, Any]], list[Rates], list[str]]:
    """Return the coefficients at all temperatures, without writing anything.

    Parameters
    ----------
    catalogue
        A catalogue with rates.json.
    source, formation
        As for `compute_diffusion`.
    tracer
        Whether the correlation factor and the coefficients of tracer atoms are computed.

    Returns
    -------
    The rows of diffusion.json, the rates of each, and notes on what is left out.
    """
    known = read_json(catalogue.root / "rates.json")["rates"]
    rows, notes, used = [], [], []
    for kelvin in sorted({row["temperature_K"] for row in known}):
        chosen = _chosen(catalogue, [r for r in known if r["temperature_K"] == kelvin], source)
        if isinstance(chosen, str):
            notes.append(f"{kelvin:g} K is left out: {chosen}")
            continue
        rates, note = _rates(catalogue, kelvin, chosen)
        used.append(rates)
        rows.append(_at(catalogue, rates, chosen))
        if catalogue.pairs is not None and catalogue.about["directions"] == 3:
            rows[-1] |= compute_solute(catalogue, rates, formation, rows[-1]["rates"], ratio=tracer)
            note = " ".join(filter(None, (note, describe_farthest_pair(catalogue)))) or None
        if tracer and catalogue.defect == "vacancy" and catalogue.about["directions"] == 3:
            tensor = np.array(rows[-1]["D_tensor_m2_per_s"])
            rows[-1] |= _tracer(catalogue, rates, tensor, formation)
        notes += [f"{kelvin:g} K: {each}" for each in (note, *_cautions(chosen)) if each]
    return rows, used, notes


def _chosen(
    catalogue: Catalogue, rows: Sequence[dict[str, Any]], source: str | None
) -> list[dict[str, Any]] | str:
    """Return the row of each event at one temperature with the rate that is used, and its source.

    Rates with and without transmission coefficient are taken together: without it a rate is an
    upper bound, and D increases with each rate, so the D of both is nearer to the true one.
    If an event has no rate, the reason is returned.
    """
    for kinds in (SOURCES[:2], SOURCES[2:]) if source is None else ((source,),):
        found = [_best(event, rows, kinds) for event in catalogue.events]
        known = [row for row in found if row is not None]
        if len(known) == len(found):
            return known
    have = {row["event"] for row in rows if row["rate_per_s"] and row["error_factor"]}
    missing = [event.id for event in catalogue.events if event.id not in have]
    if missing:
        return f"no rate with an error of {', '.join(missing)}."
    known_ends = {row["event"] for row in rows if _knows_states(row)}
    if unknown := [
        event.id for event in catalogue.events if not (event.is_symmetric or event.id in known_ends)
    ]:
        return (
            "the difference of the free energies of the states, or its error, is unknown of "
            f"{', '.join(unknown)}."
        )
    return "the events have rates of different kinds."


def _knows_states(row: dict[str, Any]) -> bool:
    """Whether a row has the difference of the free energies of the states with its error."""
    return None not in (row["delta_F_eV"], row["delta_F_error_eV"])


def _best(
    event: Event, rows: Sequence[dict[str, Any]], kinds: Sequence[str]
) -> dict[str, Any] | None:
    """Return the row of an event with the rate of the first of these kinds that it has."""
    own = [row for row in rows if row["event"] == event.id]
    for kind in kinds:
        for row in own:
            # A rate with transmission coefficient also knows that without it.
            bound = kind == SOURCES[1] and row["source"] != "harmonic"
            if row["source"] != kind and not bound:
                continue
            rate, factor = (
                row[f"tst_{name}" if bound else name] for name in ("rate_per_s", "error_factor")
            )
            if rate and factor and (event.is_symmetric or _knows_states(row)):
                return {**row, "rate_per_s": rate, "error_factor": factor, "source": kind}
    return None


def _cautions(chosen: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield what a reader must know of the rates at one temperature."""
    bounds = [row["event"] for row in chosen if row["source"] == SOURCES[1]]
    if 0 < len(bounds) < len(chosen):
        yield (
            f"no transmission coefficient with an error of {', '.join(bounds)}: the rate of "
            "transition state theory is used, an upper bound."
        )
    if open_ := [row["event"] for row in chosen if not row["converged"]]:
        yield f"not converged: the run of {', '.join(open_)}."
    for row in chosen:
        if row.get("rate_note") and (row["source"] != SOURCES[1] or row["converged"]):
            yield f"the rate of {row['event']}: {row['rate_note']}."


def _rates(
    catalogue: Catalogue, kelvin: float, chosen: Sequence[dict[str, Any]]
) -> tuple[Rates, str | None]:
    """Return the rates and free energies at one temperature, and a note if these contradict."""
    energies, of_energies, note = _free_energies(catalogue, chosen, units.kB * kelvin)
    n = len(chosen)
    covariance = np.zeros((n + len(energies),) * 2)
    covariance[:n, :n] = np.diag([np.log(row["error_factor"]) ** 2 for row in chosen])
    covariance[n:, n:] = of_energies
    stretch = 1.0 + sum(
        each * kelvin**power for power, each in enumerate(catalogue.about["expansion"], 1)
    )
    ln_rates = np.log([row["rate_per_s"] for row in chosen])
    sources = tuple(row["source"] for row in chosen)
    return Rates(kelvin, ln_rates, energies, covariance, sources, stretch), note


def _at(
    catalogue: Catalogue,
    rates: Rates,
    chosen: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Return the row of one temperature, without a tracer."""
    values, n = rates.values, len(chosen)

    def tensor(given: Array) -> Array:
        return np.asarray(rates.stretch**2 * compute_diffusivity(walk_of(catalogue, given)))

    def mean(given: Array) -> float:
        return float(np.log(np.trace(tensor(given)) / 3.0))

    own = tensor(values)
    slopes = compute_slopes(mean, values, rates.covariance)
    error = error_of(slopes, rates.covariance)
    # Shares of the variance; what they lack to 1 comes from the free energies of the sites.
    shares = (slopes**2 * np.diag(rates.covariance))[:n]
    shares = shares / error**2 if error > 0 else np.zeros(n)
    return {
        "temperature_K": rates.temperature_K,
        "D_m2_per_s": float(np.trace(own)) / 3.0 * _TO_M2,
        "error_factor": float(np.exp(error)),
        "D_tensor_m2_per_s": (own * _TO_M2).tolist(),
        "correlation_factor": None,
        "concentration": None,
        "D_tracer_m2_per_s": None,
        "tracer_error_factor": None,
        "D_solute_m2_per_s": None,
        "solute_error_factor": None,
        "solute_correlation_factor": None,
        "solute_to_tracer": None,
        "solute_to_tracer_error_factor": None,
        "source": " and ".join(kind for kind in SOURCES if kind in rates.sources),
        "converged": all(each["converged"] for each in chosen),
        "rates": [
            {key: each[key] for key in ("event", "rate_per_s", "error_factor", "source")}
            | {"share_of_variance": float(share)}
            for each, share in zip(chosen, shares, strict=True)
        ],
    }


def _tracer(
    catalogue: Catalogue, rates: Rates, own: Array, formation: Formation | None
) -> dict[str, Any]:
    """Correlation factor, and the coefficient of tracer atoms if the concentration is known.

    `own` is the tensor of the defect, (3, 3), m^2/s.
    """
    kT = units.kB * rates.temperature_K
    network, values, n = catalogue.network, rates.values, len(rates.ln_rates)

    def factors(given: Array) -> Array:
        return compute_correlation_factors(network, walk_of(catalogue, given))

    def of_sites(given: Array) -> float:
        kinds = network.sites.number_of_kinds
        return float(np.exp(-given[n : n + kinds])[network.sites.kinds].mean())

    matrix = factors(values)
    tracer = matrix @ own
    row: dict[str, Any] = {
        "correlation_factor": float(np.trace(tracer) / np.trace(own)),
        "correlation_factors": np.diag(matrix).tolist(),
    }
    if formation is None:
        return row
    energy, error = formation.at(rates.temperature_K)

    def ln_tracer(given: Array) -> float:
        # With one class of jumps and one kind of site, the factors do not depend on the rate.
        one = len(network.jumps) == 1 and network.sites.number_of_kinds == 1
        now = matrix if one else factors(given)
        D = now @ compute_diffusivity(walk_of(catalogue, given))
        return float(np.log(np.trace(D) / 3.0 * of_sites(given)))

    concentration = np.exp(-energy / kT) * of_sites(values)
    total = np.hypot(propagate_error(ln_tracer, values, rates.covariance), error / kT)
    return row | {
        "concentration": float(concentration),
        "D_tracer_m2_per_s": float(np.trace(tracer) / 3.0 * concentration),
        "tracer_error_factor": float(np.exp(total)),
    }


def _free_energies(
    catalogue: Catalogue, rates: Sequence[dict[str, Any]], kT: float
) -> tuple[Array, Array, str | None]:
    """Free energies of the kinds of sites, in kT, from the differences that the events have.

    Returns
    -------
    energies, covariance
        Shapes (kinds,) and (kinds, kinds); the first kind is zero. With a solute, its pairs follow
        the kinds of sites.
    note
        A sentence if the differences around a loop contradict each other.
    """
    pairs = catalogue.pairs
    kinds = catalogue.network.sites.number_of_kinds
    energies = np.zeros(kinds + (0 if pairs is None else pairs.number_of_kinds))
    free = np.ones(len(energies), dtype=bool)
    free[0] = False
    for kind in () if pairs is None else pairs.references:
        assert pairs is not None
        energies[kind] = pairs.energies_eV[kind] / kT
        free[kind] = False
    covariance = np.zeros((len(energies),) * 2)
    design, measured, errors = [], [], []
    for event, row in zip(catalogue.events, rates, strict=True):
        if event.is_symmetric:
            continue
        line = np.zeros(len(energies))
        line[event.kinds[1]] += 1.0
        line[event.kinds[0]] -= 1.0
        design.append(line[free])
        measured.append(row["delta_F_eV"] / kT - line @ energies)
        errors.append(max(row["delta_F_error_eV"] / kT, 1e-9))  # harmonic ones may be exact
    if not design:
        return energies, covariance, None
    A = np.array(design) / np.array(errors)[:, None]
    y = np.array(measured) / np.array(errors)
    inverse = np.linalg.inv(A.T @ A)
    covariance[np.ix_(free, free)] = inverse
    energies[free] = inverse @ A.T @ y
    freedom = len(y) - int(free.sum())
    square = float(np.sum((A @ energies[free] - y) ** 2))
    if freedom > 0 and chi2.sf(square, freedom) < arrhenius.IMPROBABLE:
        return energies, covariance, (
            "the free energies of the states contradict each other by more than their errors: the "
            "probability of this by chance is below 1 in 100."
        )  # fmt: skip
    return energies, covariance, None


def _fit(rows: Sequence[dict[str, Any]], name: str, factor: str) -> dict[str, Any] | None:
    """Fit ln D over 1/kT; None if a rate is of another kind at another temperature."""
    known = [row for row in rows if row[name]]
    if len({tuple(rate["source"] for rate in row["rates"]) for row in known}) != 1:
        return None
    # Harmonic rates have no statistical errors, so all weights are equal.
    exact = known[0]["source"] == "harmonic"
    found = arrhenius.fit(
        [row["temperature_K"] for row in known],
        [row[name] for row in known],
        [1.01 if exact else row[factor] for row in known],
    )
    if found is None:
        return None
    words = found.as_dict()
    return {
        "temperature_K": words["temperature_K"],
        "activation_energy_eV": words["activation_energy_eV"],
        "activation_energy_error_eV": None if exact else words["activation_energy_error_eV"],
        "D0_m2_per_s": words["prefactor_per_s"],
        "D0_error_factor": None if exact else words["prefactor_error_factor"],
        "curvature_eV2": None if exact else words["curvature_eV2"],
        "curvature_error_eV2": None if exact else words["curvature_error_eV2"],
        "source": known[0]["source"],
        "note": words["note"] and words["note"].replace("The rates", "The coefficients"),
    }
