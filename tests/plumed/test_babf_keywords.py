"""Keywords that BABF has in common with METAD and OPES_METAD."""

from pathlib import Path

import numpy as np
import pytest
from ase import units

from plumed_cv.freeenergy import read_fes, read_state
from tests.plumed.babf import (
    BABF,
    KT,
    POSITION,
    MakePlumed,
    check_two_parts,
    recorded_series,
    run,
)


def test_a_grid_by_its_spacing_is_that_by_its_bins(make_plumed: MakePlumed, tmp_path: Path) -> None:
    files = []
    for n, grid in enumerate(["GRID_BIN=50", "GRID_SPACING=0.02", "GRID_SPACING=0.0203"]):
        babf = f"{BABF} STATE_WFILE={tmp_path}/{n}".replace("GRID_BIN=50", grid)
        handle = make_plumed(1, f"{POSITION}\n{babf}", log=f"{n}.log")
        run(handle, recorded_series(60))
        handle.finalize()
        files.append((tmp_path / str(n)).read_bytes())
    assert files[0] == files[1] == files[2]


def test_fmt_is_the_format_of_the_profile(make_plumed: MakePlumed, tmp_path: Path) -> None:
    lines = f"{POSITION}\n"
    for name, fmt in [("exact", ""), ("rounded", "FMT=%9.4f")]:
        lines += f"{BABF.replace('b:', f'{name}:')} FES_FILE={tmp_path}/{name} {fmt}\n"
    handle = make_plumed(1, lines)
    run(handle, recorded_series(60))
    handle.finalize()
    exact, rounded = read_fes(tmp_path / "exact"), read_fes(tmp_path / "rounded")
    np.testing.assert_allclose(rounded.A_k, exact.A_k, atol=0.51e-4)
    np.testing.assert_allclose(rounded.A, exact.A, atol=0.51e-4)  # NaN in the same bins
    text = (tmp_path / "rounded").read_text()
    assert "checksum" in (tmp_path / "exact").read_text()
    assert "checksum" not in text
    row = text.splitlines()[-1]
    assert row == "".join(
        f" {'NAN' if word == 'NAN' else f'{float(word):9.4f}'}" for word in row.split()
    )


def test_states_are_stored(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """Each one is the state at its step, and those of another run are backed up."""
    babf = f"{BABF} STATE_WFILE={tmp_path}/state.dat STATE_WSTRIDE=20 STORE_STATES"
    (tmp_path / "state.20.dat").write_text("of another run\n")
    handle = make_plumed(1, f"{POSITION}\n{babf}")
    run(handle, recorded_series(50))
    handle.finalize()
    assert (tmp_path / "bck.0.state.20.dat").read_text() == "of another run\n"
    for steps in (20, 40):
        short = make_plumed(1, f"{POSITION}\n{BABF} STATE_WFILE={tmp_path}/short", log="short.log")
        run(short, recorded_series(steps))
        short.finalize()
        stored = tmp_path / f"state.{steps}.dat"
        assert stored.read_bytes() == (tmp_path / "short").read_bytes()
    assert read_state(tmp_path / "state.dat").steps == 50
    assert not (tmp_path / "state.50.dat").exists()


WALL = "r: RESTRAINT ARG=x.x AT=0.5 KAPPA=0.3"


def test_extra_bias_reweights_the_samples(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """With a constant bias, the result equals explicit sums."""
    series = recorded_series()
    series = series[np.abs(series) < 1.5]
    babf = f"{BABF.replace('RAMP=100', 'RAMP=0')} TAU=inf EXTRA_BIAS=r.bias"
    handle = make_plumed(1, f"{POSITION}\n{WALL}\n{babf} STATE_WFILE={tmp_path}/state")
    run(handle, series)
    handle.finalize()
    state = read_state(tmp_path / "state")
    weights = np.exp(0.5 * 0.3 * (series - 0.5) ** 2 / KT)
    assert weights.max() > 2 * weights.min()
    nodes, kappa = np.linspace(0, 1, 51), KT / 0.02**2
    distances = nodes - series[:, None]
    P = np.exp(-0.5 * kappa * (distances**2 - (distances**2).min(1, keepdims=True)) / KT)
    P = weights[:, None] * P / P.sum(1, keepdims=True)
    learned = np.abs(series - np.clip(series, 0, 1)) < np.sqrt(80 * KT / kappa)
    scale = P[learned].sum(0)
    np.testing.assert_allclose(state.sums[0], scale, rtol=1e-5, atol=1e-9)
    force = (kappa * P * distances)[learned].sum(0)
    np.testing.assert_allclose(state.sums[1], force, rtol=1e-5, atol=1e-5 * np.abs(force).max())
    inside = np.abs(series - 0.5) < 0.51
    counts = np.histogram(series[inside], np.linspace(-0.01, 1.01, 52), weights=weights[inside])[0]
    np.testing.assert_allclose(state.sums[2], counts, rtol=1e-5)
    assert "#! SET extra_bias r.bias\n" in (tmp_path / "state").read_text()


def test_a_run_with_an_extra_bias_restarts_exactly(make_plumed: MakePlumed, tmp_path: Path) -> None:
    lines = f"{POSITION}\n{WALL}\n{BABF} EXTRA_BIAS=r.bias"
    check_two_parts(make_plumed, tmp_path, lines, recorded_series(120), 37)
    without = f"{POSITION}\n{BABF} STATE_RFILE={tmp_path}/whole"
    with pytest.raises(Exception, match=r"has extra_bias=r\.bias but here it is"):
        make_plumed(1, without, log="without.log")


def test_steps_with_a_very_large_extra_bias_are_not_learned(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    wall = f"r: RESTRAINT ARG=x.x AT=0.5 KAPPA={2 * 41 * KT / 0.4**2}"
    babf = f"{BABF} EXTRA_BIAS=r.bias STATE_WFILE={tmp_path}/state"
    handle = make_plumed(1, f"{POSITION}\n{wall}\n{babf}")
    run(handle, np.array([0.5, 0.9, 0.1, 0.52]))
    handle.finalize()
    state = read_state(tmp_path / "state")
    assert state.steps == 4
    assert np.flatnonzero(state.sums[2]).tolist() == [25, 26]
    log = (tmp_path / "plumed.log").read_text()
    assert log.count("EXTRA_BIAS is 41 kT in step 1: steps") == 1


def test_the_wall_is_not_part_of_the_profile(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """Spread samples of a flat landscape under a harmonic bias, weighted by its distribution.

    Each place appears as often as the bias allows, so the profile with EXTRA_BIAS is flat, and the
    one without is the bias itself. Sums over a fine grid have no statistical error.
    """
    kappa = 40 * KT
    places = np.linspace(0.2, 0.8, 31)
    often = np.rint(40 * np.exp(-0.5 * kappa * (places - 0.5) ** 2 / KT)).astype(int)
    series = np.repeat(places, often)
    wall = f"r: RESTRAINT ARG=x.x AT=0.5 KAPPA={kappa}"
    babf = BABF.replace("RAMP=100", "RAMP=0 TAU=inf")
    lines = f"{POSITION}\n{wall}\n{babf} EXTRA_BIAS=r.bias FES_FILE={tmp_path}/without_wall\n"
    lines += f"{babf.replace('b:', 'c:')} FES_FILE={tmp_path}/with_wall"
    handle = make_plumed(1, lines)
    run(handle, series)
    handle.finalize()
    without_wall, with_wall = read_fes(tmp_path / "without_wall"), read_fes(tmp_path / "with_wall")
    middle = slice(15, 36)
    assert np.ptp(without_wall.A[middle]) < 0.05 * KT
    wanted = 0.5 * kappa * (with_wall.xi[middle] - 0.5) ** 2
    np.testing.assert_allclose(with_wall.A[middle] - with_wall.A[25], wanted, atol=0.05 * KT)


def test_one_replica_is_a_walker_alone(make_plumed: MakePlumed, tmp_path: Path) -> None:
    files = []
    for n, walkers in enumerate(["", "WALKERS_MPI", "WALKERS_MPI WALKERS_RSTRIDE=7"]):
        babf = f"{POSITION}\n{BABF} STATE_WFILE={tmp_path}/{n} {walkers}"
        handle = make_plumed(1, babf, log=f"{n}.log")
        run(handle, recorded_series(60))
        handle.finalize()
        files.append((tmp_path / str(n)).read_bytes())
    assert files[0] == files[1]
    assert "every 7 learned steps" in (tmp_path / "2.log").read_text()
    assert read_state(tmp_path / "2").steps == 60


def test_the_log_repeats_every_choice(make_plumed: MakePlumed, tmp_path: Path) -> None:
    files = f"FES_FILE={tmp_path}/fes FES_STRIDE=30 FMT=%.2f STATE_WFILE={tmp_path}/state"
    babf = (
        f"b: BABF ARG=x.x TEMP=300 GRID_MIN=0 GRID_MAX=1 GRID_BIN=50 RAMP=123 TAU=4.5 KAPPA=55 "
        f"PACE=3 SOLVE_STRIDE=77 EXTRA_BIAS=r.bias {files} STATE_WSTRIDE=40 STORE_STATES "
        "WALKERS_MPI WALKERS_RSTRIDE=50"
    )
    make_plumed(1, f"{POSITION}\n{WALL}\n{babf}")
    log = (tmp_path / "plumed.log").read_text()
    kT = KT / (units.kJ / units.mol) / 96.48530749925793
    for text in (
        f"kT {kT:.6g}"[:8],
        "CV x.x: grid from 0 to 1 with 50 bins of 0.02, KAPPA 55",
        "RAMP 123, TAU 4.5",
        "at the latest after 77",
        "learned every 3 steps",
        "effect of r.bias is removed",
        f"profile: file {tmp_path}/fes, written every 30 learned steps",
        "format of the profile: %.2f",
        f"state: file {tmp_path}/state, written every 40 learned steps",
        "kept in a file of its own",
        "exchange their sums every 50 learned steps",
        "starting from zero",
        "J. Chem. Phys. 140, 104108 (2014)",
    ):
        assert text in log, text
