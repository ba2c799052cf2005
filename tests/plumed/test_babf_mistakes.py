"""Input that BABF refuses, each in one sentence with a remedy."""

import re
from pathlib import Path

import numpy as np
import plumed
import pytest
from ase import units

from plumed_cv.freeenergy import read_state
from plumed_cv.setup.kernel import Plumed
from tests.plumed.babf import (
    BABF,
    GRID,
    POSITION,
    MakePlumed,
    recorded_series,
    run,
    sentence,
    step,
)

BAD_INPUT = {
    "TEMP missing": ("GRID_MIN=0 GRID_MAX=1 GRID_BIN=50 RAMP=0", "give TEMP"),
    "TEMP zero": ("TEMP=0 GRID_MIN=0 GRID_MAX=1 GRID_BIN=50 RAMP=0", "give TEMP"),
    "unknown keyword": (f"{GRID} RAMP=0 BIASFACTOR=5", "cannot understand the following words"),
    "pace zero": (f"{GRID} RAMP=0 PACE=0", "PACE=0 must be a positive number"),
    "multiple time step zero": (f"{GRID} RAMP=0 STRIDE=0", "STRIDE=0 must be a positive number"),
    "multiple time step negative": (f"{GRID} RAMP=0 STRIDE=-1", "STRIDE=-1 must be a positive"),
    "RAMP missing": (GRID, "RAMP is compulsory"),
    "RAMP negative": (f"{GRID} RAMP=-5", "RAMP must be a number of steps"),
    "KAPPA negative": (f"{GRID} RAMP=0 KAPPA=-1", "KAPPA must be positive"),
    "TAU zero": (f"{GRID} RAMP=0 TAU=0", "TAU=0 must be a positive number"),
    "TAU a word": (f"{GRID} RAMP=0 TAU=big", "TAU=big must be a positive number"),
    "no bins": ("TEMP=300 GRID_MIN=0 GRID_MAX=1 GRID_BIN=1 RAMP=0", "GRID_BIN=1 must be from"),
    "bins missing": ("TEMP=300 GRID_MIN=0 GRID_MAX=1 RAMP=0", "give either GRID_BIN or GRID_SP"),
    "bins and spacing": (f"{GRID} RAMP=0 GRID_SPACING=0.1", "give either GRID_BIN or GRID_SPACING"),
    "spacing too large": (
        "TEMP=300 GRID_MIN=0 GRID_MAX=1 GRID_SPACING=1 RAMP=0",
        "GRID_SPACING=1 gives 1 bins",
    ),
    "spacing negative": (
        "TEMP=300 GRID_MIN=0 GRID_MAX=1 GRID_SPACING=-1 RAMP=0",
        "GRID_SPACING=-1 gives",
    ),
    "format of a word": (f"{GRID} RAMP=0 FES_FILE=fes FMT=%s", "FMT=%s is not a format"),
    "format of two": (f"{GRID} RAMP=0 FES_FILE=fes FMT=%f%f", "FMT=%f%f is not a format"),
    "format without a file": (f"{GRID} RAMP=0 FMT=%f", "give FES_FILE, too"),
    "states stored without a stride": (
        f"{GRID} RAMP=0 STATE_WFILE=new STORE_STATES",
        "give STATE_WFILE and STATE_WSTRIDE",
    ),
    "walkers by files and MPI": (
        f"{GRID} RAMP=0 WALKERS_MPI WALKERS_N=2 WALKERS_DIR=.",
        "leave out WALKERS_N",
    ),
    "extra bias that does not exist": (f"{GRID} RAMP=0 EXTRA_BIAS=q.bias", "named q"),
    "grid reversed": (
        "TEMP=300 GRID_MIN=1 GRID_MAX=0 GRID_BIN=50 RAMP=0",
        "a minimum below its maximum",
    ),
    "stride without a file": (f"{GRID} RAMP=0 STATE_WSTRIDE=5", "without STATE_WFILE"),
    "prior missing": (f"{GRID} RAMP=0 PRIOR=absent.dat", "absent.dat: is not there"),
    "prior too short": (f"{GRID} RAMP=0 PRIOR=short.dat", "give a profile over the whole grid"),
    "prior with NaN": (f"{GRID} RAMP=0 PRIOR=nan.dat", "row 2 has a number that is not finite"),
    "prior in another unit": (f"{GRID} RAMP=0 PRIOR=unit.dat", "is in kj/mol"),
    "prior of words": (f"{GRID} RAMP=0 PRIOR=words.dat", "is not a PLUMED text file"),
    "prior is a state": (f"{GRID} RAMP=0 PRIOR=state", "state: is a state and no profile; give"),
    "state missing": (f"{GRID} RAMP=100 STATE_RFILE=absent", "absent: is not there"),
    "state of another grid": (
        "TEMP=300 GRID_MIN=0 GRID_MAX=1 GRID_BIN=51 RAMP=100 STATE_RFILE=state",
        "nbins_x.x=50 but here it is 51",
    ),
    "state of another range": (
        "TEMP=300 GRID_MIN=0 GRID_MAX=2 GRID_BIN=50 RAMP=100 STATE_RFILE=state",
        "max_x.x=1 but here it is 2",
    ),
    "state of another temperature": (
        "TEMP=301 GRID_MIN=0 GRID_MAX=1 GRID_BIN=50 RAMP=100 STATE_RFILE=state",
        "has kT=",
    ),
    "state of another spring": (f"{GRID} RAMP=100 KAPPA=7 STATE_RFILE=state", "has kappa="),
    "state of another ramp": (f"{GRID} RAMP=200 STATE_RFILE=state", "has ramp=100"),
    "state of another tau": (f"{GRID} RAMP=100 TAU=9 STATE_RFILE=state", "has tau="),
    "one file for two": (
        f"{GRID} RAMP=100 STATE_WFILE=new FES_FILE=./new",
        "STATE_WFILE and FES_FILE are both new",
    ),
    "profile over the state": (
        f"{GRID} RAMP=100 STATE_RFILE=state FES_FILE=state",
        "STATE_RFILE and FES_FILE are both state",
    ),
    "number of walkers missing": (f"{GRID} RAMP=0 WALKERS_ID=0", "without WALKERS_N"),
    "no walkers": (f"{GRID} RAMP=0 WALKERS_N=0", "WALKERS_N=0 must be from 1"),
    "walker's number missing": (
        f"{GRID} RAMP=0 WALKERS_N=2 WALKERS_DIR=.",
        "numbers from 0 to 1: give this one by WALKERS_ID.",
    ),
    "walker's number too high": (
        f"{GRID} RAMP=0 WALKERS_N=2 WALKERS_ID=2 WALKERS_DIR=.",
        "give this one by WALKERS_ID, which is 2.",
    ),
    "walkers' folder missing": (f"{GRID} RAMP=0 WALKERS_N=2 WALKERS_ID=0", "without WALKERS_DIR"),
    "walkers' folder not there": (
        f"{GRID} RAMP=0 WALKERS_N=2 WALKERS_ID=0 WALKERS_DIR=absent",
        "WALKERS_DIR=absent is not a folder",
    ),
    "walkers' stride zero": (
        f"{GRID} RAMP=0 WALKERS_N=2 WALKERS_ID=0 WALKERS_DIR=. WALKERS_RSTRIDE=0",
        "WALKERS_RSTRIDE=0 must be a positive number",
    ),
    "walker's file as state": (
        f"{GRID} RAMP=0 WALKERS_N=2 WALKERS_ID=0 WALKERS_DIR=. STATE_WFILE=walker-0.state",
        "walker-0.state: is this walker's file",
    ),
    "state with a wrong step": (f"{GRID} RAMP=100 STATE_RFILE=state_step", "md_step=-3 is no"),
    "state with NaN": (f"{GRID} RAMP=100 STATE_RFILE=state_nan", "row 51 holds a number"),
    "a COLVAR as state": (f"{GRID} RAMP=100 STATE_RFILE=COLVAR", "no '#! SET action'"),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory, start_plumed: MakePlumed) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    handle = start_plumed(folder / "log", 1, f"{POSITION}\n{BABF} STATE_WFILE={folder}/state")
    run(handle, recorded_series(50))
    handle.finalize()
    text = re.sub("#! SET checksum .*\n", "", (folder / "state").read_text())
    words = text.splitlines()[-1].split()
    words[2] = "NAN"
    (folder / "state_nan").write_text("\n".join([*text.splitlines()[:-1], " ".join(words)]) + "\n")
    (folder / "state_step").write_text(text.replace("md_step 49", "md_step -3"))
    (folder / "short.dat").write_text("#! FIELDS x free\n 0 1\n 0.5 2\n")
    (folder / "nan.dat").write_text("#! FIELDS x free\n -1 1\n 0.5 NAN\n 2 1\n")
    (folder / "unit.dat").write_text("#! FIELDS x free\n#! SET energy_unit kj/mol\n -1 1\n 2 1\n")
    (folder / "words.dat").write_text("some words\n")
    (folder / "COLVAR").write_text("#! FIELDS time x.x\n 0 0.5\n")
    return folder


@pytest.mark.parametrize("mistake", BAD_INPUT)
def test_mistakes_end_in_one_sentence(
    make_plumed: MakePlumed, bad_files: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.chdir(bad_files)
    keywords, message = BAD_INPUT[mistake]
    handle = make_plumed(1, POSITION)
    with pytest.raises(plumed.PlumedError) as caught:
        handle.cmd("readInputLine", f"b: BABF ARG=x.x {keywords}")
    assert message in sentence(caught.value)
    handle.finalize()


def test_a_cut_state_is_refused_wherever_it_ends(
    make_plumed: MakePlumed, bad_files: Path, tmp_path: Path
) -> None:
    text = (bad_files / "state").read_text()
    handle = make_plumed(1, POSITION)
    rng = np.random.default_rng(0)
    lengths = [0, 1, len(text) - 1, *rng.integers(2, len(text) - 1, size=40)]
    for i, length in enumerate(lengths):
        (tmp_path / "cut").write_text(text[:length])
        with pytest.raises(plumed.PlumedError) as caught:
            handle.cmd("readInputLine", f"b{i}: {BABF[3:]} STATE_RFILE={tmp_path}/cut")
        assert f"{tmp_path}/cut: " in sentence(caught.value)
    handle.finalize()


@pytest.mark.parametrize("keyword", ["STATE_WFILE", "FES_FILE"])
def test_a_file_that_cannot_be_written_is_refused_at_the_start(
    make_plumed: MakePlumed, tmp_path: Path, keyword: str
) -> None:
    with pytest.raises(plumed.PlumedError) as caught:
        make_plumed(1, f"{POSITION}\n{BABF} {keyword}={tmp_path}/absent/file")
    assert f"{tmp_path}/absent/file: cannot be written: No such file" in sentence(caught.value)


@pytest.mark.parametrize("keyword", ["STATE_WFILE", "FES_FILE"])
@pytest.mark.parametrize("link", [False, True])
def test_a_folder_is_neither_moved_nor_replaced(
    make_plumed: MakePlumed, tmp_path: Path, keyword: str, link: bool
) -> None:
    """PLUMED's backups would rename it with all its files."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "data").touch()
    if link:
        (tmp_path / "link").symlink_to("full")
    output = tmp_path / ("link" if link else "full")
    with pytest.raises(plumed.PlumedError) as caught:
        make_plumed(1, f"{POSITION}\n{BABF} {keyword}={output}")
    assert f"{output}: cannot be written: it is a folder or a device" in sentence(caught.value)
    assert (tmp_path / "full" / "data").is_file()
    assert not list(tmp_path.glob("bck.*"))


def test_a_start_leaves_no_file(make_plumed: MakePlumed, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make_plumed(1, f"{POSITION}\n{BABF} STATE_WFILE={tmp_path}/out/a FES_FILE={tmp_path}/out/b")
    assert not list((tmp_path / "out").iterdir())


def test_a_file_that_cannot_be_written_any_more_ends_the_run(
    make_plumed: MakePlumed, tmp_path: Path
) -> None:
    """The folder of one file disappears; the other file is still written at the end."""
    (tmp_path / "away").mkdir()
    state, profile = tmp_path / "away" / "state", tmp_path / "profile"
    lines = f"{POSITION}\n{BABF} STATE_WFILE={state} STATE_WSTRIDE=2 FES_FILE={profile}"
    handle = make_plumed(1, lines)
    step(handle, 0, np.array([0.5]))
    (tmp_path / "away").rmdir()
    with pytest.raises(plumed.PlumedError) as caught:
        step(handle, 1, np.array([0.5]))
    assert f"{state}: cannot be written: No such file" in sentence(caught.value)
    assert not profile.exists()
    handle.finalize()
    assert "#! SET steps 2\n" in profile.read_text()
    log = (tmp_path / "plumed.log").read_text()
    assert f"+++ WARNING +++ {state}: cannot be written" in log


def test_mistakes_about_the_cv(make_plumed: MakePlumed) -> None:
    handle = make_plumed(1, f"{POSITION}\nphi: CUSTOM ARG=x.x FUNC=x PERIODIC=-pi,pi")
    with pytest.raises(plumed.PlumedError, match="one or two CVs, but ARG names 3"):
        handle.cmd("readInputLine", f"b: BABF ARG=x.x,x.y,x.z {GRID} RAMP=0")
    with pytest.raises(plumed.PlumedError, match="GRID_MIN has 1 numbers for the 2 CVs of ARG"):
        handle.cmd("readInputLine", f"e: BABF ARG=x.x,x.y {GRID} RAMP=0")
    with pytest.raises(plumed.PlumedError, match="give GRID_MIN=-pi and GRID_MAX=pi"):
        handle.cmd("readInputLine", f"c: BABF ARG=phi {GRID} RAMP=0")
    handle.cmd("readInputLine", f"d: {BABF[3:]}")
    with pytest.raises(plumed.PlumedError) as caught:
        step(handle, 0, np.array([np.nan]))
    assert "is not a finite number" in sentence(caught.value)
    handle.finalize()


@pytest.mark.parametrize("files", ["STATE_WFILE=one", "FES_FILE=./one"])
def test_two_actions_do_not_write_one_file(
    make_plumed: MakePlumed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: str
) -> None:
    monkeypatch.chdir(tmp_path)
    handle = make_plumed(1, f"{POSITION}\n{BABF} STATE_WFILE=one")
    with pytest.raises(plumed.PlumedError) as caught:
        handle.cmd("readInputLine", f"c: {BABF[3:]} {files}")
    assert "one: b writes this file, too" in sentence(caught.value)
    handle.finalize()


def test_two_actions_are_not_one_walker(
    make_plumed: MakePlumed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    walker = "WALKERS_N=2 WALKERS_ID=0 WALKERS_DIR=."
    handle = make_plumed(1, f"{POSITION}\n{BABF} {walker}")
    with pytest.raises(plumed.PlumedError) as caught:
        handle.cmd("readInputLine", f"c: {BABF[3:]} {walker}")
    assert "walker-0.state: b writes this file, too" in sentence(caught.value)
    handle.finalize()


@pytest.mark.parametrize("keywords", ["ARG=v", "ARG=x.x EXTRA_BIAS=v"])
def test_a_vector_is_refused(
    make_plumed: MakePlumed, plumed_installation: Plumed, keywords: str
) -> None:
    """PLUMED would bias the first of its numbers, or take it alone as the bias."""
    if plumed_installation.version.startswith("2.9"):
        pytest.skip("values have no shape before 2.10")
    handle = make_plumed(2, f"{POSITION}\nv: DISTANCE ATOMS1=1,2 ATOMS2=2,1")
    with pytest.raises(plumed.PlumedError) as caught:
        handle.cmd("readInputLine", f"b: BABF {keywords} {GRID} RAMP=0")
    assert "v is not a single number: give one of its elements" in sentence(caught.value)
    handle.finalize()


@pytest.mark.parametrize("bias", ["RESTRAINT AT=0.5 KAPPA=1", "UPPER_WALLS AT=99 KAPPA=1"])
def test_a_bias_on_zeta_is_refused(make_plumed: MakePlumed, bias: str) -> None:
    """The argument has no derivatives, and PLUMED would not apply the force."""
    handle = make_plumed(1, f"{POSITION}\n{BABF}\n{bias} ARG=b.zeta")
    with pytest.raises(plumed.PlumedError) as caught:
        step(handle, 0, np.array([0.5]))
    assert "a bias on b.zeta has no force" in sentence(caught.value)
    assert "bias x.x itself" in sentence(caught.value)
    handle.finalize()


@pytest.mark.parametrize("place", [1e155, -1e200, 1e308])
@pytest.mark.parametrize(
    "keywords",
    [
        f"ARG=x.x {GRID}",
        "ARG=x.x,x.y TEMP=300 GRID_MIN=0,0 GRID_MAX=1,1 GRID_BIN=9,9",
    ],
    ids=["line", "plane"],
)
def test_a_cv_whose_spring_has_no_finite_energy_ends_the_run(
    make_plumed: MakePlumed, place: float, keywords: str
) -> None:
    handle = make_plumed(1, f"{POSITION}\nb: BABF {keywords} RAMP=0")
    step(handle, 0, np.array([[0.5, 0.5]]))
    with pytest.raises(plumed.PlumedError) as caught:
        step(handle, 1, np.array([[place, 0.5]]))
    assert "where the bias is not a finite number" in sentence(caught.value)
    handle.finalize()


@pytest.mark.parametrize("start", [-3.5, 5.5])
def test_a_start_far_outside_of_the_grid_is_refused(make_plumed: MakePlumed, start: float) -> None:
    """For example a grid in angstrom and a CV in nm. Later a CV may leave the grid."""
    grid = "TEMP=300 GRID_MIN=-1 GRID_MAX=2 GRID_BIN=50 RAMP=0"
    handle = make_plumed(1, f"{POSITION}\nb: BABF ARG=x.x {grid}")
    with pytest.raises(plumed.PlumedError) as caught:
        step(handle, 0, np.array([start + 0.6 * np.sign(start)]))
    assert (
        f"is {start + 0.6 * np.sign(start):g} at the first step, further away than the width "
        "of its grid from -1 to 2: give GRID_MIN"
    ) in sentence(caught.value)
    handle.finalize()
    handle = make_plumed(1, f"{POSITION}\nb: BABF ARG=x.x {grid}", log="other.log")
    step(handle, 0, np.array([start - 0.6 * np.sign(start)]))
    step(handle, 1, np.array([10 * start]))
    handle.finalize()


def test_another_temperature_than_the_engines_is_refused(make_plumed: MakePlumed) -> None:
    right = 300.0 * 8.314462618e-3  # kJ/mol, as the engine passes it
    handle = make_plumed(1, POSITION, kT=right * (1 + 1e-6))
    handle.cmd("readInputLine", f"b: BABF ARG=x.x {GRID} RAMP=0")
    with pytest.raises(plumed.PlumedError) as caught:
        handle.cmd("readInputLine", f"c: BABF ARG=x.x {GRID.replace('300', '310')} RAMP=0")
    assert "kT is 0.026714 by TEMP and 0.025852 by the engine (eV)" in sentence(caught.value)
    handle.finalize()


def test_the_engine_may_pass_the_temperature(make_plumed: MakePlumed, tmp_path: Path) -> None:
    handle = make_plumed(
        1,
        f"{POSITION}\nb: BABF ARG=x.x GRID_MIN=0 GRID_MAX=1 GRID_BIN=50 RAMP=0 "
        f"STATE_WFILE={tmp_path}/state",
        kT=2.5,
    )
    step(handle, 0, np.array([0.5]))
    handle.finalize()
    assert read_state(tmp_path / "state").kT_eV == pytest.approx(2.5 * units.kJ / units.mol)
