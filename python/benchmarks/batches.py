"""Speed of 16 walkers whose structures a learned potential evaluates in one call.

    python python/benchmarks/batches.py [--quick] [--output docs/batches.json]
    python python/benchmarks/batches.py --table docs/batches.json

Needs `pip install chgnet sevenn`. The system is a vacancy in lithium chloride. Each of 16 walkers
has its own PLUMED with the linear CV and bABF, and all share one estimate. The same steps run

- alone: by the calculator of the package, one walker after another (engine.batch = 1);
- single: one walker after another too, but by the call for batches, with one structure in each;
- batch: all walkers together, 16 structures in each call (engine.batch = 16),

all with one thread.

The machine may be shared, so the three are measured in turn. The fastest of each counts, which
other processes disturb least. The script also prints the processor time of a step.
"""

import argparse
import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from ase import Atoms
from ase.build import bulk

from plumed_cv import cv
from plumed_cv.engines import Dynamics, Segment, State
from plumed_cv.engines.ase import AseEngine
from plumed_cv.setup.plugin import babf_input, build_plugin

WALKERS, STEPS, REPETITIONS, LATTICE_A, KELVIN = 16, 5, 3, 5.1457, 600.0
# For each potential: the calculator of its package, that with a call for batches, and arguments.
POTENTIALS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "CHGNet": (
        "chgnet.model.dynamics.CHGNetCalculator",
        "plumed_cv.engines.batches.chgnet",
        {"use_device": "cpu"},
    ),
    "SevenNet": (
        "sevenn.calculator.SevenNetCalculator",
        "plumed_cv.engines.batches.sevennet",
        {"model": "7net-0", "device": "cpu"},
    ),
}
SIZES = {7: (1, 1, 1), 15: (2, 1, 1)}  # cubic cells for each number of atoms
CASES = [(name, n_atoms) for n_atoms in SIZES for name in POTENTIALS]


def main() -> None:
    """Measure and print, or print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one case, once")
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--table", type=Path, help="print the numbers of this JSON file")
    arguments = parser.parse_args()
    if arguments.table:
        results = json.loads(arguments.table.read_text())
    else:
        cases, repetitions = (CASES[:1], 1) if arguments.quick else (CASES, REPETITIONS)
        results = []
        for case in cases:
            results.append(measure(*case, repetitions))
            if arguments.output:
                arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


def end_states(n_atoms: int) -> tuple[Atoms, Atoms]:
    """Lithium chloride with a vacancy, before and after a lithium atom has moved into it."""
    initial: Atoms = bulk("LiCl", "rocksalt", a=LATTICE_A, cubic=True).repeat(SIZES[n_atoms])
    final = initial.copy()
    nearest = next(k for k in range(1, len(initial)) if initial.symbols[k] == "Li")
    final.positions[nearest] = initial.positions[0]
    del initial[0], final[0]
    return initial, final


def measure(name: str, n_atoms: int, repetitions: int) -> dict[str, Any]:
    """Return steps a second and processor time of a step (ms), for each way to run."""
    own, together, arguments = POTENTIALS[name]
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes of the engines
    initial, final = end_states(n_atoms)
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = Path(folder) / "cv.safetensors"
        cell = initial.cell.array
        cv.linear(list(initial.symbols), cell, initial.positions, final.positions).save(model)
        engines = {
            way: stack.enter_context(
                AseEngine(calculator, initial, arguments=arguments, batch=batch)
            )
            for way, calculator, batch in (
                ("alone", own, 1),
                ("single", together, WALKERS),
                ("batch", together, WALKERS),
            )
        }
        for k in range(-1, repetitions):  # the first one is slower and does not count
            for way, engine in engines.items():
                segments = make_segments(initial, model, Path(folder) / f"{way}{k}")
                seconds, processor = run(engine, segments, way == "batch")
                if k >= 0:
                    values = found.setdefault(way, {"steps_per_s": [], "processor_ms": []})
                    values["steps_per_s"].append(WALKERS * STEPS / seconds)
                    values["processor_ms"].append(1e3 * processor / (WALKERS * STEPS))
    return {"potential": name, "atoms": n_atoms} | {
        way: {
            "steps_per_s": max(values["steps_per_s"]),
            "processor_ms": min(values["processor_ms"]),
        }
        for way, values in found.items()
    }


def make_segments(atoms: Atoms, model: Path, folder: Path) -> list[Segment]:
    """A segment for each walker."""
    segments = []
    (folder / "shared").mkdir(parents=True)
    for k in range(WALKERS):
        directory = folder / f"{k}"
        directory.mkdir()
        text = babf_input(
            build_plugin(),
            model,
            temperature_K=KELVIN,
            ramp=1000,
            state_out=Path("babf.state"),
            state_stride=STEPS,
            colvar=Path("colvar"),
            colvar_stride=STEPS,
            walkers=(WALKERS, k, Path("../shared")),
        )
        dynamics = Dynamics(KELVIN, 2.0)
        segments.append(Segment(directory, State.of(atoms), dynamics, STEPS, k, plumed=text))
    return segments


def run(engine: AseEngine, segments: list[Segment], together: bool) -> tuple[float, float]:
    """Run segments; return wall time and processor time, s."""
    before = processor_seconds()
    if together:
        seconds = max(result.seconds for result in engine.run_all(segments))
    else:
        seconds = sum(engine.run(segment).seconds for segment in segments)
    return seconds, processor_seconds() - before


def processor_seconds() -> float:
    """Processor time of the processes of the engines, s; only one of them works at a time."""
    times = [process.cpu_times() for process in psutil.Process().children()]
    return float(np.sum([[each.user, each.system] for each in times]))


def show(results: list[dict[str, Any]]) -> None:
    """Print a table."""
    print("| potential | atoms | alone | single | batch | batch / alone | batch / single |")
    print("|---|---|---|---|---|---|---|")
    for case in results:
        speeds = [case[way]["steps_per_s"] for way in ("alone", "single", "batch")]
        gains = [speeds[2] / speed for speed in speeds[:2]]
        cells = [case["potential"], str(case["atoms"])]
        cells += [f"{speed:.1f}" for speed in speeds] + [f"{gain:.2f}" for gain in gains]
        print(f"| {' | '.join(cells)} |")
    print("\nProcessor time of a step (ms):\n")
    print("| potential | atoms | alone | single | batch |")
    print("|---|---|---|---|---|")
    for case in results:
        times = [f"{case[way]['processor_ms']:.0f}" for way in ("alone", "single", "batch")]
        cells = [case["potential"], str(case["atoms"]), *times]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
