"""The smallest possible error of a barrier after a number of steps, from the noise of the force.

    python python/benchmarks/limit.py RUN/iteration-1 --steps 100000 500000

The force along xi on the atoms of a snapshot, minus its mean at that xi, is noise with a memory.
Its integral over a time t increases as sigma t^1/2 if t is longer than the memory; sigma is
determined from windows of increasing length. Assume that xi is sampled uniformly over the grid from
the first step on, without a bias that has to be learned. Then the free energy difference over a
distance d has the standard error sigma (L d / t)^1/2, where L is the length of the grid. This is
the smallest error of integrals of the mean force.

The input is an iteration of `plumed-cv run` with the mean force of the atoms (sampling.mean_force).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.polynomial import legendre

from plumed_cv import freeenergy, sampling
from plumed_cv.freeenergy import meanforce
from plumed_cv.structures.frame import Array

WINDOWS_FS = (20.0, 100.0, 500.0, 1000.0, 2000.0, 5000.0)
MEMORY_FS = 2000.0  # after which the sum grows as the root of the time
DISTANCE = 0.5  # from the reactant to the middle of a symmetric process
DEGREE = 20  # of the polynomial that the mean is


def noise(series: list[tuple[Array, Array]], interval_fs: float) -> list[tuple[float, float]]:
    """Noise of the mean force in windows: (fs, eV fs^1/2) for each length that fits.

    Parameters
    ----------
    series
        xi and the instantaneous mean force of pieces of trajectories, eV.
    interval_fs
        Time between snapshots.
    """
    xi, force = (np.concatenate(parts) for parts in zip(*series, strict=True))
    low, high = float(xi.min()), float(xi.max())

    def basis(x: Array) -> Array:
        return np.asarray(
            legendre.legvander((2 * x - low - high) / (high - low), DEGREE), dtype=np.float64
        )

    mean = np.linalg.lstsq(basis(xi), force, rcond=None)[0]
    rests = [force - basis(xi) @ mean for xi, force in series]
    found = []
    for window in WINDOWS_FS:
        n = max(1, round(window / interval_fs))
        sums = [rest[: len(rest) // n * n].reshape(-1, n).sum(axis=1) for rest in rests]
        together = np.concatenate(sums)
        if len(together) >= 30:
            sigma = float(np.sqrt(np.mean(together**2) / n * interval_fs))
            found.append((n * interval_fs, sigma))
    return found


def main() -> None:
    """Read an iteration and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("iterations", type=Path, nargs="+", help="folders of iterations")
    parser.add_argument("--steps", type=int, nargs="+", default=[100_000, 500_000])
    arguments = parser.parse_args()
    print("| iteration | T (K) | " + " | ".join(f"{t:g} fs" for t in WINDOWS_FS), end=" | ")
    print(" | ".join(f"least error, {n:,} steps (meV)" for n in arguments.steps) + " |")
    print("|" + " --- |" * (2 + len(WINDOWS_FS) + len(arguments.steps)))
    for folder in arguments.iterations:
        given = json.loads((folder.parent / "input.json").read_text())
        settings = given["sampling"]
        interval = settings["timestep_fs"] * settings["snapshot_stride"]
        files = [segment / "mean-force.dat" for segment in sampling.list_segments(folder)]
        found = noise([meanforce.read(file) for file in files], interval)
        state = freeenergy.read_state(sorted(folder.rglob("segment-*/babf.state"))[0])
        length = state.grid.maximum - state.grid.minimum
        cells = [f"{sigma:.2f}" for _, sigma in found] + [""] * (len(WINDOWS_FS) - len(found))
        sigma = next(sigma for window, sigma in reversed(found) if window <= MEMORY_FS)
        for n in arguments.steps:
            error = sigma * np.sqrt(length * DISTANCE / (n * settings["timestep_fs"]))
            cells.append(f"{1e3 * error:.1f}")
        name = f"{folder.parent.name}/{folder.name}"
        print(f"| {name} | {given['system']['temperature_K']:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
