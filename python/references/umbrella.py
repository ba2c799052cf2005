"""Umbrella sampling of the vacancy along the linear CV, analysed by maximum likelihood.

    python -m python.references.umbrella RUNS                          # every case, then analyse
    python -m python.references.umbrella RUNS --cases paper-300K --blocks 12
    python -m python.references.umbrella RUNS --cases paper-300K --blocks 0    # only analyse

Each case is run block by block. A block is one piece of every window, which continues the piece of
the window in the previous block. Existing pieces in RUNS are not run again, so that a stopped
command can be continued. The results are written to docs/references/umbrella.json.

The windows are harmonic restraints (PLUMED's RESTRAINT) on the linear CV of the package, with the
dynamics of the packaged example. If the system leaves the tube around the line in a piece (as
defined in the example), another jump has happened, and the piece is run again from the minimum
energy path.

The density of xi without restraints is the most likely density for the samples of all windows, as
in MBAR (Shirts and Chodera, J. Chem. Phys. 129, 124105 (2008)). Errors are delete-one jackknife
errors over halves of blocks, window by window.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.integrate import cumulative_trapezoid
from scipy.signal import savgol_filter

from plumed_cv import cv
from plumed_cv.common.files import replacing
from plumed_cv.engines import Segment, State
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.path import EnergyPath
from plumed_cv.setup.kernel import find_plumed
from plumed_cv.setup.plugin import build_plugin
from plumed_cv.structures.frame import Array
from python.references import common
from python.references.common import Case
from python.zero_kelvin.systems import POTENTIAL

CENTRES = np.linspace(-0.13, 1.13, 37)
KAPPA_EV = 40.0  # restrained xi fluctuates by half a spacing at 100 K, by one at 500 K
NODES = np.linspace(-0.15, 1.15, 131)
BINS = 10  # around each node, for the windows' free energies
STEPS = 10_000
EQUILIBRATION_STEPS = 2_500
PARTS = 2  # of a block, that errors come from: 10 ps each, where xi forgets within 1 ps
STRIDE = 20  # the energy of the restraint is correlated over some 100 steps
SMOOTHING = (9, 4)  # nodes and order of the local polynomials that smooth a profile


def sample(case: Case, runs: Path, n_blocks: int) -> None:
    """Run those of the first `n_blocks` blocks of a case that are missing."""
    path = common.minimum_path(case.cell, runs)
    folder = runs / f"umbrella-{case.name}"
    folder.mkdir(exist_ok=True)
    ends = [path.images[k].positions for k in (0, -1)]
    cv.linear(path.species, path.cell, *ends).save(folder / "cv.safetensors")
    todo = [
        (block, window)
        for block in range(n_blocks)
        for window in range(len(CENTRES))
        if not _file(folder, block, window).exists()
    ]
    with (
        LammpsEngine(POTENTIAL, path.images[0]) as engine,
        common.progress_bar() as progress,
    ):
        for block, window in progress.track(todo, description=case.name):
            _run_piece(case, path, folder, engine, block, window)


def _file(folder: Path, block: int, window: int) -> Path:
    return folder / f"{block:03d}-{window:02d}.npz"


def _run_piece(
    case: Case, path: EnergyPath, folder: Path, engine: LammpsEngine, block: int, window: int
) -> None:
    scratch = folder / "scratch"
    before = _file(folder, block - 1, window)
    attempt, start = 0, None
    if block > 0:
        with np.load(before) as file:
            start = State(file["positions"], path.cell, file["velocities"])
    while True:
        fresh = start is None
        skipped = EQUILIBRATION_STEPS if fresh else 0
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        result = engine.run(
            Segment(
                directory=scratch,
                start=start or _on_path(path, float(CENTRES[window])),
                dynamics=case.dynamics,
                n_steps=skipped + STEPS,
                seed=common.seed(*_identity(case), block, window, attempt),
                plumed=_plumed_dat(folder / "cv.safetensors", float(CENTRES[window])),
                count_start=fresh,
                snapshot_stride=0,
            )
        )
        if not result.stopped_by_plumed:
            break
        attempt, start = attempt + 1, None
    assert result.end.velocities is not None
    step, xi, deviation = np.loadtxt(scratch / "colvar").T
    kept = step > skipped * common.TIMESTEP_FS
    with replacing(_file(folder, block, window)) as temporary:
        np.savez(
            temporary,
            xi=xi[kept],
            deviation_A=deviation[kept],
            restarts=attempt,
            positions=result.end.positions,
            velocities=result.end.velocities,
        )


def _identity(case: Case) -> tuple[int, int]:
    return list(common.CELLS_A).index(case.cell), case.temperature_K


def _on_path(path: EnergyPath, xi: float) -> State:
    """Position at which the path, straight beyond its ends, has a value of the linear CV."""
    u = path.displacements
    along = np.tensordot(u, u[-1], 2) / np.sum(u[-1] ** 2)
    shift = xi - float(np.clip(xi, 0, 1))
    inside = float(np.interp(xi, along, path.arc_length))
    return State(path.images[0].positions + path.spline(inside) + shift * u[-1], path.cell)


def _plumed_dat(model: Path, centre: float) -> str:
    limit = common.DEVIATION_LIMIT_A
    return (
        "UNITS LENGTH=A ENERGY=eV TIME=fs\n"
        f"LOAD FILE={build_plugin(find_plumed())}\n"
        f"ae: AUTOENCODER MODEL={model.absolute()}\n"
        f"RESTRAINT ARG=ae.node-0 AT={centre!r} KAPPA={KAPPA_EV!r}\n"
        f"PRINT ARG=ae.node-0,ae.dev FILE=colvar STRIDE={STRIDE} FMT=%.12g\n"
        f"COMMITTOR ARG=ae.dev BASIN_LL1={limit} BASIN_UL1=1e9 STRIDE={STRIDE} FILE=guard\n"
    )


def density(xi: Sequence[Array], kT_eV: float) -> Array:
    """Density of xi without the restraints, from the samples of all windows.

    The windows' free energies f maximise the likelihood of the samples (the objective of MBAR),
    which are put into bins far narrower than a restraint first: what takes minutes from sample to
    sample then takes milliseconds.

    Parameters
    ----------
    xi
        Samples of each window of `CENTRES`, shape (n_k,) each.
    kT_eV
        Thermal energy, eV.

    Returns
    -------
    Probabilities of the bins around `NODES`, shape (n,), normalised to 1.
    """
    spacing = NODES[1] - NODES[0]
    edges = NODES[0] - spacing / 2 + spacing / BINS * np.arange(BINS * len(NODES) + 1)
    middles = 0.5 * (edges[1:] + edges[:-1])
    counts = np.array([np.histogram(x, edges)[0] for x in xi], dtype=float)
    n, total = counts.sum(axis=1), counts.sum(axis=0)
    share = np.log(n)[:, None] - 0.5 * KAPPA_EV / kT_eV * (middles - CENTRES[:, None]) ** 2
    # From the mean force of each restraint to the most likely f by Newton's method: f_0 = 0.
    means = np.array([x.mean() for x in xi])
    f = cumulative_trapezoid(KAPPA_EV / kT_eV * (CENTRES - means), CENTRES, initial=0)
    step = np.ones(1)
    while np.abs(step).max() > 1e-6:
        parts = f[:, None] + share
        highest = parts.max(axis=0)
        parts = np.exp(parts - highest)
        whole = parts.sum(axis=0)
        parts /= whole
        expected = parts * total
        curvature = np.diag(expected.sum(axis=1)) - expected @ parts.T
        step = np.linalg.solve(curvature[1:, 1:], (n - expected.sum(axis=1))[1:])
        f[1:] += np.clip(step, -1, 1)
    rho = (total * np.exp(-highest) / whole).reshape(len(NODES), BINS).sum(axis=1)
    return np.asarray(rho / rho.sum())


def profile(density: Array, kT_eV: float) -> Array:
    """Free energy at the nodes, eV, zero at its minimum, smoothed by local polynomials.

    NaN beyond the first empty bin on either side: nothing is known there.
    """
    empty = np.flatnonzero(density == 0)
    middle = len(density) // 2
    low = int(empty[empty < middle].max(initial=-1)) + 1
    high = int(empty[empty >= middle].min(initial=len(density)))
    A = np.full(len(density), np.nan)
    A[low:high] = savgol_filter(-kT_eV * np.log(density[low:high]), *SMOOTHING)
    return np.asarray(A - np.nanmin(A))


def quantities(density: Array, kT_eV: float, length_A: float, surface: int | None = None) -> Array:
    """Results from a profile: barrier, A(1) - A(0), flux barrier, its surface; eV.

    Parameters
    ----------
    density
        Probabilities of the bins around `NODES`, shape (n,).
    kT_eV
        Thermal energy, eV.
    length_A
        Distance between the end states: 1 / |grad xi|, angstrom.
    surface
        Node of the dividing surface, for errors: the highest one is another in every sample.
    """
    A = profile(density, kT_eV)
    F = common.flux_barriers(NODES, A, 1 / length_A, kT_eV)
    between = np.flatnonzero((NODES > 1e-9) & (NODES < 1 - 1e-9))
    if surface is None:
        surface = int(between[F[between].argmax()])
    reactant = np.nanmin(A[:surface])
    at = {xi: int(np.abs(NODES - xi).argmin()) for xi in (0, 1)}
    return np.array([np.nanmax(A[between]) - reactant, A[at[1]] - A[at[0]], F[surface], surface])


def analyse(case: Case, runs: Path) -> dict[str, Any]:
    """Profile and flux barrier of a case with errors, for the data file."""
    folder = runs / f"umbrella-{case.name}"
    path = common.minimum_path(case.cell, runs)
    length = float(np.linalg.norm(path.displacements[-1]))
    n_blocks = restarts = 0
    pieces: list[list[Array]] = [[] for _ in CENTRES]
    while all(_file(folder, n_blocks, k).exists() for k in range(len(CENTRES))):
        for window in range(len(CENTRES)):
            with np.load(_file(folder, n_blocks, window)) as file:
                pieces[window] += np.array_split(file["xi"], PARTS)
                restarts += int(file["restarts"])
        n_blocks += 1
    kT = case.thermal_energy
    rho = density([np.concatenate(x) for x in pieces], kT)
    symmetric = 0.5 * (rho + rho[::-1])
    surfaces = [int(quantities(r, kT, length)[-1]) for r in (rho, symmetric)]

    def estimate(some: Sequence[Sequence[Array]]) -> Array:
        r = density([np.concatenate(x) for x in some], kT)
        both = 0.5 * (r + r[::-1])
        parts = [profile(r, kT), profile(both, kT)]
        parts += [
            quantities(r, kT, length, surfaces[0])[:3],
            quantities(both, kT, length, surfaces[1])[:3],
        ]
        return np.concatenate(parts)

    value, error = estimate(pieces), common.jackknife(pieces, estimate)
    n = len(NODES)
    mass = float(path.images[0].get_masses()[0])
    (barrier, delta, flux), (barrier_s, _, flux_s) = value[2 * n :].reshape(2, 3)
    errors = error[2 * n :].reshape(2, 3)
    return {
        "cell_A": common.CELLS_A[case.cell],
        "temperature_K": case.temperature_K,
        "length_A": round(length, 6),
        "timestep_fs": common.TIMESTEP_FS,
        "friction_per_ps": common.FRICTION_PER_PS,
        "kappa_eV": KAPPA_EV,
        "windows": len(CENTRES),
        "blocks": n_blocks,
        "steps": n_blocks * len(CENTRES) * STEPS,
        "restarts": restarts,
        "barrier_eV": round(barrier, 5),
        "barrier_error_eV": round(errors[0, 0], 5),
        "delta_F_eV": round(delta, 5),
        "delta_F_error_eV": round(errors[0, 1], 5),
        "flux_barrier_eV": round(flux, 5),
        "flux_barrier_error_eV": round(errors[0, 2], 5),
        "surface": round(float(NODES[surfaces[0]]), 3),
        "symmetric_barrier_eV": round(barrier_s, 5),
        "symmetric_barrier_error_eV": round(errors[1, 0], 5),
        "symmetric_flux_barrier_eV": round(flux_s, 5),
        "symmetric_flux_barrier_error_eV": round(errors[1, 2], 5),
        "symmetric_surface": round(float(NODES[surfaces[1]]), 3),
        "rate_per_s": float(f"{common.rate_per_s(flux_s, kT, mass):.4g}"),
        "xi": common.rounded(NODES, 3),
        "A_eV": common.rounded(value[:n]),
        "A_error_eV": common.rounded(error[:n]),
        "symmetric_A_eV": common.rounded(value[n : 2 * n]),
        "symmetric_A_error_eV": common.rounded(error[n : 2 * n]),
    }


def main() -> None:
    """Run and analyse."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of the runs, made if absent")
    common.add_cases(parser)
    parser.add_argument("--blocks", type=int, default=6, help="blocks of each case (default: 6)")
    arguments = parser.parse_args()
    for case in arguments.cases:
        sample(case, arguments.runs.absolute(), arguments.blocks)
        result = analyse(case, arguments.runs.absolute())
        common.write_data("umbrella", case.name, result)
        print(f"{case.name}: {common.in_words(result)}")


if __name__ == "__main__":
    main()
