"""Molecules: a run with GROMACS from the example, and the choice of atoms."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase
import mdtraj
import numpy as np
import pytest

import plumed_cv
from plumed_cv import cv, freeenergy, input_file, sampling, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable
from plumed_cv.setup.kernel import Plumed
from plumed_cv.structures.frame import align
from plumed_cv.structures.trajectory import read_displacements
from tests.engines.kits import script_output

EXAMPLE = Path(plumed_cv.__file__).parent / "examples" / "alanine"
HEAVY = [1, 5, 6, 7, 9, 11, 15, 16, 17, 19]


@pytest.fixture
def alanine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example, built, short and so hot that both states are reached."""
    monkeypatch.setenv("GMX", script_output("gromacs.py"))
    folder = tmp_path / "alanine"
    shutil.copytree(EXAMPLE, folder)
    subprocess.run([sys.executable, "build.py"], cwd=folder, check=True)
    file = folder / "alanine.toml"
    text = file.read_text().replace("steps = 2_000_000", "steps = 24_000\nsegments = 6")
    text = text.replace("temperature_K = 300.0", "temperature_K = 900.0")
    file.write_text(text.replace("maximum = 4", "maximum = 1\nminimum = 1"))
    return folder


def test_a_run_of_alanine_dipeptide(alanine: Path) -> None:
    given = input_file.load(alanine / "alanine.toml")
    result = workflow.run(given, alanine / "run")
    assert 0.0 < result["barrier_eV"] < 1.0
    assert result["energy_barrier_0K_eV"] is None
    # The example constrains bonds to hydrogen: all heavy atoms but C and O twice.
    assert result["tst_rate_per_s"] is None
    assert "6 of the 10 atoms of the collective variable have constraints" in result["note"]
    assert not any(check["name"] == "temperature" for check in result["checks"])
    initial, final = workflow.read_end_states(given)
    for n in (0, 1):
        variable = CollectiveVariable.load(alanine / f"run/cv-{n}.safetensors")
        assert variable.alignment == "optimal"
        assert variable.serials.tolist() == HEAVY
        for atoms, value in ((initial, 0.0), (final, 1.0)):
            positions = atoms.positions[variable.serials - 1]
            np.testing.assert_allclose(
                variable.value(positions, atoms.cell.array), value, atol=1e-9
            )
    # What PLUMED printed in GROMACS is what Python finds in the trajectory, turned or not.
    folder = alanine / "run" / "iteration-1"
    first = CollectiveVariable.load(alanine / "run/cv-0.safetensors")
    segments = sampling.list_segments(folder)
    species, cell = initial.get_chemical_symbols(), initial.cell.array
    u = read_displacements(
        [segment / "snapshots.dcd" for segment in segments], first, cell, species=species
    )
    printed = np.concatenate(workflow.read_samples(folder).series["ae.node-0"])
    found = first.encode(first.components(u))[:, 0]
    np.testing.assert_allclose(found, printed[len(printed) - len(found) :], atol=2e-4)
    torsions = [np.loadtxt(segment / "torsions") for segment in segments]
    # The input's own PLUMED lines also print the start and the 200 steps of the heat-up.
    assert len(np.concatenate(torsions)) == len(printed) + 21
    assert len(found) == len(printed)
    assert "UPPER_WALLS" in (alanine / "run" / "plumed.dat").read_text()
    end = np.load(segments[-1] / "end.npz")["positions"][first.serials - 1]
    _, rotation = align(end, cell, first.reference_positions)
    assert np.trace(rotation) < 2.9  # by 18 degrees or more


def test_a_job_without_plumed_cv(alanine: Path, plumed_installation: Plumed) -> None:
    """GROMACS alone runs the segments of native/ in two jobs, of which one is killed."""
    given, run = input_file.load(alanine / "alanine.toml"), alanine / "run"
    folder, elsewhere = run / "iteration-1", alanine.parent / "elsewhere"
    environment = {
        **os.environ,
        **plumed_installation.environment(),
        "PLUMED_KERNEL": str(plumed_installation.kernel),
    }
    for part in range(2):
        assert workflow.run(given, run, inputs_only=True)["iteration"] == 1
        shutil.move(folder / "native", elsewhere)
        written = [*elsewhere.glob("*/plumed.dat"), *elsewhere.glob("*/run.mdp")]
        for file in (*written, elsewhere / "run.sh", elsewhere / "topol.top"):
            assert str(alanine) not in file.read_text()
        assert "#include" not in (elsewhere / "topol.top").read_text()
        log = alanine.parent / "log"
        with log.open("w") as said:
            job = subprocess.Popen(
                ["sh", "elsewhere/run.sh"],
                cwd=alanine.parent,
                env=environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
            state = elsewhere / "segment-000002" / "babf.state"
            while part == 0 and job.poll() is None and not state.exists():
                time.sleep(0.005)
            if part == 0:
                os.killpg(job.pid, signal.SIGKILL)
        assert job.wait() == (-signal.SIGKILL if part == 0 else 0), log.read_text()
        shutil.move(elsewhere, folder / "native")
    result = workflow.run(given, run, inputs_only=True)
    assert result["md_steps"] == 24_000
    assert 0.0 < result["barrier_eV"] < 1.0
    segments = sampling.list_segments(folder)
    assert len(segments) >= 6
    for k, segment in enumerate(segments):
        end = freeenergy.read_last_step(segment / "babf.state")
        assert end is not None
        heating = 0 if k else 20  # snapshots of the heat-up, which are cut
        with mdtraj.formats.DCDTrajectoryFile(str(segment / "snapshots.dcd")) as snapshots:
            assert len(snapshots) == end // 10 - heating
        times = np.loadtxt(segment / "colvar")[:, 0]
        np.testing.assert_allclose(times, 20.0 * np.arange(heating + 1, end // 10 + 1), rtol=1e-6)
    # Neither the heat-up counts nor, again, the first configuration of a segment that goes on.
    assert freeenergy.read_state(run / "babf.state").steps == 23_801
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {s.name for s in segments}


def test_what_goes_with_molecules(alanine: Path) -> None:
    given = input_file.load(alanine / "alanine.toml")
    with pytest.raises(UserError, match="no minimum energy path"):
        workflow.find_path(given, alanine / "path.xyz")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('atoms = "heavy"', "atoms = 4.0", "cv.atoms = a radius: not possible"),
        (
            "[sampling]",
            '[sampling]\nprior = "energy"',
            "sampling.prior = 'energy': not possible",
        ),
        ("[cv]", '[cv]\nstart = "path"', "cv.start = 'path': not possible"),
    ],
)
def test_inputs_that_do_not_go_with_molecules(
    tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    file = tmp_path / "alanine.toml"
    file.write_text((EXAMPLE / "alanine.toml").read_text().replace(old, new))
    with pytest.raises(UserError, match=sentence):
        input_file.load(file)


def test_choice_of_atoms() -> None:
    species = ["C", "H", "H", "O", "N", "H"]
    assert cv.select("all", species).tolist() == [1, 2, 3, 4, 5, 6]
    assert cv.select("heavy", species).tolist() == [1, 4, 5]
    assert cv.select("5,1-3", species).tolist() == [5, 1, 2, 3]
    assert cv.select(np.array([2, 4, 6]), species).tolist() == [2, 4, 6]
    for wrong, sentence in {
        "light": "give all, heavy",
        "1-2-3,5": "ranges such as",
        "1,1-3": "each atom once",
        "1,2": "three atoms",
        "0-4": "from 1 to 6",
        "3-7": "from 1 to 6",
    }.items():
        with pytest.raises(UserError, match=sentence):
            cv.select(wrong, species)


def test_atoms_of_a_trajectory(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    start = ase.Atoms("CHHON", rng.normal(size=(5, 3)) * 2.0)
    end = start.positions + rng.normal(scale=0.3, size=(5, 3))
    species = start.get_chemical_symbols()
    variable = cv.linear(species, np.zeros((3, 3)), start.positions, end, "optimal", "heavy")
    assert variable.species == ("C", "O", "N")
    frames = np.stack([start.positions, end])
    with mdtraj.formats.DCDTrajectoryFile(str(tmp_path / "t.dcd"), "w") as file:
        file.write(frames.astype(np.float32))
    u = read_displacements([tmp_path / "t.dcd"], variable, species=species)
    np.testing.assert_allclose(variable.encode(variable.components(u))[:, 0], [0.0, 1.0], atol=1e-5)
