"""Compares bABF with other methods: error of a barrier after the same number of steps.

    python python/benchmarks/efficiency.py RUNS                 # run what is missing, then print
    python python/benchmarks/efficiency.py RUNS --seeds 4       # fewer seeds
    python python/benchmarks/efficiency.py RUNS --methods METAD OPES --processes 4
    python python/benchmarks/efficiency.py                      # print and draw the committed data

The process is vacancy migration in iron (the packaged example: 127 atoms, 300 K) along the linear
CV. All methods have the same Langevin dynamics of the engine (1 fs, 1/ps), the same start in the
reactant and the same way to determine the barrier from a profile. Errors are deviations from
umbrella sampling with far more steps (docs/references/umbrella.json). docs/efficiency.md describes
the settings and the results.

A run is one method with one seed. Runs in the data file are not repeated, and results are written
there as soon as a run ends, so that a stopped command can be continued. All methods are run with
one seed before the next seed starts; therefore the table is fair at any time.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from scipy.stats import chi2

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from plumed_cv.common.files import replacing, write_text
from plumed_cv.setup.kernel import find_plumed
from plumed_cv.setup.plugin import build_plugin
from plumed_cv.structures.frame import Array
from python.benchmarks.efficiency_methods import METHODS, Numbers, measure
from python.benchmarks.methods.case import BUDGETS, CASE, Setup, read_truth
from python.references import common

DOCS = Path(__file__).resolve().parents[2] / "docs"
DATA = DOCS / "efficiency.json"
SEEDS = 8
TARGET_EV = 0.003


def run_all(
    runs: Path, methods: Sequence[str], seeds: Sequence[int], processes: int, data_file: Path
) -> None:
    """Run what the data file lacks, seed by seed."""
    data = read_data(data_file)
    barrier, error = read_truth()
    data["reference"] = {"barrier_eV": round(barrier, 6), "barrier_error_eV": round(error, 6)}
    if data["runs"]:
        write_data(data_file, data)
    todo = [
        (seed, method)
        for seed in seeds
        for method in methods
        if str(seed) not in data["runs"].get(method, {})
    ]
    if not todo:
        return
    setup = Setup.make(common.minimum_path(common.case(CASE).cell, runs), runs)
    build_plugin(find_plumed())
    orders = [(setup, runs, method, seed) for seed, method in todo]
    with (
        # Its processes may have children: walkers.
        ProcessPoolExecutor(processes, get_context("spawn")) as pool,
        Progress(console=Console(stderr=True)) as progress,
    ):
        done = as_completed([pool.submit(_measure, order) for order in orders])
        try:
            for future in progress.track(done, len(orders), description="runs"):
                method, seed, found = future.result()
                data["runs"].setdefault(method, {})[str(seed)] = found
                write_data(data_file, data)
                progress.console.print(f"{method}, seed {seed}: {_in_words(found)}")
        except BaseException:  # a pool would first run all that is in its queue
            pool.shutdown(wait=False, cancel_futures=True)
            for child in active_children():
                child.terminate()
            raise


def _measure(order: tuple[Setup, Path, str, int]) -> tuple[str, int, dict[str, Numbers]]:
    setup, runs, method, seed = order
    return method, seed, measure(method, setup, runs / f"{method.lower()}-{seed}", seed)


def _in_words(found: dict[str, Numbers]) -> str:
    parts = []
    for budget, numbers in found.items():
        barrier = numbers["barrier_eV"]
        parts.append(f"{int(budget):,} steps " + (f"{barrier:.4f} eV" if barrier else "unknown"))
    return ", ".join(parts)


def read_data(file: Path = DATA) -> dict[str, Any]:
    """Read the reference, and the results by method, seed and budget; empty if there are none."""
    if not file.exists():
        return {"runs": {}}
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return data


def write_data(file: Path, data: dict[str, Any]) -> None:
    """Write the data file for `read_data`, one run in each line."""
    methods = []
    for method in sorted(data["runs"], key=list(METHODS).index):
        runs = sorted(data["runs"][method].items(), key=lambda item: int(item[0]))
        lines = [f'   "{seed}": {json.dumps(found)}' for seed, found in runs]
        methods.append(f'  "{method}": {{\n' + ",\n".join(lines) + "\n  }")
    reference = json.dumps(data["reference"])
    runs_text = ",\n".join(methods)
    write_text(file, f'{{\n "reference": {reference},\n "runs": {{\n{runs_text}\n }}\n}}\n')


@dataclass(frozen=True)
class Score:
    """Errors of a method after a budget, eV, over the seeds that gave a barrier.

    Attributes
    ----------
    seeds, known
        Number of runs, and of those that gave a barrier.
    rms, low, high
        RMS error of the barrier and its 68 % interval by chi-square.
    bias, bias_error
        Mean error of the barrier and its standard error.
    delta, delta_low, delta_high
        RMS of A(1) - A(0), which is 0, and its interval.
    covered
        Runs whose error is within two of their own standard errors (and the truth's); None if the
        method states none.
    us_per_step
        The processor's time, median over the runs.
    """

    seeds: int
    known: int
    rms: float
    low: float
    high: float
    bias: float
    bias_error: float
    delta: float
    delta_low: float
    delta_high: float
    covered: int | None
    us_per_step: float

    def seconds_for(self, error_eV: float, n_steps: int) -> float:
        """Processor time for an error, s; the error decreases with the root of the steps."""
        return 1e-6 * self.us_per_step * n_steps * (self.rms / error_eV) ** 2


def rms(errors: Array) -> tuple[float, float, float]:
    """RMS of errors around a known value, and the ends of its 68 % interval (chi-square)."""
    n = len(errors)
    if n == 0:
        return np.nan, np.nan, np.nan
    value = float(np.sqrt(np.mean(errors**2)))
    low, high = (value * float(np.sqrt(n / chi2.ppf(p, n))) for p in (0.84, 0.16))
    return value, low, high


def score(runs: Sequence[dict[str, Any]], true_eV: float, true_error_eV: float) -> Score:
    """Compare the runs of a method after a budget with the reference."""

    def column(name: str) -> Array:
        return np.array([np.nan if run[name] is None else run[name] for run in runs])

    barrier, delta = column("barrier_eV"), column("delta_F_eV")
    known = np.isfinite(barrier)
    errors = (barrier - true_eV)[known]
    stated = np.hypot(column("barrier_error_eV"), true_error_eV)[known]
    n = len(errors)
    delta_rms, delta_low, delta_high = rms(delta[np.isfinite(delta)])
    return Score(
        *(len(runs), n, *rms(errors)),
        bias=float(errors.mean()) if n else np.nan,
        bias_error=float(errors.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan,
        delta=delta_rms,
        delta_low=delta_low,
        delta_high=delta_high,
        covered=int(np.sum(abs(errors) < 2 * stated)) if np.isfinite(stated).any() else None,
        us_per_step=float(np.nanmedian(column("us_per_step"))),
    )


def scores(data: dict[str, Any]) -> dict[tuple[str, int], Score]:
    """Score every method and budget that has runs."""
    reference, runs = data["reference"], data["runs"]
    true = (reference["barrier_eV"], reference["barrier_error_eV"])
    return {
        (method, budget): score([run[str(budget)] for run in runs[method].values()], *true)
        for method in METHODS
        for budget in BUDGETS
        if runs.get(method)
    }


def table(data: dict[str, Any]) -> str:
    """The table in Markdown."""
    barrier, error = data["reference"].values()
    lines = [
        f"Reference: {1e3 * barrier:.1f} ± {1e3 * error:.1f} meV, A(1)-A(0) = 0. Errors in meV, in "
        "brackets the 68 % interval of an RMS from so few seeds.",
        "",
        "| method | steps | seeds | RMS error of the barrier | mean error | RMS of A(1)-A(0) "
        "| within 2 sigma | us a step | CPU s for 3 meV |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (method, budget), s in scores(data).items():
        missed = f" ({s.seeds - s.known} without a barrier)" if s.known < s.seeds else ""
        covered = "" if s.covered is None else f"{s.covered} of {s.known}"
        cells = [
            *(method, f"{budget:,}", f"{s.seeds}{missed}"),
            f"{_milli(s.rms)} ({_milli(s.low)} to {_milli(s.high)})",
            f"{1e3 * s.bias:+.1f} ± {_milli(s.bias_error)}",
            f"{_milli(s.delta)} ({_milli(s.delta_low)} to {_milli(s.delta_high)})",
            *(covered, f"{s.us_per_step:.0f}", f"{s.seconds_for(TARGET_EV, budget):.0f}"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _milli(energy_eV: float) -> str:
    return f"{1e3 * energy_eV:.1f}"


def draw(data: dict[str, Any], file: Path) -> None:
    """Draw RMS errors over steps."""
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    found = scores(data)
    for k, method in enumerate(m for m in METHODS if (m, BUDGETS[0]) in found):
        some = [found[method, budget] for budget in BUDGETS]
        steps = np.array(BUDGETS) * 1.03 ** (k - 2.5)  # side by side
        for axes, name in zip(panels, ("", "delta"), strict=True):
            value, low, high = (
                1e3 * np.array([getattr(s, field) for s in some])
                for field in (
                    (name or "rms"),
                    *(f"{name}_{end}".strip("_") for end in ("low", "high")),
                )
            )
            axes.errorbar(
                *(steps, value, [value - low, high - value]),
                **{"color": colormaps["tab20"](k), "marker": "o", "capsize": 2, "label": method},
            )
    for axes, title in zip(panels, ("barrier", "A(1) - A(0)"), strict=True):
        axes.set(xscale="log", yscale="log", title=title, xlabel="MD steps in total")
        axes.set_xticks(BUDGETS, [f"{n:,}" for n in BUDGETS])
        axes.minorticks_off()
        x = np.array(BUDGETS)
        axes.plot(x, 20 * np.sqrt(BUDGETS[0] / x), "k:", linewidth=1)
    _, top = panels[0].get_ylim()
    ticks = [t for t in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200) if t <= top]
    panels[0].set_yticks(ticks, [str(t) for t in ticks])
    panels[0].set_ylabel("RMS error (meV)")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", fontsize="small")
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=150)


def main() -> None:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", help="folder of the runs; none: only print")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="METHOD",
        help=f"of {', '.join(METHODS)}; all by default",
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"1 to this (default: {SEEDS})")
    parser.add_argument("--processes", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument(
        "--data", type=Path, default=DATA, help="data file (default: the committed)"
    )
    arguments = parser.parse_args()
    # Nothing that it began must go on when it is killed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if arguments.runs is not None:
        runs = arguments.runs.absolute()
        runs.mkdir(parents=True, exist_ok=True)
        seeds = range(1, arguments.seeds + 1)
        run_all(runs, arguments.methods, seeds, arguments.processes, arguments.data.absolute())
    data = read_data(arguments.data)
    if not data["runs"]:
        parser.error(f"{arguments.data}: no results yet; name a folder for the runs")
    print(table(data))
    draw(data, arguments.data.with_suffix(".png"))


if __name__ == "__main__":
    main()
