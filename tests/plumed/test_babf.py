"""BABF in a real PLUMED against the reference estimator: bias, forces, files, restarts, units.

test_babf_landscapes.py has the profiles that it finds, test_babf_walkers.py several walkers,
test_babf_mistakes.py what it refuses, test_babf_2d.py two CVs; babf.py what they share.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import plumed
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
from plumed_cv.setup.kernel import Plumed
from plumed_cv.setup.tools import cxx_compiler
from tests.conftest import unavailable
from tests.plumed.babf import (
    BABF,
    KT,
    POSITION,
    MakePlumed,
    bias_at,
    check_two_parts,
    recorded_series,
    run,
    sentence,
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
    """Without the keyword too; with it the new one is taken, and written."""
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
    """In the same run, as in LAMMPS from one `run` to the next, and after a restart."""
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
    """As when PLUMED's driver checks the forces: they are the derivative of the bias there too."""
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
    """Segments whose engine counts from 0: also where the last step's number comes again."""
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
    """And biases in all of them, as no STRIDE does."""
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


def test_one_input_begins_and_goes_on(make_plumed: MakePlumed, tmp_path: Path) -> None:
    state = tmp_path / "state"
    lines = f"{POSITION}\n{BABF} STATE_RFILE={state} STATE_WFILE={state}"
    with pytest.raises(plumed.PlumedError) as caught:
        make_plumed(1, f"{lines} RESTART=YES", log="refused.log")
    assert f"{state}: is not there" in sentence(caught.value)
    for log, steps in [("first.log", 10), ("second.log", 20)]:
        handle = make_plumed(1, lines, log=log)
        run(handle, recorded_series(10), first=steps - 10)
        handle.finalize()
        assert read_state(state).steps == steps
    log = (tmp_path / "first.log").read_text()
    assert f"starting from zero, because {state} does not exist yet" in log
    assert f"continuing from {state}" in (tmp_path / "second.log").read_text()


def test_one_input_begins_and_goes_on_in_a_replica(
    tmp_path: Path, plumed_installation: Plumed, plugin: Path
) -> None:
    """PLUMED adds the number of the replica to the names of files."""
    program = tmp_path / "replica"
    include = plumed_installation.include_dir
    assert include is not None
    kernel = plumed_installation.kernel
    command = [cxx_compiler(), "-std=c++17", "-I", str(include), "-I", str(include / "plumed")]
    command += [str(Path(__file__).with_name("replica.cpp")), "-o", str(program), str(kernel)]
    subprocess.run([*command, f"-Wl,-rpath,{kernel.parent}"], check=True)
    (tmp_path / "plumed.dat").write_text(
        f"LOAD FILE={plugin}\n{POSITION}\n{BABF} STATE_RFILE=state.dat STATE_WFILE=state.dat\n"
    )
    environment = {**os.environ, **plumed_installation.environment()}
    for first in (0, 10):
        arguments = [str(program), "plumed.dat", str(first), "10"]
        subprocess.run(arguments, check=True, cwd=tmp_path, env=environment)
        assert read_state(tmp_path / "state.0.dat").steps == first + 10
    assert not (tmp_path / "state.dat").exists()


def test_restart_of_the_engine_can_be_overruled(make_plumed: MakePlumed, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("of another run\n")
    keywords = f"{BABF} STATE_WFILE={tmp_path}/state"
    handle = make_plumed(1, f"{POSITION}\n{keywords} RESTART=NO", restart=True)
    run(handle, recorded_series(10))
    handle.finalize()
    assert read_state(tmp_path / "state").steps == 10
    assert (tmp_path / "bck.0.state").read_text() == "of another run\n"


def test_restart_does_not_lose_a_state(make_plumed: MakePlumed, tmp_path: Path) -> None:
    handle = make_plumed(1, f"{POSITION}\n{BABF} STATE_WFILE={tmp_path}/state")
    run(handle, recorded_series(10))
    handle.finalize()
    before = (tmp_path / "state").read_bytes()
    handle = make_plumed(1, POSITION, restart=True, log="second.log")
    with pytest.raises(plumed.PlumedError) as caught:
        handle.cmd("readInputLine", f"{BABF} STATE_WFILE={tmp_path}/state")
    assert f"give STATE_RFILE={tmp_path}/state" in sentence(caught.value)
    # Going on works, and a run that ends before its first step leaves the file as it is.
    lines = f"{POSITION}\n{BABF} STATE_RFILE={tmp_path}/state STATE_WFILE={tmp_path}/state"
    handle.finalize()
    handle = make_plumed(1, lines, restart=True, log="third.log")
    handle.finalize()
    assert (tmp_path / "state").read_bytes() == before
    assert not list(tmp_path.glob("bck.*"))


def test_files_have_points_in_every_locale(
    plumed_installation: Plumed, plugin: Path, tmp_path: Path
) -> None:
    """A program with a window sets the user's locale, which may write 0,5 for 0.5."""
    localedef = shutil.which("localedef")
    command = [localedef or "", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")]
    if localedef is None or subprocess.run(command, check=False).returncode != 0:
        unavailable("no locale with a decimal comma can be made: apt-get install locales")
    code = f"""
import ctypes, locale, sys
import numpy as np
import plumed
from tests.plumed.babf import step
locale.setlocale(locale.LC_NUMERIC, "de_DE.UTF-8")
text = ctypes.create_string_buffer(9)
ctypes.CDLL(None).snprintf(text, 9, b"%.1f", ctypes.c_double(0.5))
assert text.value == b"0,5"
handle = plumed.Plumed(kernel={str(plumed_installation.kernel)!r})
handle.cmd("setNatoms", 1)
handle.cmd("setLogFile", "/dev/null")
handle.cmd("init")
files = "STATE_WFILE={tmp_path}/state FES_FILE={tmp_path}/fes FMT=%8.3f"
for line in ("LOAD FILE={plugin}", {POSITION!r}, {BABF!r} + " " + files):
    handle.cmd("readInputLine", line)
step(handle, 0, np.array([1.5]))
handle.finalize()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"LOCPATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_state(tmp_path / "state").steps == 1
    for name in ("state", "fes"):
        assert "," not in (tmp_path / name).read_text()


def test_a_run_that_learns_nothing_writes_no_empty_files(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    handle = make_plumed(1, f"{POSITION}\n{BABF} STATE_WFILE={tmp_path}/a FES_FILE={tmp_path}/f")
    handle.finalize()
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("restart", [False, True])
def test_outputs_of_another_run_are_backed_up(
    make_plumed: MakePlumed, tmp_path: Path, restart: bool
) -> None:
    handle = make_plumed(1, f"{POSITION}\n{BABF} STATE_WFILE={tmp_path}/a")
    run(handle, recorded_series(10))
    handle.finalize()
    (tmp_path / "b").write_text("a state of another run\n")
    (tmp_path / "fes").write_text("a profile\n")
    files = f"STATE_RFILE={tmp_path}/a STATE_WFILE={tmp_path}/b FES_FILE={tmp_path}/fes"
    handle = make_plumed(1, f"{POSITION}\n{BABF} {files}", restart=restart, log="second.log")
    handle.finalize()
    # It has learned nothing, and passes the state on.
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert (tmp_path / "bck.0.b").read_text() == "a state of another run\n"
    assert (tmp_path / "bck.0.fes").exists() == (not restart)
    assert not (tmp_path / "bck.0.a").exists()


def test_files_are_written_as_asked(make_plumed: MakePlumed, tmp_path: Path) -> None:
    (tmp_path / "fes.dat").write_text("of another run\n")
    handle = make_plumed(
        1,
        f"{POSITION}\n{BABF} FES_FILE={tmp_path}/fes.dat FES_STRIDE=10 "
        f"STATE_WFILE={tmp_path}/state",
    )
    assert (tmp_path / "bck.0.fes.dat").read_text() == "of another run\n"
    run(handle, recorded_series(9))
    assert not (tmp_path / "fes.dat").exists()
    run(handle, recorded_series(11)[9:], first=9)
    assert np.loadtxt(tmp_path / "fes.dat")[:, 4].sum() == pytest.approx(sum(range(1, 11)) / 100)
    assert not (tmp_path / "state").exists()
    handle.finalize()
    assert read_state(tmp_path / "state").steps == 11
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("withdraws", [False, True])
@pytest.mark.parametrize(
    ("keywords", "expected"),
    [("", 21), ("PACE=4", 20), ("STRIDE=4", 20), ("UPDATE_UNTIL=10.5", 10)],
)
def test_files_are_written_at_the_step_of_a_checkpoint_only(
    make_plumed: MakePlumed, tmp_path: Path, keywords: str, expected: int, withdraws: bool
) -> None:
    """GROMACS requests a checkpoint in one step, and never says that the request is over."""
    state = tmp_path / "state"
    handle = make_plumed(
        1,
        f"{POSITION}\n{BABF} STATE_WFILE={state} FES_FILE={tmp_path}/fes {keywords}\n"
        f"PRINT ARG=x.x FILE={tmp_path}/COLVAR",
    )
    series = recorded_series(60)
    run(handle, series[:21])
    assert not state.exists()
    handle.cmd("doCheckPoint", 1)
    run(handle, series[21:22], first=21)
    assert f"#! SET md_step {expected}\n" in state.read_text()
    assert (tmp_path / "fes").exists()
    first = state.stat()
    if withdraws:
        handle.cmd("doCheckPoint", 0)
    run(handle, series[22:49], first=22)
    assert (state.stat().st_ino, state.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    if withdraws:
        handle.cmd("doCheckPoint", 1)
        run(handle, series[49:50], first=49)
        assert (state.stat().st_ino, state.stat().st_mtime_ns) != (first.st_ino, first.st_mtime_ns)


def test_a_checkpoint_in_a_step_without_plumed(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """With STRIDE PLUMED computes nothing in some steps: the next one writes, and learns then."""
    state = tmp_path / "state"
    handle = make_plumed(1, f"{POSITION}\n{BABF} STRIDE=4 STATE_WFILE={state}")
    series = recorded_series(30)
    run(handle, series[:21])
    handle.cmd("doCheckPoint", 1)
    run(handle, series[21:22], first=21)
    handle.cmd("doCheckPoint", 0)
    run(handle, series[22:25], first=22)
    assert "#! SET md_step 20\n" in state.read_text()
    handle.finalize()
    assert "#! SET md_step 24\n" in state.read_text()


def test_a_run_from_a_checkpoint_of_a_pace_is_exact(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    """The engine computes the step of the checkpoint again, in which nothing was learned."""
    series, state = recorded_series(40), tmp_path / "parts"
    lines = f"{POSITION}\n{BABF} PACE=3 STATE_WFILE={tmp_path}/"
    whole = make_plumed(1, f"{lines}whole")
    run(whole, series)
    whole.finalize()
    first = make_plumed(1, f"{lines}parts", log="first.log")
    run(first, series[:20])
    first.cmd("doCheckPoint", 1)
    run(first, series[20:21], first=20)
    (tmp_path / "kept").write_bytes(state.read_bytes())
    run(first, series[21:30], first=21)  # lost: the run is killed
    first.finalize()
    second = make_plumed(1, f"{lines}parts STATE_RFILE={tmp_path}/kept", log="second.log")
    run(second, series[20:], first=20)
    second.finalize()
    assert state.read_bytes() == (tmp_path / "whole").read_bytes()


def test_what_was_printed_before_a_state_is_there_with_it(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    """PLUMED keeps lines back, here without end; a run may be killed right after a state."""
    babf = f"{BABF} STATE_WFILE={tmp_path}/state STATE_WSTRIDE=25"
    handle = make_plumed(1, f"{POSITION}\n{babf}\nPRINT ARG=x.x FILE={tmp_path}/colvar STRIDE=5")
    run(handle, recorded_series(50))
    assert read_state(tmp_path / "state").steps == 50
    lines = (tmp_path / "colvar").read_text().splitlines()
    assert [float(line.split()[0]) for line in lines[1:]] == [5.0 * k for k in range(10)]


def test_other_units(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """The same run in kJ/mol and nm, by name and by number: the same sums, in eV."""
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
