"""Labels correct the barrier of copper's vacancy from one potential to another: docs/label.md.

    python python/labels.py RUNS [--seeds 1]       # run (or go on) in this folder, then print
    python python/labels.py                        # print from the committed data

The potential of the run is Cu_u3, the reference Cu_mishin1. The folder receives a run with each.
Every seed chooses 100 labels of the first run. The results go to docs/labels.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from plumed_cv import input_file, sampling, workflow
from plumed_cv.common.files import write_text
from plumed_cv.structures import cell_of
from plumed_cv.workflow.mep import read_end_states

DATA = Path(__file__).resolve().parent.parent / "docs" / "labels.json"
LABELS = 100
KELVIN = 500.0
POTENTIALS = {  # with the steps of an iteration
    "model": (["pair_style eam", "pair_coeff * * Cu_u3.eam"], 800_000),
    "reference": (["pair_style eam/alloy", "pair_coeff * * Cu_mishin1.eam.alloy Cu"], 150_000),
}
KEYS = ("by", "error_of_labels_eV", "spread_of_differences_eV", "spread_not_learned_eV",
        "effective_labels", "effective_snapshots", "snapshots", "ways")  # fmt: skip
ESTIMATES = ("flux_barrier", "difference", "delta_F_difference")


def structures() -> tuple[Atoms, Atoms]:
    """The vacancy in 107 atoms before and after a neighbour has moved into it."""
    initial: Atoms = bulk("Cu", "fcc", a=3.64, cubic=True).repeat(3)
    hole = initial.positions[0].copy()
    del initial[0]
    nearest = int(np.argmin(np.linalg.norm(initial.positions - hole, axis=1)))
    final = initial.copy()
    final.positions[nearest] = hole
    return initial, final


def run(root: Path, name: str) -> tuple[input_file.Config, Path]:
    """Run one of the potentials, or go on with it."""
    folder = root / name
    if not folder.exists():
        folder.mkdir(parents=True)
        for atoms, file in zip(structures(), ("initial.xyz", "final.xyz"), strict=True):
            atoms.write(folder / file, format="extxyz")
        potential, steps = POTENTIALS[name]
        text = f"""
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = {KELVIN}
[engine]
name = "lammps"
potential = {json.dumps(potential)}
[sampling]
steps = {steps}
timestep_fs = 2.0
friction_per_ps = 1.0
ramp = 0.2
[rate]
enabled = false
"""
        write_text(folder / f"{name}.toml", text)
    loaded = input_file.load(folder / f"{name}.toml")
    if not (folder / "run" / "result.json").exists():
        workflow.run(loaded, folder / "run")
    return loaded, folder / "run"


def compute(file: Path, given: input_file.Config) -> None:
    """Add energies and forces of a potential to the structures of a file."""
    found: list[Atoms] = ase.io.read(file, ":")  # type: ignore[assignment]
    with sampling.open_engine(given, read_end_states(given)[0]) as engine:
        for atoms in found:
            energy, forces, _ = engine.evaluate(atoms.positions, cell_of(atoms))
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    ase.io.write(file, found, format="extxyz")


def measure(root: Path, seeds: int) -> dict[str, Any]:
    """Return the barriers of both runs, and the corrections of all seeds."""
    directories = {}
    for name in POTENTIALS:
        given, directories[name] = run(root, name)
    barriers = {}
    for name, folder in directories.items():
        result = json.loads((folder / "result.json").read_text())
        barriers[name] = [result["flux_barrier_eV"], result["flux_barrier_error_eV"]]
    corrections = []
    for seed in range(1, seeds + 1):
        file = root / f"labels-{seed}.xyz"
        workflow.label.choose(directories["model"], LABELS, file, seed=seed)
        compute(file, given)
        found = workflow.label.correct(directories["model"], file)
        kept = {f"{name}{end}_eV" for name in ESTIMATES for end in ("", "_error")}
        corrections.append({key: found[key] for key in (*sorted(kept), *KEYS)})
        write_text(DATA, json.dumps({"barriers": barriers, "labels": corrections}, indent=1))
    return {"barriers": barriers, "labels": corrections}


def print_tables(data: dict[str, Any]) -> None:
    """Print the barriers, and the ways of correction of each choice of labels."""
    (model, of_model), (reference, of_reference) = (
        data["barriers"][name] for name in ("model", "reference")
    )
    print("| barrier | flux barrier (eV) | deviation from the reference (meV) |")
    print("| --- | --- | --- |")
    print(f"| run | {model:.4f} ± {of_model:.4f} | {1e3 * (model - reference):+.1f} |")
    for seed, row in enumerate(data["labels"], 1):
        value, error = row["flux_barrier_eV"], row["flux_barrier_error_eV"]
        print(
            f"| run, corrected by {LABELS} labels, choice {seed} | {value:.4f} ± {error:.4f} | "
            f"{1e3 * (value - reference):+.1f} ± {1e3 * np.hypot(error, of_reference):.1f} |"
        )
    print(f"| run of the reference | {reference:.4f} ± {of_reference:.4f} | |")
    print("\n| choice | way | correction (meV) | error of the labels (meV) |")
    print("| --- | --- | --- | --- |")
    for seed, row in enumerate(data["labels"], 1):
        for way in row["ways"]:
            print(
                f"| {seed} | {way['by']} | {1e3 * way['difference_eV']:.1f} ± "
                f"{1e3 * way['difference_error_eV']:.1f} | {1e3 * way['error_of_labels_eV']:.1f} |"
            )
    print("\n| choice | spread of the energy difference (meV) | not learned (meV) ", end="")
    print("| effective labels | effective snapshots |")
    print("| --- | --- | --- | --- | --- |")
    for seed, row in enumerate(data["labels"], 1):
        print(
            f"| {seed} | {1e3 * row['spread_of_differences_eV']:.0f} | "
            f"{1e3 * row['spread_not_learned_eV']:.0f} | {row['effective_labels']:.0f} | "
            f"{row['effective_snapshots']:.0f} of {row['snapshots']} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.runs is not None:
        measure(arguments.runs, arguments.seeds)
    print_tables(json.loads(DATA.read_text()))
