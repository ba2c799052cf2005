"""Steps per second of each engine, plain and with a learned variable and its bias.

    python python/benchmarks/engines.py [--quick] [--output docs/engines.json]

The system is the crystal with which the tests compare the engines: 108 Lennard-Jones atoms. Its
forces take almost no time, so the ratios are close to the worst case. The variable is an
AUTOENCODER of 24 components under BABF. Each number is a median over repetitions, with plain and
biased runs in turn. It is the processor time of a long run minus that of a short one; +- is half
the distance of the quartiles. The last column is the time of a segment in addition to its steps
(starting programs, reading and writing their files). One core is used.
"""

import argparse
import dataclasses
import json
import platform
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from plumed_cv.common.files import write_text
from plumed_cv.cv import random_model
from plumed_cv.engines import Dynamics, Engine, Segment, State
from plumed_cv.setup.kernel import find_plumed
from plumed_cv.setup.plugin import build_plugin
from tests.engines import kits

# A long and a short run of each, in steps.
LENGTHS = {
    "lammps": (20_000, 4000),
    "lammps-program": (20_000, 4000),
    "gromacs": (20_000, 4000),
    "gromacs-double": (20_000, 4000),
    "ase": (600, 100),
}
COMPONENTS = 24


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    arguments = parser.parse_args()
    kernel = find_plumed()
    makers = {name: kit.make for name, kit in kits.KITS.items()}
    makers["gromacs"] = lambda atoms, epsilon, folder: kits.gromacs(atoms, epsilon, folder, "")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, lengths in LENGTHS.items():
            folder = Path(temporary) / name
            folder.mkdir()
            with makers[name](kits.crystal(), kits.EPSILON, folder) as engine:
                repetitions = 3 if arguments.quick else 9
                rows.append({"engine": name, **measure(engine, folder, lengths, repetitions)})
    print_rows(rows)
    if arguments.output is not None:
        about = {"machine": platform.processor() or platform.machine(), "plumed": kernel.version}
        about["kernel"] = "optimised" if kernel.optimised else "not optimised"
        write_text(arguments.output, json.dumps({**about, "rows": rows}, indent=1) + "\n")


def measure(
    engine: Engine, folder: Path, lengths: tuple[int, int], repetitions: int
) -> dict[str, Any]:
    """Return microseconds a step plain and biased, their ratio, and seconds a segment."""
    inputs = {"plain": None, "biased": plumed_input(folder)}
    times: dict[str, list[float]] = {name: [] for name in inputs}
    starts: list[float] = []
    for repetition in range(repetitions):
        for name, text in inputs.items():
            long, short = (seconds(engine, folder, n, repetition, text) for n in lengths)
            times[name].append((long - short) / (lengths[0] - lengths[1]))
            if name == "biased":
                starts.append(short - times[name][-1] * lengths[1])
    plain, biased = (np.array(times[name]) for name in inputs)
    answer: dict[str, Any] = {"steps": list(lengths), "repetitions": repetitions}
    for name, values in {
        "plain_us": 1e6 * plain,
        "biased_us": 1e6 * biased,
        "ratio": biased / plain,
        "start_s": np.array(starts),
    }.items():
        low, median, high = np.percentile(values, [25, 50, 75])
        answer[name], answer[f"{name}_spread"] = float(median), float(high - low) / 2
    return answer


def seconds(engine: Engine, folder: Path, n_steps: int, seed: int, text: str | None) -> float:
    """Run a segment; return the processor time of the process that it ran in."""
    start = State.of(kits.crystal())
    dynamics = Dynamics(30.0, timestep_fs=2.0, friction_per_ps=5.0)
    before = processor_time(engine)
    engine.run(Segment(folder, start, dynamics, n_steps, seed, text, snapshot_stride=0))
    return processor_time(engine) - before


def processor_time(engine: Engine) -> float:
    """Return the processor time so far of the engine's process, or of all that have ended."""
    child = getattr(engine, "_child", None)
    if child is not None:
        status = Path(f"/proc/{child.pid}/schedstat")
        return int(status.read_text().split()[0]) / 1e9
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def plumed_input(folder: Path) -> str:
    """Return a plumed.dat with a random model whose reference is the crystal."""
    atoms = kits.crystal()
    widths = (COMPONENTS, COMPONENTS)
    rng = np.random.default_rng(1)
    model = random_model(rng, len(atoms), COMPONENTS, widths, cell=atoms.cell.array)
    model = dataclasses.replace(model, reference_positions=atoms.positions.copy())
    model.save(folder / "cv.safetensors")
    xi = float(model.value(atoms.positions, atoms.cell.array)[0])
    return (
        f"{kits.PLUMED_UNITS}LOAD FILE={build_plugin()}\n"
        f"ae: AUTOENCODER MODEL={folder / 'cv.safetensors'}\n"
        f"b: BABF ARG=ae.node-0 TEMP=30 GRID_MIN={xi - 1} GRID_MAX={xi + 1} GRID_BIN=100 "
        "RAMP=1000\n"
    )


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table in Markdown."""
    print("| engine | us a step | with CV + bias | ratio | steps/s with CV + bias | s a segment |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        cells = [
            f"{row[name]:.{digits}f} ± {row[f'{name}_spread']:.{digits}f}"
            for name, digits in (("plain_us", 1), ("biased_us", 1), ("ratio", 2))
        ]
        rate = f"{1e6 / row['biased_us']:.0f}"
        print(f"| {row['engine']} | {' | '.join(cells)} | {rate} | {row['start_s']:.2f} |")


if __name__ == "__main__":
    main()
