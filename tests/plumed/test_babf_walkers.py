"""Walkers that share an estimate of BABF: sums, restarts, late or damaged files.

tests/test_walkers.py has the processes in which they run.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import plumed
import pytest

from plumed_cv.freeenergy import Estimator, Grid, State, read_fes, read_state
from tests.plumed.babf import (
    BABF,
    GRID,
    KT,
    POSITION,
    Array,
    MakePlumed,
    recorded_series,
    run,
    sentence,
    step,
)


def as_walker(folder: Path, walker: int, number: int = 2, stride: int = 1) -> str:
    shared = folder / "shared"
    shared.mkdir(exist_ok=True)
    return f"WALKERS_N={number} WALKERS_ID={walker} WALKERS_RSTRIDE={stride} WALKERS_DIR={shared}"


def two_series(length: int = 300) -> Array:
    """Return the positions of two walkers, shape (2, length)."""
    rng = np.random.default_rng(8)
    steps = np.cumsum(rng.normal(scale=0.3, size=(2, length)), axis=1)
    return np.asarray(0.5 + 0.55 * np.sin(steps + np.array([[0.0], [2.0]])))


def test_walkers_with_a_frozen_bias_sum_up_to_one_run(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    """Two walkers and one run with the samples of both have the same sums and profile."""
    frozen = f"b: BABF ARG=x.x {GRID} RAMP=0 TAU=inf"
    files = f"STATE_WFILE={tmp_path}/state FES_FILE={tmp_path}/fes"
    handles = [
        make_plumed(
            1,
            f"{POSITION}\n{frozen} {as_walker(tmp_path, w, stride=5 + w)} "
            f"STATE_WFILE={tmp_path}/state{w} FES_FILE={tmp_path}/fes{w}",
            log=f"{w}.log",
        )
        for w in range(2)
    ]
    one = make_plumed(1, f"{POSITION}\n{frozen} {files}", log="one.log")
    series = two_series()
    for s in range(series.shape[1]):
        for w in range(2):
            step(handles[w], s, series[w, s : s + 1])
            step(one, 2 * s + w, series[w, s : s + 1])
    for handle in [one, *handles]:
        handle.finalize()
    whole = read_state(tmp_path / "state")
    states = [read_state(tmp_path / f"state{w}") for w in range(2)]
    total = states[0] + states[1]
    assert (total.steps, whole.steps) == (600, 600)
    scale = np.abs(whole.sums).max(axis=1, keepdims=True)
    np.testing.assert_allclose(total.sums / scale, whole.sums / scale, rtol=0, atol=1e-14)
    # The second has read the first one's last file.
    theirs, ours = read_fes(tmp_path / "fes"), read_fes(tmp_path / "fes1")
    np.testing.assert_allclose(ours.A, theirs.A, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.count, theirs.count, rtol=0, atol=1e-12)
    for w in range(2):
        contribution = read_state(tmp_path / "shared" / f"walker-{w}.state")
        np.testing.assert_array_equal(contribution.sums, states[w].sums)
        log = (tmp_path / f"{w}.log").read_text()
        path = tmp_path / "shared" / f"walker-{w}.state"
        assert f"walker: file {path}, written every {5 + w} learned steps" in log
        assert "ignored" not in log
    assert not list((tmp_path / "shared").glob("*.tmp"))


def test_walkers_step_by_step_against_the_reference(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    """Bias and weight of the ramp follow from all samples known at the last exchange."""
    handles = [
        make_plumed(
            1,
            f"{POSITION}\n{BABF} SOLVE_STRIDE=1 {as_walker(tmp_path, w, stride=5)} "
            f"STATE_WFILE={tmp_path}/state{w}",
            log=f"{w}.log",
        )
        for w in range(2)
    ]
    series = two_series(60)
    own = [Estimator(Grid(0.0, 1.0, 50), KT, ramp=100, argument="x.x").state for _ in range(2)]
    written: list[State | None] = [None, None]
    known: list[State | None] = [None, None]
    for s in range(series.shape[1]):
        for w in range(2):
            xi = series[w, s]
            other = known[w]
            estimator = Estimator.from_state(own[w] if other is None else own[w] + other)
            before = estimator.state
            force = step(handles[w], s, np.array([xi]))[0]
            now = estimator.learn(xi)
            assert force == pytest.approx(now.force_eV, rel=1e-4, abs=1e-6)
            learned = replace(own[w], steps=1, sums=estimator.state.sums - before.sums)
            own[w] = own[w] + learned
            if own[w].steps == 1 or own[w].steps % 5 == 0:
                written[w], known[w] = own[w], written[1 - w]
    for w in range(2):
        handles[w].finalize()
        state = read_state(tmp_path / f"state{w}")
        scale = np.abs(own[w].sums).max(axis=1, keepdims=True)
        np.testing.assert_allclose(state.sums / scale, own[w].sums / scale, rtol=0, atol=1e-5)


def test_one_walker_is_none_to_the_last_bit(make_plumed: MakePlumed, tmp_path: Path) -> None:
    for name, keywords in [("alone", ""), ("walker", as_walker(tmp_path, 0, 1, 3))]:
        handle = make_plumed(
            1,
            f"{POSITION}\n{BABF} {keywords} STATE_WFILE={tmp_path}/{name} "
            f"FES_FILE={tmp_path}/{name}.fes\n"
            f"PRINT ARG=b.* FILE={tmp_path}/{name}.colvar FMT=%.17g",
            log=f"{name}.log",
        )
        run(handle, recorded_series())
        handle.finalize()
    for kind in ("", ".fes", ".colvar"):
        alone, walker = ((tmp_path / (name + kind)).read_bytes() for name in ("alone", "walker"))
        assert alone == walker


PLANE = "b: BABF ARG=x.x,x.y TEMP=300 GRID_MIN=0,0 GRID_MAX=1,1 GRID_BIN=20,25 RAMP=100"


@pytest.mark.parametrize("cut", [1, 37, 50])
@pytest.mark.parametrize("source", ["state", "shared/walker-0.state"])
@pytest.mark.parametrize("babf", [BABF, PLANE], ids=["line", "plane"])
@pytest.mark.parametrize("stride", [1, 13])
def test_a_walker_restarts_exactly(
    make_plumed: MakePlumed, tmp_path: Path, cut: int, source: str, babf: str, stride: int
) -> None:
    """While the other walker contributes nothing new, a restart is exact to the last bit."""
    first, second = (np.stack([x, 1 - x**2], axis=1) for x in two_series(100))
    other = make_plumed(1, f"{POSITION}\n{babf} {as_walker(tmp_path, 1)}", log="other.log")
    run(other, second)
    other.finalize()
    walker = as_walker(tmp_path, 0, stride=stride)
    lines = f"{POSITION}\n{babf} {walker} STATE_WFILE={tmp_path}/"
    whole = make_plumed(1, lines + "whole")
    run(whole, first)
    whole.finalize()
    (tmp_path / "shared" / "walker-0.state").unlink()
    begin = make_plumed(1, lines + "state", log="begin.log")
    run(begin, first[:cut])
    begin.finalize()
    end = make_plumed(1, f"{lines}state STATE_RFILE={tmp_path}/{source}", log="end.log")
    run(end, first[cut:], first=cut)
    end.finalize()
    assert (tmp_path / "state").read_bytes() == (tmp_path / "whole").read_bytes()
    assert "1 of the other walkers have contributed 100 steps" in (tmp_path / "end.log").read_text()


def test_bad_files_of_walkers_are_ignored_with_one_warning(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    """Late, dead, damaged and foreign walkers: the log names file and reason once."""
    first, second = two_series(40)
    lines = f"{POSITION}\n{BABF} {as_walker(tmp_path, 0, 5)} STATE_WFILE={tmp_path}/state"
    alone = make_plumed(1, lines)
    run(alone, first)
    alone.finalize()
    expected = (tmp_path / "state").read_bytes()
    warm = "b: BABF ARG=x.x TEMP=400 GRID_MIN=0 GRID_MAX=1 GRID_BIN=50 RAMP=100"
    handle = make_plumed(1, f"{POSITION}\n{warm} {as_walker(tmp_path, 3, 5)}", log="warm.log")
    run(handle, second)
    handle.finalize()
    shared = tmp_path / "shared"
    whole = (shared / "walker-3.state").read_text()
    (shared / "walker-1.state").write_text(whole[: len(whole) // 2])
    (shared / "walker-2.state").write_text("0.1 0.2 0.3\n")
    (shared / "walker-4.state").mkdir()
    (shared / "walker-0.state").unlink()
    handle = make_plumed(1, lines, log="second.log")
    for s, x in enumerate(first):
        step(handle, s, np.array([x]))
        (shared / "walker-1.state").write_text(whole[: len(whole) // 2 + s])  # changes all the time
    handle.finalize()
    assert (tmp_path / "state").read_bytes() == expected
    log = (tmp_path / "second.log").read_text().replace("\n", " ")
    for walker, reason in [
        (1, "ends in the middle"),
        (2, "has no '#! FIELDS'"),
        (3, "has kT="),
        (4, "cannot be read: it is not a regular file"),
    ]:
        assert log.count(f"walker-{walker}.state: ") == 1, walker
        assert f"walker-{walker}.state: {reason}" in log
    assert log.count("has contributed nothing yet") == 4


def test_a_second_process_of_one_walker_ends_the_first(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    lines = f"{POSITION}\n{BABF} {as_walker(tmp_path, 0)}"
    first, second = make_plumed(1, lines, log="1.log"), make_plumed(1, lines, log="2.log")
    x = np.array([0.5])
    step(first, 0, x)
    step(second, 0, x)
    with pytest.raises(plumed.PlumedError) as caught:
        step(first, 1, x)
    assert "another run or action writes it, too" in sentence(caught.value)
    step(second, 1, x)
    first.finalize()
    second.finalize()
    assert read_state(tmp_path / "shared" / "walker-0.state").steps == 2


def test_contributions_of_an_earlier_run_are_not_lost(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    lines = f"{POSITION}\n{BABF} {as_walker(tmp_path, 0)}"
    for log in ("1.log", "2.log"):
        handle = make_plumed(1, lines, log=log)
        step(handle, 0, np.array([0.5]))
        handle.finalize()
    shared = tmp_path / "shared"
    assert read_state(shared / "bck.0.walker-0.state").steps == 1
    handle = make_plumed(1, POSITION, restart=True, log="3.log")
    with pytest.raises(plumed.PlumedError) as caught:
        handle.cmd("readInputLine", f"{BABF} {as_walker(tmp_path, 0)}")
    assert f"give STATE_RFILE={shared}/walker-0.state" in sentence(caught.value)
    handle.finalize()
    handle = make_plumed(1, POSITION, log="4.log")
    with pytest.raises(plumed.PlumedError) as caught:
        handle.cmd(
            "readInputLine",
            f"{BABF} {as_walker(tmp_path, 1)} STATE_RFILE={shared}/walker-0.state",
        )
    assert "is the contribution of walker 0, which would count twice" in sentence(caught.value)
    handle.finalize()


def test_a_folder_that_vanishes_does_not_end_a_walker(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    handle = make_plumed(
        1, f"{POSITION}\n{BABF} {as_walker(tmp_path, 0)} STATE_WFILE={tmp_path}/state"
    )
    step(handle, 0, np.array([0.5]))
    (tmp_path / "shared").rename(tmp_path / "away")
    run(handle, recorded_series(10), first=1)
    (tmp_path / "away").rename(tmp_path / "shared")
    handle.finalize()
    assert read_state(tmp_path / "state").steps == 11
    assert read_state(tmp_path / "shared" / "walker-0.state").steps == 11
    log = (tmp_path / "plumed.log").read_text()
    assert log.count("cannot be written: No such file") == 1


def test_the_last_profile_contains_what_all_walkers_have_learned(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    """A walker exchanges a last time at its end, independently of the others."""
    first, second = (
        make_plumed(
            1,
            f"{POSITION}\n{BABF} {as_walker(tmp_path, w, stride=1000)} "
            f"FES_FILE={tmp_path}/fes{w} STATE_WFILE={tmp_path}/state{w}",
            log=f"{w}.log",
        )
        for w in range(2)
    )
    series = two_series()
    run(first, series[0, :50])
    run(second, series[1])
    second.finalize()
    first.finalize()
    assert "#! SET steps 350\n" in (tmp_path / "fes0").read_text()
    assert "#! SET steps 301\n" in (tmp_path / "fes1").read_text()  # with the first step of 0
    assert read_state(tmp_path / "state0").steps == 50
    both = read_state(tmp_path / "state0") + read_state(tmp_path / "state1")
    profile = np.loadtxt(tmp_path / "fes0")
    np.testing.assert_allclose(profile[:, 4], both.sums[2], rtol=1e-12)


def test_walkers_do_not_change_a_bias_out_of_their_time(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    """After UPDATE_UNTIL, no more files are read."""
    handle = make_plumed(
        1, f"{POSITION}\n{BABF} {as_walker(tmp_path, 0)} UPDATE_UNTIL=0.5", timestep_ps=0.1
    )
    x = np.array([0.5])
    for s in range(20):
        step(handle, s, x)
    assert read_state(tmp_path / "shared" / "walker-0.state").steps < 20
    before = step(handle, 20, x)
    other = make_plumed(1, f"{POSITION}\n{BABF} {as_walker(tmp_path, 1)}", log="other.log")
    run(other, recorded_series(50))
    other.finalize()
    np.testing.assert_array_equal(step(handle, 21, x), before)
    handle.finalize()
