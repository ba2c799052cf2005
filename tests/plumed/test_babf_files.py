"""The files of BABF in a real PLUMED: restarts, backups, checkpoints, locales."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import plumed
import pytest

from plumed_cv.freeenergy import (
    read_state,
)
from plumed_cv.setup.kernel import Plumed
from plumed_cv.setup.tools import cxx_compiler
from tests.conftest import unavailable
from tests.plumed.babf import (
    BABF,
    POSITION,
    MakePlumed,
    recorded_series,
    run,
    sentence,
)


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
    """A graphical program sets the user's locale, in which 0.5 may be written as 0,5."""
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
    """GROMACS requests a checkpoint in one step and never withdraws the request."""
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
    """With STRIDE, PLUMED omits some steps; the state is written in the next computed one."""
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
    """The engine repeats the step of the checkpoint, from which nothing was learned."""
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
    """PLUMED buffers lines of output; a run may be killed right after a state was written."""
    babf = f"{BABF} STATE_WFILE={tmp_path}/state STATE_WSTRIDE=25"
    handle = make_plumed(1, f"{POSITION}\n{babf}\nPRINT ARG=x.x FILE={tmp_path}/colvar STRIDE=5")
    run(handle, recorded_series(50))
    assert read_state(tmp_path / "state").steps == 50
    lines = (tmp_path / "colvar").read_text().splitlines()
    assert [float(line.split()[0]) for line in lines[1:]] == [5.0 * k for k in range(10)]
