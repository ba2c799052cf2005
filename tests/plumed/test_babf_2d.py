"""BABF on two CVs in a real PLUMED: against the reference, analytic landscapes, files, walkers."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
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
    State,
    estimate_surface,
    read_state,
    read_surface,
    write_state,
    write_surface,
)
from plumed_cv.setup.kernel import Plumed
from tests.plumed.babf import KT, Array, MakePlumed, bias_at, check_two_parts, run, sentence, step

TORUS = (Grid(-np.pi, np.pi, 24, periodic=True), Grid(-np.pi, np.pi, 20, periodic=True))
STRIP = (Grid(-0.2, 1.2, 28), Grid(-np.pi, np.pi, 20, periodic=True))
PLANE = (Grid(-0.2, 1.2, 28), Grid(-1.0, 1.0, 25))


def cvs(axes: tuple[Grid, Grid], atoms: int = 1) -> str:
    """Return the CVs x0, y0, x1, ... : the first two coordinates of every atom."""
    lines = []
    for i in range(atoms):
        lines.append(f"p{i}: POSITION ATOM={i + 1} NOPBC")
        for name, axis in zip("xy", axes, strict=True):
            domain = "-pi,pi" if axis.periodic else "NO"
            lines.append(f"{name}{i}: CUSTOM ARG=p{i}.{name} FUNC=x PERIODIC={domain}")
    return "\n".join(lines)


def grid_of(axes: tuple[Grid, Grid]) -> str:
    def each(numbers: list[str]) -> str:
        return ",".join(numbers)

    low = each(["-pi" if axis.periodic else f"{axis.minimum}" for axis in axes])
    high = each(["pi" if axis.periodic else f"{axis.maximum}" for axis in axes])
    return f"TEMP=300 GRID_MIN={low} GRID_MAX={high} GRID_BIN={axes[0].bins},{axes[1].bins}"


def babf(axes: tuple[Grid, Grid], keywords: str = "RAMP=100", atom: int = 0) -> str:
    return f"b{atom}: BABF ARG=x{atom},y{atom} {grid_of(axes)} {keywords}"


def recorded_series(axes: tuple[Grid, Grid], length: int = 400) -> Array:
    """Return points over the grid that leave it slightly, and once by a large distance."""
    rng = np.random.default_rng(1)
    waves = np.sin(np.cumsum(rng.normal(scale=0.3, size=(400, 2)), axis=0))
    centre = np.array([0.5 * (axis.minimum + axis.maximum) for axis in axes])
    length_of = np.array([axis.maximum - axis.minimum for axis in axes])
    series = centre + 0.53 * length_of * waves
    series[30] = 40.0
    return np.asarray(series[:length])


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


@dataclass
class Landscape:
    """A potential in kT on two coordinates, its gradient, and a grid."""

    potential: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], tuple[Array, Array]]
    axes: tuple[Grid, Grid]
    start: tuple[float, float]


# A double well of 6 kT along x that leans, and a harmonic y; and two wells on a torus, 8 kT deep.
LANDSCAPES = {
    "double well": Landscape(
        lambda x, y: 96 * (x * (1 - x)) ** 2 + 8 * (y - 0.4 * (x - 0.5)) ** 2,
        lambda x, y: (
            192 * x * (1 - x) * (1 - 2 * x) - 6.4 * (y - 0.4 * (x - 0.5)),
            16 * (y - 0.4 * (x - 0.5)),
        ),
        PLANE,
        (0.0, -0.2),
    ),
    "torus": Landscape(
        lambda x, y: 2 * np.cos(2 * x) + 2 * np.cos(y) + 1.5 * np.sin(x - y),
        lambda x, y: (
            -4 * np.sin(2 * x) + 1.5 * np.cos(x - y),
            -2 * np.sin(y) - 1.5 * np.cos(x - y),
        ),
        TORUS,
        (-1.5, 3.0),
    ),
}
RUNNERS = 8  # on each landscape
CHUNKS = 10  # of each run


def langevin(handle: Any, folder: Path, land: Landscape, steps: int, seed: int = 3) -> list[State]:
    """Move independent runs, each with its own BABF; return blocks without the first part.

    Inertial Langevin dynamics (BAOAB) in units of kT and the thermal velocity, with steps of 0.6
    grid spacings at the thermal velocity along either CV (whose masses differ for that).
    """
    rng = np.random.default_rng(seed)
    dt = 0.6
    scale = np.array([axis.spacing for axis in land.axes])
    decay = np.exp(-dt / 15)
    kick = np.sqrt(1 - decay**2)
    x = np.tile(np.array(land.start), (RUNNERS, 1))
    v = rng.normal(size=x.shape)

    def forces(bias: Array) -> Array:
        return np.asarray(scale * (bias / KT - np.array(land.gradient(*x.T)).T))

    f = forces(np.zeros_like(x))
    states = []
    for chunk in range(CHUNKS):
        for s in range(steps // CHUNKS):
            v += 0.5 * dt * f
            x += 0.5 * dt * scale * v
            v = decay * v + kick * rng.normal(size=x.shape)
            x += 0.5 * dt * scale * v
            f = forces(step(handle, chunk * (steps // CHUNKS) + s, x))
            v += 0.5 * dt * f
        states.append([read_state(folder / f"state{i}") for i in range(RUNNERS)])
    blocks = []
    for i in range(RUNNERS):
        series = [chunk[i] for chunk in states]
        blocks += [later - earlier for earlier, later in pairwise(series)]
    return [State(**{**vars(b), "arguments": ("x", "y")}) for b in blocks]


def exact_convolution(land: Landscape, stretch: int = 12) -> Array:
    """Return the potential seen through the springs at the nodes, kT, by quadrature."""
    lines, points = [], []
    for axis in land.axes:
        fine = axis.spacing / stretch
        margin = 0.0 if axis.periodic else 9 * axis.spacing
        points.append(np.arange(axis.minimum - margin + fine / 2, axis.maximum + margin, fine))
        distances = axis.nodes[:, None] - points[-1]
        if axis.periodic:
            length = axis.maximum - axis.minimum
            distances -= length * np.round(distances / length)
        lines.append(np.exp(-0.5 * (distances / axis.spacing) ** 2))
    density = np.exp(-land.potential(points[0][:, None], points[1]))
    return np.asarray(-np.log(lines[0] @ density @ lines[1].T).T.ravel())


@pytest.mark.parametrize("name", list(LANDSCAPES))
def test_analytic_landscape(make_plumed: MakePlumed, tmp_path: Path, name: str) -> None:
    """A and A_k of adaptive runs are the analytic ones within their errors.

    8 runs of 40000 steps; 350 to 418 bins below 7 kT, with errors of 0.05 to 0.1 kT. Over six seeds
    of 30000 steps the root mean square deviation of A was 0.070 to 0.093 kT and of A_k 0.031 to
    0.062 kT; a third more steps takes 13 % off, and 0.12 is more than five standard deviations
    away. The mean square of the deviation over the error (with 0.03 kT for the grid's) was below
    1.1.
    """
    land = LANDSCAPES[name]
    n = RUNNERS
    lines = [cvs(land.axes, n)]
    lines += [
        babf(land.axes, f"RAMP=5000 STATE_WFILE={tmp_path}/state{i} STATE_WSTRIDE=4000", i)
        for i in range(n)
    ]
    handle = make_plumed(n, "\n".join(lines))
    blocks = langevin(handle, tmp_path, land, 40000)
    handle.finalize()
    found = estimate_surface(blocks)
    U = land.potential(*found.points)
    inner = U - U.min() < 7
    for axis, z in zip(land.axes, found.points, strict=True):
        if not axis.periodic:
            inner &= (z > axis.minimum + axis.spacing) & (z < axis.maximum - axis.spacing)
    convolved = exact_convolution(land)
    for A, error, truth in (
        (found.A, found.A_error, U),
        (found.A_k, found.A_k_error, convolved),
    ):
        known = inner & (error > 0)
        assert known.sum() > 0.95 * inner.sum()
        off = (A / found.kT_eV - truth)[known]
        size = error[known] / found.kT_eV
        off -= np.sum(off / size**2) / np.sum(1 / size**2)
        assert np.sqrt(np.mean(off**2)) < 0.12
        assert 0.02 < np.median(size) < 0.2
        assert np.mean(off**2 / (size**2 + 0.03**2)) < 2


def test_a_frozen_prior_is_the_bias(make_plumed: MakePlumed, tmp_path: Path) -> None:
    """PRIOR from a file in the plane with TAU=inf: the bias is minus the profile, smoothed."""
    land = LANDSCAPES["torus"]
    rng = np.random.default_rng(5)
    handle = make_plumed(1, f"{cvs(TORUS)}\n{babf(TORUS)} STATE_WFILE={tmp_path}/state")
    run(handle, rng.uniform(-np.pi, np.pi, size=(300, 2)))
    handle.finalize()
    found = estimate_surface([read_state(tmp_path / "state")])
    U = 0.2 * KT * land.potential(*found.points)
    exact = type(found)(**{**vars(found), "A_k": U, "A": U})
    write_surface(tmp_path / "fes.dat", exact)
    back = read_surface(tmp_path / "fes.dat")
    np.testing.assert_array_equal(back.A_k, U)
    handle = make_plumed(
        1,
        f"{cvs(TORUS)}\n{babf(TORUS, 'RAMP=0 TAU=inf')} PRIOR={tmp_path}/fes.dat\n"
        f"PRINT ARG=x0,y0,b0.bias FILE={tmp_path}/COLVAR FMT=%.17g",
        log="second.log",
    )
    run(handle, rng.uniform(-np.pi, np.pi, size=(200, 2)))
    handle.finalize()
    _, x, y, bias = np.loadtxt(tmp_path / "COLVAR").T
    off = bias + 0.2 * KT * land.potential(x, y)
    assert np.std(off) < 0.1 * KT  # the grid's and the spring's width


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
