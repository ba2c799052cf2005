"""The model systems with exact answers (docs/truth.md), over several seeds.

    python -m python.truth RUNS            # run (or go on) in this folder, then print
    python -m python.truth                 # print from the committed data

The results go to docs/truth.json. A run takes half a minute on one core.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2

from plumed_cv import input_file, workflow
from plumed_cv.common.files import write_text
from tests.truth.comparison import ESTIMATORS, Comparison, comparisons
from tests.truth.models import MODELS, QUANTITIES

DATA = Path(__file__).resolve().parent.parent / "docs" / "truth.json"


def run_all(root: Path, names: list[str], seeds: Sequence[int], steps: int | None) -> None:
    """Run the models for some seeds; each run replaces its entries in the data file."""
    found: list[dict[str, Any]] = json.loads(DATA.read_text()) if DATA.exists() else []
    for seed in seeds:
        for name in names:
            folder = root / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            if not folder.exists():
                MODELS[name].write(folder, seed, steps)
            if not (folder / "run" / "result.json").exists():
                workflow.run(input_file.load(folder / "model.toml"), folder / "run")
            found = [entry for entry in found if (entry["model"], entry["seed"]) != (name, seed)]
            found += [
                {"model": name, "seed": seed} | asdict(comparison)
                for comparison in comparisons(MODELS[name], folder / "run")
            ]
            found.sort(key=lambda entry: (entry["seed"], list(MODELS).index(entry["model"])))
            write_text(DATA, json.dumps(found))
            print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)


def print_table(found: list[dict[str, Any]]) -> None:
    """Print the last iteration of the first seed of each model, and all deviations.

    chi^2 is the mean square of the deviations in stated errors, over all seeds and iterations.
    """
    print("| model | estimator | flux barrier (eV) | exact | rate (1/s) | exact ", end="")
    print("| delta F (eV) | exact | chi^2 | largest deviation |")
    print("|" + " --- |" * 10)
    for name in dict.fromkeys(entry["model"] for entry in found):
        for estimator in ESTIMATORS:
            rows = [
                entry
                for entry in found
                if (entry["model"], entry["estimator"]) == (name, estimator)
            ]
            if rows:
                _print_row(name, estimator, rows)
    print()
    print("| estimator | quantity | chi^2 | in 95 of 100 such sets | mean ", end="")
    print("| largest | values | unknown |")
    print("|" + " --- |" * 8)
    for estimator in ESTIMATORS:
        for quantity in QUANTITIES:
            deviations = np.array(
                [
                    _comparison(entry).deviation
                    for entry in found
                    if (entry["estimator"], entry["quantity"]) == (estimator, quantity)
                ]
            )
            d = deviations[np.isfinite(deviations)]
            if not len(d):  # results that are older than the estimator
                continue
            low, high = chi2.ppf([0.025, 0.975], len(d)) / len(d)
            cells = [estimator, quantity, f"{np.mean(d**2):.2f}", f"{low:.2f} to {high:.2f}"]
            cells += [f"{d.mean():+.2f}", f"{np.abs(d).max():.1f}"]
            print("| " + " | ".join([*cells, str(len(d)), str(len(deviations) - len(d))]) + " |")


def _print_row(name: str, estimator: str, rows: list[dict[str, Any]]) -> None:
    cells = [name, estimator]
    first = [row for row in rows if row["seed"] == rows[0]["seed"]]
    for quantity in ("flux_barrier", "tst_rate", "delta_F"):
        shown = [_comparison(row) for row in first if row["quantity"] == quantity][-1]
        form, short = (".2e", ".1e") if quantity == "tst_rate" else (".4f", ".4f")
        result = "unknown"
        if shown.value is not None and shown.error is not None:
            result = f"{shown.value:{form}} ± {shown.error:{short}}"
        cells += [result, f"{shown.exact:{form}}"]
    d = np.array([_comparison(row).deviation for row in rows])
    d = d[np.isfinite(d)]
    print("| " + " | ".join([*cells, f"{np.mean(d**2):.2f}", f"{np.abs(d).max():.1f}"]) + " |")


def _comparison(entry: dict[str, Any]) -> Comparison:
    return Comparison(**{key: v for key, v in entry.items() if key not in ("model", "seed")})


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="folder for the runs; none: only print")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3, help="last seed")
    parser.add_argument("--first-seed", type=int, default=1, help="earlier ones keep their data")
    parser.add_argument("--steps", type=int, help="steps an iteration; the model's own if absent")
    arguments = parser.parse_args()
    if arguments.runs is not None:
        seeds = range(arguments.first_seed, arguments.seeds + 1)
        run_all(arguments.runs.absolute(), arguments.models, seeds, arguments.steps)
    print_table(json.loads(DATA.read_text()))


if __name__ == "__main__":
    main()
