"""Several walkers on one estimate: processes here and of a dask cluster, kills, resumption.

Short runs of the iron vacancy in a 54-atom crystal with real LAMMPS, PLUMED and dask. How the
action BABF puts contributions together is tested in tests/plumed/test_babf_walkers.py.
"""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from distributed import LocalCluster

from plumed_cv import cv, freeenergy, input_file, sampling, workflow
from plumed_cv.common.errors import UserError
from plumed_cv.engines import Engine, State
from plumed_cv.freeenergy import meanforce
from plumed_cv.paths.path import load_path
from plumed_cv.sampling.folders import read_colvar
from plumed_cv.sampling.next_segment import prepare_segment
from plumed_cv.sampling.walker import run_walkers
from plumed_cv.workflow import provenance
from tests import vacancy

INPUT = f"""{vacancy.SYSTEM}
[path]
images = 5
fmax_eV_A = 0.05
structures = 500
[cv]
components = 5
[sampling]
steps = 8000
segments = 8
walkers = 2
timestep_fs = 2.0
[iteration]
maximum = 1
minimum = 1
seed = 3
"""
RUN = "import pickle, sys; from plumed_cv import sampling; "
RUN += "sampling.sample(pickle.load(open(sys.argv[1], 'rb')), None, lambda done, note: None)"
Tasks = Callable[..., list[sampling.WalkerTask]]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input with end states: a vacancy before and after a jump of its neighbour."""
    folder = tmp_path_factory.mktemp("walkers")
    vacancy.write(folder, INPUT, "walkers.toml")
    return folder


@pytest.fixture
def tasks(example: Path, plugin: Path, tmp_path: Path) -> Tasks:
    """Return a function that makes the tasks of an iteration along the linear CV."""

    def make(**changes: object) -> list[sampling.WalkerTask]:
        given = input_file.load(example / "walkers.toml")
        changed = input_file.Sampling(**(given.sampling.model_dump() | changes))
        initial, final = workflow.read_end_states(given)
        model = tmp_path / "cv-0.safetensors"
        cell = initial.cell.array
        cv.linear(list(initial.symbols), cell, initial.positions, final.positions).save(model)
        folder = tmp_path / "iteration-1"
        folder.mkdir(exist_ok=True)
        settings = given.model_copy(update={"sampling": changed})
        return [
            sampling.WalkerTask(
                settings, initial, State.of(initial), model, plugin, 1, folder, walker
            )
            for walker in range(changed.walkers)
        ]

    return make


def begin(tasks: list[sampling.WalkerTask]) -> subprocess.Popen[str]:
    """Start the walkers in the background, in a process group of their own."""
    file = tasks[0].folder.with_suffix(".tasks")
    file.write_bytes(pickle.dumps(tasks))
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(file)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    """Wait until a condition is fulfilled."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def all_have_segments(tasks: list[sampling.WalkerTask], number: int = 1) -> Callable[[], bool]:
    return lambda: all(len(task.done()) >= number for task in tasks)


def check_complete(tasks: list[sampling.WalkerTask]) -> None:
    """Each walker has done its share, counted each step once, and read the other's file."""
    for task in tasks:
        done = task.done()
        assert sum(part["n_steps"] for part in done) == task.steps
        last = freeenergy.read_state(sorted(task.home.glob("segment-*/babf.state"))[-1])
        assert last.steps == task.steps - 199  # the heat-up of 200 steps has its last one alone
        assert not list(task.home.glob("unfinished-*"))
        log = (sorted(task.home.glob("segment-*"))[-1] / "plumed.log").read_text()
        assert f"{len(tasks) - 1} of the other walkers have contributed" in log
        contribution = task.folder / "shared" / f"walker-{task.walker}.state"
        np.testing.assert_array_equal(freeenergy.read_state(contribution).sums, last.sums)
    assert not (tasks[0].folder / "stop").exists()


def test_shares_add_up(tasks: Tasks) -> None:
    for steps, walkers, segments in [(8000, 1, 8), (8000, 3, 8), (100_000, 7, 40), (1000, 100, 6)]:
        made = tasks(steps=steps, walkers=walkers, segments=segments)
        assert sum(task.steps for task in made) == steps
        assert max(task.steps for task in made) - made[0].steps < 10 * walkers
        assert all(0 < task.segment_steps <= task.steps for task in made)
        number = sum(task.steps // task.segment_steps for task in made)
        assert number >= min(segments, 6)
    one = tasks(steps=8000, walkers=1)[0]
    assert one.home == one.folder
    assert one.segment_steps == 1000


def farthest_in_heat_up(task: sampling.WalkerTask, engine: Engine, attempt: int) -> float:
    """Largest distance of an atom from the path in the first steps of an attempt, angstrom."""
    segment = replace(prepare_segment(task, [], attempt), n_steps=200)
    engine.run(segment)
    return float(read_colvar(segment.directory / "colvar")["ae.maxdev"].max())


def test_a_heat_up_that_leaves_the_path_is_repeated(tasks: Tasks) -> None:
    """The limit is exceeded by the first attempt to heat the crystal and not by the second one."""
    task = tasks(walkers=1, steps=4800, segments=6, atom_deviation_limit_A="off")[0]
    with sampling.open_engine(task.config, task.atoms) as engine:
        for seed in range(1, 9):  # the second attempt goes farther with each of them: 1 in 256
            iteration = task.config.iteration.model_copy(update={"seed": seed})
            task = replace(task, config=task.config.model_copy(update={"iteration": iteration}))
            first, second = (farthest_in_heat_up(task, engine, k) for k in (0, 1))
            if second < first:
                break
        assert second < first
        sampled = task.config.sampling.model_copy(
            update={"atom_deviation_limit_A": 0.5 * (first + second)}
        )
        task = replace(task, config=task.config.model_copy(update={"sampling": sampled}))
        run_walkers([task], engine)
        assert sum(part["n_steps"] for part in task.done()) == task.steps
        # Both walks of the second attempt are the same, and nothing of the first one is left.
        largest = read_colvar(task.home / "segment-000000" / "colvar")["ae.maxdev"]
        assert largest.max() < first
        tight = sampled.model_copy(update={"atom_deviation_limit_A": 0.05})
        empty = task.folder.with_name("tight")
        empty.mkdir()
        never = replace(
            task, config=task.config.model_copy(update={"sampling": tight}), folder=empty
        )
        with pytest.raises(UserError, match="5 trajectories from the start of iteration 1"):
            run_walkers([never], engine)


def test_two_walkers_from_the_command_line(example: Path, plugin: Path) -> None:
    file = str(example / "walkers.toml")
    line = [sys.executable, "-m", "plumed_cv.cli", "run", file, "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    # So short a run need not arrive at the other state, but it must have sampled.
    if done.returncode != 0:
        assert "did not reach both end states" in done.stderr
    folder = example / "run" / "iteration-1"
    assert [path.name for path in sorted(folder.glob("walker-*"))] == ["walker-0000", "walker-0001"]
    segments = sampling.list_segments(folder)
    assert [segment.parent.name[-1] for segment in segments] == ["0"] * 4 + ["1"] * 4
    blocks = sampling.read_learned(folder)[0]
    assert [block.steps for block in blocks] == [801, 1000, 1000, 1000] * 2
    # Each walker has random numbers of its own.
    starts = [np.load(segments[i] / "end.npz")["positions"] for i in (0, 4)]
    assert np.abs(starts[0] - starts[1]).max() > 0.01
    assert workflow.analyse(folder)["md_steps"] == 8000
    target = example / "total.state"
    sampling.copy_state(folder, target)
    total = freeenergy.read_state(target)
    assert total.steps == 7602
    last = [freeenergy.read_state(segments[i] / "babf.state") for i in (3, 7)]
    np.testing.assert_array_equal(total.sums, last[0].sums + last[1].sums)
    text = (segments[0] / "plumed.dat").read_text()
    assert "WALKERS_N=2 WALKERS_ID=0 WALKERS_DIR=../../shared" in text
    # The same command finds all segments there.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("segment.json")}
    again = subprocess.run(line, capture_output=True, text=True, check=False)
    assert again.returncode == done.returncode
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("segment.json")}


def test_a_killed_walker_leaves_the_others_and_goes_on(tasks: Tasks) -> None:
    made = tasks(steps=120_000, segments=40)
    process = begin(made)
    until(all_have_segments(made))
    workers = [
        child
        for child in psutil.Process(process.pid).children()
        if "spawn_main" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    workers[1].kill()
    _, words = process.communicate(timeout=300)
    assert process.returncode == 1
    short = [task for task in made if sum(p["n_steps"] for p in task.done()) < task.steps]
    assert len(short) == 1
    assert f"walker {short[0].walker} ended before its share was done" in words
    assert "because its process was killed" in words
    before = {
        path: path.stat().st_mtime_ns for path in made[0].folder.rglob("segment-*/segment.json")
    }
    assert begin(made).wait(timeout=300) == 0
    check_complete(made)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_no_process_is_left(tasks: Tasks, how: str) -> None:
    """Ctrl-C, which the terminal sends to all, and the death of the process that waits for all."""
    made = tasks(steps=2_000_000, segments=200)
    process = begin(made)
    until(all_have_segments(made))
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4  # two walkers, each with LAMMPS
    if how == "interrupted":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    _, words = process.communicate(timeout=300)
    assert ("KeyboardInterrupt" in words) == (how == "interrupted")
    until(lambda: not psutil.wait_procs(family, timeout=0.1)[1])
    assert not (made[0].folder / "stop").exists()
    # What there is can be gone on from: so many segments more.
    done = min(len(task.done()) for task in made)
    process = begin(made)
    until(all_have_segments(made, done + 2))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_two_processes_do_not_work_on_one_walker(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tasks(steps=2_000_000, segments=200)
    process = begin(made)
    until(all_have_segments(made))
    monkeypatch.setattr("plumed_cv.sampling.walker.PATIENCE_S", 0.2)
    with (
        sampling.open_engine(made[0].config, made[0].atoms) as engine,
        pytest.raises(UserError, match="walker-0000: another process works in this folder"),
    ):
        sampling.run_walkers(made[:1], engine)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_dask_cluster(tasks: Tasks, tmp_path: Path) -> None:
    """Two workers: the process that sent the walkers is killed, then one of the workers."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path
    ) as cluster:
        made = tasks(steps=120_000, segments=40, scheduler=cluster.scheduler_address)
        process = begin(made)
        until(all_have_segments(made))
        process.kill()
        process.communicate()
        process = begin(made)
        until(all_have_segments(made, 3))
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
        _, words = process.communicate(timeout=300)
    assert process.returncode == 0, words
    check_complete(made)


def test_a_file_ends_the_sampling(tasks: Tasks) -> None:
    (task,) = tasks(steps=2000, walkers=1)
    (task.folder / "stop").write_text("")
    with sampling.open_engine(task.config, task.atoms) as engine:
        with pytest.raises(
            UserError, match=r"stop: this file ends the sampling; run again to cont"
        ):
            sampling.run_walkers([task], engine)
        assert not task.done()
        (task.folder / "stop").unlink()
        sampling.run_walkers([task], engine)
    assert task.is_done


def test_schedulers_that_are_not_there(
    tasks: Tasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"none\.json: there is no such file; start the scheduler"):
        sampling.sample(tasks(scheduler=str(tmp_path / "none.json")), None, print)  # type: ignore[arg-type]
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(UserError, match="no dask scheduler answers there"),
    ):
        sampling.sample(tasks(scheduler="tcp://127.0.0.1:9"), None, print)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"plumed_cv\[cluster\]"):
        sampling.sample(tasks(scheduler="tcp://127.0.0.1:9"), None, print)  # type: ignore[arg-type]


def test_a_walker_that_cannot_start_is_named(tasks: Tasks) -> None:
    made = tasks()
    bad = replace(made[1], model=made[1].folder / "none.safetensors")
    with pytest.raises(UserError, match=r"walker 1 ended before its share was done: .*none"):
        sampling.sample([made[0], bad], None, lambda done, note: None)  # type: ignore[arg-type]
    assert sum(part["n_steps"] for part in made[0].done()) == made[0].steps
    assert made[1].done() == []


def test_results_do_not_depend_on_where_walkers_run(example: Path) -> None:
    """The scheduler may change; the number of walkers may not."""
    folder = example / "record"
    folder.mkdir()
    settings = input_file.load(example / "walkers.toml")
    provenance.check_same_input(folder, settings)

    def changed(**changes: object) -> input_file.Config:
        return settings.model_copy(
            update={"sampling": settings.sampling.model_copy(update=changes)}
        )

    provenance.check_same_input(folder, changed(scheduler="tcp://elsewhere:8786"))
    with pytest.raises(UserError, match=r"another sampling\.walkers"):
        provenance.check_same_input(folder, changed(walkers=3))
    # A record of before there were walkers is of one.
    record = json.loads((folder / "input.json").read_text())
    del record["sampling"]["walkers"]
    (folder / "input.json").write_text(json.dumps(record))
    provenance.check_same_input(folder, changed(walkers=1))
    with pytest.raises(UserError, match=r"another sampling\.walkers"):
        provenance.check_same_input(folder, settings)


def test_walkers_start_along_the_path_as_hot_as_they_will_be(
    example: Path, plugin: Path, tmp_path: Path
) -> None:
    """Each at its own image, with twice the kinetic energy, half of which goes into the springs.

    After 400 steps the temperature of the 53 atoms is that of equilibrium, 300 K with a standard
    deviation of 34 K, and some 50 K above it by what a walker gains on its way down. After a cold
    start it is 150 K with 17 K: 220 is four deviations from there, 500 from here.
    """
    given = input_file.load(example / "walkers.toml")
    changed = input_file.Sampling(steps=2400, segments=6, walkers=2, start="path", timestep_fs=1.0)
    settings = given.model_copy(update={"sampling": changed})
    with suppress(UserError):  # so short a run need not arrive at both end states
        workflow.run(settings, tmp_path)
    path = load_path(tmp_path / "path.xyz")
    for walker, image in enumerate((1, 3)):
        folder = tmp_path / "iteration-1" / f"walker-{walker:04d}" / "segment-000000"
        printed = np.loadtxt(folder / "colvar")
        start = sampling.spread(path.images, 2)[walker]
        np.testing.assert_array_equal(start.positions, path.images[image].positions)
        found, along = meanforce.read(folder / "mean-force.dat")
        # Snapshots have single precision.
        np.testing.assert_allclose(found, printed[:, 1], atol=1e-5)
        assert np.isfinite(along).all()
        log = re.findall(r"^ +\d+ +([\d.]+) +-[\d.]+ *$", (folder / "log.lammps").read_text(), re.M)
        assert float(log[0]) == pytest.approx(600.0, rel=0.5)
        assert 220.0 < float(log[-1]) < 500.0
