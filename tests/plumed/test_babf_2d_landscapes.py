"""BABF on two CVs on analytic landscapes."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumed_cv.freeenergy import (
    Grid,
    State,
    estimate_surface,
    read_state,
    read_surface,
    write_surface,
)
from tests.plumed.babf import KT, Array, MakePlumed, run, step
from tests.plumed.babf_2d import PLANE, TORUS, babf, cvs


@dataclass
class Landscape:
    """A potential in kT on two coordinates, its gradient, and a grid."""

    potential: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], tuple[Array, Array]]
    axes: tuple[Grid, Grid]
    start: tuple[float, float]


# A double well of 6 kT along x that leans, and a harmonic y; and two wells on a torus, 8 kT deep.
LANDSCAPES = {
    "double well": Landscape(
        lambda x, y: 96 * (x * (1 - x)) ** 2 + 8 * (y - 0.4 * (x - 0.5)) ** 2,
        lambda x, y: (
            192 * x * (1 - x) * (1 - 2 * x) - 6.4 * (y - 0.4 * (x - 0.5)),
            16 * (y - 0.4 * (x - 0.5)),
        ),
        PLANE,
        (0.0, -0.2),
    ),
    "torus": Landscape(
        lambda x, y: 2 * np.cos(2 * x) + 2 * np.cos(y) + 1.5 * np.sin(x - y),
        lambda x, y: (
            -4 * np.sin(2 * x) + 1.5 * np.cos(x - y),
            -2 * np.sin(y) - 1.5 * np.cos(x - y),
        ),
        TORUS,
        (-1.5, 3.0),
    ),
}
RUNNERS = 8  # on each landscape
CHUNKS = 10  # of each run


def langevin(handle: Any, folder: Path, land: Landscape, steps: int, seed: int = 3) -> list[State]:
    """Move independent runs, each with its own BABF; return blocks without the first part.

    Inertial Langevin dynamics (BAOAB) in units of kT and the thermal velocity, with steps of 0.6
    grid spacings at the thermal velocity along either CV (whose masses differ for that).
    """
    rng = np.random.default_rng(seed)
    dt = 0.6
    scale = np.array([axis.spacing for axis in land.axes])
    decay = np.exp(-dt / 15)
    kick = np.sqrt(1 - decay**2)
    x = np.tile(np.array(land.start), (RUNNERS, 1))
    v = rng.normal(size=x.shape)

    def forces(bias: Array) -> Array:
        return np.asarray(scale * (bias / KT - np.array(land.gradient(*x.T)).T))

    f = forces(np.zeros_like(x))
    states = []
    for chunk in range(CHUNKS):
        for s in range(steps // CHUNKS):
            v += 0.5 * dt * f
            x += 0.5 * dt * scale * v
            v = decay * v + kick * rng.normal(size=x.shape)
            x += 0.5 * dt * scale * v
            f = forces(step(handle, chunk * (steps // CHUNKS) + s, x))
            v += 0.5 * dt * f
        states.append([read_state(folder / f"state{i}") for i in range(RUNNERS)])
    blocks = []
    for i in range(RUNNERS):
        series = [chunk[i] for chunk in states]
        blocks += [later - earlier for earlier, later in pairwise(series)]
    return [State(**{**vars(b), "arguments": ("x", "y")}) for b in blocks]


def exact_convolution(land: Landscape, stretch: int = 12) -> Array:
    """Return the potential seen through the springs at the nodes, kT, by quadrature."""
    lines, points = [], []
    for axis in land.axes:
        fine = axis.spacing / stretch
        margin = 0.0 if axis.periodic else 9 * axis.spacing
        points.append(np.arange(axis.minimum - margin + fine / 2, axis.maximum + margin, fine))
        distances = axis.nodes[:, None] - points[-1]
        if axis.periodic:
            length = axis.maximum - axis.minimum
            distances -= length * np.round(distances / length)
        lines.append(np.exp(-0.5 * (distances / axis.spacing) ** 2))
    density = np.exp(-land.potential(points[0][:, None], points[1]))
    return np.asarray(-np.log(lines[0] @ density @ lines[1].T).T.ravel())


@pytest.mark.parametrize("name", list(LANDSCAPES))
def test_analytic_landscape(make_plumed: MakePlumed, tmp_path: Path, name: str) -> None:
    """A and A_k of adaptive runs are the analytic ones within their errors.

    8 runs of 40000 steps; 350 to 418 bins below 7 kT, with errors of 0.05 to 0.1 kT. Over six seeds
    of 30000 steps the root mean square deviation of A was 0.070 to 0.093 kT and of A_k 0.031 to
    0.062 kT; a third more steps takes 13 % off, and 0.12 is more than five standard deviations
    away. The mean square of the deviation over the error (with 0.03 kT for the grid's) was below
    1.1.
    """
    land = LANDSCAPES[name]
    n = RUNNERS
    lines = [cvs(land.axes, n)]
    lines += [
        babf(land.axes, f"RAMP=5000 STATE_WFILE={tmp_path}/state{i} STATE_WSTRIDE=4000", i)
        for i in range(n)
    ]
    handle = make_plumed(n, "\n".join(lines))
    blocks = langevin(handle, tmp_path, land, 40000)
    handle.finalize()
    found = estimate_surface(blocks)
    U = land.potential(*found.points)
    inner = U - U.min() < 7
    for axis, z in zip(land.axes, found.points, strict=True):
        if not axis.periodic:
            inner &= (z > axis.minimum + axis.spacing) & (z < axis.maximum - axis.spacing)
    convolved = exact_convolution(land)
    for A, error, truth in (
        (found.A, found.A_error, U),
        (found.A_k, found.A_k_error, convolved),
    ):
        known = inner & (error > 0)
        assert known.sum() > 0.95 * inner.sum()
        off = (A / found.kT_eV - truth)[known]
        size = error[known] / found.kT_eV
        off -= np.sum(off / size**2) / np.sum(1 / size**2)
        assert np.sqrt(np.mean(off**2)) < 0.12
        assert 0.02 < np.median(size) < 0.2
        assert np.mean(off**2 / (size**2 + 0.03**2)) < 2


def test_a_frozen_prior_is_the_bias(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """PRIOR from a file in the plane with TAU=inf: the bias is minus the profile, smoothed."""
    land = LANDSCAPES["torus"]
    rng = np.random.default_rng(5)
    handle = make_plumed(1, f"{cvs(TORUS)}\n{babf(TORUS)} STATE_WFILE={tmp_path}/state")
    run(handle, rng.uniform(-np.pi, np.pi, size=(300, 2)))
    handle.finalize()
    found = estimate_surface([read_state(tmp_path / "state")])
    U = 0.2 * KT * land.potential(*found.points)
    exact = type(found)(**{**vars(found), "A_k": U, "A": U})
    write_surface(tmp_path / "fes.dat", exact)
    back = read_surface(tmp_path / "fes.dat")
    np.testing.assert_array_equal(back.A_k, U)
    handle = make_plumed(
        1,
        f"{cvs(TORUS)}\n{babf(TORUS, 'RAMP=0 TAU=inf')} PRIOR={tmp_path}/fes.dat\n"
        f"PRINT ARG=x0,y0,b0.bias FILE={tmp_path}/COLVAR FMT=%.17g",
        log="second.log",
    )
    run(handle, rng.uniform(-np.pi, np.pi, size=(200, 2)))
    handle.finalize()
    _, x, y, bias = np.loadtxt(tmp_path / "COLVAR").T
    off = bias + 0.2 * KT * land.potential(x, y)
    assert np.std(off) < 0.1 * KT  # the grid's and the spring's width
