"""Hops of an adatom on Cu(100) counted in plain dynamics, and the rate that a run gives.

    python -m python.references.adatom dynamics RUNS --seed 1 --ns 40
    python -m python.references.adatom rate RUNS             # the run, some minutes
    python -m python.references.adatom collect RUNS          # writes docs/adatom.json, and prints
    python -m python.references.adatom                       # prints docs/adatom.json

The slab, its fixed layers and the potential are those of `python.surfaces`, at 600 K. The dynamics
has no bias and no collective variable; several seeds may run at the same time, and a run that was
stopped goes on from its last 0.1 ns. Every 10 fs the adatom is assigned to the nearest hollow of
the surface. Hops and rates are defined as in `hops`. If another atom is above the surface, the
adatom has changed places with it, which is counted apart.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from ase import units

from plumed_cv import input_file, workflow
from plumed_cv.common.files import replacing, write_text
from plumed_cv.common.numbers import scientific
from plumed_cv.engines import Dynamics, Segment, State, draw_velocities
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.structures import cell_of, held_atoms
from plumed_cv.structures.frame import Array
from plumed_cv.structures.trajectory import read_all_positions
from python import surfaces, worked_case
from python.references.defects import Case
from python.references.hops import Found, find_hops, lasting, undone
from python.references.plain_dynamics import FRAME_FS

DATA = Path(__file__).resolve().parents[2] / "docs" / "adatom.json"
TEMPERATURE_K = 600.0
TIMESTEP_FS = 2.0
BLOCK_STEPS = 50_000  # 0.1 ns
STEPS = 300_000  # of the run
SITES = 4  # along each side of the slab
SPACING_A = surfaces.LATTICE_A / 2**0.5  # of hollows
POTENTIAL = ("pair_style eam/alloy", "pair_coeff * * Cu_mishin1.eam.alloy Cu")
# `hops` needs only the number of equivalent neighbours of this.
CASE = Case("adatom", "fcc", surfaces.LATTICE_A, SITES, "Cu", POTENTIAL, TEMPERATURE_K, 4)


def simulate(folder: Path, seed: int, ns: float) -> None:
    """Run the dynamics of a seed, and write the places of the adatom after each block."""
    folder.mkdir(parents=True, exist_ok=True)
    initial, _ = surfaces.end_states()
    file, scratch = folder / f"seed-{seed}.npz", folder / f"seed-{seed}"
    dynamics = Dynamics(TEMPERATURE_K, timestep_fs=TIMESTEP_FS)
    held = held_atoms(initial)
    free = np.delete(np.arange(len(initial)), held)
    if file.exists():
        with np.load(file) as saved:
            data = dict(saved)
    else:
        rng = np.random.default_rng(seed)
        velocities = draw_velocities(rng, initial.get_masses(), 2.0 * TEMPERATURE_K, held)
        data = {"positions": initial.positions, "velocities": velocities, "blocks": np.array(0)}
        data |= {"places": np.zeros(0, np.int8), "temperatures_K": np.zeros(0)}
        data["adatom"] = np.array(len(initial) - 1)
        data["exchanges"] = np.array(0)
    with LammpsEngine(POTENTIAL, initial) as engine:
        while (k := int(data["blocks"])) < round(ns * 1e6 / (BLOCK_STEPS * TIMESTEP_FS)) + 1:
            scratch.mkdir(exist_ok=True)
            start = State(data["positions"], cell_of(initial), data["velocities"])
            stride = round(FRAME_FS / TIMESTEP_FS)
            number = 1000 * seed + k + 1
            part = Segment(scratch, start, dynamics, BLOCK_STEPS, number, snapshot_stride=stride)
            end = engine.run(part).end
            assert end.velocities is not None
            data["positions"], data["velocities"] = end.positions, end.velocities
            data["blocks"] = np.array(k + 1)
            if k:  # the first block is not counted
                frames = read_all_positions(scratch / "snapshots.dcd")
                top = frames[:, :, 2].argmax(axis=1)
                changes = np.flatnonzero(np.diff([data["adatom"], *top]))
                data["exchanges"] = data["exchanges"] + len(changes)
                data["adatom"] = top[-1]
                above = frames[np.arange(len(frames)), top, :2] - initial.positions[-1, :2]
                cells = np.rint(above / SPACING_A).astype(int) % SITES
                data["places"] = np.append(data["places"], cells @ [SITES, 1]).astype(np.int8)
                kinetic = initial.get_masses()[free] @ np.sum(
                    (end.velocities[free] / units.fs) ** 2, axis=1
                )
                T = kinetic / (units.kB * 3 * len(free))
                data["temperatures_K"] = np.append(data["temperatures_K"], T)
            shutil.rmtree(scratch)
            with replacing(file) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **data)


def run_rate(folder: Path) -> dict[str, Any]:
    """Run `plumed-cv run` with its rate; return the numbers of the page."""
    text = surfaces.INPUT.format(steps=STEPS, temperature_K=TEMPERATURE_K)
    text += "\n[rate]\nerror = 0.05\n"
    worked_case.prepare(folder, surfaces.end_states(), text, "surface.toml")
    result = workflow.run(input_file.load(folder / "surface.toml"), folder / "run")
    harmonic = workflow.compare_harmonic(folder / "run")["rates"][0]["rate_per_s"]
    names = ["converged", "flux_barrier_eV", "flux_barrier_error_eV", "tst_rate_per_s"]
    names += ["tst_rate_error_per_s", "transmission", "transmission_error"]
    names += ["rate_per_s", "rate_error_factor"]
    return {name: result[name] for name in names} | {"harmonic_rate_per_s": harmonic}


def find_crossings(places: Array) -> list[tuple[int, int, int, int]]:
    """Frame, atom (0), old and new place of each change of place."""
    frames = np.flatnonzero(np.diff(places)) + 1
    return [(int(k), 0, int(places[k - 1]), int(places[k])) for k in frames]


def collect(folder: Path) -> None:
    """Write the present results of the runs into docs/adatom.json."""
    seeds = {}
    for file in sorted(folder.glob("seed-*.npz")):
        with np.load(file) as saved:
            temperatures = saved["temperatures_K"]
            seeds[file.stem] = {
                "frames": len(saved["places"]),
                "exchanges": int(saved["exchanges"]),
                "temperature_K": round(float(temperatures.mean()), 1),
                "temperature_error_K": round(
                    float(temperatures.std(ddof=1)) / len(temperatures) ** 0.5, 1
                ),
                "crossings": find_crossings(saved["places"]),
            }
    found = {"dynamics": seeds, "run": run_rate(folder / "rate")}
    text = json.dumps(found, separators=(",", ":"))
    write_text(DATA, text.replace('},"', '},\n"').replace("]],", "]],\n") + "\n")


def show(found: dict[str, Any]) -> None:
    """Print the table of the page."""
    print("| seed | time (ns) | T (K) | exchanges | hops | undone within 1 ps | k_lasting (1/s) |")
    print("|" + " --- |" * 7)
    counted, begin, crossings = 0, 0, []
    for name, part in found["dynamics"].items():
        one = Found(part["frames"], 0.0, 0.0, [tuple(row) for row in part["crossings"]])
        _print_row(name.removeprefix("seed-"), one, part)
        crossings += [(begin + frame, name, *rest) for frame, _, *rest in part["crossings"]]
        begin += part["frames"]
        counted += part["exchanges"]
    every = Found(begin, 0.0, 0.0, crossings)
    _print_row("all", every, {"exchanges": counted})
    run = found["run"]
    print("\n| quantity, of one hop of four | value |\n| --- | --- |")
    print(f"| all checks passed | {'yes' if run['converged'] else 'no'} |")
    error = run["rate_per_s"] * (run["rate_error_factor"] - 1.0)
    for words, value in (
        ("hops in plain dynamics", str(lasting(CASE, every, find_hops(CASE, every)))),
        ("κ k_TST", scientific(run["rate_per_s"], error, "")),
        ("k_TST", scientific(run["tst_rate_per_s"], run["tst_rate_error_per_s"], "")),
        ("harmonic theory", f"{run['harmonic_rate_per_s']:.2e}"),
    ):
        print(f"| {words} (1/s) | {value.strip()} |")
    print(f"| κ | {run['transmission']:.2f} ± {run['transmission_error']:.2f} |")


def _print_row(name: str, found: Found, part: dict[str, Any]) -> None:
    hops = find_hops(CASE, found)
    back = undone(hops)
    cells = [name, f"{found.frames * FRAME_FS * 1e-6:.1f}"]
    cells.append(
        f"{part['temperature_K']} ± {part['temperature_error_K']}" if "frames" in part else ""
    )
    cells += [str(part["exchanges"]), str(len(hops))]
    cells += [f"{back.mean():.0%}" if len(back) else "", str(lasting(CASE, found, hops))]
    print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", nargs="?", choices=["dynamics", "rate", "collect"])
    parser.add_argument("runs", type=Path, nargs="?", help="folder of the runs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ns", type=float, default=40.0)
    arguments = parser.parse_args()
    if arguments.task == "dynamics":
        simulate(arguments.runs, arguments.seed, arguments.ns)
    elif arguments.task == "rate":
        print(json.dumps(run_rate(arguments.runs / "rate"), indent=1))
    else:
        if arguments.task == "collect":
            collect(arguments.runs)
        show(json.loads(DATA.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
