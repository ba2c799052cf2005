"""BABF on two CVs in a real PLUMED: against the reference, files, walkers, mistakes."""

from pathlib import Path
from typing import Any

import numpy as np
import plumed
import pytest
from ase import units

from plumed_cv.cv import random_model
from plumed_cv.freeenergy import (
    Estimator,
    Grid,
    estimate_surface,
    read_state,
    read_surface,
    write_state,
)
from plumed_cv.setup.kernel import Plumed
from tests.plumed.babf import Array, MakePlumed, bias_at, check_two_parts, run, sentence, step
from tests.plumed.babf_2d import PLANE, STRIP, TORUS, babf, cvs, grid_of, recorded_series


@pytest.mark.parametrize("axes", [TORUS, STRIP, PLANE], ids=["torus", "strip", "plane"])
@pytest.mark.parametrize(
    ("keywords", "options"),
    [
        ("RAMP=100", {"ramp": 100}),
        ("RAMP=0 KAPPA=20,5 TAU=3 SOLVE_STRIDE=7", {"kappa_eV": (20.0, 5.0), "tau": 3.0}),
    ],
)
def test_step_by_step_against_the_reference(
    make_plumed: MakePlumed,
    tmp_path: Path,
    axes: tuple[Grid, Grid],
    keywords: str,
    options: dict[str, Any],
) -> None:
    stride = 7 if "SOLVE" in keywords else 1000
    handle = make_plumed(
        1,
        f"{cvs(axes)}\n{babf(axes, keywords)} STATE_WFILE={tmp_path}/state "
        f"FES_FILE={tmp_path}/fes\nPRINT ARG=x0,y0,b0.* FILE={tmp_path}/COLVAR FMT=%.17g",
    )
    run(handle, recorded_series(axes))
    handle.finalize()
    colvar = np.loadtxt(tmp_path / "COLVAR")
    state = read_state(tmp_path / "state")
    estimator = Estimator(axes, state.kT_eV, argument=("x0", "y0"), solve_stride=stride, **options)
    for _, x, y, bias, zeta_x, zeta_y in colvar:
        now = estimator.learn((x, y))
        assert bias == pytest.approx(now.bias_eV, rel=1e-12, abs=1e-12)
        for axis, ours, theirs in zip(axes, now.zeta, (zeta_x, zeta_y), strict=True):
            # The reference's zeta is not wrapped into the domain.
            assert np.abs(axis.distances(theirs) - axis.distances(float(ours))).min() < 1e-11
    reference = estimator.state
    scale = np.abs(reference.sums).max(axis=1, keepdims=True)
    np.testing.assert_allclose(state.sums / scale, reference.sums / scale, rtol=0, atol=1e-12)
    assert (state.steps, state.arguments, state.axes) == (400, ("x0", "y0"), axes)
    assert state.kappas_eV == pytest.approx(reference.kappas_eV)
    assert state.tau == pytest.approx(reference.tau)
    written, expected = read_surface(tmp_path / "fes"), estimate_surface([state])
    for column in ("A", "A_k"):
        ours, theirs = getattr(written, column), getattr(expected, column)
        assert np.array_equal(np.isnan(ours), np.isnan(theirs))
        difference = (ours - theirs)[np.isfinite(ours)]
        assert np.ptp(difference) < 1e-9
        assert np.nanmin(ours) == 0


@pytest.mark.parametrize("axes", [TORUS, PLANE], ids=["torus", "plane"])
def test_forces_are_the_gradient_of_the_bias(
    make_plumed: MakePlumed, tmp_path: Path, axes: tuple[Grid, Grid]
) -> None:
    handle = make_plumed(1, f"{cvs(axes)}\n{babf(axes)}")
    run(handle, recorded_series(axes))
    h = 1e-5
    for x in np.array([[0.0, 0.1], [0.9, -0.9], [1.21, 0.3], [3.14159, -3.14159]]):
        force = bias_at(handle, x[None])[1][0]
        for d in range(2):
            shift = h * np.eye(2)[d]
            above, below = (bias_at(handle, (x + by)[None])[0] for by in (shift, -shift))
            assert force[d] == pytest.approx(-(above - below) / (2 * h), rel=1e-6, abs=1e-6)
    handle.finalize()


@pytest.mark.parametrize("cut", [1, 37, 250])
def test_restart_is_exact_to_the_last_bit(
    make_plumed: MakePlumed, tmp_path: Path, cut: int
) -> None:
    lines = f"{cvs(STRIP)}\n{babf(STRIP)} STATE_WSTRIDE=25"
    check_two_parts(make_plumed, tmp_path, lines, recorded_series(STRIP), cut)


def test_merged_states_can_be_continued(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """A sum of states that Python writes continues like the state of a single run."""
    series = recorded_series(TORUS)
    lines = f"{cvs(TORUS)}\n{babf(TORUS)}"
    for name, part in [("one", series[:150]), ("two", series[150:])]:
        handle = make_plumed(1, f"{lines} STATE_WFILE={tmp_path}/{name}", log=name)
        run(handle, part)
        handle.finalize()
    merged = read_state(tmp_path / "one") + read_state(tmp_path / "two")
    write_state(tmp_path / "merged", merged)
    handle = make_plumed(
        1,
        f"{lines} STATE_RFILE={tmp_path}/merged STATE_WFILE={tmp_path}/again\n"
        f"PRINT ARG=x0,y0,b0.bias FILE={tmp_path}/COLVAR FMT=%.17g",
    )
    run(handle, series[:3], first=1000)
    handle.finalize()
    estimator = Estimator.from_state(merged)
    for _, x, y, bias in np.loadtxt(tmp_path / "COLVAR"):
        assert bias == pytest.approx(estimator.learn((x, y)).bias_eV, rel=1e-11)
    again = read_state(tmp_path / "again")
    np.testing.assert_allclose(again.sums, estimator.state.sums, rtol=1e-11, atol=1e-11)


def test_one_walker_is_a_run_without_walkers(make_plumed: MakePlumed, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    walker = f"WALKERS_N=1 WALKERS_ID=0 WALKERS_RSTRIDE=10 WALKERS_DIR={tmp_path}/shared"
    for name, keywords in [("without", ""), ("with", walker)]:
        handle = make_plumed(
            1,
            f"{cvs(STRIP)}\n{babf(STRIP)} {keywords} STATE_WFILE={tmp_path}/{name}",
            log=f"{name}.log",
        )
        run(handle, recorded_series(STRIP, 200))
        handle.finalize()
    assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes()


def test_two_walkers_learn_one_surface(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """With a constant bias, two walkers and one run with the samples of both have equal sums."""
    (tmp_path / "shared").mkdir()
    keywords = "RAMP=0 TAU=inf"
    handles = [
        make_plumed(
            1,
            f"{cvs(STRIP)}\n{babf(STRIP, keywords)} STATE_WFILE={tmp_path}/state{w} "
            f"FES_FILE={tmp_path}/fes{w} WALKERS_N=2 WALKERS_ID={w} WALKERS_RSTRIDE={5 + w} "
            f"WALKERS_DIR={tmp_path}/shared",
            log=f"{w}.log",
        )
        for w in range(2)
    ]
    one = make_plumed(
        1,
        f"{cvs(STRIP)}\n{babf(STRIP, keywords)} STATE_WFILE={tmp_path}/state "
        f"FES_FILE={tmp_path}/fes",
        log="one.log",
    )
    series = recorded_series(STRIP)
    for s in range(180):  # a number at which both exchange
        for w in range(2):
            x = series[2 * s + w][None]
            step(handles[w], s, x)
            step(one, 2 * s + w, x)
    for handle in [one, *handles]:
        handle.finalize()
    whole = read_state(tmp_path / "state")
    total = read_state(tmp_path / "state0") + read_state(tmp_path / "state1")
    scale = np.abs(whole.sums).max(axis=1, keepdims=True)
    np.testing.assert_allclose(total.sums / scale, whole.sums / scale, rtol=0, atol=1e-14)
    # The second has read the first one's last file.
    theirs, ours = read_surface(tmp_path / "fes"), read_surface(tmp_path / "fes1")
    np.testing.assert_allclose(ours.count, theirs.count, rtol=0, atol=1e-12)
    assert np.nanmax(np.abs(ours.A - theirs.A)) < 1e-9


def test_one_walkers_samples_push_the_other(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """While the bias is learned, a walker is biased by the samples of the other one."""
    (tmp_path / "shared").mkdir()
    walker = f"WALKERS_N=2 WALKERS_RSTRIDE=10 WALKERS_DIR={tmp_path}/shared"
    lines = f"{cvs(TORUS)}\n{babf(TORUS, 'RAMP=0')}"
    first = make_plumed(1, f"{lines} {walker} WALKERS_ID=0 STATE_WFILE={tmp_path}/state")
    run(first, recorded_series(TORUS, 300))
    first.finalize()
    second = make_plumed(1, f"{lines} {walker} WALKERS_ID=1", log="second.log")
    third = make_plumed(1, f"{lines} STATE_RFILE={tmp_path}/state", log="third.log")
    for x in ([0.3, 0.4], [-2.0, 3.0]):
        point = np.array([x])
        a, b = step(second, 0, point), step(third, 1000, point)
        np.testing.assert_allclose(a, b, rtol=0, atol=0.05 * np.abs(b).max() + 1e-3)
    for handle in (second, third):
        handle.finalize()


def test_plumed_reads_the_surface(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """PLUMED can read a profile file as a grid, except for names; NumPy can read it too."""
    handle = make_plumed(
        1, f"{cvs(TORUS)}\n{babf(TORUS)} FES_FILE={tmp_path}/fes.dat FES_STRIDE=100"
    )
    run(handle, recorded_series(TORUS))
    handle.finalize()
    found = read_surface(tmp_path / "fes.dat")
    lines = ["#! FIELDS x0 y0 e.bias der_x0 der_y0"]
    for line in (tmp_path / "fes.dat").read_text().splitlines()[1:]:
        words = line.split()
        header = words[:1] == ["#!"]
        if not header or words[2].split("_")[0] in ("min", "max", "nbins", "periodic"):
            lines.append(line if header else " ".join(words[i] for i in (0, 1, 2, 4, 5) if words))
    domain = [line.replace("3.1415926535897931", "pi") for line in lines[:9]]
    (tmp_path / "external.dat").write_text("\n".join(domain + lines[9:]) + "\n")
    handle = make_plumed(
        1,
        f"{cvs(TORUS)}\ne: EXTERNAL ARG=x0,y0 FILE={tmp_path}/external.dat\n"
        f"PRINT ARG=e.bias FILE={tmp_path}/again.dat FMT=%.17g",
        log="second.log",
    )
    run(handle, found.points.T + 1e-9)
    handle.finalize()
    again = np.loadtxt(tmp_path / "again.dat")[:, 1]
    np.testing.assert_allclose(again, found.A_k, rtol=0, atol=1e-6)
    x, y, A_k = np.loadtxt(tmp_path / "fes.dat", usecols=(0, 1, 2)).T
    np.testing.assert_allclose(found.points, [x, y], rtol=0, atol=1e-12)
    # Blocks of gnuplot: one for every node along the second CV.
    sections = (tmp_path / "fes.dat").read_text().strip().split("\n\n")
    assert len(sections) == TORUS[1].bins
    np.testing.assert_array_equal(found.on_grid(found.A_k), A_k.reshape(20, 24))


BAD_INPUT = {
    "one number of bins": (
        "TEMP=300 GRID_MIN=-pi,-pi GRID_MAX=pi,pi GRID_BIN=20 RAMP=0",
        "GRID_BIN has 1 numbers for the 2 CVs of ARG",
    ),
    "three springs": (f"{grid_of(TORUS)} RAMP=0 KAPPA=1,2,3", "KAPPA has 3 numbers for the 2 CVs"),
    "second spring negative": (f"{grid_of(TORUS)} RAMP=0 KAPPA=1,-2", "KAPPA must be positive"),
    "not the domain": (
        "TEMP=300 GRID_MIN=-pi,0 GRID_MAX=pi,2 GRID_BIN=20,20 RAMP=0",
        "the CV y0 is periodic, so the grid must be its domain: give GRID_MIN=-pi and GRID_MAX=pi",
    ),
    "too many nodes": (
        "TEMP=300 GRID_MIN=-pi,-pi GRID_MAX=pi,pi GRID_BIN=9000,9000 RAMP=0",
        "give a smaller GRID_BIN",
    ),
    "no stride": (f"{grid_of(TORUS)} RAMP=0 SOLVE_STRIDE=0", "SOLVE_STRIDE=0 must be a positive"),
    "prior on one CV": (f"{grid_of(TORUS)} RAMP=0 PRIOR=line.dat", "needs three columns"),
    "prior with holes": (f"{grid_of(TORUS)} RAMP=0 PRIOR=holes.dat", "rows are no grid of 2 by 2"),
    "state of one CV": (f"{grid_of(TORUS)} RAMP=100 STATE_RFILE=state", "is of the CV"),
}


@pytest.mark.parametrize("mistake", BAD_INPUT)
def test_mistakes_end_in_one_sentence(
    make_plumed: MakePlumed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line.dat").write_text("#! FIELDS x A\n -4 1\n 4 2\n")
    (tmp_path / "holes.dat").write_text("#! FIELDS x y A\n -4 -4 1\n 4 4 2\n 4 -4 3\n")
    keywords, message = BAD_INPUT[mistake]
    handle = make_plumed(1, cvs(TORUS))
    line = "TEMP=300 GRID_MIN=-pi GRID_MAX=pi GRID_BIN=24 RAMP=100 STATE_WFILE=state"
    handle.cmd("readInputLine", f"c: BABF ARG=x0 {line}")
    step(handle, 0, np.array([[0.1, 0.2]]))
    handle.finalize()
    handle = make_plumed(1, cvs(TORUS), log="second.log")
    with pytest.raises(plumed.PlumedError) as caught:
        handle.cmd("readInputLine", f"b: BABF ARG=x0,y0 {keywords}")
    assert message in sentence(caught.value)
    handle.finalize()


def test_one_cv_named_twice(make_plumed: MakePlumed, plumed_installation: Plumed) -> None:
    handle = make_plumed(1, cvs(TORUS))
    with pytest.raises(plumed.PlumedError, match="ARG names x0 twice"):
        handle.cmd("readInputLine", f"b: BABF ARG=x0,x0 {grid_of(TORUS)} RAMP=0")
    handle.finalize()


def test_two_learned_variables_at_once(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """BABF on both latent dimensions of an autoencoder: forces on atoms against differences."""
    rng = np.random.default_rng(3)
    model = random_model(rng, 9, 5, (6,), 2, "tanh", 8.0 * np.eye(3))
    model.save(tmp_path / "cv.safetensors")
    start = model.reference_positions + rng.normal(scale=0.02, size=(9, 3))
    x, y = model.value(start, model.reference_cell)
    lines = (
        f"ae: AUTOENCODER MODEL={tmp_path}/cv.safetensors\n"
        f"b: BABF ARG=ae.node-0,ae.node-1 TEMP=300 GRID_MIN={x - 1},{y - 1} "
        f"GRID_MAX={x + 1},{y + 1} GRID_BIN=30,30 RAMP=0"
    )

    def bias(handle: Any, number: int, r: Array) -> tuple[float, Array]:
        positions, forces = 0.1 * r, np.zeros((9, 3))
        masses, virial, energy = np.ones(9), np.zeros((3, 3)), np.zeros(1)
        handle.cmd("setStep", number)
        for command, value in [
            *(("setPositions", positions), ("setBox", 0.8 * np.eye(3)), ("setMasses", masses)),
            *(("setForces", forces), ("setVirial", virial)),
        ]:
            handle.cmd(command, value)
        handle.cmd("calc")
        handle.cmd("getBias", energy)
        unit = units.kJ / units.mol
        return float(energy[0]) * unit, forces * 0.1 * unit

    handle = make_plumed(9, f"{lines} STATE_WFILE={tmp_path}/state")
    for s in range(200):
        bias(handle, s, start + rng.normal(scale=0.03, size=(9, 3)))
    handle.finalize()
    state = read_state(tmp_path / "state")
    assert state.arguments == ("ae.node-0", "ae.node-1")
    assert state.count.sum() > 100
    handle = make_plumed(
        9, f"{lines} STATE_RFILE={tmp_path}/state UPDATE_UNTIL=0", log="second.log"
    )
    force = bias(handle, 0, start)[1]
    assert np.abs(force).max() > 1e-3
    h = 1e-5
    for i, a in [(0, 0), (4, 1), (8, 2)]:
        shift = np.zeros((9, 3))
        shift[i, a] = h
        slope = (bias(handle, 0, start + shift)[0] - bias(handle, 0, start - shift)[0]) / (2 * h)
        assert force[i, a] == pytest.approx(-slope, rel=1e-5, abs=1e-6)
    handle.finalize()
