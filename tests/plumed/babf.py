"""Shared by the tests of BABF: the input, PLUMED's steps, a series of positions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from numpy.typing import NDArray

MakePlumed = Callable[..., Any]
Array = NDArray[np.float64]

KT = units.kB * 300.0
POSITION = "x: POSITION ATOM=1 NOPBC"
GRID = "TEMP=300 GRID_MIN=0 GRID_MAX=1 GRID_BIN=50"
BABF = f"b: BABF ARG=x.x {GRID} RAMP=100"


def step(handle: Any, number: int, x: Array, command: str = "calc") -> Array:
    """Give PLUMED coordinates of each atom, angstrom; return the forces on them, eV/angstrom.

    `x` is (n,), or (n, 2) for the first two coordinates; so are the forces.
    """
    n = len(x)
    columns = np.reshape(x, (n, -1))
    given = columns.shape[1]
    positions, forces = np.zeros((n, 3)), np.zeros((n, 3))
    positions[:, :given] = 0.1 * columns
    masses, virial = np.ones(n), np.zeros((3, 3))
    handle.cmd("setStep", number)
    handle.cmd("setPositions", positions)
    handle.cmd("setMasses", masses)
    handle.cmd("setForces", forces)
    handle.cmd("setVirial", virial)
    if command == "calc":
        handle.cmd("calc")
    else:
        handle.cmd("prepareCalc")
        handle.cmd(command)
    return np.reshape(forces[:, :given] * 0.1 * units.kJ / units.mol, np.shape(x))


def bias_at(handle: Any, x: Array) -> tuple[float, Array]:
    """Return the bias, eV, and the forces for coordinates as in `step`, without learning."""
    forces, energy = step(handle, 0, x, "performCalcNoUpdate"), np.zeros(1)
    handle.cmd("getBias", energy)
    return float(energy[0]) * units.kJ / units.mol, forces


def run(handle: Any, series: Array, first: int = 0) -> None:
    """Move one atom along a series, (n,) or (n, 2)."""
    for s, x in enumerate(series, start=first):
        step(handle, s, np.array([x]))


def check_two_parts(
    make_plumed: MakePlumed, folder: Path, lines: str, series: Array, cut: int, again: int = 0
) -> None:
    """Run along a series at once, and in two parts: both end with the same state file.

    The second part repeats the last `again` steps of the first one.
    """
    lines = f"{lines} STATE_WFILE={folder}/"
    whole = make_plumed(1, lines + "whole")
    run(whole, series)
    whole.finalize()
    first = make_plumed(1, lines + "parts", log="first.log")
    run(first, series[:cut])
    first.finalize()
    assert f"#! SET md_step {cut - 1}\n" in (folder / "parts").read_text()
    second = make_plumed(1, f"{lines}parts STATE_RFILE={folder}/parts", log="second.log")
    run(second, series[cut - again :], first=cut - again)
    second.finalize()
    assert (folder / "parts").read_bytes() == (folder / "whole").read_bytes()
    assert not list(folder.glob("bck.*.parts"))


def sentence(error: BaseException | None) -> str:
    """Return the whole message of PLUMED, which nests an error in a step in other errors."""
    return "" if error is None else f"{error} {sentence(error.__cause__ or error.__context__)}"


def recorded_series(length: int = 400) -> Array:
    """Return a series over the grid that leaves it slightly, and once by a large distance."""
    rng = np.random.default_rng(1)
    series = 0.5 + 0.55 * np.sin(np.cumsum(rng.normal(scale=0.3, size=400)))
    series[30] = 4.0
    return np.asarray(series[:length])
