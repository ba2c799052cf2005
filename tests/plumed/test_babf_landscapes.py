"""Profiles that BABF finds on landscapes whose profile is known."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from plumed_cv.freeenergy import (
    Grid,
    Profile,
    State,
    estimate_profile,
    read_fes,
    read_state,
    reweight_profile,
    write_fes,
)
from tests.plumed.babf import KT, Array, MakePlumed, bias_at, step


@dataclass
class Landscape:
    """A potential of one coordinate in kT, its derivative, and a grid."""

    potential: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    grid: Grid
    start: float
    inner: slice
    states: tuple[float, float]


def _well(height: float) -> Landscape:
    return Landscape(
        potential=lambda x: 16 * height * (x * (1 - x)) ** 2,
        slope=lambda x: 32 * height * x * (1 - x) * (1 - 2 * x),
        grid=Grid(-0.2, 1.2, 70 if height < 10 else 100 if height < 40 else 160),
        start=0.0,
        inner=slice(5, -5),
        states=(0.0, 1.0),
    )


LANDSCAPES = {
    "well of 5 kT": _well(5.0),
    "barrier of 20 kT": _well(20.0),
    "periodic": Landscape(
        potential=lambda x: 5 * np.cos(x) + 2 * np.sin(2 * x),
        slope=lambda x: -5 * np.sin(x) + 4 * np.cos(2 * x),
        grid=Grid(-np.pi, np.pi, 70, periodic=True),
        start=-1.5,
        inner=slice(0, None),
        states=(-2.0, 2.0),
    ),
}
WALKERS = 10  # on each landscape
CHUNKS = 10  # of each run


def babf(i: int, land: Landscape, keywords: str) -> tuple[str, str]:
    """Return the CV of atom i, from 0, and the lines of PLUMED for it and BABF on it."""
    low, high = ("-pi", "pi") if land.grid.periodic else ("-0.2", "1.2")
    lines, cv = f"p{i}: POSITION ATOM={i + 1} NOPBC\n", f"p{i}.x"
    if land.grid.periodic:
        cv = f"x{i}"
        lines += f"{cv}: CUSTOM ARG=p{i}.x FUNC=x PERIODIC=-pi,pi\n"
    return cv, lines + (
        f"b{i}: BABF ARG={cv} TEMP=300 GRID_MIN={low} GRID_MAX={high} "
        f"GRID_BIN={land.grid.bins} {keywords}\n"
    )


def state_of(file: Path) -> State:
    """Read a state; the name of the CV of a walker is replaced by one name."""
    return replace(read_state(file), arguments=("x",))


def dynamics(
    walkers: int, steps: int, bias: Callable[[int, Array], Array], seed: int
) -> Iterator[int]:
    """Move walkers on all landscapes; yield after each tenth of the steps.

    Inertial Langevin dynamics (BAOAB) in units of kT, thermal velocity and each landscape's length:
    a mean free path of 0.3 lengths, and steps of 0.8 grid spacings at the thermal velocity. `bias`
    is given the number of the step and the positions, (walkers, landscapes), and returns forces in
    kT.
    """
    rng = np.random.default_rng(seed)
    lands = list(LANDSCAPES.values())
    dt = np.array([0.8 * land.grid.spacing for land in lands])
    friction = 1 / (0.3 * np.array([2 * np.pi if land.grid.periodic else 1.4 for land in lands]))
    decay = np.exp(-friction * dt)
    kick = np.sqrt(1 - decay**2)
    x = np.array([[land.start for land in lands] for _ in range(walkers)])
    v = rng.normal(size=x.shape)

    def slopes() -> Array:
        return np.stack([land.slope(x[:, i]) for i, land in enumerate(lands)], axis=1)

    f = -slopes()
    for s in range(steps):
        v += 0.5 * dt * f
        x += 0.5 * dt * v
        v = decay * v + kick * rng.normal(size=x.shape)
        x += 0.5 * dt * v
        f = bias(s, x) - slopes()
        v += 0.5 * dt * f
        if (s + 1) % (steps // CHUNKS) == 0:
            yield (s + 1) // (steps // CHUNKS)


def in_blocks(chunks: list[list[list[State]]]) -> dict[str, list[State]]:
    """Return the blocks of each landscape from states (chunk, walker, landscape).

    The first chunk, which fills the wells, is left out: nine blocks of every walker, one after the
    other in time, walker by walker.
    """
    return {
        name: [
            later[w][i] - earlier[w][i]
            for w in range(len(chunks[0]))
            for earlier, later in pairwise(chunks)
        ]
        for i, name in enumerate(LANDSCAPES)
    }


def langevin(
    start_plumed: MakePlumed,
    folder: Path,
    steps: int,
    keywords: Callable[[str], str],
    seed: int = 0,
) -> dict[str, list[State]]:
    """Move WALKERS, each with a BABF of its own, in one PLUMED; return their blocks.

    COLVAR has the CV and the bias of every walker on every landscape, every 10 steps.
    """
    lines, columns = "", []
    for i in range(WALKERS * len(LANDSCAPES)):
        name, land = list(LANDSCAPES.items())[i % len(LANDSCAPES)]
        state = f"STATE_WFILE={folder}/state{i} STATE_WSTRIDE={steps // CHUNKS}"
        cv, more = babf(i, land, f"{keywords(name)} {state}")
        lines += more
        columns += [cv, f"b{i}.bias"]
    lines += f"PRINT ARG={','.join(columns)} STRIDE=10 FILE={folder}/COLVAR FMT=%.9g"
    handle = start_plumed(folder / "log", WALKERS * len(LANDSCAPES), lines)

    def bias(s: int, x: Array) -> Array:
        return step(handle, s, x.ravel()).reshape(x.shape) / KT

    chunks = []
    for _ in dynamics(WALKERS, steps, bias, seed):
        states = [state_of(folder / f"state{i}") for i in range(WALKERS * len(LANDSCAPES))]
        n = len(LANDSCAPES)
        chunks.append([states[w * n : (w + 1) * n] for w in range(WALKERS)])
    handle.finalize()
    return in_blocks(chunks)


def deviation(found: Profile, land: Landscape) -> Array:
    """Return A minus the analytic profile in kT, without its mean over the inner nodes."""
    difference = (found.A / found.kT_eV - land.potential(found.xi))[land.inner]
    return np.asarray(difference - difference.mean())


GOLDEN = (np.sqrt(5) - 1) / 2


def _torsion(x: Array) -> Array:
    """Two wells and a maximum between 3, beyond the domain's end, and 2.2, where A is higher."""
    around = np.where(x > 2.6, x - 2 * np.pi, x)
    return np.asarray(np.where((x > 2.2) & (x < 3.0), np.inf, 3 * np.cos(2 * x) + 1.1 * around))


EVENLY = LANDSCAPES | {
    "barrier of 50 kT": _well(50.0),
    "torsion with a forbidden region": Landscape(
        potential=_torsion,
        slope=lambda x: -6 * np.sin(2 * x) + 1.1,
        grid=Grid(-np.pi, np.pi, 90, periodic=True),
        start=0.0,
        inner=slice(2, 75),
        states=(-1.7, 1.4),
    ),
}


@pytest.mark.parametrize("name", list(EVENLY))
def test_analytic_barriers_to_a_twentieth_of_kt(
    start_plumed: MakePlumed, tmp_path: Path, name: str
) -> None:
    """20000 positions as the present bias has them, but evenly: nothing is random.

    Each is where the cumulative distribution has the next multiple of the golden ratio, modulo 1.
    So every bin gets its share to a sample or so. The profile is then right to 0.008, 0.015 and
    0.007 kT, root mean square, at every node to 0.04 kT; rounding changes that by nothing. Over 50
    kT, which take most of the steps to fill, it is right to 0.028 kT and the barrier to 0.048 kT.
    Of the torsion a part of the circle has no samples: nothing closes it.
    """
    land, steps, refresh = EVENLY[name], 20000, 100
    files = f"STATE_WFILE={tmp_path}/state STATE_WSTRIDE={steps // CHUNKS} FES_FILE={tmp_path}/fes"
    handle = start_plumed(tmp_path / "log", 1, babf(0, land, f"RAMP=4000 {files}")[1])
    margin = 0.0 if land.grid.periodic else 5 * land.grid.spacing
    low, high = land.grid.minimum - margin, land.grid.maximum + margin
    fine = np.linspace(low, high, 6 * land.grid.bins)
    chunks = []
    for s in range(steps):
        if s % refresh == 0:
            bias = np.array([bias_at(handle, x[None])[0] for x in fine]) / KT
            energy = land.potential(fine) + bias
            density = np.exp(energy.min() - energy)
            share = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
        x = np.interp((s * GOLDEN) % 1 * share[-1], share, fine)
        step(handle, s, np.array([x]))
        if (s + 1) % (steps // CHUNKS) == 0:
            chunks.append(state_of(tmp_path / "state"))
    handle.finalize()
    found = estimate_profile([later - earlier for earlier, later in pairwise(chunks)], land.states)
    off = deviation(found, land)
    bound = 0.1 if name == "barrier of 50 kT" else 0.05
    assert np.sqrt(np.mean(off**2)) < bound / 2
    U = land.potential(found.xi)[land.inner]
    middle = slice(len(U) // 4, 3 * len(U) // 4)
    top = int(np.argmax(U[middle])) + middle.start
    bottom = int(np.argmin(U[:top]))
    assert abs(off[top] - off[bottom]) < bound
    # What the action writes is of all samples, also those of the beginning.
    written = read_fes(tmp_path / "fes")
    assert np.sqrt(np.mean(deviation(written, land) ** 2)) < bound
    expected = estimate_profile([state_of(tmp_path / "state")], land.states)
    for ours, theirs in ((written.A, expected.A), (written.A_k, expected.A_k)):
        difference = (ours - theirs)[np.isfinite(theirs)]
        assert np.array_equal(np.isnan(ours), np.isnan(theirs))
        assert np.ptp(difference) < 1e-10


@pytest.fixture(scope="module")
def short_runs(
    tmp_path_factory: pytest.TempPathFactory, start_plumed: MakePlumed
) -> dict[str, list[State]]:
    folder = tmp_path_factory.mktemp("landscapes")
    return langevin(start_plumed, folder, 100000, lambda _: "RAMP=20000")


@pytest.mark.parametrize("name", list(LANDSCAPES))
def test_analytic_landscape(short_runs: dict[str, list[State]], name: str) -> None:
    """900000 steps: the root mean square deviation of A is 0.02-0.03 kT, at most 0.06 kT.

    Measured over 30 seeds: 0.021, 0.029 and 0.020 kT on average, the largest of each 30 0.031,
    0.041 and 0.027; 0.06 is six standard deviations away, odds of failing below 1e-6. The seed is
    fixed, but the rounding of another compiler or processor makes another run of it.
    """
    land = LANDSCAPES[name]
    found = estimate_profile(short_runs[name], land.states)
    off = deviation(found, land)
    assert np.sqrt(np.mean(off**2)) < 0.06
    # The error bars are of that size, too.
    error = found.A_error[land.inner] / found.kT_eV
    assert 0.02 < np.median(error) < 0.12


def test_error_bars_hold_the_truth(short_runs: dict[str, list[State]]) -> None:
    """Twenty adaptive runs: barrier and difference lie within two errors about 19 times in 20.

    Errors from nine blocks are themselves known to a quarter, so that about 9 in 10 is what to
    expect of the 40 numbers: fewer than 28 is met once in ten thousand.
    """
    held = []
    for name, height in (("well of 5 kT", 5.0), ("barrier of 20 kT", 20.0)):
        blocks = short_runs[name]
        each = len(blocks) // WALKERS
        for i in range(WALKERS):
            found = estimate_profile(blocks[i * each : (i + 1) * each])
            for estimate, truth in ((found.barrier, height * found.kT_eV), (found.delta_F, 0.0)):
                held.append(abs(estimate.value - truth) < 2 * estimate.error)
    assert len(held) == 40
    assert sum(held) >= 28


def test_frozen_bias_reweighted_and_corrected_agree(
    short_runs: dict[str, list[State]], tmp_path: Path, start_plumed: MakePlumed
) -> None:
    """A run under TAU=inf and a PRIOR: exp(V/kT) and the mean force give one profile.

    200 nodes within 6 errors, themselves known to 10-15 %: odds of failing below 1 in 10000, the
    more so as both come from the same samples.
    """
    for name in LANDSCAPES:
        found = estimate_profile(short_runs[name], LANDSCAPES[name].states)
        write_fes(tmp_path / f"{name[:4]}.dat", found)
    blocks = langevin(
        start_plumed,
        tmp_path,
        10000,
        lambda name: f"RAMP=0 TAU=inf PRIOR={tmp_path}/{name[:4]}.dat",
        seed=2,
    )
    colvar = np.loadtxt(tmp_path / "COLVAR")
    kept = colvar[colvar[:, 0] >= colvar[-1, 0] / CHUNKS]  # without the first chunk
    for i, (name, land) in enumerate(LANDSCAPES.items()):
        series = [
            part
            for column in range(1 + 2 * i, kept.shape[1], 2 * len(LANDSCAPES))
            for part in np.array_split(kept[:, [column, column + 1]], CHUNKS - 1)
        ]
        found = estimate_profile(blocks[name], land.states)
        np.testing.assert_array_equal(blocks[name][0].derivative(), blocks[name][-1].prior)
        A, error = reweight_profile(
            land.grid, found.kT_eV, [part[:, 0] for part in series], [part[:, 1] for part in series]
        )
        difference = (found.A - A)[land.inner]
        difference -= difference.mean()
        tolerance = 6 * np.hypot(found.A_error, error)[land.inner] + 0.02 * found.kT_eV
        assert (np.abs(difference) < tolerance).all()


def shared_langevin(
    start_plumed: MakePlumed, folder: Path, walkers: int, steps: int, seed: int
) -> dict[str, list[State]]:
    """Move walkers that share an estimate on each landscape, a PLUMED each; return their blocks.

    `steps` are those of each walker.
    """
    lands = list(LANDSCAPES.values())
    handles = []
    for i in range(len(lands)):
        (folder / f"shared-{i}").mkdir()
    for w in range(walkers):
        lines = ""
        for i, land in enumerate(lands):
            keywords = (
                f"RAMP={steps * walkers // 5} "
                f"STATE_WFILE={folder}/state-{w}-{i} STATE_WSTRIDE={steps // CHUNKS} "
                f"WALKERS_N={walkers} WALKERS_ID={w} WALKERS_DIR={folder}/shared-{i} "
                "WALKERS_RSTRIDE=100"
            )
            lines += babf(i, land, keywords)[1]
        handles.append(start_plumed(folder / f"{w}.log", len(lands), lines))

    def bias(s: int, x: Array) -> Array:
        return np.array([step(handle, s, x[w]) for w, handle in enumerate(handles)]) / KT

    chunks = []
    for _ in dynamics(walkers, steps, bias, seed):
        files = [[folder / f"state-{w}-{i}" for i in range(len(lands))] for w in range(walkers)]
        chunks.append([[state_of(file) for file in of_one] for of_one in files])
    for handle in handles:
        handle.finalize()
    return in_blocks(chunks)


def test_two_walkers_learn_like_one_run_of_twice_the_length(
    start_plumed: MakePlumed, tmp_path: Path
) -> None:
    """60000 steps by one walker or by two: both as near to the analytic profile, within errors.

    Measured over 30 seeds, the root mean square deviation of A in kT: 0.078, 0.105 and 0.071 for
    one, 0.079, 0.105 and 0.080 for two, with standard deviations of 0.010 to 0.023; 0.22 is five of
    the largest away. The difference of both is 0.65 of its median error bar on average over 14
    seeds and the three landscapes, with a standard deviation of 0.13 and 1.09 at most: 2 is ten
    of them away.
    """
    found = {}
    for walkers in (1, 2):
        folder = tmp_path / str(walkers)
        folder.mkdir()
        blocks = shared_langevin(start_plumed, folder, walkers, 60000 // walkers, seed=100)
        for name, land in LANDSCAPES.items():
            found[name, walkers] = estimate_profile(blocks[name], land.states)
            assert np.sqrt(np.mean(deviation(found[name, walkers], land) ** 2)) < 0.22
    for name, land in LANDSCAPES.items():
        one, two = found[name, 1], found[name, 2]
        difference = (deviation(one, land) - deviation(two, land)) * one.kT_eV
        error = np.median(np.hypot(one.A_error, two.A_error)[land.inner])
        assert np.sqrt(np.mean(difference**2)) < 2 * error
