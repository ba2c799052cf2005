"""Speed of several walkers, and cost of their exchange.

    python python/benchmarks/walkers.py [--quick] [--output docs/walkers.json]
    python python/benchmarks/walkers.py --table docs/walkers.json

Speed: total MD steps per second of one run, of two unrelated runs at the same time, and of two
walkers that share one estimate. The system is the vacancy in iron (127 atoms) with the linear CV,
and each run is a separate process. The machine may be shared, so the three are measured in turn.
The script prints the median, the fastest (which other processes disturb least), and the processor
time of a step.

Exchange: the processor time, including system calls, in which a walker writes its contribution,
reads the files of all others (all of them new, the worst case) and adds them. The state files are
real ones of 141 nodes on the disk of this machine. The time is also given as a fraction of the time
of the steps between two exchanges, at 140 us per step.
"""

import argparse
import json
import subprocess
import tempfile
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

from ase.build import bulk

from plumed_cv import cv, sampling
from plumed_cv.engines import Dynamics, Segment, State
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.input_file import Config, Lammps, Sampling, System
from plumed_cv.setup.plugin import babf_input, build_plugin
from plumed_cv.setup.tools import cxx_compiler
from plumed_cv.structures import orient

NUMBERS = (2, 10, 100, 1000)
STEP_US = 140.0
POTENTIAL = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]
MODES = {"one": 1, "unrelated": 2, "walkers": 2}  # runs at the same time


def main() -> None:
    """Measure and print, or print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--table", type=Path, help="print the numbers of this JSON file")
    arguments = parser.parse_args()
    if arguments.table:
        results = json.loads(arguments.table.read_text())
    else:
        results = {"exchange": exchange(arguments.quick), "speed": speed(arguments.quick)}
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


def exchange(quick: bool) -> list[dict[str, float]]:
    """Return the times of an exchange, microseconds, for each number of walkers."""
    source = Path(__file__).with_suffix(".cpp")
    results = []
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "exchange"
        flags = ["-std=c++17", "-O3", "-DNDEBUG", "-fopenmp-simd", "-fno-math-errno"]
        subprocess.run([cxx_compiler(), *flags, str(source), "-o", str(program)], check=True)
        for number in NUMBERS:
            folder = Path(name) / str(number)
            folder.mkdir()
            repetitions = 5 if quick else max(15, 300 // number)
            command = [str(program), str(folder), str(number), str(repetitions)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found: dict[str, float] = json.loads(done.stdout)
            found["total"] = found["write"] + found["read_changed"] + found["sum"]
            results.append({"walkers": number, **found})
    return results


def speed(quick: bool) -> dict[str, dict[str, float]]:
    """Return steps a second in total, and microseconds of the processor a step, of each mode."""
    n_steps, rounds = (5000, 3) if quick else (10_000, 7)
    rates: dict[str, list[float]] = {mode: [] for mode in MODES}
    costs: dict[str, list[float]] = {mode: [] for mode in MODES}
    plugin = build_plugin()
    with tempfile.TemporaryDirectory() as name:
        for i in range(rounds):
            for mode, number in MODES.items():
                times = run_together(Path(name) / f"{mode}-{i}", mode, plugin, n_steps)
                rates[mode].append(number * n_steps / max(wall for wall, _ in times))
                costs[mode].append(1e6 * sum(used for _, used in times) / (number * n_steps))
    return {
        mode: {
            "median": round(median(rates[mode])),
            "fastest": round(max(rates[mode])),
            "processor_us": round(median(costs[mode]), 1),
        }
        for mode in MODES
    }


def run_together(folder: Path, mode: str, plugin: Path, n_steps: int) -> list[tuple[float, float]]:
    """Start all runs of a mode at once; return the seconds of each, real and of the CPU."""
    (folder / "shared").mkdir(parents=True)
    context = get_context("spawn")
    number = MODES[mode]
    barrier, answers = context.Barrier(number), context.Queue()
    processes = [
        context.Process(target=one_run, args=(folder, mode, i, plugin, n_steps, barrier, answers))
        for i in range(number)
    ]
    for process in processes:
        process.start()
    times: list[tuple[float, float]] = [answers.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return times


def one_run(
    folder: Path, mode: str, number: int, plugin: Path, n_steps: int, barrier: Barrier, answers: Any
) -> None:
    """Run one of the runs of a mode, and put its seconds into the queue."""
    home = folder / str(number)
    home.mkdir()
    crystal = orient(bulk("Fe", "bcc", a=2.8553, cubic=True).repeat(4))
    initial, final = crystal[1:], crystal[1:]
    final.positions[0] = crystal.positions[0]
    config = Config(
        system=System(initial=Path("a"), final=Path("b"), temperature_K=300.0),
        engine=Lammps(potential=POTENTIAL),
    )
    model = home / "cv.safetensors"
    cell = initial.cell.array
    cv.linear(list(initial.symbols), cell, initial.positions, final.positions).save(model)
    settings = Sampling(steps=1_000_000, margin=0.2)
    text = babf_input(
        plugin,
        model,
        temperature_K=300.0,
        ramp=settings.steps,
        grid=sampling.make_grid(settings),
        state_out=Path("babf.state"),
        state_stride=n_steps,
        colvar=Path("colvar"),
        colvar_stride=10,
        walkers=(MODES[mode], number, folder / "shared") if mode == "walkers" else None,
    )
    dynamics = Dynamics(300.0, 2.0, "langevin", 5.0)
    start = State.of(initial)
    with sampling.open_engine(config, initial) as engine:
        assert isinstance(engine, LammpsEngine)
        engine.run(Segment(home, start, dynamics, 500, seed=number))
        barrier.wait()
        before = processor_time(engine)
        result = engine.run(Segment(home, start, dynamics, n_steps, seed=number, plumed=text))
        answers.put((result.seconds, processor_time(engine) - before))


def processor_time(engine: LammpsEngine) -> float:
    """Return the processor's time of LAMMPS's process so far, seconds."""
    return int(Path(f"/proc/{engine._child.pid}/schedstat").read_text().split()[0]) / 1e9


def show(results: dict[str, Any]) -> None:
    """Print the tables of docs/walkers.md."""
    found = results["speed"]
    print("| runs at the same time | MD steps/s in all, median | fastest | CPU (us a step) |")
    print("| --- | --- | --- | --- |")
    words = {"one": "one", "unrelated": "two, unrelated", "walkers": "two walkers"}
    for mode, name in words.items():
        row = found[mode]
        print(f"| {name} | {row['median']} | {row['fastest']} | {row['processor_us']:.0f} |")
    for kind in ("median", "fastest"):
        one, unrelated, walkers = (found[mode][kind] for mode in MODES)
        print(
            f"\nTwo walkers, {kind}: {walkers / one:.2f} times one run, "
            f"{walkers / unrelated:.2f} times two unrelated ones."
        )
    print()
    columns = ("write (us)", "read (us)", "add up (us)", "in all (ms)", "nothing new (us)")
    print(f"| walkers | {' | '.join(columns)} | WALKERS_RSTRIDE | share of the run |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in results["exchange"]:
        share = 100 * row["total"] / (row["stride"] * STEP_US)
        print(
            f"| {row['walkers']} | {row['write']:.0f} | {row['read_changed']:.0f} "
            f"| {row['sum']:.0f} | {row['total'] / 1000:.2f} | {row['read_unchanged']:.0f} "
            f"| {row['stride']} | {share:.2g} % |"
        )


if __name__ == "__main__":
    main()
