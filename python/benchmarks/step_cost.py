"""Cost of our actions: their own time per step, and the coupled run compared with plain LAMMPS.

    python python/benchmarks/step_cost.py [--quick] [--kernel LIBPLUMEDKERNEL ...]
    python python/benchmarks/step_cost.py --coupled --output docs/step-cost.json

The own time is the time of a step with AUTOENCODER and BABF minus the time of a step with an action
that requests the same atoms and does nothing. It is measured in a loop without engine and Python
(step_cost.cpp). With any biased variable of N atoms, PLUMED also returns forces on N atoms. In the
second column of own times this is subtracted too (the same action under a RESTRAINT).

The time of BABF alone, on a DISTANCE with grids of several sizes, is the time of a step with BABF
minus the time of a step with a RESTRAINT.

The coupled runs are those of a CV of all atoms, of a CV of as many atoms as `cv.atoms = "auto"`
chooses for a vacancy, and of a spring between two atoms, which is the least that PLUMED can do.

The machine may be shared. Therefore every comparison consists of short runs in turn. The script
prints the median of their differences or ratios with half the distance of their quartiles (+-), and
the difference or ratio of the shortest times ("best"), which other processes disturb least. All
times are processor times: of the thread of the loop, and of the process in which LAMMPS runs.

Kernels: those given; otherwise the one that plumed_cv uses, the optimised one and that of the
wheel, if they exist. There is one Python process per kernel. One core is used.
"""

import argparse
import ctypes
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from numpy.typing import NDArray

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import write_text
from plumed_cv.cv import CollectiveVariable, random_model
from plumed_cv.engines import Dynamics, Segment, State
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.setup.kernel import Plumed, data_dir, find_plumed, optimised_prefix
from plumed_cv.setup.plugin import build_plugin
from plumed_cv.setup.tools import cxx_compiler

Array = NDArray[np.float64]

CELLS = {127: (4, 4, 4), 1026: (9, 19, 3), 2754: (9, 9, 17)}  # bcc cells
COUPLED = {127: 8000, 1999: 500}  # steps of a coupled run; starting PLUMED takes as long as 100
FEW = 21  # atoms of the CV that cv.atoms = "auto" chooses for a vacancy's hop
COMPONENTS = (24, 20, 40)
BINS = (100, 1000, 10_000)
LATTICE = 2.8553  # angstrom
POTENTIAL = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]
UNITS = "UNITS LENGTH=A ENERGY=eV TIME=fs\n"
SPRING = f"{UNITS}d: DISTANCE ATOMS=1,2\nr: RESTRAINT ARG=d AT=2.5 KAPPA=0.01\n"
FIX_PLUMED = Path(__file__).parents[1] / "lammps_fix_plumed.py"


def main() -> None:
    """Print the three tables and the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--kernel", type=Path, action="append", help="PLUMED's shared library")
    parser.add_argument("--coupled", action="store_true", help="only the coupled runs")
    parser.add_argument("--output", type=Path, help="JSON file for the coupled runs")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.quick, arguments.coupled)))
        return
    kernels = arguments.kernel or known_kernels()
    own, coupled = {}, {}
    for kernel in kernels:
        name, results = in_a_process(kernel, arguments.quick, arguments.coupled)
        coupled[name] = results["coupled"]
        print(f"\nKernel: {name} ({kernel})\n")
        if not arguments.coupled:
            own[name] = results["own"]
            print_own(results["own"])
            print_bins(results["bins"])
        print_coupled(results["coupled"])
    if own:
        print(f"\n{summary(own, coupled)}")
    if arguments.output is not None:
        write_text(arguments.output, json.dumps(coupled, indent=1) + "\n")


def known_kernels() -> list[Path]:
    """Return the PLUMED kernels on this machine that plumed_cv finds, each once."""
    kernels = [find_plumed().kernel.resolve()]
    for folder in (optimised_prefix() / "lib", *data_dir().glob("kernel-*/plumed/_lib/lib")):
        kernel = folder / kernels[0].name
        if kernel.is_file() and kernel.resolve() not in kernels:
            kernels.append(kernel.resolve())
    return kernels


def in_a_process(kernel: Path, quick: bool, only_coupled: bool) -> tuple[str, Any]:
    """Measure one kernel; return its description and the results."""
    environment = dict(os.environ, PLUMED_KERNEL=str(kernel), OMP_NUM_THREADS="1")
    environment.pop("PLUMED_ROOT", None)
    if (kernel.parent / "plumed").is_dir():
        environment["PLUMED_ROOT"] = str(kernel.parent / "plumed")
    command = [sys.executable, __file__, "--one", *(["--quick"] if quick else [])]
    command += ["--coupled"] if only_coupled else []
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    results = json.loads(done.stdout.splitlines()[-1])
    return results["kernel"], results


def measure(quick: bool, only_coupled: bool = False) -> dict[str, object]:
    """Measure the kernel of this process's environment."""
    plumed = find_plumed()
    plumed.activate()
    kind = "optimised" if plumed.optimised else "not optimised"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own: list[dict[str, float]] = []
        bins: list[dict[str, float]] = []
        if not only_coupled:
            loop = Loop(plumed, folder)
            own = [
                own_time(loop, plumed, folder, n_atoms, n_components, 5 if quick else 15)
                for n_atoms in CELLS
                for n_components in COMPONENTS
            ]
            bins = time_of_bins(loop, plumed, folder, 5 if quick else 15)
        coupled = [
            row
            for n_atoms in COUPLED
            for row in coupled_run(plumed, folder, n_atoms, 24, 3 if quick else 7)
        ]
    kernel = f"PLUMED {plumed.version}, {kind}"
    return {"kernel": kernel, "own": own, "bins": bins, "coupled": coupled}


class Loop:
    """The compiled loop of step_cost.cpp."""

    def __init__(self, plumed: Plumed, folder: Path) -> None:
        if plumed.include_dir is None:
            raise UserError(f"{plumed.kernel}: its headers are not installed")
        library = folder / "step_cost.so"
        source = Path(__file__).with_suffix(".cpp")
        lib_dir = plumed.kernel.parent
        subprocess.run(
            [
                *(cxx_compiler(), "-std=c++17", "-O3", "-fPIC", "-shared", "-w", str(source)),
                *("-o", str(library), "-isystem", str(plumed.include_dir / "plumed")),
                *(f"-L{lib_dir}", f"-Wl,-rpath,{lib_dir}", "-lplumedKernel", "-ldl"),
            ],
            check=True,
        )
        self._library = ctypes.CDLL(str(library))
        self._library.step_cost_open.restype = ctypes.c_void_p
        self._library.step_cost_failure.restype = ctypes.c_char_p
        self._library.step_cost_run.restype = ctypes.c_double
        self._kernel = str(plumed.kernel).encode()

    def open(self, input_file: Path, n_atoms: int) -> int:
        """Return a PLUMED that has read the file."""
        handle = self._library.step_cost_open(self._kernel, str(input_file).encode(), n_atoms)
        if not handle:
            raise RuntimeError(self._library.step_cost_failure().decode())
        return int(handle)

    def run(self, handle: int, frames: Array, cell: Array, n_steps: int) -> float:
        """Return microseconds a step."""
        spent = float(
            self._library.step_cost_run(
                ctypes.c_void_p(handle),
                frames.ctypes.data_as(ctypes.c_void_p),
                len(frames),
                cell.ctypes.data_as(ctypes.c_void_p),
                n_steps,
            )
        )
        if spent < 0:
            raise RuntimeError(self._library.step_cost_failure().decode())
        return spent

    def close(self, handle: int) -> None:
        """End it."""
        self._library.step_cost_close(ctypes.c_void_p(handle))


def iron(n_atoms: int) -> Atoms:
    """Return bcc iron, with a vacancy if the number of atoms is odd."""
    atoms: Atoms = bulk("Fe", cubic=True, a=LATTICE) * CELLS.get(n_atoms, (10, 10, 10))
    if len(atoms) > n_atoms:
        del atoms[0]
    return atoms


def model_of(atoms: Atoms, n_components: int, few: int | None = None) -> CollectiveVariable:
    """Return a random model whose reference is the structure itself, or `few` atoms of it."""
    distances = np.linalg.norm(atoms.positions - atoms.positions[0], axis=1)
    chosen = np.sort(np.argsort(distances, kind="stable")[:few])
    model = random_model(
        np.random.default_rng(n_components),
        len(chosen),
        n_components,
        (n_components, n_components),
        cell=atoms.cell.array,
    )
    return dataclasses.replace(
        model, serials=chosen + 1, reference_positions=atoms.positions[chosen].copy()
    )


def babf_input(plugin: Path, model: CollectiveVariable, atoms: Atoms, path: Path) -> str:
    """Return the plumed.dat for a model, with a grid around its present value."""
    model.save(path)
    xi = float(model.value(atoms.positions[model.serials - 1], atoms.cell.array)[0])
    return (
        f"{UNITS}LOAD FILE={plugin}\nae: AUTOENCODER MODEL={path}\n"
        f"b: BABF ARG=ae.node-0 TEMP=300 GRID_MIN={xi - 1} GRID_MAX={xi + 1} GRID_BIN=100 "
        "RAMP=100000\n"
    )


def own_time(
    loop: Loop, plumed: Plumed, folder: Path, n_atoms: int, n_components: int, repetitions: int
) -> dict[str, float]:
    """Return microseconds a step of our actions, of the others, and of LAMMPS."""
    atoms = iron(n_atoms)
    rng = np.random.default_rng(1)
    frames = atoms.positions + rng.normal(scale=0.05, size=(16, n_atoms, 3))
    cell = np.ascontiguousarray(atoms.cell.array)
    nothing = f"{UNITS}n: NOTHING ATOMS=1-{n_atoms}\n"
    inputs = {
        # An action alone is no reason for PLUMED to do a step; COMMITTOR is one and writes nothing.
        "asks": nothing + "c: COMMITTOR ARG=n BASIN_LL1=1 BASIN_UL1=2\n",
        "pushes": nothing + "r: RESTRAINT ARG=n AT=0 KAPPA=0 SLOPE=0.1\n",
        "ours": babf_input(
            build_plugin(plumed), model_of(atoms, n_components), atoms, folder / "cv.safetensors"
        ),
    }
    handles = {}
    for name, text in inputs.items():
        (folder / "plumed.dat").write_text(text)
        handles[name] = loop.open(folder / "plumed.dat", n_atoms)
    n_steps = max(20, 60_000 // n_atoms)
    times: dict[str, list[float]] = {name: [] for name in [*inputs, "lammps"]}
    dynamics = Dynamics(300.0)
    with LammpsEngine(POTENTIAL, atoms) as engine:
        state = State.of(atoms)
        for repetition in range(repetitions + 1):
            for name, handle in handles.items():
                times[name].append(loop.run(handle, frames, cell, n_steps))
            lammps_steps = max(20, 40_000 // n_atoms)
            segment = Segment(folder, state, dynamics, lammps_steps, repetition, snapshot_stride=0)
            state, seconds = timed(engine, segment)
            times["lammps"].append(seconds / lammps_steps * 1e6)
    for handle in handles.values():
        loop.close(handle)
    array = {name: np.array(values[1:]) for name, values in times.items()}  # without the first
    best = array["ours"].min() - array["asks"].min()
    answer: dict[str, float] = {"atoms": n_atoms, "D": n_components, "own_best": float(best)}
    answer["percent_best"] = float(100 * best / array["lammps"].min())
    for name, values in {
        "asks": array["asks"],
        "own": array["ours"] - array["asks"],
        "own_beyond_forces": array["ours"] - array["pushes"],
        "lammps": array["lammps"],
        "percent": 100 * (array["ours"] - array["asks"]) / array["lammps"],
    }.items():
        answer[name], answer[f"{name}_spread"] = middle(values)
    return answer


def time_of_bins(
    loop: Loop, plumed: Plumed, folder: Path, repetitions: int
) -> list[dict[str, float]]:
    """Return microseconds a step of BABF on one CV, for each size of its grid."""
    positions = np.zeros((16, 2, 3))
    positions[:, 1, 0] = np.linspace(2, 3, len(positions))
    cell = 20 * np.eye(3)
    head = f"{UNITS}LOAD FILE={build_plugin(plumed)}\nd: DISTANCE ATOMS=1,2\n"
    grid = "BABF ARG=d TEMP=300 RAMP=1000 GRID_MIN=1 GRID_MAX=4 GRID_BIN"
    inputs = {0: f"{head}RESTRAINT ARG=d AT=0 KAPPA=0 SLOPE=0.1\n"}
    inputs |= {bins: f"{head}{grid}={bins}\n" for bins in BINS}
    handles = {}
    for bins, text in inputs.items():
        (folder / "plumed.dat").write_text(text)
        handles[bins] = loop.open(folder / "plumed.dat", 2)
    times: dict[int, list[float]] = {bins: [] for bins in inputs}
    for _ in range(repetitions + 1):
        for bins, handle in handles.items():
            times[bins].append(loop.run(handle, positions, cell, 4000))
    for handle in handles.values():
        loop.close(handle)
    rows = []
    for bins in BINS:
        own = np.array(times[bins][1:]) - np.array(times[0][1:])
        best = min(times[bins][1:]) - min(times[0][1:])
        median, spread = middle(own)
        rows.append({"bins": bins, "own": median, "spread": spread, "best": best})
    return rows


def coupled_run(
    plumed: Plumed, folder: Path, n_atoms: int, n_components: int, repetitions: int
) -> list[dict[str, float | str]]:
    """Return steps a second of LAMMPS alone and coupled, each way."""
    atoms = iron(n_atoms)
    plugin_file = build_plugin(plumed)
    text, few = (
        babf_input(plugin_file, model_of(atoms, n_components, some), atoms, folder / file)
        for some, file in ((None, "cv.safetensors"), (FEW, "few.safetensors"))
    )
    inputs = {
        "fix external, our bridge": text,
        f"our bridge, CV of {FEW} atoms": few,
        "our bridge, a spring": SPRING,
    }
    engines: dict[str, tuple[LammpsEngine, str | None]] = {
        "plain LAMMPS": (LammpsEngine(POTENTIAL, atoms), None)
    }
    for name, biased in inputs.items():
        engine = LammpsEngine(POTENTIAL, atoms, coupling="external", plumed=plumed)
        engines[name] = (engine, biased)
    done = subprocess.run(
        [sys.executable, str(FIX_PLUMED)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        plugin = Path(done.stdout.strip())
        engines["LAMMPS's fix plumed"] = (
            LammpsEngine(POTENTIAL, atoms, coupling="plumed", plumed=plumed, plugin=plugin),
            text,
        )
    else:
        print(f"without fix plumed: {done.stderr.strip()}", file=sys.stderr)
    n_steps = COUPLED[n_atoms]
    rates: dict[str, list[float]] = {name: [] for name in engines}
    states = {name: State.of(atoms) for name in engines}
    for repetition in range(repetitions + 1):
        for name, (engine, plumed_dat) in engines.items():
            segment = Segment(
                folder,
                states[name],
                Dynamics(300.0),
                n_steps,
                repetition,
                plumed_dat,
                snapshot_stride=0,
            )
            states[name], seconds = timed(engine, segment)
            rates[name].append(n_steps / seconds)
    for engine, _ in engines.values():
        engine.close()
    plain = np.array(rates["plain LAMMPS"][1:])
    rows = []
    for name, values in rates.items():
        rate, rate_spread = middle(np.array(values[1:]))
        ratio, ratio_spread = middle(plain / np.array(values[1:]))
        best = float(plain.max() / max(values[1:]))
        row: dict[str, float | str] = {"atoms": n_atoms, "name": name, "rate": rate}
        row["rate_spread"] = rate_spread
        rows.append(row | {"ratio": ratio, "ratio_spread": ratio_spread, "best": best})
    return rows


def timed(engine: LammpsEngine, segment: Segment) -> tuple[State, float]:
    """Run a segment; return its end and the processor time that its process spent, seconds."""
    before = processor_time(engine)
    result = engine.run(segment)
    return result.end, (processor_time(engine) - before) or result.seconds


def processor_time(engine: LammpsEngine) -> float:
    """Return the processor time of LAMMPS's process so far, seconds; 0 if unknown."""
    path = Path(f"/proc/{engine._child.pid}/schedstat")
    return int(path.read_text().split()[0]) / 1e9 if path.is_file() else 0.0


def middle(values: Array) -> tuple[float, float]:
    """Return the median and half the distance of the quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return float(median), float(high - low) / 2


def print_own(rows: Sequence[dict[str, float]]) -> None:
    """Print microseconds a step."""
    print("Own time of AUTOENCODER + BABF, us a step")
    print(
        f"{'atoms':>6} {'D':>3} {'asking only':>14} {'own':>14} {'less forces':>14} "
        f"{'EAM step':>18} {'own, % of EAM':>14} {'own, best':>10} {'best, %':>8}"
    )
    for row in rows:
        cells = [
            f"{row[name]:8.2f} +-{row[f'{name}_spread']:5.2f}"
            for name in ("asks", "own", "own_beyond_forces", "lammps", "percent")
        ]
        cells += [f"{row['own_best']:8.2f}", f"{row['percent_best']:8.2f}"]
        print(f"{row['atoms']:6.0f} {row['D']:3.0f} {' '.join(cells)}")


def print_bins(rows: Sequence[dict[str, float]]) -> None:
    """Print microseconds a step of BABF alone."""
    print("\nBABF on one CV, us a step")
    for row in rows:
        print(
            f"{row['bins']:6.0f} bins {row['own']:8.2f} +-{row['spread']:5.2f}, best "
            f"{row['best']:8.2f}"
        )


def print_coupled(rows: Sequence[dict[str, float | str]]) -> None:
    """Print steps a second."""
    print("\nWhole run, D = 24; ratio of times to plain LAMMPS, paired and of the best\n")
    print("| atoms | run | steps/s | ratio | best |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['atoms']} | {row['name']} | {row['rate']:.0f} ± {row['rate_spread']:.0f} "
            f"| {row['ratio']:.2f} ± {row['ratio_spread']:.2f} | {row['best']:.2f} |"
        )


def summary(
    own: dict[str, list[dict[str, float]]], coupled: dict[str, list[dict[str, float | str]]]
) -> str:
    """Return the last line."""
    parts = []
    for kernel, rows in own.items():
        first = rows[0]
        largest = max(row["percent_best"] for row in rows)
        ratios = ", ".join(
            f"{row['ratio']:.2f} x (best {row['best']:.2f}) {row['name']}"
            for row in coupled[kernel]
            if row["atoms"] == 127 and row["name"] != "plain LAMMPS"
        )
        parts.append(
            f"{kernel}: own time {first['own']:.1f} +- {first['own_spread']:.1f} us (best "
            f"{first['own_best']:.1f}) at 127 atoms, D=24; at most {largest:.1f} % of an EAM step; "
            f"coupled run against plain {ratios}"
        )
    return "SUMMARY " + " | ".join(parts)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
