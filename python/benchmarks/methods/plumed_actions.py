"""Methods of PLUMED: metadynamics, OPES, eABF of its module DRR, and umbrella sampling."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plumed_cv.engines import Segment, State
from plumed_cv.setup.kernel import find_plumed
from plumed_cv.setup.plugin import build_plugin
from plumed_cv.structures.frame import Array
from python import drr
from python.benchmarks.methods.case import DYNAMICS, GRID, KT, STRIDE, Result, Setup, read_barrier
from python.benchmarks.methods.colvars import (
    EXTENDED_FRICTION_PER_PS,
    EXTENDED_PERIOD_FS,
    FULL_SAMPLES,
)
from python.references import common, umbrella

SIGMA = {"METAD": 0.03, "OPES": 0.02}  # of hills and kernels; a basin has 0.034
PACE = {"METAD": 100, "METAD-500": 500, "OPES": 200}  # steps between them
HEIGHT_EV = 0.03
BIASFACTOR = 20
BARRIER_EV = 0.65
DISCARDED = 0.2  # part of a run before the bias is quasi-static
FIRST_STEPS, MOVED_STEPS = 1500, 500  # that are left out, of the first window and of the others


def has_action(name: str) -> bool:
    """Whether PLUMED knows an action."""
    find_plumed(install=False).activate()
    import plumed

    instance = plumed.Plumed()
    instance.cmd("setNatoms", 1)
    instance.cmd("setTimestep", 1.0)
    instance.cmd("setLogFile", os.devnull)
    instance.cmd("init")
    try:
        instance.cmd("readInputLine", f"{name} ARG=unknown")
    except RuntimeError as error:  # it misses its keywords, if it is there
        return f"input to action {name}" in str(error)
    return True


def run_metad(
    setup: Setup, folder: Path, seed: int, budgets: Sequence[int], pace: str = "METAD"
) -> list[Result]:
    """Well-tempered metadynamics, reweighted with the bias less c(t)."""
    bias = (
        f"m: METAD ARG=ae.node-0 SIGMA={SIGMA['METAD']} HEIGHT={HEIGHT_EV} PACE={PACE[pace]} "
        f"BIASFACTOR={BIASFACTOR} TEMP={DYNAMICS.temperature_K} CALC_RCT "
        "GRID_MIN=-0.5 GRID_MAX=1.5 GRID_BIN=1000 FILE=hills\n"
    )
    return _reweighted(setup, folder, seed, budgets, bias, "m.rbias")


def run_metad_slowly(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """Well-tempered metadynamics at its usual pace."""
    return run_metad(setup, folder, seed, budgets, "METAD-500")


def run_opes(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """On-the-fly probability enhanced sampling, reweighted with its bias."""
    bias = (
        f"o: OPES_METAD ARG=ae.node-0 SIGMA={SIGMA['OPES']} PACE={PACE['OPES']} "
        f"BARRIER={BARRIER_EV} TEMP={DYNAMICS.temperature_K} FILE=kernels\n"
    )
    return _reweighted(setup, folder, seed, budgets, bias, "o.bias")


def _reweighted(
    setup: Setup, folder: Path, seed: int, budgets: Sequence[int], bias: str, weight: str
) -> list[Result]:
    step, xi, deviation, energy = _run_plumed(setup, folder, seed, max(budgets), bias, weight)
    results = []
    for budget in budgets:
        kept = (step > DISCARDED * budget) & (step <= budget)
        A = reweight(xi[kept], energy[kept])
        results.append(read_barrier(A, float(deviation[step <= budget].max())))
    return results


def _run_plumed(
    setup: Setup, folder: Path, seed: int, n_steps: int, bias: str, printed: str
) -> Array:
    """Run with a bias of PLUMED; return time, xi, distance from the path and output, (4, M)."""
    # The walls of bABF: there V = k x^2 / 2, here KAPPA x^2.
    kappa = 0.5 * KT / GRID.spacing**2
    text = (
        "UNITS LENGTH=A ENERGY=eV TIME=fs\n"
        f"LOAD FILE={build_plugin(find_plumed())}\n"
        f"ae: AUTOENCODER MODEL={setup.model.absolute()}\n{bias}"
        f"LOWER_WALLS ARG=ae.node-0 AT={GRID.minimum} KAPPA={kappa!r}\n"
        f"UPPER_WALLS ARG=ae.node-0 AT={GRID.maximum} KAPPA={kappa!r}\n"
        f"PRINT ARG=ae.node-0,ae.dev,{printed} FILE=colvar STRIDE={STRIDE} FMT=%.12g\n"
    )
    start = State.of(setup.path.images[0])
    order = Segment(*(folder, start, DYNAMICS, n_steps, common.seed(seed), text), snapshot_stride=0)
    with setup.engine() as engine:
        engine.run(order)
    return np.asarray(np.loadtxt(folder / "colvar").T)


def reweight(xi: Array, bias_eV: Array) -> Array:
    """Free energy at the nodes of `GRID`, eV, NaN in empty bins: weights exp(bias / kT)."""
    j = GRID.bin(xi)
    weight = np.exp((bias_eV - bias_eV.max()) / KT)
    histogram = np.bincount(j[j >= 0], weight[j >= 0], minlength=len(GRID.nodes))
    with np.errstate(divide="ignore"):
        A = -KT * np.log(histogram)
    return np.where(histogram > 0, A, np.nan)


def run_drr(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """Extended-system ABF of PLUMED (DRR), with the CZAR estimator."""
    stride = int(np.gcd.reduce(budgets))
    bias = "" if has_action("DRR") else f"LOAD FILE={drr.build()}\n"
    bias += (
        f"d: DRR ARG=ae.node-0 TEMP={DYNAMICS.temperature_K} FULLSAMPLES={FULL_SAMPLES} "
        f"GRID_MIN={GRID.minimum} GRID_MAX={GRID.maximum} GRID_BIN={GRID.bins} REFLECTINGWALL=1 "
        f"TAU={EXTENDED_PERIOD_FS} FRICTION={EXTENDED_FRICTION_PER_PS / 1000} "
        f"OUTPUTPREFIX=drr OUTPUTFREQ={stride} HISTORYFREQ={stride} TEXTOUTPUT\n"
    )
    fictitious = "d.ae.node-0_fict"
    step, _, deviation, _ = _run_plumed(setup, folder, seed, max(budgets), bias, fictitious)
    results = []
    for budget in budgets:
        xi, A = np.loadtxt(folder / f"drr.{budget}.czar.pmf").T
        away = float(deviation[step <= budget].max())
        results.append(read_barrier(np.interp(GRID.nodes, xi, A), away))
    return results


def run_umbrella(setup: Setup, folder: Path, seed: int, budgets: Sequence[int]) -> list[Result]:
    """Umbrella sampling in the windows of the reference, which get the same steps each.

    In the first round each window starts from where its neighbour ended; in the next ones it goes
    on. The smallest budget is one round.
    """
    rounds = [max(1, round(budget / min(budgets))) for budget in budgets]
    length = min(budgets) // len(umbrella.CENTRES) // STRIDE * STRIDE
    ends: dict[int, State] = {}
    series: list[list[Array]] = [[] for _ in umbrella.CENTRES]
    deviation, results = 0.0, []
    with setup.engine() as engine:
        for turn in range(max(rounds)):
            for window, centre in enumerate(umbrella.CENTRES):
                piece = folder / f"{turn}-{window:02d}"
                piece.mkdir()
                start = ends.get(window) or ends.get(window - 1)
                order = Segment(
                    *(piece, start or State.of(setup.path.images[0]), DYNAMICS, length),
                    *(common.seed(seed, turn, window), _umbrella_input(setup.model, float(centre))),
                    count_start=start is None,
                    snapshot_stride=0,
                )
                ends[window] = engine.run(order).end
                step, xi, away = np.loadtxt(piece / "colvar").T
                skipped = 0 if turn else MOVED_STEPS if window else FIRST_STEPS
                series[window].append(xi[step > min(skipped, length // 2)])
                deviation = max(deviation, float(away.max()))
            if turn + 1 in rounds:
                rho = umbrella.density([np.concatenate(x) for x in series], KT)
                with np.errstate(divide="ignore"):
                    A = np.where(rho > 0, -KT * np.log(rho), np.nan)
                nodes = np.abs(umbrella.NODES[:, None] - GRID.nodes).argmin(axis=0)
                results.append(read_barrier(A[nodes], deviation))
    return results


def _umbrella_input(model: Path, centre: float) -> str:
    return (
        "UNITS LENGTH=A ENERGY=eV TIME=fs\n"
        f"LOAD FILE={build_plugin(find_plumed())}\n"
        f"ae: AUTOENCODER MODEL={model.absolute()}\n"
        f"RESTRAINT ARG=ae.node-0 AT={centre!r} KAPPA={umbrella.KAPPA_EV!r}\n"
        f"PRINT ARG=ae.node-0,ae.dev FILE=colvar STRIDE={STRIDE} FMT=%.12g\n"
    )
