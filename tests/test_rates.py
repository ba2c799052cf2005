"""Rates, dividing surfaces and other events: exact answers, and a whole run of a vacancy."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumed_cv import input_file, rates, sampling, terminal, workflow
from plumed_cv.common import progress
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable, linear
from plumed_cv.cv.symmetry import find_operations
from plumed_cv.engines import Dynamics
from plumed_cv.freeenergy import Basins, Estimate, Flux, Grid
from plumed_cv.freeenergy.basins import find
from plumed_cv.freeenergy.jackknife import UNKNOWN
from plumed_cv.rates.shots import End, Leg, Relaxed
from plumed_cv.structures import cell_of
from plumed_cv.structures.frame import Array
from plumed_cv.workflow import shooting, transmission
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.rate_of_steps import combine_steps, find_doubts
from plumed_cv.workflow.shooting import Workers
from tests import vacancy

KT = 0.025


def test_returns_by_chance_are_no_recrossings() -> None:
    """Every crossing is a transition, and each is undone by an independent one with the rate k.

    Of 8000 shots the coefficient has an error of 0.6 %; to second order in 2 k t = 0.15 the
    correction is exact to 0.5 %: 3 % are more than four standard errors.
    """
    rng, k_per_fs, stay_fs = np.random.default_rng(1), 7.5e-5, 1000.0

    def leg(forward: bool) -> Leg:
        crossings: list[float] = []
        time = rng.exponential(1.0 / k_per_fs)
        while time - (crossings or [0.0])[-1] < stay_fs:
            crossings.append(time)
            time += rng.exponential(1.0 / k_per_fs)
        is_behind = forward == (len(crossings) % 2 == 0)
        end: End = "behind" if is_behind else "before"
        return Leg(end, tuple(crossings), (crossings or [0.0])[-1] + stay_fs)

    shots = [rates.Shot((f"{i:04d}", 0), 0.5, 1.0, leg(True), leg(False), 0) for i in range(8000)]
    found = [
        rates.estimate_transmission(
            shots, np.zeros_like, KT, both_per_fs=both, residence_fs=stay_fs
        )
        for both in (0.0, 2.0 * k_per_fs)
    ]
    assert found[0].kappa.value == pytest.approx(np.exp(-0.15), abs=0.03)
    assert found[1].kappa.value == pytest.approx(1.0, abs=0.03)
    assert found[1].returns == pytest.approx(1 - np.exp(-0.15), abs=0.01)
    fast = rates.estimate_transmission(
        shots, np.zeros_like, KT, both_per_fs=1e-3, residence_fs=stay_fs
    )
    step = {"transmission": fast.kappa.value, "transmission_error": fast.kappa.error}
    assert "undone by chance" in (find_doubts(step, [fast], input_file.Rate()) or "")


def of_step(kappa: float, error: float) -> rates.Transmission:
    """A transmission coefficient without other doubts."""
    value = Estimate(kappa, error, "")
    numbers: dict[str, Any] = dict.fromkeys((field.name for field in fields(rates.Transmission)), 0)
    return rates.Transmission(
        **numbers | {"kappa": value, "reactive_flux": value, "shots": 90, "snapshots": 40}
    )


def test_a_rate_of_several_steps_says_which_coefficient_is_not_known_well_enough() -> None:
    step = {"rate_per_s": 1e9, "rate_error_per_s": 1e7}
    result = {"steps": [step, step], "populations": [0.5, 0.01, 0.49]}
    result |= {"tst_rate_per_s": 1e9, "tst_rate_error_per_s": 1e7, "delta_F_error_eV": 0.001}
    shares = np.array([0.1, 0.9])
    for found, doubtful in (
        ([of_step(1.0, 0.3), of_step(1.0, 0.05)], False),  # takes a tenth of the time
        ([of_step(0.1, 0.03), of_step(1.0, 0.05)], True),  # takes half of it
        ([of_step(0.0, 0.3), of_step(1.0, 0.05)], True),
    ):
        rate = combine_steps(result, found, shares, 0.025)
        note = find_doubts(rate, found, input_file.Rate(error=0.1))
        assert (note is not None) == doubtful
        assert note is None or "coefficient of step 1 is" in note
        assert note is None or "step 2" not in note


def flux_of(W: Array, grid: Grid) -> Flux:
    basins = find(grid, W, (0.0, 1.0), KT)
    assert isinstance(basins, Basins)
    return Flux(UNKNOWN, UNKNOWN, UNKNOWN, 0.5, basins=basins, W=W)


def test_surfaces_and_cores() -> None:
    grid = Grid(-0.2, 1.2, 140)
    W = 0.5 * np.sin(2 * np.pi * grid.nodes - 0.5 * np.pi)  # minima at 0 and 1, 1 eV high
    (surface,) = rates.find_surfaces(grid, flux_of(W, grid))
    assert surface.xi == pytest.approx(0.5)
    assert surface.cores == pytest.approx((0.25, 0.75), abs=0.011)  # a node
    assert float(surface.above(np.array([0.25]))[0]) == pytest.approx(-0.5)
    low, high = surface.window(KT)
    assert low == pytest.approx(0.5 - np.arccos(1 - 2 * KT) / (2 * np.pi), abs=0.011)
    assert high == pytest.approx(1.0 - low)
    elsewhere = surface.moved_to(0.4)
    assert elsewhere.top_eV == pytest.approx(float(W[60]))
    assert elsewhere.cores == surface.cores


def test_steps_have_surfaces_of_their_own() -> None:
    grid = Grid(-0.1, 1.1, 240)
    W = -0.5 * np.cos(4 * np.pi * grid.nodes)
    first, second = rates.find_surfaces(grid, flux_of(W, grid))
    assert [first.xi, second.xi] == pytest.approx([0.25, 0.75])
    assert second.cores == pytest.approx((0.625, 0.875), abs=0.006)


def test_snapshots_near_the_surface() -> None:
    grid = Grid(-0.2, 1.2, 140)
    W = 0.5 * np.sin(2 * np.pi * grid.nodes - 0.5 * np.pi)
    (surface,) = rates.find_surfaces(grid, flux_of(W, grid))
    many = [rates.Snapshot("a", k, float(xi)) for k, xi in enumerate(np.linspace(0, 1, 50_001))]
    few = rates.select_snapshots(surface, many[::100], KT)
    best = rates.select_snapshots(surface, many, KT)
    assert max(abs(s.xi - 0.5) for s in best) < max(abs(s.xi - 0.5) for s in few)
    assert len(best) > 400
    with pytest.raises(UserError, match="no snapshot of the sampling lies near"):
        rates.select_snapshots(surface, many[:100], KT)


def test_events_are_told_apart(tmp_path: Path) -> None:
    """Jumps of other neighbours: those that are equivalent by symmetry are one event."""
    initial, final = vacancy.end_states()
    cell = cell_of(initial)
    species = initial.get_chemical_symbols()
    variable = linear(species, cell, initial.positions, final.positions)
    hole = final.positions[0]
    found = rates.Events(tmp_path, (initial, final), find_operations(variable))

    def moved(atom: int, noise: float) -> Relaxed:
        positions = initial.positions.copy()
        positions[atom] = hole
        positions += np.random.default_rng(atom).normal(scale=noise, size=positions.shape) + 3.0
        return Relaxed(positions, -1.0)

    distances = initial.get_all_distances(mic=True)
    ring = np.linalg.norm(
        (initial.positions - hole) - np.rint((initial.positions - hole) / cell[0, 0]) * cell[0, 0],
        axis=1,
    )
    neighbours = [int(k) for k in np.flatnonzero(ring < 2.6)]
    assert len(neighbours) == 8
    assert found.identify(Relaxed(initial.positions + 1.0, 0.0)) == "before"
    assert found.identify(moved(0, 0.01)) == "behind"
    kinds = {k: found.identify(moved(k, 0.01)) for k in neighbours if k}
    # Three, three and one by their distance from the atom that jumps.
    by_distance: dict[int, set[int | str]] = {}
    for k, kind in kinds.items():
        by_distance.setdefault(round(10 * float(distances[0, k])), set()).add(kind)
    assert sorted(map(len, by_distance.values())) == [1, 1, 1]
    assert len(set(kinds.values())) == 3
    again = rates.Events(tmp_path, (initial, final), find_operations(variable))
    assert {k: again.identify(moved(k, 0.01)) for k in kinds} == kinds
    assert again.energy_eV(1) == pytest.approx(-1.0)


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended, without a rate: it has not converged."""
    copy = tmp_path_factory.mktemp("rate") / "run"
    shutil.copytree(finished, copy)
    result = json.loads((copy / "result.json").read_text())
    assert result["rate_per_s"] is result["transmission"] is None
    assert "has not converged" in result["rate_note"]
    return copy


@pytest.fixture(scope="module")
def rated(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run with its rate from 12 shots, and what the command printed."""
    copy = tmp_path_factory.mktemp("rated") / "run"
    shutil.copytree(run, copy)
    done = vacancy.called("rate", copy, "--shots", "12", "--json")
    assert done.returncode == 0, done.stderr
    return copy, json.loads(done.stdout)


def test_the_most_frequent_other_events_are_printed(
    rated: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    event = {"from": "reactant", "share": 0.02, "energy_eV": 0.0, "structure": "other-1.xyz"}
    terminal.print_rate(rated[1] | {"other_events": [event] * 7})
    said = capsys.readouterr().out
    assert said.count("Other event, from the reactant: 2 %") == 5
    assert "2 more events, 4 % of the trajectories in all" in said


def test_the_rate_of_a_run(rated: tuple[Path, dict[str, Any]]) -> None:
    run, result = rated
    assert result == json.loads((run / "result.json").read_text())
    of_steps = result["rate"]["steps"]
    assert len(of_steps) == len(result["steps"])  # so short a run may find a basin between
    for step in of_steps:
        assert step["shots"] == 12
        assert 1 <= step["snapshots"] <= 6
        # Above 1 where a run of so few steps has a wrong free energy, which the note then says.
        assert step["transmission"] >= 0
        error = step["transmission_error"]
        if error is not None and step["transmission"] - 2 * error > 1:
            assert "it cannot exceed 1" in result["rate_note"]
        assert step["md_steps"] > 12 * 2 * 400
    assert result["rate"]["md_steps"] == sum(step["md_steps"] for step in of_steps)
    if result["transmission"] is not None:
        assert result["rate_per_s"] == pytest.approx(
            result["transmission"] * result["tst_rate_per_s"]
        )


def test_shots_do_not_depend_on_interruptions(
    rated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Existing shots are kept, and further ones equal those of an undivided run."""
    run = tmp_path / "run"
    shutil.copytree(rated[0], run)
    (file,) = run.glob("iteration-*/rate/step-1.json")
    before = json.loads(file.read_text())
    part = {**before, "shots": before["shots"][:5]}
    file.write_text(json.dumps(part))
    done = vacancy.called("rate", run, "--shots", "12", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(file.read_text()) == before


def test_a_run_that_goes_on_keeps_its_rate(
    rated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The rate of existing shots is kept although the run has not converged."""
    run = tmp_path / "run"
    shutil.copytree(rated[0], run)
    before = json.loads((run / "result.json").read_text())
    assert not before["converged"]
    record = json.loads((run / "provenance.json").read_text())[-1]
    after = workflow.run(input_file.Config.model_validate(record["input"]), run)
    assert [step["shots"] for step in after["rate"]["steps"]] == [12] * len(after["steps"])
    for name in ("rate_per_s", "rate_error_factor", "transmission", "rate"):
        assert after[name] == before[name]


def test_shots_between_other_basins_are_made_again(
    rated: tuple[Path, dict[str, Any]],
) -> None:
    """More samples may show a basin between the states, or that there is none."""
    run, result = rated
    record = json.loads((run / "provenance.json").read_text())[-1]
    given = input_file.Config.model_validate(record["input"])
    initial = workflow.read_end_states(given)[0]
    with sampling.open_engine(given, initial) as engine:
        stage = shooting.Stage(given, RunDirectory(run), initial, result, engine, progress.Log())
    (file,) = run.glob("iteration-*/rate/step-1.json")
    surface = stage._surfaces[0]
    for shift, kept in ((0.0, 12), (0.04, 12), (0.3, 0)):
        low, high = surface.cores
        for cores in ((low - shift, high), (low, high + shift)):
            assert len(stage._load(file, replace(surface, cores=cores))[1]) == kept


def test_shots_of_other_settings_do_not_count(rated: tuple[Path, dict[str, Any]]) -> None:
    run, result = rated
    record = json.loads((run / "provenance.json").read_text())[-1]
    given = input_file.Config.model_validate(record["input"])
    initial = workflow.read_end_states(given)[0]
    longer = given.rate.model_copy(update={"longest_ps": 2.0 * given.rate.longest_ps})
    other = given.model_copy(update={"rate": longer})
    with sampling.open_engine(given, initial) as engine:
        for each, kept in ((given, 12), (other, 0)):
            stage = shooting.Stage(each, RunDirectory(run), initial, result, engine, progress.Log())
            assert stage.count_shots() == kept


def test_a_converged_run_without_shots_says_why(run: Path, tmp_path: Path) -> None:
    """It has the rate of transition state theory; at several temperatures, the others follow."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for file in copy.glob("iteration-*/segment-*/snapshots.dcd"):
        file.unlink()
    record = json.loads((copy / "provenance.json").read_text())[-1]
    given = input_file.Config.model_validate(record["input"])
    initial = workflow.read_end_states(given)[0]
    result = json.loads((copy / "result.json").read_text()) | {"converged": True}
    with sampling.open_engine(given, initial) as engine:
        after = transmission.complete(
            given, RunDirectory(copy), engine, initial, result, progress.Log()
        )
    assert "no snapshot of the sampling lies near" in after["rate_note"]
    assert after["rate_per_s"] is None
    assert json.loads((copy / "result.json").read_text()) == after
    failed = vacancy.called("rate", copy)
    assert failed.returncode == 1
    assert "no snapshot of the sampling lies near" in failed.stderr


def test_several_walkers_make_the_same_shots(run: Path) -> None:
    record = json.loads((run / "provenance.json").read_text())[-1]
    given = input_file.Config.model_validate(record["input"])
    initial = workflow.read_end_states(given)[0]
    variable = CollectiveVariable.load(run / "cv.safetensors")
    shooter = rates.Shooter(
        variable, cell_of(initial), Dynamics(300.0, 2.0, "none"), (0.2, 0.8), None, 50.0, 200.0
    )
    half = initial.positions.copy()
    half[variable.serials - 1] = variable.reference_positions + variable.path(np.array([0.5]))
    tasks = [(("segment", k), half, k) for k in range(5)]
    with sampling.open_engine(given, initial) as engine:
        with Workers(given, initial, engine) as work:
            here = work(shooter, tasks)
        walkers = given.sampling.model_copy(update={"walkers": 2})
        several = given.model_copy(update={"sampling": walkers})
        with Workers(several, initial, engine) as work:
            there = work(shooter, tasks)
    assert [outcome.shot for outcome in here] == [outcome.shot for outcome in there]
    assert [outcome.shot.snapshot[1] for outcome in here] == list(range(5))


def test_mistakes_are_one_sentence(run: Path, tmp_path: Path) -> None:
    for words, sentence in (
        ((tmp_path,), "is not the directory of a finished run"),
        ((run, "--error", "2"), "the relative error is between 0 and 1"),
        ((run, "--surface", "0.0"), "--surface 0: lies in a basin; dividing surfaces are from"),
    ):
        done = vacancy.called("rate", *words)
        assert done.returncode == 1
        assert sentence in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
