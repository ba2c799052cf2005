"""Many updates, steps and structures: what adds up does not drift, and memory stays."""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
from ase import Atoms

from plumed_cv.cv import random_model
from plumed_cv.setup.plugin import build_plugin
from plumed_cv.setup.tools import cxx_compiler
from plumed_cv.structures import read_structure
from python.drills.fuzzers import CPP
from python.drills.runs import command, prepare


def updates(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The sums of many samples against their exact value: cpp/tests/test_drift.cpp, at length."""
    program = folder / "test_drift"
    flags = ["-std=c++17", "-O3", "-UNDEBUG", "-fopenmp-simd", "-fno-math-errno"]
    source = CPP / "tests" / "test_drift.cpp"
    subprocess.run([cxx_compiler() or "c++", *flags, source, "-o", program], check=True)
    environment = os.environ | {"PLUMED_CV_UPDATES": str(arguments.updates)}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) updates: largest relative error (\S+)", done.stdout)
    if done.returncode != 0 or found is None:
        sys.exit(done.stdout + done.stderr)
    return {"updates": int(found[1]), "largest_relative_error": float(found[2])}


def memory(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Resident memory while AUTOENCODER and BABF work for long and write all their files."""
    model = random_model(np.random.default_rng(1), 8, 3, (4,))
    model.save(folder / "cv.safetensors")
    start, path = model.reference_positions, model.end_displacements
    wave = np.linspace(0.0, 1.0, 21)[:, None, None]
    cell = model.reference_cell
    xi = [model.value(start + u, cell)[0] for u in path[0] + wave * (path[1] - path[0])]
    low, high = min(xi) - 1.0, max(xi) + 1.0
    np.savez(folder / "ends.npz", ends=0.1 * (start + path))  # nm
    (folder / "plumed.dat").write_text(
        f"""UNITS LENGTH=A ENERGY=eV TIME=fs
LOAD FILE={build_plugin()}
ae: AUTOENCODER MODEL={folder}/cv.safetensors
b: BABF ...
  ARG=ae.node-0 TEMP=300 GRID_MIN={low} GRID_MAX={high} GRID_BIN=100 RAMP=1000
  FES_FILE={folder}/fes.dat FES_STRIDE=10000 STATE_WFILE={folder}/state STATE_WSTRIDE=10000
...
PRINT ARG=ae.*,b.* FILE={folder}/colvar STRIDE=100
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", _LONG_RUN, str(arguments.steps)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(done.stderr)
    resident = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    # What the first tenth takes, buffers of files among it, comes once.
    million = np.linspace(0.0, arguments.steps / 1e6, len(resident) + 1)[1:]
    later = slice(len(resident) // 10, None)
    slope = np.polyfit(million[later], resident[later], 1)[0]
    return {
        "steps": arguments.steps,
        "samples": len(resident),
        "resident_kB_after_each_tenth": resident[9::10],
        "slope_kB_per_million_steps": round(float(slope), 2),
    }


def write_trajectory(file: Path, ends: tuple[Atoms, Atoms], n: int, seed: int = 1) -> None:
    """Write n structures between two end states, with thermal noise, as a DCD file."""
    rng = np.random.default_rng(seed)
    start, end = (atoms.positions for atoms in ends)
    with mdtraj.formats.DCDTrajectoryFile(str(file), "w") as stream:
        for begin in range(0, n, 10_000):
            xi = rng.uniform(-0.1, 1.1, (min(10_000, n - begin), 1, 1))
            noise = rng.normal(scale=0.07, size=(len(xi), *start.shape))
            stream.write(
                (start + xi * (end - start) + noise).astype(np.float32),
                cell_lengths=np.tile(ends[0].cell.lengths(), (len(xi), 1)),
                cell_angles=np.tile(ends[0].cell.angles(), (len(xi), 1)),
            )


def snapshots(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on a trajectory of many structures: the memory that it takes, and the time."""
    file = folder / "example" / "vacancy.toml"
    if not file.exists():
        prepare(folder / "example")
    names = [file.parent / f"{name}.xyz" for name in ("initial", "final")]
    trajectory, model = folder / "many.dcd", folder / "many.safetensors"
    ends = (read_structure(names[0]), read_structure(names[1]))
    write_trajectory(trajectory, ends, arguments.structures)
    line = command("train", trajectory, "--initial", names[0], "--final", names[1], "-o", model)
    began = time.monotonic()
    process = subprocess.Popen([*line, "--components", "5"], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status != 0:
        sys.exit(f"the training ended with status {status}")
    trajectory.unlink()
    return {
        "structures": arguments.structures,
        "atoms": len(ends[0]),
        "displacements_kB": arguments.structures * len(ends[0]) * 12 // 1024,
        "peak_kB": used.ru_maxrss,
        "seconds": round(seconds),
    }


# Atoms that wander between two structures, with noise.
_LONG_RUN = """
import sys
from pathlib import Path
import numpy as np
from plumed_cv.setup.kernel import find_plumed
find_plumed().activate()
import plumed
first, last = np.load("ends.npz")["ends"]
n = len(first)
handle = plumed.Plumed()
handle.cmd("setMDEngine", "drill")
handle.cmd("setNatoms", n)
handle.cmd("setTimestep", 0.001)
handle.cmd("setPlumedDat", "plumed.dat")
handle.cmd("setLogFile", "plumed.log")
handle.cmd("init")
steps = int(sys.argv[1])
positions, forces, masses = np.zeros((n, 3)), np.zeros((n, 3)), np.full(n, 55.8)
box, virial = np.zeros((3, 3)), np.zeros((3, 3))
noise = np.random.default_rng(1).normal(scale=0.002, size=(1009, n, 3))
for step in range(steps):
    s = 0.5 + 0.5 * np.sin(0.7 * step)
    positions[:] = first + s * (last - first) + noise[step % len(noise)]
    handle.cmd("setStep", step)
    for name, array in (("Positions", positions), ("Forces", forces), ("Masses", masses),
                        ("Box", box), ("Virial", virial)):
        handle.cmd("set" + name, array)
    handle.cmd("calc", None)
    if (step + 1) % (steps // 100) == 0:
        print(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0], flush=True)
"""
