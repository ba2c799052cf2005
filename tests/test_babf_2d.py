"""The reference estimator on two CVs, its surfaces and files, against analytic answers."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from plumed_cv.cli import app
from plumed_cv.common.errors import UserError
from plumed_cv.freeenergy import (
    Estimator,
    Grid,
    State,
    Surface,
    estimate_profile,
    estimate_surface,
    integrate_steps,
    read_fes,
    read_state,
    read_surface,
    split_into_blocks,
    write_state,
    write_surface,
)
from plumed_cv.freeenergy.grids import edges

Array = NDArray[np.float64]
Axes = tuple[Grid, Grid]
KT = 0.02585
TORUS = (Grid(-np.pi, np.pi, 18, periodic=True), Grid(0.0, 2.0, 15, periodic=True))
STRIP = (Grid(-0.2, 1.2, 20), Grid(-np.pi, np.pi, 16, periodic=True))
PLANE = (Grid(-0.2, 1.2, 20), Grid(-1.0, 1.0, 16))
ALL = pytest.mark.parametrize("axes", [TORUS, STRIP, PLANE], ids=["torus", "strip", "plane"])


def wave(axis: Grid, x: Array, turns: int = 1) -> Array:
    return np.asarray(
        np.sin(2 * np.pi * turns * (x - axis.minimum) / (axis.maximum - axis.minimum))
    )


def hills(axes: Axes) -> Callable[[Array, Array], Array]:
    """Return a potential of some kT, periodic where the grid is."""
    first, second = axes
    return lambda x, y: np.asarray(
        KT * (2 * wave(first, x, 2) + wave(second, y) * (1 + wave(first, x)))
    )


def random_points(axes: Axes, number: int, seed: int, beyond: float = 0.03) -> Array:
    rng = np.random.default_rng(seed)
    low = np.array([axis.minimum for axis in axes])
    length = np.array([axis.maximum - axis.minimum for axis in axes])
    return np.asarray(low + length * rng.uniform(-beyond, 1 + beyond, size=(number, 2)))


@dataclass
class Frozen:
    """Two coordinates under a constant bias; exact results by quadrature."""

    axes: Axes
    potential: Callable[[Array, Array], Array]
    stretch: int = 12

    def __post_init__(self) -> None:
        self.empty = Estimator(self.axes, KT, tau=np.inf, argument=("x", "y")).state
        lines, self.springs = [], []
        for axis in self.axes:
            margin = 0.0 if axis.periodic else 8 * axis.spacing
            fine = axis.spacing / self.stretch
            x = np.arange(axis.minimum - margin + fine / 2, axis.maximum + margin, fine)
            lines.append(x)
            distances = np.array([axis.distances(v) for v in x])  # (fine, nodes)
            self.springs.append((distances, np.exp(-0.5 * (distances / axis.spacing) ** 2)))
        self.x, self.y = lines
        # A is flat: P_j is a product of one-dimensional ones, and so is the bias.
        (_, g), (_, h) = self.springs
        bias = -KT * np.log(np.outer(h.sum(axis=1), g.sum(axis=1)))
        U = self.potential(self.x, self.y[:, None])
        density = np.exp(-(U + bias) / KT)
        self.density = density / density.sum()

    def state(self, density: Array, samples: float) -> State:
        """Return the sums of samples with these densities on the fine grid, (y, x)."""
        P, moments, bins = [], [], []
        for axis, x, (d, g) in zip(self.axes, (self.x, self.y), self.springs, strict=True):
            p = g / g.sum(axis=1, keepdims=True)
            P.append(p)
            moments.append(p * d)
            inside = axis.bin(x)
            one = np.zeros_like(p)
            one[np.arange(len(x))[inside >= 0], inside[inside >= 0]] = 1
            bins.append(one)
        w = samples * density
        kappas = self.empty.kappas_eV
        offsets = [m.sum(axis=1) for m in moments]
        sums = [
            P[1].T @ w @ P[0],
            kappas[0] * (P[1].T @ w @ moments[0]),
            kappas[1] * (moments[1].T @ w @ P[0]),
            bins[1].T @ w @ bins[0],
            bins[1].T @ (w * offsets[0]) @ bins[0],
            bins[1].T @ (w * offsets[1][:, None]) @ bins[0],
        ]
        return replace(
            self.empty, steps=round(samples), sums=np.array([values.ravel() for values in sums])
        )


@ALL
def test_exact_sums_give_the_exact_surface(axes: Axes) -> None:
    """With infinitely many samples, only the error of the grid remains."""
    system = Frozen(axes, hills(axes))
    found = estimate_surface([system.state(system.density, 1e6)])
    x, y = found.points
    inner = np.ones(len(x), dtype=bool)
    for axis, z in zip(axes, (x, y), strict=True):
        if not axis.periodic:  # the end bins are half cut off by the wall
            inner &= (z > axis.minimum + axis.spacing) & (z < axis.maximum - axis.spacing)
    U = hills(axes)(x, y)
    assert np.ptp((found.A - U)[inner]) < 0.2 * KT
    # A_k is the convolution with the springs' Gaussian, up to and including the end nodes.
    (_, g), (_, h) = system.springs
    density = np.exp(-system.potential(system.x, system.y[:, None]) / KT)
    convolved = -KT * np.log(h.T @ density @ g).ravel()
    assert np.ptp(found.A_k - convolved) < 0.2 * KT
    assert np.ptp(found.A_k - U) > 0.5 * KT


@ALL
def test_potential_is_exact_and_blind_for_curls(axes: Axes) -> None:
    rng = np.random.default_rng(1)
    n = len(axes[0].nodes) * len(axes[1].nodes)
    A = rng.normal(size=n)
    pairs = edges(axes)
    steps = [A[b] - A[a] for a, b in pairs]
    weights = [10.0 ** rng.uniform(-3, 3, len(step)) for step in steps]
    found, part = integrate_steps(axes, steps, weights)
    np.testing.assert_allclose(found - found[0], A - A[0], atol=1e-8)
    assert not part.any()
    # A turn around each cell of the grid: along its lower side, up, back, and down.
    turns = rng.normal(size=n)
    edge = [dict(zip(zip(a, b, strict=True), range(len(a)), strict=True)) for a, b in pairs]
    turned = [step.copy() for step in steps]
    up = dict(zip(*pairs[1], strict=True))
    for (a, b), i in edge[0].items():
        if a not in up:
            continue
        turned[0][i] += turns[a]
        turned[1][edge[1][b, up[b]]] += turns[a]
        turned[0][edge[0][up[a], up[b]]] -= turns[a]
        turned[1][edge[1][a, up[a]]] -= turns[a]
    equal = [np.ones_like(step) for step in steps]
    found, _ = integrate_steps(axes, turned, equal)
    np.testing.assert_allclose(found - found[0], A - A[0], atol=1e-9)


def test_what_is_not_known_spoils_nothing() -> None:
    """If half of the plane has no samples, the other half remains exact."""
    estimator = Estimator(PLANE, KT, tau=1e-6)
    n = len(estimator.energy)
    x = np.tile(PLANE[0].nodes, len(PLANE[1].nodes))
    y = np.repeat(PLANE[1].nodes, len(PLANE[0].nodes))
    sums = np.zeros((6, n))
    known = x < 0.5
    sums[0, known] = 100.0
    sums[1, known], sums[2, known] = 100 * 0.3, 100 * -0.2
    A = replace(estimator.state, steps=1000, sums=sums).energy()
    plane = 0.3 * (x + 0.2) - 0.2 * (y + 1)
    np.testing.assert_allclose(A[known], plane[known], atol=1e-6)


@ALL
def test_force_is_the_gradient_of_the_bias_and_periods_change_nothing(axes: Axes) -> None:
    estimator = Estimator(axes, KT, ramp=30)
    points = random_points(axes, 120, seed=2)
    for xi in points:
        estimator.learn(xi)
    for xi in [*random_points(axes, 5, seed=3), np.array([-0.4, 1.3])]:
        now = estimator.evaluate(xi)
        assert now.probability.sum() == pytest.approx(1.0, abs=1e-14)
        for d, axis in enumerate(axes):
            shift = 1e-6 * np.eye(2)[d]
            above, below = (estimator.evaluate(xi + s).bias_eV for s in (shift, -shift))
            assert now.force_eV[d] == pytest.approx((below - above) / 2e-6, rel=1e-6, abs=1e-7)
            if axis.periodic:
                period = (axis.maximum - axis.minimum) * np.eye(2)[d]
                assert estimator.evaluate(xi + period).bias_eV == pytest.approx(now.bias_eV)
    far = estimator.state
    if axes == PLANE:
        estimator.learn((30.0, 0.0))
        np.testing.assert_array_equal(estimator.state.sums, far.sums)


def sampled_blocks(system: Frozen, rng: np.random.Generator, number: int, each: int) -> list[State]:
    """Return blocks of independent samples from the exact density."""
    found = []
    for _ in range(number):
        counts = rng.multinomial(each, system.density.ravel()).reshape(system.density.shape)
        found.append(system.state(counts / each, each))
    return found


def test_error_bars_cover_the_truth() -> None:
    """One standard error holds the truth about a node in about 75 % of the cases.

    With few groups (Student) 68 % become 66 %, and the largest of two blockings makes it more. 20
    runs, all of whose nodes are looked at: between runs the share has a spread of some 4 %, so that
    their mean is known to 1 %.
    """
    rng = np.random.default_rng(4)
    system = Frozen(TORUS, hills(TORUS), stretch=4)
    exact = estimate_surface([system.state(system.density, 1e6)])
    truth = exact.A + KT * np.log(np.exp(-exact.A / KT).sum())
    shares = []
    for _ in range(20):
        found = estimate_surface(sampled_blocks(system, rng, 12, 500))
        A = found.A + KT * np.log(np.nansum(np.exp(-found.A / KT)))
        shares.append(np.mean((np.abs(A - truth) < found.A_error)[found.A_error > 0]))
    assert 0.66 < np.mean(shares) < 0.86


def test_empty_bins_and_separate_parts() -> None:
    estimator = Estimator(PLANE, KT)
    for x in (0.0, 0.0, 0.07, 0.9, 0.9, 0.97):
        estimator.learn((x, 0.1))
    found = estimate_surface([estimator.state])
    assert np.isfinite(found.A).sum() == np.count_nonzero(found.count) == 4
    assert np.isfinite(found.A_k).all()
    left = (found.count > 0) & (found.points[0] < 0.5)
    right = (found.count > 0) & (found.points[0] > 0.5)
    above = [np.average((found.A - found.A_k)[s], weights=found.count[s]) for s in (left, right)]
    assert above[0] == pytest.approx(above[1], abs=1e-12)
    with pytest.raises(UserError, match="no sample is on the grid"):
        estimate_surface([Estimator(PLANE, KT).state])


def test_a_bin_whose_node_has_no_weight_leaves_no_nan() -> None:
    """For example if A rises by more than 40 kT in a bin, or in the first step of a ramp."""
    estimator = Estimator(PLANE, KT)
    for x in (0.0, 0.07, 0.14, 0.21):
        estimator.learn((x, 0.1))
    state = estimator.state
    sums = state.sums.copy()
    node = int(np.flatnonzero(state.count)[1])
    sums[:3, node] = 0.0  # weight and forces, but not the samples
    found = estimate_surface([replace(state, sums=sums)])
    assert found.count[node] > 0
    assert np.isfinite(found.A_k).all()
    assert np.isfinite(found.A[found.count > 0]).all()


def test_states_add_subtract_and_refuse() -> None:
    estimator = Estimator(STRIP, KT, ramp=50, argument=("d", "phi"))
    states = [estimator.state]
    for k in range(3):
        for xi in random_points(STRIP, 40, seed=k):
            estimator.learn(xi)
        states.append(estimator.state)
    first, second, third = split_into_blocks(states[1:])
    together = first + second + third
    assert together.steps == 120
    np.testing.assert_allclose(together.sums, states[-1].sums, rtol=1e-12, atol=1e-14)
    with pytest.raises(UserError, match="in their order"):
        _ = states[1] - states[2]
    with pytest.raises(UserError, match="differ in argument"):
        _ = states[1] + replace(states[1], arguments=("phi", "d"))
    with pytest.raises(UserError, match="differ in kappa_eV"):
        _ = states[1] + replace(states[1], kappas_eV=(1.0, 2.0))
    with pytest.raises(UserError, match="have two CVs, d and phi, and this needs one"):
        estimate_profile([states[1]])
    with pytest.raises(UserError, match="this needs two"):
        estimate_surface([Estimator(STRIP[0], KT).state])


def test_state_file_returns_every_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    prior = rng.normal(size=(2, 21 * 16))
    estimator = Estimator(STRIP, KT, ramp=7, prior=prior, argument=("d.x", "phi"))
    for xi in random_points(STRIP, 50, seed=9):
        estimator.learn(xi)
    write_state(tmp_path / "state", estimator.state)
    back = read_state(tmp_path / "state")
    np.testing.assert_array_equal(back.sums, estimator.state.sums)
    np.testing.assert_array_equal(back.prior, prior)
    for name in ("arguments", "axes", "kT_eV", "kappas_eV", "tau", "ramp", "steps"):
        assert getattr(back, name) == getattr(estimator.state, name)
    # In another unit all energies are another's, and nothing else is.
    text = re.sub("#! SET checksum .*\n", "", (tmp_path / "state").read_text())
    (tmp_path / "state").write_text(text.replace("energy_unit eV", "energy_unit kj/mol"))
    other = read_state(tmp_path / "state")
    np.testing.assert_allclose(other.sums[1:3], back.sums[1:3] / 96.485, rtol=1e-5)
    np.testing.assert_array_equal(other.sums[[0, 3, 4, 5]], back.sums[[0, 3, 4, 5]])
    assert other.kappas_eV == pytest.approx(np.array(back.kappas_eV) / 96.485, rel=1e-5)
    for length in np.random.default_rng(1).integers(0, len(text) - 1, 60):
        (tmp_path / "state").write_text(text[:length])
        with pytest.raises(UserError):
            read_state(tmp_path / "state")


def some_surface() -> tuple[Surface, list[State]]:
    system = Frozen(TORUS, hills(TORUS), stretch=4)
    parts = sampled_blocks(system, np.random.default_rng(9), 6, 400)
    return estimate_surface(parts), parts


def test_surface_file(tmp_path: Path) -> None:
    found, _ = some_surface()
    path = tmp_path / "fes.dat"
    write_surface(path, found)
    back = read_surface(path)
    for name in ("A_k", "A", "A_k_error", "A_error", "count"):
        np.testing.assert_array_equal(getattr(back, name), getattr(found, name))
    assert (back.arguments, back.axes, back.kT_eV) == (found.arguments, found.axes, found.kT_eV)
    table = np.loadtxt(path)
    np.testing.assert_array_equal(table[:, :2].T, found.points)
    sections = path.read_text().strip().split("\n\n")
    assert len(sections) == TORUS[1].bins
    assert found.minima()[0][1].value == 0.0
    with pytest.raises(UserError, match="not a complete profile"):
        read_fes(path)
    path.write_text(path.read_text().rsplit("\n", 2)[0] + "\n")
    with pytest.raises(UserError, match="not a complete free energy on two CVs"):
        read_surface(path)


def test_command_line(tmp_path: Path) -> None:
    """`plumed-cv fes` makes file, picture and a summary of states on two CVs."""
    found, parts = some_surface()
    for k, part in enumerate(parts):
        write_state(tmp_path / f"{k}.state", part)
    states = [str(tmp_path / f"{k}.state") for k in range(len(parts))]
    output = ["-o", str(tmp_path / "fes.dat"), "--picture", str(tmp_path / "fes.png")]
    done = CliRunner().invoke(app, ["fes", *states, "--walkers", "--json", *output])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    (x, y), A = found.minima()[0]
    assert result["md_steps"] == 2400
    assert (result["minima"][0]["x"], result["minima"][0]["y"]) == (x, y)
    assert A.value == result["minima"][0]["A_eV"] == 0.0
    np.testing.assert_array_equal(read_surface(tmp_path / "fes.dat").A, found.A)
    assert (tmp_path / "fes.png").read_bytes().startswith(b"\x89PNG")
    done = CliRunner().invoke(app, ["fes", *states, "--walkers", *output])
    assert "bins visited in 2,400 steps; minima:" in done.stdout
    done = CliRunner().invoke(app, ["fes", *states, "--walkers", "--product", "2", *output])
    assert "need one CV" in str(done.exception)
