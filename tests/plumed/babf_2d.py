"""Shared by the tests of BABF on two CVs: grids, inputs, a series of positions."""

import numpy as np

from plumed_cv.freeenergy import (
    Grid,
)
from tests.plumed.babf import Array

TORUS = (Grid(-np.pi, np.pi, 24, periodic=True), Grid(-np.pi, np.pi, 20, periodic=True))
STRIP = (Grid(-0.2, 1.2, 28), Grid(-np.pi, np.pi, 20, periodic=True))
PLANE = (Grid(-0.2, 1.2, 28), Grid(-1.0, 1.0, 25))


def cvs(axes: tuple[Grid, Grid], atoms: int = 1) -> str:
    """Return the CVs x0, y0, x1, ... : the first two coordinates of every atom."""
    lines = []
    for i in range(atoms):
        lines.append(f"p{i}: POSITION ATOM={i + 1} NOPBC")
        for name, axis in zip("xy", axes, strict=True):
            domain = "-pi,pi" if axis.periodic else "NO"
            lines.append(f"{name}{i}: CUSTOM ARG=p{i}.{name} FUNC=x PERIODIC={domain}")
    return "\n".join(lines)


def grid_of(axes: tuple[Grid, Grid]) -> str:
    def each(numbers: list[str]) -> str:
        return ",".join(numbers)

    low = each(["-pi" if axis.periodic else f"{axis.minimum}" for axis in axes])
    high = each(["pi" if axis.periodic else f"{axis.maximum}" for axis in axes])
    return f"TEMP=300 GRID_MIN={low} GRID_MAX={high} GRID_BIN={axes[0].bins},{axes[1].bins}"


def babf(axes: tuple[Grid, Grid], keywords: str = "RAMP=100", atom: int = 0) -> str:
    return f"b{atom}: BABF ARG=x{atom},y{atom} {grid_of(axes)} {keywords}"


def recorded_series(axes: tuple[Grid, Grid], length: int = 400) -> Array:
    """Return points over the grid that leave it slightly, and once by a large distance."""
    rng = np.random.default_rng(1)
    waves = np.sin(np.cumsum(rng.normal(scale=0.3, size=(400, 2)), axis=0))
    centre = np.array([0.5 * (axis.minimum + axis.maximum) for axis in axes])
    length_of = np.array([axis.maximum - axis.minimum for axis in axes])
    series = centre + 0.53 * length_of * waves
    series[30] = 40.0
    return np.asarray(series[:length])
