"""Formatted numbers for the terminal and the report: with a unit, rounded to their error."""

import math
from typing import Any

NONE = "unknown"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def with_error(value: float | None, error: float | None, unit: str = "eV") -> str:
    """Return a value with its error. The error has two digits if these are 10 to 35, otherwise one.

    This is the rule of the Particle Data Group. If the error is unknown, the value has three
    digits after the decimal point.
    """
    if value is None or not math.isfinite(value):
        return NONE
    if error is None or not math.isfinite(error) or error <= 0:
        return f"{value:.3f} {unit}, error unknown"
    decimals = _decimals(error)
    shown = max(decimals, 0)
    rounded = f"{round(value, decimals):.{shown}f}".replace("-", "−")
    return f"{rounded} ± {round(error, decimals):.{shown}f} {unit}"


def energy_in_words(numbers: dict[str, Any], name: str, unit: str = "") -> str:
    """Return an energy with its error, by the beginning of their keys, as `with_error` does.

    Parameters
    ----------
    numbers
        Energies and errors in eV, for example `flux_barrier_eV` and `flux_barrier_error_eV`.
    name
        The beginning of the keys.
    unit
        Unit to print; none in a table.
    """
    return with_error(numbers.get(f"{name}_eV"), numbers.get(f"{name}_error_eV"), unit).strip()


def cv_in_words(value: float | None) -> str:
    """Return a value of the CV with two decimals."""
    return "—" if value is None else f"{value:.2f}".replace("-", "−")


def scientific(value: float | None, error: float | None, unit: str) -> str:
    """Return a positive value with error and power of ten; unknown if the error is larger."""
    if value is None or not math.isfinite(value) or value <= 0 or (error or 0.0) > value:
        return NONE
    power = math.floor(math.log10(value))
    scale = 10.0**power
    times = f" × 10{str(power).translate(_SUPERSCRIPTS)} {unit}"
    if error is None or not math.isfinite(error) or error <= 0:
        return f"{value / scale:.1f}{times}, error unknown"
    return f"({with_error(value / scale, error / scale, '').strip()}){times}"


def error_of_factor(value: float | None, factor: float | None) -> float | None:
    """Return the error of a value that is known within a factor; None if either is unknown."""
    return None if value is None or factor is None else value * (factor - 1.0)


def duration(seconds: float | None) -> str:
    """Return a time in seconds, minutes or hours, whichever is easiest to read."""
    if seconds is None:
        return NONE
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _decimals(error: float) -> int:
    """Number of decimals of a rounded error."""
    power = math.floor(math.log10(error))
    leading = round(error / 10.0**power * 100)  # its three highest digits
    if leading < 355:
        return 1 - power
    return -power if leading < 950 else 1 - (power + 1)
