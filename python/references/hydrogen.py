"""Umbrella sampling of hydrogen in nickel, from an octahedral to a tetrahedral site, at 500 K.

    python -m python.references.hydrogen RUNS              # run what is missing, analyse, print
    python -m python.references.hydrogen RUNS --blocks 2   # a shorter run

A light atom in a heavy crystal is a difficult case for the thermostat. In this calculation no bias
is learned, the restraints are weak, and the friction is the default of the program. Each window is
a harmonic restraint on the linear CV (PLUMED's RESTRAINT). If an atom leaves the process in a
piece, by the default limit on its distance from the path, the piece is run again from the minimum
energy path. The flux barrier is defined as in docs/references.md. Errors are delete-one jackknife
errors over halves of blocks, window by window. The result is written to
docs/references/hydrogen.json.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from ase import Atom, Atoms, units
from ase.build import bulk

from plumed_cv import cv
from plumed_cv.common.files import replacing
from plumed_cv.engines import Dynamics, Segment, State
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.neb import minimum_energy_path
from plumed_cv.paths.path import EnergyPath, load_path
from plumed_cv.sampling import guard
from plumed_cv.setup.kernel import find_plumed
from plumed_cv.setup.plugin import build_plugin
from plumed_cv.structures.frame import Array
from python.references import common, umbrella

POTENTIAL = ["pair_style eam/alloy", "pair_coeff * * NiAlH_jea.eam.alloy Ni H"]
LATTICE_A = 3.52
DYNAMICS = Dynamics(500.0, 0.5, friction_per_ps=5.0)
KT_EV = float(units.kB * DYNAMICS.temperature_K)

CENTRES = np.linspace(-0.45, 0.8, 26)  # beyond the saddle; the tetrahedral site is at 1
NODES = np.linspace(-0.5, 0.8, 66)
KAPPA_EV = 20.0
STEPS = 20_000
EQUILIBRATION_STEPS = 5_000
PARTS = 2
STRIDE = 10


def end_states() -> tuple[Atoms, Atoms]:
    """Build hydrogen in an octahedral and in a tetrahedral site of 108 nickel atoms."""
    metal = bulk("Ni", "fcc", a=LATTICE_A, cubic=True).repeat(3)
    octahedral = np.full(3, 1.5 * LATTICE_A)
    found = []
    for place in (octahedral, octahedral + LATTICE_A / 4):
        state = metal.copy()
        state.append(Atom("H", place))
        found.append(state)
    return found[0], found[1]


def find_path(runs: Path) -> EnergyPath:
    """Read the minimum energy path from `runs`, or find it and write it there."""
    file = runs / "path.xyz"
    if not file.exists():
        runs.mkdir(parents=True, exist_ok=True)
        initial, final = end_states()
        with LammpsEngine(POTENTIAL, initial) as engine:
            minimum_energy_path(initial, final, engine.calculator, n_images=15).save(file)
    return load_path(file)


def run_piece(
    path: EnergyPath, folder: Path, engine: LammpsEngine, block: int, window: int, limit_A: float
) -> None:
    """Run one window of one block and write its samples."""
    scratch = folder / "scratch"
    target = folder / f"{block:03d}-{window:02d}.npz"
    start, attempt = None, 0
    if block > 0:
        with np.load(folder / f"{block - 1:03d}-{window:02d}.npz") as file:
            start = State(file["positions"], path.cell, file["velocities"])
    centre = float(CENTRES[window])
    while True:
        fresh = start is None
        skipped = EQUILIBRATION_STEPS if fresh else 0
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        result = engine.run(
            Segment(
                directory=scratch,
                start=start or umbrella._on_path(path, centre),
                dynamics=DYNAMICS,
                n_steps=skipped + STEPS,
                seed=common.seed(block, window, attempt),
                plumed=(
                    "UNITS LENGTH=A ENERGY=eV TIME=fs\n"
                    f"LOAD FILE={build_plugin(find_plumed())}\n"
                    f"ae: AUTOENCODER MODEL={(folder / 'cv.safetensors').absolute()}\n"
                    f"RESTRAINT ARG=ae.node-0 AT={centre!r} KAPPA={KAPPA_EV!r}\n"
                    f"PRINT ARG=ae.node-0 FILE=colvar STRIDE={STRIDE} FMT=%.12g\n"
                    f"COMMITTOR ARG=ae.maxdev BASIN_LL1={limit_A} BASIN_UL1=1e9 "
                    f"STRIDE={STRIDE} FILE=guard\n"
                ),
                count_start=fresh,
                snapshot_stride=0,
            )
        )
        if not result.stopped_by_plumed:
            break
        attempt, start = attempt + 1, None
    assert result.end.velocities is not None
    time_fs, xi = np.loadtxt(scratch / "colvar").T
    with replacing(target) as temporary:
        np.savez(
            temporary,
            xi=xi[time_fs > skipped * DYNAMICS.timestep_fs],
            restarts=attempt,
            positions=result.end.positions,
            velocities=result.end.velocities,
        )


def flux_barrier(rho: Array, length_A: float, surface: int | None = None) -> tuple[float, int]:
    """Flux barrier (eV) of a density on `NODES`, and the node of its surface."""
    A = umbrella.profile(rho, KT_EV)
    F = common.flux_barriers(NODES, A, 1 / length_A, KT_EV)
    if surface is None:
        inside = (NODES > 0.1) & (NODES < 0.78)
        surface = int(np.flatnonzero(inside)[np.nanargmax(F[inside])])
    return float(F[surface]), surface


def main() -> None:
    """Run and analyse."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of the runs, made if absent")
    parser.add_argument("--blocks", type=int, default=4, help="pieces of each window (default: 4)")
    arguments = parser.parse_args()
    runs = arguments.runs.absolute()
    path = find_path(runs)
    ends = [path.images[k].positions for k in (0, -1)]
    variable = cv.linear(path.species, path.cell, *ends)
    variable.save(runs / "cv.safetensors")
    limit_A = guard.limit("auto", variable)
    assert limit_A is not None
    todo = [
        (block, window)
        for block in range(arguments.blocks)
        for window in range(len(CENTRES))
        if not (runs / f"{block:03d}-{window:02d}.npz").exists()
    ]
    with LammpsEngine(POTENTIAL, path.images[0]) as engine, common.progress_bar() as progress:
        for block, window in progress.track(todo, description="windows"):
            run_piece(path, runs, engine, block, window, limit_A)
    pieces: list[list[Array]] = [[] for _ in CENTRES]
    restarts = 0
    for block in range(arguments.blocks):
        for window in range(len(CENTRES)):
            with np.load(runs / f"{block:03d}-{window:02d}.npz") as file:
                pieces[window] += np.array_split(file["xi"], PARTS)
                restarts += int(file["restarts"])
    length_A = float(np.linalg.norm(path.displacements[-1]))

    def density(some: list[list[Array]]) -> Array:
        xi = [np.concatenate(x) for x in some]
        return umbrella.density(xi, KT_EV, CENTRES, NODES, KAPPA_EV)

    value, surface = flux_barrier(density(pieces), length_A)
    error = common.jackknife(
        pieces,
        lambda some: np.array(
            [flux_barrier(density([list(x) for x in some]), length_A, surface)[0]]
        ),
    )[0]
    result = {
        "temperature_K": DYNAMICS.temperature_K,
        "timestep_fs": DYNAMICS.timestep_fs,
        "friction_per_ps": DYNAMICS.friction_per_ps,
        "kappa_eV": KAPPA_EV,
        "windows": len(CENTRES),
        "steps": arguments.blocks * len(CENTRES) * STEPS,
        "restarts": restarts,
        "atom_deviation_limit_A": round(limit_A, 4),
        "barrier_0K_eV": round(float(path.energies.max() - path.energies[0]), 5),
        "flux_barrier_eV": round(value, 5),
        "flux_barrier_error_eV": round(float(error), 5),
        "surface": round(float(NODES[surface]), 3),
    }
    common.write_data("hydrogen", "octahedral-tetrahedral-500K", result)
    print(f"flux barrier {1e3 * value:.1f} +- {1e3 * error:.1f} meV at xi = {NODES[surface]:.2f}")


if __name__ == "__main__":
    main()
