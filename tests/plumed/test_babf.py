"""BABF in a real PLUMED against the reference estimator: bias, forces, repeated steps.

test_babf_files.py tests files and restarts, test_babf_landscapes.py profiles,
test_babf_walkers.py several walkers, test_babf_mistakes.py refusals, test_babf_2d.py two CVs;
babf.py has what they share.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import units

from plumed_cv.freeenergy import (
    Estimator,
    Grid,
    estimate_profile,
    prior_derivative,
    read_fes,
    read_state,
    write_state,
)
from tests.plumed.babf import (
    BABF,
    KT,
    POSITION,
    MakePlumed,
    bias_at,
    check_two_parts,
    recorded_series,
    run,
    step,
)

PERIODIC = "b: BABF ARG=x TEMP=300 GRID_MIN=-pi GRID_MAX=pi GRID_BIN=50 RAMP=100"
BABF_2D = "b: BABF ARG=x.x,x.y TEMP=300 GRID_MIN=0,0 GRID_MAX=1,1 GRID_BIN=20,20 RAMP=100"


@pytest.mark.parametrize(
    ("cv", "keywords", "grid", "options"),
    [
        (POSITION, "RAMP=100", Grid(0.0, 1.0, 50), {"ramp": 100}),
        (POSITION, "RAMP=0 KAPPA=20 TAU=3", Grid(0.0, 1.0, 50), {"kappa_eV": 20.0, "tau": 3.0}),
        (POSITION, "RAMP=5 PRIOR=fes.dat", Grid(0.0, 1.0, 50), {"ramp": 5, "prior": True}),
        (
            "p: POSITION ATOM=1 NOPBC\nx: CUSTOM ARG=p.x FUNC=7*x PERIODIC=-pi,pi",
            "RAMP=100",
            Grid(-np.pi, np.pi, 50, periodic=True),
            {"ramp": 100},
        ),
    ],
)
def test_step_by_step_against_the_reference(
    make_plumed: MakePlumed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cv: str,
    keywords: str,
    grid: Grid,
    options: dict[str, Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    if options.get("prior"):
        xi = np.linspace(-0.1, 1.1, 37)
        rows = "\n".join(f"{x:.17g} {x**2:.17g}" for x in xi)
        Path("fes.dat").write_text(f"#! FIELDS xi file.free\n{rows}\n")
        options = {**options, "prior": prior_derivative(grid, xi, xi**2)}
    name, ends = ("x", "-pi GRID_MAX=pi") if grid.periodic else ("x.x", "0 GRID_MAX=1")
    handle = make_plumed(
        1,
        f"{cv}\nb: BABF ARG={name} TEMP=300 GRID_MIN={ends} GRID_BIN=50 {keywords} "
        f"STATE_WFILE=state FES_FILE=fes_out\nPRINT ARG={name},b.* FILE=COLVAR FMT=%.17g",
    )
    run(handle, recorded_series())
    handle.finalize()
    colvar = np.loadtxt("COLVAR")
    state = read_state("state")
    estimator = Estimator(grid, state.kT_eV, argument=name, **options)
    assert state.kT_eV == pytest.approx(KT, rel=1e-5)
    for _, xi, bias, zeta in colvar:
        now = estimator.learn(xi)
        assert bias == pytest.approx(now.bias_eV, rel=1e-12, abs=1e-12)
        # The reference's zeta is not wrapped into the domain.
        assert np.abs(grid.distances(zeta) - grid.distances(float(now.zeta))).min() < 1e-12
    reference = estimator.state
    scale = np.abs(reference.sums).max(axis=1, keepdims=True)
    np.testing.assert_allclose(state.sums / scale, reference.sums / scale, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state.prior, reference.prior, rtol=1e-12, atol=1e-12)
    assert (state.steps, state.argument) == (400, name)
    assert (state.kappa_eV, state.tau) == pytest.approx((reference.kappa_eV, reference.tau))
    written, expected = read_fes("fes_out"), estimate_profile([state])
    for column in ("A", "A_k"):
        ours, theirs = getattr(written, column), getattr(expected, column)
        assert np.array_equal(np.isnan(ours), np.isnan(theirs))
        assert np.nanmax(np.abs((ours - theirs) - (ours - theirs)[np.isfinite(ours)][0])) < 1e-11
        assert np.nanmin(ours) == 0


def test_forces_are_the_derivative_of_the_bias(make_plumed: MakePlumed, tmp_path: Path) -> None:
    handle = make_plumed(1, f"{POSITION}\n{BABF}")
    run(handle, recorded_series())
    h = 1e-5
    for x in [-0.05, 0.0, 0.123, 0.5, 0.987, 1.04]:
        below, above = (bias_at(handle, np.array([x + shift]))[0] for shift in (-h, h))
        force = bias_at(handle, np.array([x]))[1][0]
        assert force == pytest.approx(-(above - below) / (2 * h), rel=1e-6, abs=1e-6)
    handle.finalize()


@pytest.mark.parametrize("cut", [1, 37, 250])
def test_restart_is_exact_to_the_last_bit(
    make_plumed: MakePlumed, tmp_path: Path, cut: int
) -> None:
    lines = f"{POSITION}\n{BABF} STATE_WSTRIDE=25"
    check_two_parts(make_plumed, tmp_path, lines, recorded_series(), cut)


def test_a_restart_keeps_the_solve_stride(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """A restart works without the keyword; with it, the new value is used and written."""
    series, lines = recorded_series(), f"{POSITION}\n{BABF} STATE_WFILE={tmp_path}/"
    whole = make_plumed(1, f"{lines}whole SOLVE_STRIDE=7")
    run(whole, series)
    whole.finalize()
    first = make_plumed(1, f"{lines}parts SOLVE_STRIDE=7", log="first.log")
    run(first, series[:153])
    first.finalize()
    second = make_plumed(1, f"{lines}parts STATE_RFILE={tmp_path}/parts", log="second.log")
    run(second, series[153:], first=153)
    second.finalize()
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert "#! SET solve_stride 7\n" in (tmp_path / "whole").read_text()
    keywords = f"SOLVE_STRIDE=1000 STATE_RFILE={tmp_path}/parts"
    third = make_plumed(1, f"{lines}third {keywords}", log="third.log")
    run(third, series[:1])
    third.finalize()
    assert "solve_stride" not in (tmp_path / "third").read_text()  # it is the default


def test_calculate_without_update_does_not_learn(make_plumed: MakePlumed, tmp_path: Path) -> None:
    handle = make_plumed(1, f"{POSITION}\n{BABF} STATE_WFILE={tmp_path}/state")
    x = np.array([0.4])
    before = step(handle, 0, x, "performCalcNoUpdate")
    assert np.array_equal(step(handle, 0, x, "performCalcNoUpdate"), before)
    step(handle, 1, x)
    handle.finalize()
    assert read_state(tmp_path / "state").steps == 1


def test_merged_states_are_the_sum_and_can_be_continued(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    series = recorded_series()
    for name, part in [("one", series[:150]), ("two", series[150:])]:
        handle = make_plumed(1, f"{POSITION}\n{BABF} STATE_WFILE={tmp_path}/{name}", log=name)
        run(handle, part)
        handle.finalize()
    one, two = read_state(tmp_path / "one"), read_state(tmp_path / "two")
    merged = one + two
    assert merged.steps == 400
    np.testing.assert_array_equal(merged.sums, one.sums + two.sums)
    write_state(tmp_path / "merged", merged)
    handle = make_plumed(
        1, f"{POSITION}\n{BABF} STATE_RFILE={tmp_path}/merged STATE_WFILE={tmp_path}/again"
    )
    handle.finalize()
    assert (tmp_path / "again").read_bytes() == (tmp_path / "merged").read_bytes()


@pytest.mark.parametrize("cut", [2, 37])
def test_a_step_computed_again_after_a_restart_counts_once(
    make_plumed: MakePlumed, tmp_path: Path, cut: int
) -> None:
    lines = f"{POSITION}\n{BABF}"
    check_two_parts(make_plumed, tmp_path, lines, recorded_series(60), cut, again=1)


def test_a_step_computed_again_has_the_force_it_had(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    """The step is repeated within one run, as between two `run` of LAMMPS, and after a restart."""
    lines = f"{POSITION}\n{BABF} SOLVE_STRIDE=1 STATE_WFILE={tmp_path}/state"
    series = recorded_series(60)
    here = series[-1:]
    handle = make_plumed(1, lines)
    run(handle, series[:-1])
    force = step(handle, 59, here)
    assert np.array_equal(step(handle, 59, here), force)
    handle.finalize()
    written = (tmp_path / "state").read_bytes()
    assert read_state(tmp_path / "state").steps == 60

    lines += f" STATE_RFILE={tmp_path}/state"
    handle = make_plumed(1, lines, log="second.log")
    assert np.array_equal(step(handle, 59, here + 1e-12), force)
    handle.finalize()
    assert (tmp_path / "state").read_bytes() == written

    handle = make_plumed(1, lines, log="third.log")
    # The same number in another place, which is a step of its own; there the bias has changed.
    assert abs(step(handle, 59, here + 1e-4) - force) > 1e-3
    step(handle, 60, here)
    handle.finalize()
    assert read_state(tmp_path / "state").steps == 62


@pytest.mark.parametrize(
    ("cv", "keywords"),
    [
        (POSITION, BABF),
        ("p: POSITION ATOM=1 NOPBC\nx: CUSTOM ARG=p.x FUNC=7*x PERIODIC=-pi,pi", PERIODIC),
        (POSITION, BABF_2D),
    ],
    ids=["line", "circle", "plane"],
)
def test_a_step_computed_again_moves_with_the_cv(
    make_plumed: MakePlumed, tmp_path: Path, cv: str, keywords: str
) -> None:
    """PLUMED's driver checks the forces: they are the derivative of the bias."""
    handle = make_plumed(1, f"{cv}\n{keywords} SOLVE_STRIDE=1 STATE_WFILE={tmp_path}/state")
    places = 0.5 + 0.3 * np.sin(np.arange(40)[:, None] * [1.0, 1.3])
    for number, x in enumerate(places):
        step(handle, number, x[None, :])

    def bias(shift: float) -> float:
        moved = places[-1:] + np.array([[shift, 0.0]])
        step(handle, 39, moved, "performCalcNoUpdate")
        energy = np.zeros(1)
        handle.cmd("getBias", energy)
        return float(energy[0]) * units.kJ / units.mol

    force = step(handle, 39, places[-1:], "performCalcNoUpdate")[0, 0]
    h = 1e-6
    assert abs(force) > 1e-3
    assert force == pytest.approx(-(bias(h) - bias(-h)) / (2 * h), rel=1e-5)
    assert (
        step(handle, 39, places[-1:] + np.array([[h, 0.0]]), "performCalcNoUpdate")[0, 0] == force
    )
    handle.finalize()
    assert read_state(tmp_path / "state").steps == 40


def test_a_bias_on_the_bias_adds_to_the_force(make_plumed: MakePlumed, tmp_path: Path) -> None:
    handle = make_plumed(1, f"{POSITION}\n{BABF}\nBIASVALUE ARG=b.bias")
    single = make_plumed(1, f"{POSITION}\n{BABF}", log="single.log")
    x = np.array([-0.02])
    assert step(handle, 0, x)[0] == pytest.approx(2 * step(single, 0, x)[0], rel=1e-12)
    for one in (handle, single):
        one.finalize()


def test_steps_counted_from_zero_again_are_no_repetition(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    """Segments whose engine counts from 0, also if the number of the last step is repeated."""
    lines = f"{POSITION}\n{BABF} STATE_WFILE={tmp_path}/"
    path = iter(np.linspace(0.4, 0.6, 12))
    for name, count_start, last, steps in [
        ("a", True, 0, 1),  # ends at step 0
        ("b", True, 1, 3),
        ("c", False, 1, 4),  # step 1 is the first one learned from, and was b's last
        ("d", True, 3, 8),
    ]:
        before = chr(ord(name) - 1)
        read = f" STATE_RFILE={tmp_path}/{before}" if name != "a" else ""
        handle = make_plumed(1, lines + name + read, log=name + ".log")
        step(handle, 0, np.array([next(path)]), "calc" if count_start else "performCalcNoUpdate")
        run(handle, np.array([next(path) for _ in range(last)]), first=1)
        handle.finalize()
        assert read_state(tmp_path / name).steps == steps


def test_a_stride_learns_on_its_steps(make_plumed: MakePlumed, tmp_path: Path) -> None:
    handle = make_plumed(
        1,
        f"{POSITION}\n{BABF} STRIDE=3 STATE_WFILE={tmp_path}/state\n"
        f"PRINT ARG=b.bias FILE={tmp_path}/COLVAR",
    )
    run(handle, recorded_series(10))
    handle.finalize()
    assert read_state(tmp_path / "state").steps == 4


def test_a_pace_learns_in_every_so_many_steps(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """BABF applies its bias in every step, unlike actions with STRIDE."""
    series = recorded_series(30)
    every = make_plumed(1, f"{POSITION}\n{BABF} STATE_WFILE={tmp_path}/every")
    run(every, series[::3])
    every.finalize()
    handle = make_plumed(1, f"{POSITION}\n{BABF} PACE=3 STATE_WFILE={tmp_path}/pace", log="p.log")
    for number, x in enumerate(series):
        force = step(handle, number, np.array([x]))
        assert force == pytest.approx(bias_at(handle, np.array([x]))[1]) or number % 3 == 0
    handle.finalize()
    np.testing.assert_array_equal(
        read_state(tmp_path / "pace").sums, read_state(tmp_path / "every").sums
    )
    assert "learned every 3 steps" in (tmp_path / "p.log").read_text()


def test_other_units(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """The same run in kJ/mol and nm, units given by name or number, has the same sums in eV."""
    states = []
    for name, ends, unit in [
        ("eV", "0 GRID_MAX=1", "UNITS LENGTH=A ENERGY=eV"),
        ("kj", "0 GRID_MAX=0.1", "UNITS LENGTH=nm"),
        ("number", "0 GRID_MAX=0.1", "UNITS LENGTH=nm ENERGY=2.5"),
    ]:
        handle = make_plumed(
            1,
            f"{POSITION}\nb: BABF ARG=x.x TEMP=300 GRID_MIN={ends} GRID_BIN=50 RAMP=0 "
            f"STATE_WFILE={tmp_path}/{name}",
            units=unit,
            log=name + ".log",
        )
        run(handle, recorded_series(50))
        handle.finalize()
        states.append(read_state(tmp_path / name))
    for state in states[1:]:
        assert state.kT_eV == pytest.approx(states[0].kT_eV, rel=1e-6)
        np.testing.assert_allclose(state.sums[0], states[0].sums[0], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(0.1 * state.sums[1], states[0].sums[1], rtol=1e-5, atol=1e-6)
