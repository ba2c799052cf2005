"""The vacancy example at high temperatures: a table of docs/finite-temperature.md.

    python python/vacancy_hot.py RUNS          # runs what is missing in this folder, then the table
    python python/vacancy_hot.py               # the table from docs/vacancy-hot.json

Each run is the packaged example with 500,000 steps an iteration. No other key is changed but the
temperature, the seed and the number of walkers.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from plumed_cv import input_file, workflow
from plumed_cv.common.files import read_json, write_text
from plumed_cv.common.numbers import energy_in_words, error_of_factor, scientific, with_error

DATA = Path(__file__).resolve().parents[1] / "docs" / "vacancy-hot.json"
TEMPERATURES_K = (700.0, 1000.0, 1200.0)
SEEDS = (1, 2)
STEPS = 500_000
WALKERS = 2
_OF_ITERATION = (
    *("kind", "restarts", "flux_barrier_eV", "flux_barrier_error_eV"),
    *("delta_F_eV", "delta_F_error_eV"),
)
_OF_RUN = (
    *("converged", "tst_rate_per_s", "tst_rate_error_per_s"),
    *("transmission", "transmission_error", "rate_per_s", "rate_error_factor"),
)


def run_all(root: Path, temperatures_K: list[float]) -> None:
    """Make the runs that have no result yet; write what the table needs of each after each run."""
    for temperature_K in temperatures_K:
        for seed in SEEDS:
            folder = root / f"{temperature_K:g}K-{seed}"
            if not (folder / "run" / "result.json").exists():
                _run(folder, temperature_K, seed)
            result = read_json(folder / "run" / "result.json")
            of_iterations = [
                {key: part[key] for key in _OF_ITERATION} for part in result["iterations"]
            ]
            found: dict[str, Any] = {"temperature_K": temperature_K, "seed": seed}
            found |= {key: result[key] for key in _OF_RUN} | {"iterations": of_iterations}
            rows = {_key(row): row for row in _read()} | {_key(found): found}
            write_text(DATA, json.dumps([rows[key] for key in sorted(rows)], indent=1) + "\n")


def _read() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(DATA.read_text(encoding="utf-8"))
    return rows


def _key(row: dict[str, Any]) -> tuple[float, int]:
    return float(row["temperature_K"]), int(row["seed"])


def _run(folder: Path, temperature_K: float, seed: int) -> None:
    if not folder.exists():
        command = [sys.executable, "-m", "plumed_cv.cli", "init", "vacancy-fe", str(folder)]
        subprocess.run(command, check=True)
    base = input_file.load(folder / "vacancy.toml")
    system = base.system.model_copy(update={"temperature_K": temperature_K})
    sampling = base.sampling.model_copy(update={"steps": STEPS, "walkers": WALKERS})
    iteration = base.iteration.model_copy(update={"seed": seed})
    settings = {"system": system, "sampling": sampling, "iteration": iteration}
    workflow.run(base.model_copy(update=settings), folder / "run")


def print_table(runs: list[dict[str, Any]]) -> None:
    """Print flux barriers of the linear and of the last CV, and the rates."""
    columns = [
        *("T (K)", "seed", "flux barrier, linear CV (eV)", "flux barrier, learned CV (eV)"),
        *("delta F (eV)", "stops", "k_TST (1/s)", "κ", "k (1/s)", "all checks passed"),
    ]
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    for run in runs:
        first, last = run["iterations"][0], run["iterations"][-1]
        k, factor = run["rate_per_s"], run["rate_error_factor"]
        cells = [f"{run['temperature_K']:g}", run["seed"]]
        cells += [energy_in_words(part, "flux_barrier") for part in (first, last)]
        cells += [energy_in_words(last, "delta_F")]
        cells += [sum(part["restarts"] for part in run["iterations"])]
        cells += [scientific(run["tst_rate_per_s"], run["tst_rate_error_per_s"], "").strip()]
        cells += [with_error(run["transmission"], run["transmission_error"], "").strip()]
        cells += [scientific(k, error_of_factor(k, factor), "").strip()]
        cells += ["yes" if run["converged"] else "no"]
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", help="folder of the runs, made if absent")
    parser.add_argument("--temperatures", type=float, nargs="+", default=list(TEMPERATURES_K))
    given = parser.parse_args()
    if given.runs is not None:
        run_all(given.runs.absolute(), given.temperatures)
    print_table(_read())


if __name__ == "__main__":
    main()
