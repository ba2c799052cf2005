"""Time and memory of `plumed-cv run` against the number of atoms: a vacancy in iron.

    python python/benchmarks/size.py                         # 127, 1999 and 15 999 atoms
    python python/benchmarks/size.py --atoms 100000 1000000  # an hour and several
    python python/benchmarks/size.py --steps 500

Each case is one iteration along the CV of the minimum energy path, in a process of its own. The CV
depends on the atoms that take part in the process (the default). Printed are

- the time until the path is known,
- the time of a step of the sampling, without and relative to a step of plain LAMMPS, in the same
  program, on the same machine, before the run,
- all other time: end states, the CV, mean forces, results,
- the largest memory of the run and of its processes together.

Limits: 2 GB for 100 000 and 8 GB for 1 000 000 atoms. A run of so few steps need not reach the
product. It then ends with a message, after all that is measured here.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from ase import Atoms

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from plumed_cv.engines import Dynamics, Segment, State
from plumed_cv.engines.lammps import LammpsEngine
from python.references import defects
from python.zero_kelvin.systems import LATTICE_A, POTENTIAL

LIMITS_GB = {100_000: 2.0, 1_000_000: 8.0}
TEMPERATURE_K = 300.0
TIMESTEP_FS = 2.0
EVERY_S = 1.0  # between two looks at the memory, which take time themselves

_INPUT = f"""
[system]
initial = "initial.traj"
final = "final.traj"
temperature_K = {TEMPERATURE_K}
[engine]
potential = {json.dumps(list(POTENTIAL))}
[path]
images = {{images}}
fmax_eV_A = 0.01
[cv]
start = "path"
[sampling]
steps = {{steps}}
timestep_fs = {TIMESTEP_FS}
prior = "energy"
segments = 6
[iteration]
minimum = 1
maximum = 1
[rate]
enabled = false
"""


def end_states(n_atoms: int) -> tuple[Atoms, Atoms]:
    """A vacancy in a cube of about so many atoms, before and after a hop of its neighbour."""
    cells = round((n_atoms / 2.0) ** (1.0 / 3.0))
    iron = defects.CASES["fe-700K"]
    return replace(iron, lattice_A=LATTICE_A, repeats=cells).end_states()


def time_plain_step(atoms: Atoms, steps: int) -> float:
    """Time of a step of LAMMPS without PLUMED, s."""
    with tempfile.TemporaryDirectory() as folder, LammpsEngine(POTENTIAL, atoms) as engine:
        dynamics = Dynamics(TEMPERATURE_K, timestep_fs=TIMESTEP_FS)
        start = State.of(atoms)
        part = Segment(Path(folder), start, dynamics, steps, 1, None, snapshot_stride=0)
        return engine.run(part).seconds / steps


def measure_memory(process: psutil.Process) -> float:
    """Memory of a process and its children that no other process shares, GB."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_full_info().uss
        except psutil.Error:  # it has just ended
            continue
    return total / 1e9


def measure(n_atoms: int, steps: int, images: int, folder: Path) -> dict[str, Any]:
    """Make one run in an empty folder; return its times (s) and its largest memory (GB)."""
    initial, final = end_states(n_atoms)
    for name, atoms in (("initial", initial), ("final", final)):
        atoms.write(folder / f"{name}.traj")
    (folder / "input.toml").write_text(_INPUT.format(steps=steps, images=images))
    step_s = time_plain_step(initial, max(20, steps // 10))
    line = [sys.executable, "-m", "plumed_cv.cli", "run", "input.toml", "--dir", "run"]
    begin, began = time.time(), time.perf_counter()
    largest = 0.0
    with (folder / "log").open("w", encoding="utf-8") as log:
        run = psutil.Popen(line, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        while run.poll() is None:
            largest = max(largest, measure_memory(run))
            time.sleep(EVERY_S)
    seconds = time.perf_counter() - began
    parts = [
        json.loads(file.read_text())
        for file in (folder / "run" / "iteration-1").glob("segment-*/segment.json")
    ]
    if sum(part["n_steps"] for part in parts) < steps:
        raise SystemExit((folder / "log").read_text())
    sampling_s = sum(part["seconds"] for part in parts)
    path_s = (folder / "run" / "path.xyz").stat().st_mtime - begin
    chosen = json.loads((folder / "run" / "atoms.json").read_text())
    return {
        "atoms": len(initial),
        "cv_atoms": len(chosen["serials"]),
        "path_s": path_s,
        "step_s": sampling_s / steps,
        "plain_step_s": step_s,
        "other_s": seconds - path_s - sampling_s,
        "GB": largest,
    }


def main() -> None:
    """Make the runs and print a line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--atoms", nargs="+", type=int, default=[127, 2000, 16_000])
    parser.add_argument("--steps", type=int, default=2000, help="of the sampling")
    parser.add_argument("--images", type=int, default=7, help="of the path")
    parser.add_argument("--dir", type=Path, help="folder for the runs; a temporary one if absent")
    given = parser.parse_args()
    print("| atoms | CV's atoms | path (s) | a step (ms) | of plain LAMMPS | other (s) ", end="")
    print("| memory (GB) | limit (GB) |")
    print("|" + " --- |" * 8)
    for n_atoms in given.atoms:
        with tempfile.TemporaryDirectory(dir=given.dir) as folder:
            found = measure(n_atoms, given.steps, given.images, Path(folder))
        cells = [
            f"{found['atoms']:,}",
            f"{found['cv_atoms']}",
            f"{found['path_s']:.0f}",
            f"{1000 * found['step_s']:.2f}",
            f"{found['step_s'] / found['plain_step_s']:.2f}",
            f"{found['other_s']:.0f}",
            f"{found['GB']:.2f}",
            str(LIMITS_GB.get(n_atoms, "")),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
