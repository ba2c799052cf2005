"""Heating of the collective variable by a bias while it is learned.

    python python/benchmarks/heating.py           # print the table of the committed data
    python python/benchmarks/heating.py --run     # compute it anew first: a minute

A particle with the mass of a hydrogen atom moves on a cosine potential of 0.47 eV at 500 K, in
Langevin dynamics of 5/ps with steps of 1 fs (BAOAB). It is biased by the reference estimator of
bABF. The table has the ratio of its kinetic temperature to that of the thermostat for quarters of
the run, with the bias updated in every step and with the bias of `BABF`: the mean of eight seeds
with its standard error. The dynamics is chaotic, so another processor gives other numbers within
these errors. The data are in docs/heating.json.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from ase import units
from numpy.typing import NDArray

from plumed_cv.common.files import write_text
from plumed_cv.freeenergy import Estimator, Grid
from plumed_cv.freeenergy.estimator import SOLVE_STRIDE

KELVIN, BARRIER_EV, FRICTION_PER_PS, TIMESTEP_FS, STEPS = 500.0, 0.47, 5.0, 1.0, 40_000
MASS = 240.0  # eV fs^2: a hydrogen atom on a path of 1.5 angstrom, whose length is 1
SEEDS = 8
VARIANTS = {"in every step": 1, "after 5 % more samples": SOLVE_STRIDE}
DATA = Path(__file__).resolve().parents[2] / "docs" / "heating.json"
QUARTERS = np.linspace(0, STEPS, 5).astype(int)


def temperatures(solve_stride: int, seed: int) -> NDArray[np.float64]:
    """Kinetic temperature in each quarter of a run, divided by that of the thermostat, (4,)."""
    rng, kT = np.random.default_rng(seed), units.kB * KELVIN
    estimator = Estimator(Grid(-0.2, 1.2, 140), kT, ramp=STEPS, solve_stride=solve_stride)
    kept = np.exp(-1e-3 * FRICTION_PER_PS * TIMESTEP_FS)
    kick, half = np.sqrt((1.0 - kept**2) * kT / MASS), 0.5 * TIMESTEP_FS
    x, v, force = 0.0, np.sqrt(kT / MASS) * rng.standard_normal(), 0.0
    squares = np.empty(STEPS)
    for step in range(STEPS):
        v += half * force / MASS
        x += half * v
        v = kept * v + kick * rng.standard_normal()
        x += half * v
        bias = float(estimator.learn(x).force_eV)
        force = bias - np.pi * BARRIER_EV * np.sin(2.0 * np.pi * x)
        v += half * force / MASS
        squares[step] = v**2
    means = [squares[begin:end].mean() for begin, end in pairwise(QUARTERS)]
    return np.array(means) * MASS / kT


def main() -> None:
    """Compute the data if asked to, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", action="store_true", help="compute the data anew")
    if parser.parse_args().run:
        found = {
            name: [temperatures(stride, seed).round(4).tolist() for seed in range(SEEDS)]
            for name, stride in VARIANTS.items()
        }
        write_text(DATA, json.dumps(found, indent=1) + "\n")
    print("| update of the bias | first quarter | second | third | fourth |")
    print("| --- | --- | --- | --- | --- |")
    for name, ratios in json.loads(DATA.read_text(encoding="utf-8")).items():
        means = np.mean(ratios, axis=0)
        errors = np.std(ratios, axis=0, ddof=1) / len(ratios) ** 0.5
        cells = [f"{mean:.2f} ± {error:.2f}" for mean, error in zip(means, errors, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
