"""A vacancy of lithium chloride with CHGNet, from a path to the error of the potential.

    python python/lithium_chloride.py RUNS    # run (or go on) in this folder, then print
    python python/lithium_chloride.py         # print from the committed data

Needs `pip install chgnet`. The potential of the run is CHGNet 0.3.0, the other one its r2SCAN
model. The cell and the run are small: 23 atoms and 2400 steps, so the run does not converge. The
results go to docs/lithium-chloride.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ase import Atoms

from plumed_cv import input_file, workflow
from plumed_cv.common.files import read_json, write_text
from plumed_cv.workflow.directory import RunDirectory
from plumed_cv.workflow.mep import read_path
from plumed_cv.workflow.speed import read_plumed_seconds

DATA = Path(__file__).resolve().parent.parent / "docs" / "lithium-chloride.json"
LATTICE_A = 5.1457  # of CHGNet 0.3.0
SNAPSHOTS = 100
POTENTIAL = """from chgnet.model.dynamics import CHGNetCalculator
from chgnet.model.model import CHGNet


def chgnet(model):
    loaded = CHGNet.load(model_name=model, use_device="cpu", verbose=False)
    return CHGNetCalculator(loaded, use_device="cpu")
"""
INPUT = """
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = 600.0

[engine]
name = "ase"
calculator = "potential.chgnet"
arguments = { model = "0.3.0" }
committee = [{ arguments = { model = "r2scan" } }]

[path]
images = 7
fmax_eV_A = 0.02

[sampling]
steps = 2400
timestep_fs = 3.0
friction_per_ps = 2.0
segments = 12
ramp = 0.2

[iteration]
minimum = 1
maximum = 1

[rate]
enabled = false
"""


def structures() -> tuple[Atoms, Atoms]:
    """The vacancy in 23 atoms before and after a neighbouring lithium atom has moved into it."""
    side = LATTICE_A / 2**0.5
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0, 0, 0.5]]
    cell = Atoms("Li2Cl2", scaled_positions=places, cell=[side, side, LATTICE_A], pbc=True)
    initial: Atoms = cell.repeat((3, 2, 1))
    hole = initial.positions[0].copy()
    final = initial.copy()
    nearest = int(abs(initial.positions - hole - [side, 0, 0]).sum(axis=1).argmin())
    final.positions[nearest] = hole
    del initial[0], final[0]
    return initial, final


def run(root: Path) -> dict[str, Any]:
    """Run, or go on; return what the page shows."""
    root.mkdir(parents=True, exist_ok=True)
    for atoms, file in zip(structures(), ("initial.xyz", "final.xyz"), strict=True):
        atoms.write(root / file, format="extxyz")
    write_text(root / "potential.py", POTENTIAL)
    write_text(root / "lithium.toml", INPUT)
    if not (root / "run" / "result.json").exists():
        workflow.run(input_file.load(root / "lithium.toml"), root / "run")
    workflow.committee.compute_committee(root / "run", snapshots=SNAPSHOTS)
    return read_run(root / "run")


def read_run(directory: Path) -> dict[str, Any]:
    """Read the values of the page from a run."""
    result = read_json(directory / "result.json")
    iteration = read_json(directory / "iteration-1" / "result.json")
    keys = ("flux_barrier_eV", "flux_barrier_error_eV", "model_error_eV", "converged", "md_steps")
    path = read_json(directory / "path.json") if (directory / "path.json").exists() else {}
    committee = result["committee"]
    logs = sorted((directory / "iteration-1").glob("segment-*/plumed.log"))
    in_plumed = sum(read_plumed_seconds(log) or 0.0 for log in logs)
    return {key: result[key] for key in keys} | {
        "seconds_path": path.get("seconds"),
        "seconds_sampling": iteration["seconds_sampling"],
        "plumed_share": in_plumed / iteration["seconds_sampling"],
        "barrier_0K_eV": float(read_path(RunDirectory(directory)).energies.max()),
        "member": committee["members"][0],
        "model_deviation": committee["model_deviation"],
    }


def main() -> None:
    """Run, or print the committed data."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="?", type=Path, help="folder of the run")
    given = parser.parse_args()
    if given.runs is not None:
        write_text(DATA, json.dumps(run(given.runs), indent=1))
    found = read_json(DATA)
    member = found["member"]
    barrier, error = found["flux_barrier_eV"], found["flux_barrier_error_eV"]
    difference, its_error = member["difference_eV"], member["difference_error_eV"]
    rows = {
        "elastic band (s)": f"{found['seconds_path'] or 0:.0f}",
        "sampling (s)": f"{found['seconds_sampling']:.0f}",
        "share of PLUMED with CV and bias": f"{100 * found['plumed_share']:.1f} %",
        "barrier at 0 K (eV)": f"{found['barrier_0K_eV']:.3f}",
        "flux barrier (eV)": f"{barrier:.2f} ± {error:.2f}",
        "all checks passed": "yes" if found["converged"] else "no",
        "r2SCAN minus 0.3.0, barrier (eV)": f"{difference:.3f} ± {its_error:.3f}",
        "by": f"{member['by']}, {member['effective_snapshots']:.0f} effective snapshots",
    }
    print("| what | value |\n| --- | --- |")
    for what, value in rows.items():
        print(f"| {what} | {value} |")
    if found["model_deviation"] is not None:
        print(found["model_deviation"])


if __name__ == "__main__":
    main()
