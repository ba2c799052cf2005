"""Shots against exact answers: commitment, velocities, crossings, committors."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from ase import Atoms, units

from plumed_cv import rates
from plumed_cv.cv import CollectiveVariable, linear
from plumed_cv.engines import Dynamics
from plumed_cv.rates.shots import End, Leg, Watch
from plumed_cv.structures import cell_of
from plumed_cv.structures.frame import Array

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
