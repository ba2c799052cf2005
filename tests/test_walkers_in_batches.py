"""Several walkers in one process, whose structures a calculator evaluates in one call."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from plumed_cv import cv, freeenergy, input_file, sampling
from plumed_cv.common.errors import UserError
from plumed_cv.common.progress import Update
from plumed_cv.engines import State
from plumed_cv.sampling.folders import list_segments_of

WALKERS = 3


@pytest.fixture
def make_tasks(plugin: Path, tmp_path: Path) -> Callable[[str], list[sampling.WalkerTask]]:
    """A function that makes the tasks of an iteration in a folder: a vacancy in copper."""
    initial = bulk("Cu", cubic=True) * (2, 2, 2)
    final = initial.copy()
    final.positions[1] = initial.positions[0]
    del initial[0], final[0]
    initial.write(tmp_path / "initial.xyz", format="extxyz")
    final.write(tmp_path / "final.xyz", format="extxyz")
    calls = tmp_path / "calls"
    engines = Path(__file__).parent / "engines"
    (tmp_path / "input.toml").write_text(
        f"""
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = 600.0
[engine]
name = "ase"
calculator = "together.Metal"
arguments = {{ asap_cutoff = false, calls = "{calls}", closest = 1.5 }}
directory = "{engines}"
batch = 16
[sampling]
steps = 600
segments = {2 * WALKERS}
walkers = {WALKERS}
"""
    )
    config = input_file.load(tmp_path / "input.toml")
    model = tmp_path / "cv-0.safetensors"
    cell = initial.cell.array
    cv.linear(list(initial.symbols), cell, initial.positions, final.positions).save(model)

    def make(name: str) -> list[sampling.WalkerTask]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return [
            sampling.WalkerTask(config, initial, State.of(initial), model, plugin, 1, folder, k)
            for k in range(WALKERS)
        ]

    return make


def run(tasks: list[sampling.WalkerTask], update: Update = lambda done, note: None) -> None:
    """Run walkers."""
    with sampling.open_engine(tasks[0].config, tasks[0].atoms) as engine:
        sampling.sample(tasks, engine, update)


def test_walkers_run_together_and_share_an_estimate(
    make_tasks: Callable[[str], list[sampling.WalkerTask]], tmp_path: Path
) -> None:
    tasks = make_tasks("one")
    told: list[float] = []
    run(tasks, lambda done, note: told.append(done))
    assert told == sorted(told)
    assert told[-1] <= 600
    for task in tasks:
        assert task.is_done
        assert len(task.done()) == 2
        log = (list_segments_of(task.home)[-1] / "plumed.log").read_text()
        assert f"{WALKERS - 1} of the other walkers have contributed" in log
    structures = [int(number) for number in (tmp_path / "calls").read_text().split()]
    assert structures == [WALKERS] * 202  # each of two segments begins with forces of its start

    # The walkers exchange their states at the same steps in each run.
    again = make_tasks("again")
    run(again)
    for one, two in zip(tasks, again, strict=True):
        sums = [
            freeenergy.read_state(list_segments_of(task.home)[-1] / "babf.state").sums
            for task in (one, two)
        ]
        np.testing.assert_array_equal(sums[0], sums[1])
        assert np.abs(sums[0]).max() > 0


def test_a_run_that_was_ended_goes_on(
    make_tasks: Callable[[str], list[sampling.WalkerTask]],
) -> None:
    tasks = make_tasks("ended")

    def end(done: float, note: str) -> None:
        if all(task.done() for task in tasks):
            (tasks[0].folder / "stop").touch()

    with pytest.raises(UserError, match="this file ends the sampling"):
        run(tasks, end)
    assert [len(task.done()) for task in tasks] == [1] * WALKERS
    run(tasks)
    assert all(task.is_done for task in tasks)


def test_the_walker_that_cannot_go_on_is_named(
    make_tasks: Callable[[str], list[sampling.WalkerTask]],
) -> None:
    tasks = make_tasks("refused")
    near = tasks[1].start.positions.copy()
    near[1] = near[0] + [1.0, 0.0, 0.0]
    tasks[1] = replace(tasks[1], start=replace(tasks[1].start, positions=near))
    with pytest.raises(UserError, match=r"fails for \S*/walker-0001/unfinished-segment-\S* \("):
        run(tasks)

    tasks = make_tasks("damaged")
    run(tasks)
    state = list_segments_of(tasks[2].home)[-1] / "babf.state"
    state.write_text(state.read_text().replace("kappa", "damaged"))
    with pytest.raises(UserError, match=f"walker 2 ended before its share was done: {state}: "):
        run(tasks)
