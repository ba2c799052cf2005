"""Values, errors and steps of result.json by their keys."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from plumed_cv import freeenergy
from plumed_cv.structures.frame import Array


def step_as_json(step: freeenergy.Step) -> dict[str, float | None]:
    """Return one barrier between two basins for result.json."""
    result: dict[str, float | None] = {
        "reactant_xi": step.reactant,
        "product_xi": step.product,
        "surface": step.surface,
    }
    for way, barrier, rate in (
        ("", step.flux_barrier, step.rate_per_s),
        ("reverse_", step.reverse_flux_barrier, step.reverse_rate_per_s),
    ):
        result |= as_json({f"{way}flux_barrier": barrier})
        result |= {
            f"{way}rate_per_s": or_none(rate.value),
            f"{way}rate_error_per_s": or_none(rate.error),
        }
    return result


def relative_populations(steps: Sequence[dict[str, Any]]) -> Array | None:
    """Return the populations of the basins before each step, relative to that of the reactant.

    They follow from the rates by detailed balance. Unlike `populations` of result.json, they do not
    need the whole basin of the product.

    Parameters
    ----------
    steps
        The steps in the format of result.json, at least one.

    Returns
    -------
    (number of steps,)
        None if a rate between two of these basins is unknown.
    """
    pairs = [[step["rate_per_s"], step["reverse_rate_per_s"]] for step in steps[:-1]]
    if not all(rate for pair in pairs for rate in pair):
        return None
    return np.cumprod([1.0, *(forward / back for forward, back in pairs)])


def profile_as_json(profile: freeenergy.Profile) -> dict[str, float | None]:
    """Values of a profile without its flux, by the keys of results."""
    names = ("barrier", "delta_F", "A1_minus_A0")
    return as_json({name: getattr(profile, name) for name in names})


def as_json(estimates: dict[str, freeenergy.Estimate]) -> dict[str, float | None]:
    """Values and errors by name and unit, `barrier_eV`; what is not known is None."""
    result: dict[str, float | None] = {}
    for name, estimate in estimates.items():
        for key, number in ((name, estimate.value), (f"{name}_error", estimate.error)):
            result[f"{key}_{estimate.unit}"] = or_none(number)
    return result


def or_none(number: float) -> float | None:
    """The number, or None where it is NaN, which JSON does not have."""
    return number if np.isfinite(number) else None


def surfaces_of(part: dict[str, Any]) -> list[float]:
    """Dividing surfaces of an iteration, as values of its collective variable."""
    found = [step.get("surface") for step in part.get("steps") or ()]
    found.append(part.get("dividing_surface"))
    return sorted({surface for surface in found if surface is not None})


def minima_of(part: dict[str, Any]) -> list[float]:
    """Minima of the basins of an iteration, as values of its CV; empty if unknown."""
    steps = part.get("steps") or ()
    found = [step.get(key) for step in steps for key in ("reactant_xi", "product_xi")]
    return sorted({minimum for minimum in found if minimum is not None})


def points_to_compare(part: dict[str, Any]) -> dict[str, Any]:
    """Points along the CV of an iteration at which `compare_isosurfaces` compares it."""
    return {
        "surfaces": surfaces_of(part),
        "between": tuple(part.get("flanks") or (0.0, 1.0)),
    }


def read_estimate(part: dict[str, Any], name: str) -> tuple[Any, Any]:
    """Return a value of result.json and its error, eV; None for what is unknown."""
    return part.get(f"{name}_eV"), part.get(f"{name}_error_eV")
