"""What is particular to GROMACS: its files, its precision, its error messages."""

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import plumed
import pytest
from ase import units

from plumed_cv.common.errors import UserError
from plumed_cv.cv import linear
from plumed_cv.engines import Dynamics, Segment, State
from plumed_cv.engines.gromacs import SHIM_NAME, GromacsEngine, find_gromacs
from plumed_cv.freeenergy import read_last_step
from plumed_cv.setup.kernel import Plumed
from plumed_cv.structures.trajectory import read_displacements
from tests.engines.kits import (
    EPSILON,
    PLUMED_UNITS,
    crystal,
    gromacs,
    reference,
    script_output,
)
from tests.plumed.babf import BABF, POSITION


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The crystal's parameters, topology and structure."""
    folder = tmp_path_factory.mktemp("crystal")
    gromacs(crystal(), EPSILON, folder).close()
    return folder


def open_engine(files: Path, **options: object) -> GromacsEngine:
    names = {"mdp": "crystal.mdp", "topology": "crystal.top", "structure": "crystal.gro"}
    given = {**names, "atoms": crystal(), "program": script_output("gromacs.py"), **options}
    return GromacsEngine(directory=files, **given)  # type: ignore[arg-type]


def test_mixed_precision(files: Path, tmp_path: Path, plugin: Path) -> None:
    atoms = crystal()
    energy, forces, _ = reference(atoms)
    plumed = PLUMED_UNITS + "d: DISTANCE ATOMS=1,12\nPRINT ARG=d FILE=colvar FMT=%.15g\n"
    with open_engine(files) as engine:
        atoms.calc = engine.calculator()
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-6)
        dynamics = Dynamics(60.0, timestep_fs=2.0, friction_per_ps=5.0)
        end = engine.run(Segment(tmp_path, State.of(atoms), dynamics, 100, 1, plumed)).end
    distances = np.loadtxt(tmp_path / "colvar")[:, 1]
    assert distances[0] == pytest.approx(atoms.get_distance(0, 11, mic=True), rel=1e-6)
    atoms.positions = end.positions
    assert distances[-1] == pytest.approx(atoms.get_distance(0, 11, mic=True), rel=1e-6)


def test_ours_replaces_what_the_parameters_say_of_the_dynamics(files: Path, tmp_path: Path) -> None:
    with open_engine(files) as engine:
        engine.run(Segment(tmp_path, State.of(crystal()), Dynamics(60.0, 2.0), 10, 1))
    used = (tmp_path / "run.mdp").read_text()
    assert re.findall(r"^(?:integrator|dt|reft|genvel) = .*$", used, re.MULTILINE | re.I) == [
        *("integrator = sd", "dt = 0.002", "reft = 60.0", "genvel = yes")
    ]
    assert "vdwmodifier = Potential-shift" in used
    log = (tmp_path / "run.log").read_text()
    assert re.search(r"ref-t: +60\n", log)


def test_bias_forces_in_the_units_of_gromacs(files: Path, tmp_path: Path, plugin: Path) -> None:
    """PLUMED's own units: a slope of 1000 kJ/mol/nm is 1.036 eV/angstrom."""
    atoms = crystal()
    cold = Dynamics(1e-20, thermostat="brownian", friction_per_ps=10.0)
    bias = "d: DISTANCE ATOMS=1,2\nRESTRAINT ARG=d AT=0 KAPPA=0 SLOPE=1000\n"
    moved = {}
    with open_engine(files, program=script_output("gromacs.py", "--double")) as engine:
        for name, plumed in (("free", None), ("biased", bias)):
            (tmp_path / name).mkdir()
            segment = Segment(tmp_path / name, State.of(atoms), cold, 1, 1, plumed)
            moved[name] = engine.run(segment).end.positions
    vector = atoms.get_distance(0, 1, mic=True, vector=True)
    friction = atoms.get_masses()[0] * 0.01 / units.fs
    force = (moved["biased"] - moved["free"])[0] * friction / units.fs
    expected = 1000 * units.kJ / units.mol / units.nm * vector / np.linalg.norm(vector)
    np.testing.assert_allclose(force, expected, rtol=1e-5, atol=1e-8)


def test_a_job_does_what_runs_do(tmp_path: Path, plugin: Path, plumed_installation: Plumed) -> None:
    """Run two segments by run.sh where the files that the inputs name do not exist."""
    files, job, atoms = tmp_path / "files", tmp_path / "job", crystal()
    for folder in (files, files / "parts", files / "runs", job):
        folder.mkdir()
    gromacs(crystal(2), EPSILON, files).close()
    (files / "crystal.gro").rename(files / "reference.gro")
    gromacs(atoms, EPSILON, files).close()
    mdp, top = files / "crystal.mdp", files / "crystal.top"
    more = "define = -DHELD\ninclude = -Iparts\nenergygrps = Held Free\n"
    mdp.write_text(mdp.read_text() + more)
    held = '#ifdef HELD\n#include "held.itp"\n#endif\n[ system ]'
    top.write_text(top.read_text().replace("[ system ]", held))
    (files / "parts" / "held.itp").write_text("[ position_restraints ]\n1 1 1e5 1e5 1e5\n")
    free = " ".join(map(str, range(2, 109)))
    (files / "atoms.ndx").write_text(f"[ System ]\n1 {free}\n[ Held ]\n1\n[ Free ]\n{free}\n")
    plumed = PLUMED_UNITS + "d: DISTANCE ATOMS=1,12\nPRINT ARG=d FILE=colvar FMT=%.15g\n"
    dynamics = Dynamics(60.0, timestep_fs=2.0, friction_per_ps=5.0)
    segments = [
        Segment(job / name, State.of(atoms), dynamics, 20, seed, plumed, 20 * seed, seed == 0)
        for seed, name in enumerate(("first", "second"))
    ]
    program = script_output("gromacs.py", "--double")
    options = {"restraints": "reference.gro", "index": "atoms.ndx", "program": program}
    with open_engine(files, **options) as engine:
        start, ends, printed = State.of(atoms), [], []
        for segment in segments:
            segment.directory.mkdir()
            runs = files / "runs"
            start = engine.run(replace(segment, directory=runs, start=start)).end
            ends.append(start.positions)
            printed.append(np.loadtxt(runs / "colvar"))
        assert engine.write_job(job, segments)
        shutil.rmtree(files)
        moved = job.rename(tmp_path / "moved")
        environment = {**os.environ, **plumed_installation.environment(), "GMX": program}
        environment["PLUMED_KERNEL"] = str(plumed_installation.kernel)
        for _ in range(2):  # the second time there is nothing to do
            subprocess.run(["sh", "moved/run.sh"], cwd=tmp_path, env=environment, check=True)
        held_at = crystal(2).positions[0]
        assert np.linalg.norm(ends[-1][0] - held_at) < np.linalg.norm(atoms.positions[0] - held_at)
        for segment, end, rows in zip(segments, ends, printed, strict=True):
            there = replace(segment, directory=moved / segment.directory.name)
            found = engine.rescue(there, 20)
            assert found is not None
            np.testing.assert_allclose(found.positions, end, atol=1e-5)  # read in single precision
            np.testing.assert_allclose(np.loadtxt(there.directory / "colvar"), rows, atol=1e-9)
            assert len(rows) == 20 + (segment is segments[0])


def test_trajectories_of_gromacs_are_those_of_the_engine(files: Path, tmp_path: Path) -> None:
    atoms = crystal()
    with open_engine(files) as engine:
        dynamics = Dynamics(60.0, timestep_fs=2.0)
        result = engine.run(Segment(tmp_path, State.of(atoms), dynamics, 50, 1))
        for line in (
            "mdrun -s run.tpr -deffnm own -ntmpi 1 -ntomp 1",
            "trjconv -f own.trr -o own.xtc",
        ):
            words = [*engine.gromacs.command, "-nobackup", *line.split()]
            subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    variable = linear(atoms.symbols, atoms.cell.array, atoms.positions, crystal(1).positions)
    assert result.snapshots is not None
    expected = read_displacements([result.snapshots], variable)
    assert expected.shape == (5, 108, 3)
    for name, precision in (("own.trr", 1e-4), ("own.xtc", 0.01)):  # xtc: 0.001 nm, rounded
        found = read_displacements([tmp_path / name], variable)[1:]  # from the start on
        np.testing.assert_allclose(found, expected, atol=precision)


def test_what_stands_between_changes_no_bit(
    files: Path, tmp_path: Path, plugin: Path, plumed_installation: Plumed
) -> None:
    """A biased run along a learned CV: by the engine, and by `gmx mdrun -plumed`."""
    atoms = crystal()
    model = linear(atoms.symbols, atoms.cell.array, atoms.positions, crystal(1).positions)
    model.save(tmp_path / "cv.safetensors")
    plumed = PLUMED_UNITS + (
        f"LOAD FILE={plugin}\nae: AUTOENCODER MODEL={tmp_path / 'cv.safetensors'}\n"
        "b: BABF ARG=ae.node-0 GRID_MIN=-0.5 GRID_MAX=1.5 GRID_BIN=100 RAMP=100 "
        "STATE_WFILE=state STATE_WSTRIDE=100\n"  # without TEMP: GROMACS hands over kT
        "PRINT ARG=* FILE=colvar FMT=%.15g\n"
    )
    (tmp_path / "engine").mkdir()
    with open_engine(files) as engine:
        dynamics = Dynamics(60.0, timestep_fs=2.0)
        segment = Segment(tmp_path / "engine", State.of(atoms), dynamics, 200, 1, plumed)
        engine.run(segment)
        words = [*engine.gromacs.command, "-nobackup", "mdrun", "-s", "../engine/run.tpr"]
    words += ["-plumed", "../engine/plumed.dat", "-ntmpi", "1", "-ntomp", "1", "-pin", "off"]
    (tmp_path / "alone").mkdir()
    environment = {**os.environ, **plumed_installation.environment()}
    subprocess.run(words, cwd=tmp_path / "alone", check=True, capture_output=True, env=environment)
    for name in ("colvar", "state"):
        engines, alone = ((tmp_path / folder / name).read_text() for folder in ("engine", "alone"))
        assert engines == alone
    assert np.loadtxt(tmp_path / "alone" / "colvar").shape[0] == 201


def processes_in(folder: Path) -> list[Path]:
    """The processes whose working directory is `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append(process)
    return found


def test_each_checkpoint_of_gromacs_writes_the_state(
    tmp_path: Path,
    plugin: Path,
    plumed_installation: Plumed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GROMACS never withdraws its request for a checkpoint; our library does."""
    monkeypatch.setenv("PLUMED_CV_KERNEL", str(plumed_installation.kernel))
    monkeypatch.delenv("PLUMED_CV_COUNT_START", raising=False)
    handle = plumed.Plumed(kernel=str(plugin.with_name(SHIM_NAME)))
    handle.cmd("setMDEngine", "test")
    handle.cmd("setNatoms", 1)
    handle.cmd("setTimestep", 0.001)
    handle.cmd("setLogFile", str(tmp_path / "plumed.log"))
    handle.cmd("init")
    for line in (f"LOAD FILE={plugin}", POSITION, f"{BABF} STATE_WFILE={tmp_path}/state"):
        handle.cmd("readInputLine", line)
    written = []
    for number in range(30):
        if number in (10, 20):
            handle.cmd("doCheckPoint", 1)
        handle.cmd("setStepLong", np.array([number], dtype=np.int64))
        handle.cmd("setPositions", np.full((1, 3), 0.03 * number))
        handle.cmd("setMasses", np.ones(1))
        handle.cmd("setForces", np.zeros((1, 3)))
        handle.cmd("setVirial", np.zeros((3, 3)))
        handle.cmd("prepareCalc")
        handle.cmd("performCalc")
        state = tmp_path / "state"
        written.append(read_last_step(state) if state.exists() else None)
    handle.finalize()
    assert written == [None] * 10 + [10] * 10 + [20] * 10


def test_a_frame_that_is_not_whole_is_left_out(files: Path, tmp_path: Path) -> None:
    with open_engine(files) as engine:
        segment = Segment(tmp_path, State.of(crystal()), Dynamics(60.0, timestep_fs=2.0), 50, 1)
        engine.run(segment)
        words = [*engine.gromacs.command, "-nobackup", "mdrun", "-s", "run.tpr", "-deffnm", "run"]
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
        whole = (tmp_path / "run.trr").read_bytes()
        for cut, frames in ((len(whole) - 7, 4), (2000, 0), (10, 0), (0, 0)):
            (tmp_path / "run.trr").write_bytes(whole[:cut])
            (tmp_path / "snapshots.dcd").unlink(missing_ok=True)
            assert (engine.rescue(segment, 50) is None) == (frames == 0)
            assert (tmp_path / "snapshots.dcd").exists() == (frames > 0)
            if frames:
                with mdtraj.formats.DCDTrajectoryFile(str(tmp_path / "snapshots.dcd")) as file:
                    assert len(file.read()[0]) == frames


def test_plumed_on_two_ranks_of_thread_mpi(files: Path, tmp_path: Path, plugin: Path) -> None:
    with open_engine(files, options=["-ntmpi", "2", "-ntomp", "1"]) as engine:
        segment = Segment(tmp_path, State.of(crystal()), Dynamics(60.0), 1, 1, "d: DISTANCE\n")
        with pytest.raises(UserError, match=r"PLUMED: .* not compatible with THREAD_MPI"):
            engine.run(segment)


def test_a_killed_run_leaves_no_program(files: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from plumed_cv.engines import Dynamics, Segment, State\n"
        "from tests.engines.test_gromacs import crystal, open_engine\n"
        "segment = Segment(Path(sys.argv[2]), State.of(crystal()), Dynamics(50.0), 10**9, 1)\n"
        "open_engine(Path(sys.argv[1])).run(segment)\n"
    )
    command = [sys.executable, "-c", code, str(files), str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as parent:
        deadline = time.monotonic() + 300
        while not (tmp_path / "run.trr").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert processes_in(tmp_path)
        parent.kill()
    deadline = time.monotonic() + 200
    while processes_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_in(tmp_path)


def test_atoms_with_constraints(files: Path) -> None:
    """Two molecules of 54 atoms, in which two pairs of atoms have constraints."""
    text = (files / "crystal.top").read_text().replace("crystal 1\n", "crystal 2\n")
    lines = [line for line in text.splitlines() if not re.match(r"(5[5-9]|[6-9]\d|\d{3}) ", line)]
    lines.insert(lines.index("[ system ]"), "[ constraints ]\n3 1 1 0.38\n54 1 2 0.38")
    (files / "bound.top").write_text("\n".join(lines) + "\n")
    with open_engine(files) as engine:
        assert engine.constrained.tolist() == []
    with open_engine(files, topology="bound.top") as engine:
        assert engine.constrained.tolist() == [0, 2, 53, 54, 56, 107]


def test_mistakes_are_one_sentence(files: Path, tmp_path: Path) -> None:
    (files / "bad.mdp").write_text((files / "crystal.mdp").read_text() + "rvdw_switch_it = 3\n")
    (files / "other.top").write_text((files / "crystal.top").read_text().replace("CRY Ar", "CRY X"))
    (files / "frozen.mdp").write_text(
        (files / "crystal.mdp").read_text() + "freeze-grps = System ; all\nfreezedim = Y Y N\n"
    )
    other = crystal()
    other.symbols[0] = "Kr"
    smaller = crystal()[:50]
    mistakes: list[tuple[dict[str, object], str]] = [
        ({"mdp": "none.mdp"}, r"none\.mdp: there is no such file for GROMACS"),
        ({"mdp": "bad.mdp"}, "Unknown left-hand 'rvdwswitchit' in parameter file"),
        (
            {"mdp": "frozen.mdp"},
            r"frozen\.mdp: freezegrps = System fixes atoms, .*; remove it, and fix the atoms in "
            "the structure with the engine lammps or ase, or restrain them in the topology",
        ),
        ({"topology": "other.top"}, "non-matching atom names"),
        ({"atoms": other}, r"crystal\.top: atom 1 is Ar, and Kr in the structure"),
        ({"atoms": smaller}, r"the structure has 50"),
        ({"program": "no-such-gmx"}, r"install GROMACS 2025 or newer and name its gmx"),
        ({"program": "/bin/true"}, "is not a working gmx"),
    ]
    for options, match in mistakes:
        with pytest.raises(UserError, match=match) as caught:
            open_engine(files, **options)
        assert "\n" not in str(caught.value)


def test_the_program_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    program = script_output("gromacs.py")
    monkeypatch.setenv("GMX", program)
    found = find_gromacs()
    assert found.command == (program,)
    assert found.version.startswith("2025")
    assert found.has_plumed
