"""More work for the events that matter most to the error of the answer.

The answer of a catalogue is the diffusion coefficient, that of the solute if there is one, or the
rate of all events together if they were discovered from one state. Its error comes from the rates
of transition state theory, which more steps of sampling improve, and from the transmission
coefficients, which more shots improve.
"""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import read_json, write_text
from plumed_cv.common.progress import Reporter
from plumed_cv.common.toml import as_toml
from plumed_cv.events.catalogue import INPUT, Catalogue
from plumed_cv.input_file import Sampling
from plumed_cv.structures.frame import Array
from plumed_cv.workflow.diffusion import compute_coefficients

_MOST = 4.0  # factor by which the work of one event grows at once: errors have errors
_LEAST = 1.1  # a smaller factor is not worth a new start, unless no other one is larger
_DIGITS = 2  # of the numbers in the inputs


@dataclass(frozen=True)
class Part:
    """A part of the variance of the logarithm of the answer, and the work that made it so small.

    Attributes
    ----------
    event
        Name of the event.
    work
        What lowers it: steps of sampling, or shots for the transmission coefficient.
    variance
        The part.
    cost
        Steps of molecular dynamics that were done for it.
    own_variance
        Variance of the logarithm of what the work gives: the rate of transition state theory, or
        the transmission coefficient.
    """

    event: str
    work: Literal["steps", "shots"]
    variance: float
    cost: float
    own_variance: float


def cheapest_factors(variances: Array, costs: Array, aim: float) -> Array:
    """Return the factors by which amounts of work grow until variances add up to an aim.

    A variance v falls as v / f if its work grows by f. The sum of the costs c f is smallest if all
    f that are not 1 are proportional to sqrt(v / c).

    Parameters
    ----------
    variances, costs
        Shape (n,), positive.
    aim
        The sum of the variances in the end.

    Returns
    -------
    Array
        Factors of at least 1, shape (n,).
    """
    factors = np.ones(len(variances))
    if variances.sum() <= aim:
        return factors
    gains = np.sqrt(variances / costs)
    order = np.argsort(gains)
    for unchanged in range(len(order)):
        grow = order[unchanged:]
        left = aim - variances[order[:unchanged]].sum()
        if left <= 0.0:
            break
        scale = np.sqrt(variances[grow] * costs[grow]).sum() / left
        if scale * gains[grow[0]] >= 1.0:
            factors[grow] = scale * gains[grow]
            return factors
    raise AssertionError("the last one alone can always reach the aim")  # pragma: no cover


def compute_errors(catalogue: Catalogue) -> dict[float, tuple[float, list[Part]]]:
    """Return the standard error of the logarithm of the answer, and its parts, by temperature.

    Parameters
    ----------
    catalogue
        A catalogue with rates.json of runs. A temperature at which an event has no rate is absent.
    """
    rows = read_json(catalogue.root / "rates.json")["rates"]
    found = {}
    for kelvin, shares in _shares(catalogue, rows).items():
        parts = []
        for name, of_rate, of_states in shares:
            parts += _parts(catalogue.root, _row(rows, name, kelvin), of_rate, of_states)
        found[kelvin] = math.sqrt(sum(part.variance for part in parts)), parts
    return found


def raise_work(catalogue: Catalogue, aim: float, reporter: Reporter) -> set[str]:
    """Raise steps and shots in the inputs of the events until the answer can have an error.

    Parameters
    ----------
    catalogue
        A catalogue with rates.json of runs.
    aim
        Relative error of the answer at every temperature.
    reporter
        Receives the errors and what is raised.

    Returns
    -------
    set of str
        Names of the events whose inputs have changed; empty if the errors are small enough.

    Raises
    ------
    UserError
        If there is no temperature at which all events have a rate with an error.
    """
    known = compute_errors(catalogue)
    if not known:
        raise UserError(
            f"{catalogue.root}: there is no temperature at which all events have a rate with an "
            "error, so it is unknown which event needs more steps. See the failures in rates.json."
        )
    factors: dict[tuple[str, str], tuple[float, Part]] = {}
    for kelvin, (error, parts) in known.items():
        reporter.say(f"{kelvin:g} K: relative error {math.expm1(error):.2g} (aim: {aim:.2g})")
        if error <= math.log1p(aim):
            continue
        variances, costs = (np.array([getattr(p, n) for p in parts]) for n in ("variance", "cost"))
        grow = np.minimum(cheapest_factors(variances, costs, math.log1p(aim) ** 2), _MOST)
        largest = int(np.argmax(grow))
        grow[largest] = max(grow[largest], _LEAST)
        for part, factor in zip(parts, grow, strict=True):
            if factor >= max(_LEAST, factors.get((part.event, part.work), (0.0,))[0]):
                factors[part.event, part.work] = float(factor), part
    for (name, _), (factor, part) in factors.items():
        reporter.say(_raise(catalogue.root / name, factor, part))
    return {name for name, _ in factors}


def _shares(
    catalogue: Catalogue, rows: Sequence[dict[str, Any]]
) -> dict[float, list[tuple[str, float, float]]]:
    """Variances of the logarithm of the answer by temperature: of each event by its name.

    The first is that of the rate, the second that of the free energies of both states.
    """
    found: dict[float, list[tuple[str, float, float]]] = {}
    if catalogue.sites_and_jumps is not None:
        unequal = [event.id for event in catalogue.events if not event.is_symmetric]
        for at in compute_coefficients(catalogue, tracer=False)[0]:
            if "harmonic" in at["source"]:
                continue
            total = math.log(at["solute_error_factor"] or at["error_factor"]) ** 2
            rest = total * (1.0 - sum(rate["share_of_variance"] for rate in at["rates"]))
            found[at["temperature_K"]] = [
                (
                    rate["event"],
                    total * rate["share_of_variance"],
                    max(rest, 0.0) / len(unequal) if rate["event"] in unequal else 0.0,
                )
                for rate in at["rates"]
            ]
        return found
    for kelvin in sorted({row["temperature_K"] for row in rows}):
        of_events = [_row(rows, event.id, kelvin) for event in catalogue.events]
        known = [row for row in of_events if row and row["rate_per_s"] and row["error_factor"]]
        if len(known) < len(of_events):
            continue
        rates = np.array([row["multiplicity"] * row["rate_per_s"] for row in known])
        slopes = rates / rates.sum()
        found[kelvin] = [
            (row["event"], float(slope * math.log(row["error_factor"])) ** 2, 0.0)
            for row, slope in zip(known, slopes, strict=True)
        ]
    return found


def _row(rows: Sequence[dict[str, Any]], name: str, kelvin: float) -> dict[str, Any]:
    """The row of the run of an event at a temperature; empty if there is none."""
    own = (row for row in rows if row["event"] == name and row["source"] != "harmonic")
    return next((row for row in own if row["temperature_K"] == kelvin), {})


def _parts(root: Path, row: dict[str, Any], of_rate: float, of_states: float) -> list[Part]:
    """Divide the variances that come from an event by what lowers them."""
    result = read_json(root / row["directory"] / "result.json")
    total = math.log(row["error_factor"]) ** 2
    of_sampling = min(math.log(row["tst_error_factor"]) ** 2, total)
    share = of_sampling / total
    steps = sum(part["md_steps"] for part in result["iterations"])
    parts = [Part(row["event"], "steps", of_rate * share + of_states, steps, of_sampling)]
    if share < 1.0:
        shots = result["rate"]["md_steps"]
        own = total - of_sampling
        parts.append(Part(row["event"], "shots", of_rate * (1.0 - share), shots, own))
    return parts


def _raise(folder: Path, factor: float, part: Part) -> str:
    """Write more work into the input of an event; returns what was done."""
    file = folder / INPUT
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    if part.work == "steps":
        section = content.setdefault("sampling", {})
        section["steps"] = round_up(factor * section.get("steps", Sampling().steps))
        words = f"sampling.steps {section['steps']:,}"
    else:
        section = content.setdefault("rate", {})
        section["error"] = float(f"{math.sqrt(part.own_variance / factor):.{_DIGITS}g}")
        words = f"rate.error {section['error']:g}"
    write_text(file, as_toml(content))
    return f"{part.event}: {words}"


def round_up(number: float) -> int:
    """Return the next integer with two digits that are not zero."""
    power = int(10 ** max(0, math.floor(math.log10(number)) + 1 - _DIGITS))
    return math.ceil(number / power) * power
