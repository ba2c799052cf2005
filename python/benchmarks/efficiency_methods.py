"""The methods that `efficiency` compares: each is a run in a real engine.

`methods` has them. docs/efficiency.md gives their settings and the reasons for them.
"""

import resource
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from python.benchmarks.methods.babf import (
    run_babf,
    run_babf_2fs,
    run_babf_forces,
    run_babf_prior,
    run_babf_walkers,
    run_oracle,
)
from python.benchmarks.methods.case import BUDGETS, Result, Setup
from python.benchmarks.methods.colvars import run_eabf
from python.benchmarks.methods.plumed_actions import (
    run_drr,
    run_metad,
    run_metad_slowly,
    run_opes,
    run_umbrella,
)
from python.references import common

Numbers = dict[str, float | None]  # a `Result` as JSON has it
Runner = Callable[[Setup, Path, int, Sequence[int]], list[Result]]


METHODS: dict[str, Runner] = {
    "bABF": run_babf,
    "bABF-prior": run_babf_prior,
    "bABF-2fs": run_babf_2fs,
    "bABF-forces": run_babf_forces,
    "bABF-walkers": run_babf_walkers,
    "oracle": run_oracle,
    "METAD": run_metad,
    "METAD-500": run_metad_slowly,
    "OPES": run_opes,
    "eABF": run_eabf,
    "DRR": run_drr,
    "umbrella": run_umbrella,
}


def measure(
    method: str, setup: Setup, folder: Path, seed: int, budgets: Sequence[int] = BUDGETS
) -> dict[str, Numbers]:
    """Run one method with one seed; results by budget, as they go into the data file.

    The processor's time is that of the processes that do the dynamics, for all budgets together.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = _children_seconds()
    results = METHODS[method](setup, folder, common.seed(seed, *method.encode()), budgets)
    # bABF has a run for every budget, the others one that goes on.
    steps = sum(budgets) if method.startswith(("bABF", "oracle")) else max(budgets)
    cost = 1e6 * (_children_seconds() - began) / steps
    found = {}
    for budget, result in zip(budgets, results, strict=True):
        numbers = {**vars(result), "us_per_step": cost}
        found[str(budget)] = {
            name: round(float(value), 6) if np.isfinite(value) else None
            for name, value in numbers.items()
        }
    return found


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
