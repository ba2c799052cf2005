"""The model systems with exact answers (docs/truth.md), over several seeds.

    python -m python.truth RUNS            # run (or go on) in this folder, then print
    python -m python.truth                 # print from the committed data

The results go to docs/truth.json. A run takes half a minute on one core.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2

from plumed_cv import config, workflow
from plumed_cv.files import write_text
from tests.truth.comparison import ESTIMATORS, Comparison, comparisons
from tests.truth.models import MODELS, QUANTITIES

DATA = Path(__file__).resolve().parent.parent / "docs" / "truth.json"


def run_all(root: Path, names: list[str], seeds: list[int], steps: int | None) -> None:
    """Run the models for all seeds and write the data file after each run."""
    found: list[dict[str, Any]] = []
    for seed in seeds:
        for name in names:
            folder = root / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            if not folder.exists():
                MODELS[name].write(folder, seed, steps)
            if not (folder / "run" / "result.json").exists():
                workflow.run(config.load(folder / "model.toml"), folder / "run")
            found += [
                {"model": name, "seed": seed} | asdict(comparison)
                for comparison in comparisons(MODELS[name], folder / "run")
            ]
            write_text(DATA, json.dumps(found, indent=1))
            print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)


def print_table(found: list[dict[str, Any]]) -> None:
    """Print for every model and quantity the last iteration's result of the first seed, and chi^2.

    chi^2 is the mean square deviation in stated errors over all seeds and iterations.
    """
    print("| model | estimator | quantity | result | exact | deviation (errors) ", end="")
    print("| mean deviation | chi^2 per value | values |")
    print("|" + " --- |" * 9)
    for name in dict.fromkeys(entry["model"] for entry in found):
        for estimator in ESTIMATORS:
            for quantity in QUANTITIES:
                rows = [
                    _comparison(entry)
                    for entry in found
                    if (entry["model"], entry["estimator"], entry["quantity"])
                    == (name, estimator, quantity)
                ]
                if rows:
                    _print_row(name, estimator, quantity, rows)
    print()
    for estimator in ESTIMATORS:
        for quantity in QUANTITIES:
            all_rows = [
                _comparison(entry)
                for entry in found
                if (entry["estimator"], entry["quantity"]) == (estimator, quantity)
            ]
            d = np.array([row.deviation for row in all_rows])
            known = d[np.isfinite(d)]
            if not len(known):
                continue
            low, high = chi2.ppf([0.025, 0.975], len(known)) / len(known)
            print(
                f"{estimator}, {quantity}: chi^2 {np.mean(known**2):.2f} per value (between "
                f"{low:.2f} and {high:.2f} in 95 of 100 such sets), largest deviation "
                f"{np.abs(known).max():.1f} errors, of {len(known)} values; {len(d) - len(known)} "
                "unknown"
            )


def _print_row(name: str, estimator: str, quantity: str, rows: list[Comparison]) -> None:
    d = np.array([row.deviation for row in rows])
    known = d[np.isfinite(d)]
    shown = rows[1] if len(rows) > 1 else rows[0]
    form = ".3g" if quantity == "tst_rate" else ".4f"
    result = "unknown"
    if shown.value is not None and shown.error is not None:
        result = f"{shown.value:{form}} ± {shown.error:{form}}"
    cells = [name, estimator, quantity, result, f"{shown.exact:{form}}", f"{shown.deviation:+.1f}"]
    if len(known):
        cells += [f"{known.mean():+.1f}", f"{np.mean(known**2):.2f}", str(len(known))]
    print("| " + " | ".join(cells) + " |")


def _comparison(entry: dict[str, Any]) -> Comparison:
    return Comparison(**{key: v for key, v in entry.items() if key not in ("model", "seed")})


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="folder for the runs; none: only print")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--steps", type=int, help="steps an iteration; the model's own if absent")
    arguments = parser.parse_args()
    if arguments.runs is not None:
        seeds = list(range(1, arguments.seeds + 1))
        run_all(arguments.runs.absolute(), arguments.models, seeds, arguments.steps)
    print_table(json.loads(DATA.read_text()))


if __name__ == "__main__":
    main()
