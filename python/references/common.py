"""Common parts of the reference calculations: system, dynamics, data files and errors.

The system is the vacancy of the packaged example: 127 iron atoms in 4 x 4 x 4 cubic cells. The
process is symmetric: an operation of the crystal maps xi to 1 - xi.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ase import Atoms, units
from rich.console import Console
from rich.progress import Progress

from plumed_cv.common.files import write_text
from plumed_cv.engines import Dynamics
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.neb import find_minimum_energy_path
from plumed_cv.paths.path import EnergyPath, load_path
from plumed_cv.structures.frame import Array
from python.zero_kelvin.systems import LATTICE_A, POTENTIAL, vacancy

T = TypeVar("T")

DOCS = Path(__file__).resolve().parents[2] / "docs" / "references"

# Edge of the cell, angstrom: that of the paper's public scripts and of the packaged example, and
# that of the potential at 0 K.
CELLS_A = {"paper": 11.5412, "a0": 4 * LATTICE_A}
TEMPERATURES_K = (100, 300, 500)

TIMESTEP_FS = 2.0  # as in the example
FRICTION_PER_PS = 5.0
DEVIATION_LIMIT_A = 2.5
N_IMAGES = 31


@dataclass(frozen=True)
class Case:
    """A cell, by its name in `CELLS_A`, and a temperature in K."""

    cell: str
    temperature_K: int

    @property
    def name(self) -> str:
        """The key of the data files, for example paper-300K."""
        return f"{self.cell}-{self.temperature_K}K"

    @property
    def thermal_energy(self) -> float:
        """Thermal energy, eV."""
        return float(units.kB * self.temperature_K)

    @property
    def dynamics(self) -> Dynamics:
        """Langevin dynamics as in the example."""
        return Dynamics(self.temperature_K, TIMESTEP_FS, friction_per_ps=FRICTION_PER_PS)


def end_states(cell: str) -> tuple[Atoms, Atoms]:
    """Build the vacancy before and after the jump, not relaxed, in a cell of `CELLS_A`."""
    initial, final = vacancy()
    for state in (initial, final):
        state.set_cell(np.eye(3) * CELLS_A[cell], scale_atoms=True)
    return initial, final


def minimum_path(cell: str, runs: Path) -> EnergyPath:
    """Read the minimum energy path from `runs`, or find it and write it there."""
    file = runs / f"path-{cell}.xyz"
    if not file.exists():
        runs.mkdir(parents=True, exist_ok=True)
        initial, final = end_states(cell)
        with (
            LammpsEngine(POTENTIAL, initial) as engine,
            Console(stderr=True).status("minimum energy path") as status,
        ):
            path = find_minimum_energy_path(
                initial,
                final,
                engine.calculator,
                n_images=N_IMAGES,
                progress=lambda fmax, stage: status.update(f"{cell}: {stage}, {fmax:.4f} eV/A"),
            )
        path.save(file)
    return load_path(file)


def progress_bar() -> Progress:
    """A progress bar on stderr."""
    return Progress(console=Console(stderr=True))


def seed(*numbers: int) -> int:
    """A seed for the engine that differs for each tuple of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def jackknife(
    strata: Sequence[Sequence[T]], estimate: Callable[[Sequence[Sequence[T]]], Array]
) -> Array:
    """Delete-one jackknife standard error of an estimate from several independent runs.

    The runs' contributions to the variance add up; each comes from its own blocks, so that the
    error has as many degrees of freedom as all of them together.

    Parameters
    ----------
    strata
        The blocks of each run (a window, a plane), of equal length and independent of each other.
    estimate
        Maps such lists of blocks to numbers, shape (n,).

    Returns
    -------
    Errors, shape (n,).
    """
    variance: Array | float = 0.0
    for k, blocks in enumerate(strata):
        parts = [
            estimate([*strata[:k], [*blocks[:j], *blocks[j + 1 :]], *strata[k + 1 :]])
            for j in range(len(blocks))
        ]
        variance = variance + (len(blocks) - 1) * np.var(parts, axis=0)
    return np.asarray(np.sqrt(variance))


def compare_populations(frames: Array, sites: tuple[int, int], kT_eV: float) -> tuple[float, float]:
    """Free energy difference of two states from the times spent in them, and its error, eV.

    Parameters
    ----------
    frames
        Numbers of frames in the first and the second state in each block, (n, 2).
    sites
        Numbers of equivalent sites of both. The difference is that of one site of each.
    kT_eV
        Temperature, eV.
    """

    def difference(strata: Sequence[Sequence[Array]]) -> Array:
        per_site = np.sum(strata[0], axis=0) / np.array(sites)
        return np.array([-kT_eV * np.log(per_site[1] / per_site[0])])

    blocks = [list(frames)]
    return float(difference(blocks)[0]), float(jackknife(blocks, difference)[0])


def mean_of_runs(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Mean of several runs and the larger of two standard errors.

    The spread of a few runs is hardly known and may be small by chance; what the runs state is
    not. The stated errors miss what differs between runs; their spread does not.

    Parameters
    ----------
    values, errors
        Of each run, (n,).
    """
    n = len(values)
    stated = float(np.sqrt(np.sum(np.square(errors)))) / n
    spread = float(np.std(values, ddof=1)) / n**0.5 if n > 1 else 0.0
    return float(np.mean(values)), max(stated, spread)


def basin_integral(xi: Array, A_eV: Array, kT_eV: float) -> Array:
    """Integral of exp(-A/kT) up to each node, by trapezoids, in units of xi.

    Parameters
    ----------
    xi, A_eV
        The profile on even nodes, shape (n,), from where the reactant is no more visited; NaN where
        nothing was.
    kT_eV
        Thermal energy, eV.
    """
    density = np.nan_to_num(np.exp(-A_eV / kT_eV))
    steps = 0.5 * np.diff(xi) * (density[1:] + density[:-1])
    return np.concatenate([[0.0], np.cumsum(steps)])


def flux_barriers(xi: Array, A_eV: Array, gradnorm_per_A: Array | float, kT_eV: float) -> Array:
    """Flux barrier of every surface of a profile, eV, by the definition of `plumed_cv.freeenergy`.

    F(xi*) = -kT ln( rho(xi*) <|grad xi|>_xi* * 1 angstrom / P(xi < xi*) ), rho = exp(-A/kT).

    Parameters
    ----------
    xi, A_eV, kT_eV
        As for `basin_integral`.
    gradnorm_per_A
        Mean |grad xi| at the nodes, 1/angstrom: shape (n,) or one number.

    Returns
    -------
    Shape (n,), eV; NaN where A is.
    """
    A = A_eV - np.nanmin(A_eV)
    with np.errstate(divide="ignore"):
        basin = kT_eV * np.log(basin_integral(xi, A, kT_eV))
    return np.asarray(A + basin - kT_eV * np.log(gradnorm_per_A))


def rate_per_s(flux_barrier_eV: float, kT_eV: float, mass_amu: float) -> float:
    """Rate of transition state theory for atoms of one mass, 1/s.

    The flux through a surface is sqrt(kT / 2 pi) <delta(xi - xi*) sqrt(sum_i |grad_i xi|^2 / m)> /
    P; with one mass for all atoms the root is |grad xi| / sqrt(m).
    """
    speed_A_per_s = np.sqrt(kT_eV / (2 * np.pi * mass_amu)) * units.fs * 1e15
    return float(speed_A_per_s * np.exp(-flux_barrier_eV / kT_eV))


def read_data(name: str) -> dict[str, Any]:
    """Read docs/references/NAME.json; empty if there is none yet."""
    file = DOCS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def write_data(name: str, case: str, result: dict[str, Any]) -> None:
    """Put the result of one case into docs/references/NAME.json."""
    data = read_data(name) | {case: result}
    write_text(DOCS / f"{name}.json", json.dumps(dict(sorted(data.items())), indent=1) + "\n")


def rounded(values: Array, digits: int = 6) -> list[float | None]:
    """Numbers for a data file; JSON has no NaN."""
    return [round(float(value), digits) if np.isfinite(value) else None for value in values]


def case(name: str) -> Case:
    """Return the case with a name such as paper-300K.

    Raises
    ------
    ValueError
        If the name is none.
    """
    cell, _, temperature = name.partition("-")
    if cell not in CELLS_A or not temperature.endswith("K"):
        raise ValueError(name)
    return Case(cell, int(temperature[:-1]))


def add_cases(parser: argparse.ArgumentParser) -> None:
    """Add the option --cases: cells and temperatures, by default all."""
    parser.add_argument(
        "--cases",
        nargs="+",
        type=case,
        default=[Case(cell, T) for cell in CELLS_A for T in TEMPERATURES_K],
        metavar="CASE",
        help="such as paper-300K or a0-100K; all by default",
    )


def in_words(result: dict[str, Any]) -> str:
    """Flux barrier and its symmetric estimate, with errors, in meV."""
    parts = []
    for prefix in ("", "symmetric_"):
        value, error = (1e3 * result[f"{prefix}flux_barrier{e}_eV"] for e in ("", "_error"))
        parts.append(f"{prefix.replace('_', ' ')}flux barrier {value:.1f} +- {error:.1f} meV")
    return ", ".join(parts)
