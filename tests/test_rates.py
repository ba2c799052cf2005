"""Shots and the rates from them: exact answers, and a whole run of a vacancy."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units

from plumed_cv import config, rates, sampling, terminal, workflow
from plumed_cv.common import progress
from plumed_cv.common.errors import UserError
from plumed_cv.cv import CollectiveVariable, linear
from plumed_cv.cv.symmetry import operations
from plumed_cv.engines import Dynamics
from plumed_cv.freeenergy import Basins, Estimate, Flux, Grid
from plumed_cv.freeenergy.basins import find
from plumed_cv.freeenergy.jackknife import UNKNOWN
from plumed_cv.rates.shots import End, Leg, Relaxed, Watch
from plumed_cv.structures import cell_of
from plumed_cv.structures.frame import Array
from plumed_cv.workflow import shooting, transmission
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.rate_of_steps import doubts, rate_of_steps
from plumed_cv.workflow.shooting import Workers
from tests import vacancy

KT = 0.025


def jump() -> tuple[Atoms, Atoms, CollectiveVariable]:
    """One of four atoms moves by 2 angstrom; its linear CV."""
    initial = Atoms("Al4", 6.0 * np.eye(4)[:, :3] + 6.0, cell=[24.0] * 3, pbc=True)
    final = initial.copy()
    final.positions[0, 0] += 2.0
    cell = cell_of(initial)
    return initial, final, linear(["Al"] * 4, cell, initial.positions, final.positions)


def at(xi: Sequence[float], aside: float = 0.0) -> Array:
    """Structures of `jump` with these values of the CV; another atom is displaced aside."""
    initial, final, _ = jump()
    step = final.positions - initial.positions
    found = initial.positions + np.array(xi)[:, None, None] * step
    found[:, 2, 2] += aside
    return np.asarray(found)


def watch(limit_A: float | None = None, residence: int = 5) -> Watch:
    initial, _, variable = jump()
    return Watch(variable, cell_of(initial), 0.5, (0.2, 0.8), limit_A, residence, is_behind=True)


def test_committed_after_a_stay_with_a_visit_to_the_core() -> None:
    seen = watch()
    assert not seen.see(at([0.6, 0.7, 0.9, 0.7]))
    assert seen.in_core
    assert seen.see(at([0.6, 0.4]))  # the fifth step behind the surface
    assert (seen.end, seen.is_behind, seen.crossings, seen.step) == ("committed", True, [], 5)


def test_a_stay_without_the_core_is_no_commitment() -> None:
    seen = watch()
    assert not seen.see(at([0.6] * 20))
    assert seen.see(at([0.81]))
    assert seen.end == "committed"


def test_a_return_begins_the_stay_anew() -> None:
    seen = watch()
    assert not seen.see(at([0.9, 0.9, 0.4, 0.1, 0.45, 0.6, 0.45, 0.1, 0.1, 0.1]))
    assert seen.crossings == [3, 6, 7]
    assert seen.see(at([0.1]))
    assert (seen.end, seen.is_behind, seen.step) == ("committed", False, 11)


def test_leaving_the_process() -> None:
    """While an atom is away, crossings do not count; an atom that stays away has left."""
    seen = watch(limit_A=1.0, residence=25)
    assert not seen.see(at([0.9] * 10))
    assert not seen.see(at([0.9] * 10, aside=1.5))
    assert not seen.see(at([0.3, 0.3], aside=1.5))
    assert seen.crossings == []
    assert seen.see(at([0.3, 0.9, 0.3] * 10, aside=1.5))
    assert (seen.end, seen.in_core, seen.is_behind, seen.step) == ("left", True, True, 50)
    back = watch(limit_A=1.0, residence=50)
    assert not back.see(at([0.9] * 10, aside=1.5))
    assert not back.see(at([0.9] * 10))
    assert not back.see(at([0.3] * 10))
    assert back.crossings == [21]
    assert back.end is None


@pytest.mark.parametrize("at_once", [1, 7, 10, 500])
def test_an_atom_that_leaves_is_seen_however_many_steps_an_engine_returns(at_once: int) -> None:
    """The atom leaves before the trajectory reaches the core of an apparent basin."""
    positions = np.concatenate([at([0.6] * 28), at([0.6] * 30, aside=2.4), at([0.9] * 442, 2.4)])
    seen = watch(limit_A=1.5, residence=400)
    pieces = [positions[k : k + at_once] for k in range(0, len(positions), at_once)]
    assert any(seen.see(piece) for piece in pieces)
    assert (seen.end, seen.in_core, seen.step) == ("left", False, 430)


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
    assert "undone by chance" in (doubts(step, [fast], config.Rate()) or "")


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
        rate = rate_of_steps(result, found, shares, 0.025)
        note = doubts(rate, found, config.Rate(error=0.1))
        assert (note is not None) == doubtful
        assert note is None or "coefficient of step 1 is" in note
        assert note is None or "step 2" not in note


@pytest.mark.parametrize("seed", range(5))
def test_committed_stays_are_the_same_in_both_directions_of_time(seed: int) -> None:
    """All crossings between two committed states belong together, whichever a shot starts from."""
    rng = np.random.default_rng(seed)
    xi = 0.5 + 0.5 * np.sin(np.cumsum(rng.normal(scale=0.35, size=4000)))
    # Half-way between the samples, so that no value of a trajectory is on the surface itself.
    side = xi > 0.5
    crossings = 1 + np.flatnonzero(side[1:] != side[:-1])

    def leg(values: Array, is_behind: bool) -> tuple[int, bool]:
        seen = watch(residence=25)
        seen.is_behind = is_behind
        seen.see(at(values.tolist()))
        return len(seen.crossings), seen.is_behind

    middle = crossings[len(crossings) // 4 : 3 * len(crossings) // 4]
    totals = {}
    for crossing in middle:
        forward = leg(xi[crossing:], bool(side[crossing]))
        backward = leg(xi[:crossing][::-1], bool(side[crossing - 1]))
        number = 1 + forward[0] + backward[0]
        first = int(np.searchsorted(crossings, crossing)) - backward[0]
        totals[int(crossing)] = (first, number, backward[1], forward[1])
    groups = {total[:2] for total in totals.values()}
    covered = sorted(k for first, number in groups for k in range(first, first + number))
    assert covered == sorted(set(covered))  # no crossing belongs to two groups
    assert len(groups) > 10


def test_velocities_of_the_flux() -> None:
    """Velocities along the gradient are those of the flux, others Maxwell-Boltzmann."""
    initial, _, variable = jump()
    masses = np.array([1.0, 27.0, 27.0, 55.0])
    shooter = rates.Shooter(
        variable, cell_of(initial), Dynamics(300.0), (0.2, 0.8), None, 100.0, 1000.0
    )
    rng = np.random.default_rng(1)
    gradient = variable.gradient(initial.positions, cell_of(initial))[0]
    drawn = []
    for _ in range(4000):
        velocities, speed = shooter.velocities(initial.positions, masses, rng)
        drawn.append(velocities)
    v = np.array(drawn)
    assert speed == pytest.approx(np.sqrt((gradient**2 / masses[:, None]).sum()))
    np.testing.assert_allclose((v * masses[:, None]).sum(axis=1), 0.0, atol=1e-12)
    thermal = speed * np.sqrt(units.kB * 300.0) * units.fs
    along = (v * gradient).sum(axis=(1, 2)) / thermal
    assert along.min() > 0
    # A Rayleigh distribution has the mean sqrt(pi/2) and the mean square 2: 1 % each, five of them.
    assert along.mean() == pytest.approx(np.sqrt(np.pi / 2), rel=0.05)
    assert (along**2).mean() == pytest.approx(2.0, rel=0.1)
    # y and z of the heavy atom: kT/m less the motion of the centre of mass.
    expected = units.kB * 300.0 * units.fs**2 * (1 / 55.0 - 1 / masses.sum())
    assert (v[:, 3, 1:] ** 2).mean() == pytest.approx(expected, rel=0.1)


def shot(
    forward: End,
    backward: End,
    crossings: tuple[int, int] = (0, 0),
    number: int = 0,
    xi: float = 0.5,
) -> rates.Shot:
    legs = [
        Leg(end, tuple(10.0 * (1 + k) for k in range(many)), 1000.0)
        for end, many in zip((forward, backward), crossings, strict=True)
    ]
    return rates.Shot((f"segment-{number:06d}", 0), xi, 1.0, legs[0], legs[1], 100)


def level(xi: Array) -> Array:
    return np.zeros_like(xi)


def test_a_reaction_is_shared_by_its_crossings() -> None:
    """The three crossings of one trajectory, two of them forwards, and one without a return."""
    one = shot("behind", "before")
    first = shot("behind", "before", (2, 0), 1)
    last = shot("behind", "before", (0, 2), 2)
    middle = shot("before", "behind", (1, 1), 3)  # by the reversed trajectory
    nothing = [shot("before", "before", (1, 0), number) for number in range(4, 9)]
    found = rates.estimate_transmission([one, first, last, middle, *nothing], level, KT)
    assert found.kappa.value == pytest.approx((1 + 3 / 3) / 9)
    assert found.reactive_flux.value == pytest.approx((1 + 1 + 1 - 1) / 9)
    assert found.plateau[0] == pytest.approx(1.0)
    assert found.plateau[-1] == pytest.approx(found.reactive_flux.value)
    assert found.crossings == pytest.approx(2.0)
    assert found.recrossing == pytest.approx(0.5)
    assert found.crossing_time_fs == pytest.approx(20.0)


def test_ends_that_are_no_basin_do_not_count() -> None:
    shots = [shot("behind", "before", number=k) for k in range(6)]
    shots += [shot("other", "before", number=7), shot("behind", "unresolved", number=8)]
    found = rates.estimate_transmission(shots, level, KT)
    assert found.kappa.value == pytest.approx(6 / 8)
    assert (found.other, found.unresolved) == (1 / 16, 1 / 16)


def test_each_shot_has_the_surface_of_its_snapshot() -> None:
    """At lower W, the flux is larger and kappa is smaller by the same factor."""
    rng = np.random.default_rng(3)
    xi = rng.uniform(0.4, 0.6, size=20000)
    W = -50 * KT * (xi - 0.5) ** 2
    joined = rng.uniform(size=len(xi)) < 0.6 * np.exp(W / KT)
    shots = [
        shot("behind" if yes else "before", "before", (0 if yes else 1, 0), k // 100, float(x))
        for k, (x, yes) in enumerate(zip(xi, joined, strict=True))
    ]
    found = rates.estimate_transmission(shots, lambda x: -50 * KT * (x - 0.5) ** 2, KT)
    # 20 000 of 0.6: an error of 0.004, five of them.
    assert found.kappa.value == pytest.approx(0.6, abs=0.02)
    assert found.kappa.error == pytest.approx(0.0037, rel=0.35)


def test_committors_of_structures() -> None:
    fates = [shot("behind", "behind", number=k // 2) for k in range(20)]
    fates += [shot("before", "before", (1, 0), 100 + k // 2) for k in range(20)]
    found = rates.estimate_transmission(fates, level, KT)
    assert (found.committor, found.committor_spread) == (0.5, 0.5)
    same = [shot("behind", "before", number=k // 2) for k in range(20)]
    found = rates.estimate_transmission(same, level, KT)
    assert (found.committor, found.committor_spread) == (0.5, 0.0)


def test_a_shot_is_read_as_it_was_written() -> None:
    one = shot("behind", "before", (2, 1), 3)
    assert rates.Shot.of_json(json.loads(json.dumps(one.as_json()))) == one


def test_orders_are_spread() -> None:
    order = rates.spread_order(1000)
    assert sorted(order) == list(range(1000))
    for beginning in (10, 40, 200):
        gaps = np.diff(np.sort(np.concatenate([[-1], order[:beginning], [1000]])))
        assert gaps.max() < 4 * 1000 / beginning


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
    found = rates.Events(tmp_path, (initial, final), operations(variable))

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
    again = rates.Events(tmp_path, (initial, final), operations(variable))
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
    done = vacancy.command("rate", copy, "--shots", "12", "--json")
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
    done = vacancy.command("rate", run, "--shots", "12", "--json")
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
    after = workflow.run(config.Config.model_validate(record["input"]), run)
    assert [step["shots"] for step in after["rate"]["steps"]] == [12] * len(after["steps"])
    for name in ("rate_per_s", "rate_error_factor", "transmission", "rate"):
        assert after[name] == before[name]


def test_shots_between_other_basins_are_made_again(
    rated: tuple[Path, dict[str, Any]],
) -> None:
    """More samples may show a basin between the states, or that there is none."""
    run, result = rated
    record = json.loads((run / "provenance.json").read_text())[-1]
    given = config.Config.model_validate(record["input"])
    initial = workflow.end_states(given)[0]
    with sampling.open_engine(given, initial) as engine:
        stage = shooting.Stage(given, RunDirectory(run), initial, result, engine, progress.Log())
    (file,) = run.glob("iteration-*/rate/step-1.json")
    surface = stage._surfaces[0]
    for shift, kept in ((0.0, 12), (0.04, 12), (0.3, 0)):
        low, high = surface.cores
        for cores in ((low - shift, high), (low, high + shift)):
            assert len(stage._load(file, replace(surface, cores=cores))[1]) == kept


def test_a_converged_run_without_shots_says_why(run: Path, tmp_path: Path) -> None:
    """It has the rate of transition state theory; at several temperatures, the others follow."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for file in copy.glob("iteration-*/segment-*/snapshots.dcd"):
        file.unlink()
    record = json.loads((copy / "provenance.json").read_text())[-1]
    given = config.Config.model_validate(record["input"])
    initial = workflow.end_states(given)[0]
    result = json.loads((copy / "result.json").read_text()) | {"converged": True}
    with sampling.open_engine(given, initial) as engine:
        after = transmission.complete(
            given, RunDirectory(copy), engine, initial, result, progress.Log()
        )
    assert "no snapshot of the sampling lies near" in after["rate_note"]
    assert after["rate_per_s"] is None
    assert json.loads((copy / "result.json").read_text()) == after
    failed = vacancy.command("rate", copy)
    assert failed.returncode == 1
    assert "no snapshot of the sampling lies near" in failed.stderr


def test_several_walkers_make_the_same_shots(run: Path) -> None:
    record = json.loads((run / "provenance.json").read_text())[-1]
    given = config.Config.model_validate(record["input"])
    initial = workflow.end_states(given)[0]
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
