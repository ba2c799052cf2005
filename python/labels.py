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

from plumed_cv import config, sampling, workflow
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


def run(root: Path, name: str) -> tuple[config.Config, Path]:
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
    loaded = config.load(folder / f"{name}.toml")
    if not (folder / "run" / "result.json").exists():
        workflow.run(loaded, folder / "run")
    return loaded, folder / "run"


def compute(file: Path, given: config.Config) -> None:
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


def table(data: dict[str, Any]) -> None:
    """Print the rows of the page."""
    for name, (value, error) in data["barriers"].items():
        print(f"{name}: {value:.4f} ± {error:.4f} eV")
    reference, of_reference = data["barriers"]["reference"]
    print("\n| seed | correction (meV) | of it by labels | by | corrected (eV) | off (meV) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for seed, row in enumerate(data["labels"], 1):
        print(
            f"| {seed} | {1e3 * row['difference_eV']:.1f} ± {1e3 * row['difference_error_eV']:.1f}"
            f" | {1e3 * row['error_of_labels_eV']:.1f} | {row['by']} | {row['flux_barrier_eV']:.4f}"
            f" ± {row['flux_barrier_error_eV']:.4f} | "
            f"{1e3 * (row['flux_barrier_eV'] - reference):+.1f} ± "
            f"{1e3 * np.hypot(row['flux_barrier_error_eV'], of_reference):.1f} |"
        )
    for row in data["labels"]:
        print(
            f"spread {1e3 * row['spread_of_differences_eV']:.0f} meV, not learned "
            f"{1e3 * row['spread_not_learned_eV']:.0f} meV, effective {row['effective_labels']:.0f}"
            f" labels, {row['effective_snapshots']:.0f} of {row['snapshots']} snapshots"
        )
        for way in row["ways"]:
            print(
                f"    {way['by']}: {1e3 * way['difference_eV']:.1f} ± "
                f"{1e3 * way['difference_error_eV']:.1f} meV, of labels "
                f"{1e3 * way['error_of_labels_eV']:.1f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.runs is not None:
        measure(arguments.runs, arguments.seeds)
    table(json.loads(DATA.read_text()))
