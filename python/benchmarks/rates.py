"""Cost of a rate: steps of molecular dynamics until it is known to 10 %, by method.

    python python/benchmarks/rates.py RUNS                     # run what is missing, then print
    python python/benchmarks/rates.py RUNS --methods METAD --events 20
    python python/benchmarks/rates.py                          # the table from docs/rates-cost.json

The process is the hop of the vacancy in iron (the packaged example) at 700 and 500 K, in one
direction. All methods have the linear CV, the same Langevin dynamics (2 fs, 1/ps) and the same
engine. Steps are those of molecular dynamics, all of which evaluate the forces once.

plumed_cv
    One iteration of `plumed-cv run` along the linear CV and the transmission coefficient.
METAD
    Infrequent metadynamics (Tiwary and Parrinello, Phys. Rev. Lett. 111, 230602 (2013)): a run is
    an event. It starts in the reactant and ends at xi > 0.9. The time of the event is the sum of
    exp(V/kT) dt, by PLUMED's ACCELERATION.
OPES
    OPES flooding (Ray, Ansari, Rizzi, Invernizzi and Parrinello, J. Chem. Theory Comput. 18, 6500
    (2022)): the same, with no bias at xi > 0.2 (EXCLUDED_REGION) and a largest bias (BARRIER) below
    the barrier.
umbrella, planes
    The rate of transition state theory alone, an upper bound, from umbrella sampling along the
    linear CV and from planes across the minimum energy path (PAFI) at 500 K (python/references).
    The transmission coefficient would need more steps.
plain
    Hops of plain dynamics in all eight directions. The steps follow from the rate of plumed_cv.

The rate of n events has the relative error 1/sqrt(n), so 10 % takes 100 events. The steps of the
other methods scale to 10 % as the square of their relative error. The p value is that of a
Kolmogorov-Smirnov test of the times of the events against an exponential distribution with the same
mean (Salvalaglio, Tiwary and Parrinello, J. Chem. Theory Comput. 10, 1420 (2014)). Below 0.05 the
bias has probably touched the barrier, and the rate is wrong.
"""

import argparse
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from scipy.stats import kstest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from plumed_cv import cv, input_file, workflow
from plumed_cv.common.files import read_json, write_text
from plumed_cv.common.numbers import error_of_factor, scientific
from plumed_cv.engines import Dynamics, Segment, State
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.path import EnergyPath
from plumed_cv.setup.kernel import find_plumed
from plumed_cv.setup.plugin import build_plugin
from python.references import common, defects, transmission
from python.zero_kelvin.systems import POTENTIAL

DATA = Path(__file__).resolve().parents[2] / "docs" / "rates-cost.json"
TEMPERATURES_K = (700, 500)
TIMESTEP_FS = 2.0
METHODS = ("plumed_cv", "METAD", "OPES")
REFERENCES = {"umbrella": "umbrella", "pafi": "planes"}  # files of docs/references
SAMPLING_STEPS = 250_000
TARGET = 0.1
EVENTS = 30
MOST_STEPS = 1_000_000  # of one event
EQUILIBRATION_STEPS = 1000
PRODUCT, GUARD_A = 0.9, 1.5
SIGMA, PACE, HEIGHT_EV, BIASFACTOR = 0.03, 500, 0.02, 15
OPES_PACE, OPES_SIGMA, EXCLUDED = 500, 0.03, 0.2
OPES_BARRIER_EV = {700: 0.25, 500: 0.30}  # flux barriers: 0.43 and 0.47 eV


@dataclass(frozen=True)
class Event:
    """A run with a bias: steps, time of the event in s, and whether it was the process.

    A run that was stopped for another reason (another atom left its site, or too many steps) is no
    event, but its time counts.
    """

    steps: int
    time_s: float
    happened: bool


def bias(method: str, temperature_K: int) -> str:
    """Lines of PLUMED, with the value to print as `m.out`: acceleration, or bias in eV."""
    if method == "METAD":
        return (
            f"m: METAD ARG=ae.node-0 SIGMA={SIGMA} PACE={PACE} HEIGHT={HEIGHT_EV} "
            f"BIASFACTOR={BIASFACTOR} TEMP={temperature_K} GRID_MIN=-1 GRID_MAX=2 GRID_BIN=600 "
            "ACCELERATION FILE=hills\n"
        )
    return (
        f"outside: CUSTOM ARG=ae.node-0 FUNC=step(x-{EXCLUDED}) PERIODIC=NO\n"
        f"m: OPES_METAD ARG=ae.node-0 SIGMA={OPES_SIGMA} PACE={OPES_PACE} TEMP={temperature_K} "
        f"BARRIER={OPES_BARRIER_EV[temperature_K]} EXCLUDED_REGION=outside FILE=kernels\n"
    )


def event(
    engine: LammpsEngine, path: EnergyPath, model: Path, folder: Path, method: str, T: int, k: int
) -> Event:
    """Make one run until the vacancy has hopped, or has left the process."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dynamics = Dynamics(T, timestep_fs=TIMESTEP_FS, friction_per_ps=1.0)
    start, seed = State.of(path.images[0]), common.seed(T, k, *method.encode())
    begin = Segment(folder, start, dynamics, EQUILIBRATION_STEPS, seed, None, snapshot_stride=0)
    start = engine.run(begin).end
    printed = "m.acc" if method == "METAD" else "m.bias"
    text = (
        "UNITS LENGTH=A ENERGY=eV TIME=fs\n"
        f"LOAD FILE={build_plugin(find_plumed())}\n"
        f"ae: AUTOENCODER MODEL={model.absolute()}\n{bias(method, T)}"
        f"PRINT ARG=ae.node-0,ae.maxdev,{printed} FILE=colvar STRIDE=5 FMT=%.12g\n"
        f"COMMITTOR ARG=ae.node-0 BASIN_LL1={PRODUCT} BASIN_UL1=10 STRIDE=5 FILE=end\n"
        f"COMMITTOR ARG=ae.maxdev BASIN_LL1={GUARD_A} BASIN_UL1=100 STRIDE=5 FILE=guard\n"
    )
    segment = Segment(folder, start, dynamics, MOST_STEPS, seed, text, snapshot_stride=0)
    steps = engine.run(segment).n_steps
    time_fs, xi, _, value = np.loadtxt(folder / "colvar", ndmin=2).T
    if method == "METAD":  # PLUMED's acc is the mean of exp(V/kT) so far
        accelerated_fs = float(time_fs[-1] * value[-1])
    else:
        boost = np.exp((value + OPES_BARRIER_EV[T]) / (units.kB * T))
        accelerated_fs = float(np.mean(boost[time_fs > 0]) * time_fs[-1])
    shutil.rmtree(folder)
    return Event(steps + EQUILIBRATION_STEPS, accelerated_fs * 1e-15, bool(xi[-1] >= PRODUCT))


def run_events(runs: Path, method: str, T: int, n: int, data: dict[str, Any]) -> None:
    """Add events of a method to the data file up to a number."""
    path = common.minimum_path("paper", runs)
    model = runs / "linear.safetensors"
    cv.linear(path.species, path.cell, path.images[0].positions, path.images[-1].positions).save(
        model
    )
    found = data.setdefault(f"{method}-{T}K", [])
    with LammpsEngine(POTENTIAL, path.images[0]) as engine:
        while len(found) < n:
            folder = runs / f"{method}-{T}K"
            found.append(
                list(vars(event(engine, path, model, folder, method, T, len(found))).values())
            )
            write_text(DATA, json.dumps(data) + "\n")
            print(method, T, found[-1], file=sys.stderr, flush=True)


def run_ours(runs: Path, T: int, data: dict[str, Any]) -> None:
    """Run plumed_cv and put rate, error and steps into the data file."""
    case = replace(defects.CASES["fe-700K"], temperature_K=float(T))
    folder = runs / f"fe-{T}K"
    settings = input_file.load(transmission.write(case, folder, SAMPLING_STEPS))
    workflow.run(settings, folder / "run")
    workflow.transmission.compute_rate(folder / "run")
    result = read_json(folder / "run" / "result.json")
    data[f"plumed_cv-{T}K"] = {
        "rate_per_s": result["rate_per_s"],
        "rate_error_factor": result["rate_error_factor"],
        "steps": result["md_steps"] + result["rate"]["md_steps"],
    }
    write_text(DATA, json.dumps(data) + "\n")


def print_table(data: dict[str, Any]) -> None:
    """Print a row for each method and temperature."""
    print("| T (K) | method | events | rate (1/s) | p | steps made | steps to 10 % |")
    print("|" + " --- |" * 7)
    for T in TEMPERATURES_K:
        ours = data.get(f"plumed_cv-{T}K")
        if ours is not None:
            rate, factor = ours["rate_per_s"], ours["rate_error_factor"]
            needed = ours["steps"] * (np.log(factor) / TARGET) ** 2
            number = scientific(rate, error_of_factor(rate, factor), "").strip()
            print(f"| {T} | plumed_cv | | {number} | | {ours['steps']:,} | {needed:.1e} |")
        for method in METHODS[1:]:
            events = [Event(*row) for row in data.get(f"{method}-{T}K", [])]
            times = np.array([e.time_s for e in events if e.happened])
            if len(times) < 2:
                continue
            n, steps = len(times), sum(e.steps for e in events)
            rate = n / sum(e.time_s for e in events)
            number = scientific(rate, rate / n**0.5, "").strip()
            p = kstest(times, "expon", args=(0.0, times.mean())).pvalue
            needed = steps / (n * TARGET**2)
            print(f"| {T} | {method} | {n} | {number} | {p:.2f} | {steps:,} | {needed:.1e} |")
        for name, method in REFERENCES.items():
            found = read_json(common.DOCS / f"{name}.json").get(f"paper-{T}K")
            if found is not None:
                error = found["flux_barrier_error_eV"] / (units.kB * T)
                bound = scientific(found["rate_per_s"], found["rate_per_s"] * error, "").strip()
                needed = found["steps"] * (error / TARGET) ** 2
                words = f"{method}, k_TST alone | | {bound} | | {found['steps']:,} | {needed:.1e}"
                print(f"| {T} | {words} |")
        if ours is not None:
            directions = defects.CASES["fe-700K"].neighbours
            needed = 1.0 / (TARGET**2 * directions * ours["rate_per_s"] * 1e-15 * TIMESTEP_FS)
            print(f"| {T} | plain | | | | | {needed:.1e} |")


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", help="folder of the runs, made if absent")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--temperatures", nargs="+", type=int, default=list(TEMPERATURES_K))
    parser.add_argument("--events", type=int, default=EVENTS, help=f"of each method, {EVENTS}")
    given = parser.parse_args()
    data = read_json(DATA) if DATA.exists() else {}
    if given.runs is not None:
        given.runs.mkdir(parents=True, exist_ok=True)
        for T in given.temperatures:
            for method in given.methods:
                if method == "plumed_cv":
                    run_ours(given.runs, T, data)
                else:
                    run_events(given.runs, method, T, given.events, data)
    print_table(data)


if __name__ == "__main__":
    main()
