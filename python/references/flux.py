"""Transition state theory's rates through several surfaces, from plain dynamics.

    python -m python.references.flux RUNS                       # runs or continues, then the tables
    python -m python.references.flux RUNS --cases fe-1000K --parts plain --processes 8 --ns 20
    python -m python.references.flux                            # the tables from docs/flux.json

The linear CV xi of a hop is evaluated in every frame of plain dynamics, for all equivalent hops
from the present state at once. There is no bias, so the density of xi gives the free energy of the
flux through any surface directly:

    k_TST(xi*) = rho(xi*) sqrt(kT / (2 pi) sum_i |grad_i xi|^2 / m_i)

The same dynamics gives the hops that are not undone within 1 ps, counted as in `hops`. Their rate
divided by k_TST is the transmission coefficient without any theory. Errors are the jackknife over
20 blocks.

Beside it are the numbers of plumed_cv: one iteration of `plumed-cv run` along the same linear CV,
and transmission coefficients from shots through some of the surfaces.
"""

import argparse
import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import units

from plumed_cv import input_file, workflow
from plumed_cv.common.files import read_json, replacing, write_text
from plumed_cv.common.numbers import error_of_factor, scientific
from plumed_cv.cv import CollectiveVariable
from plumed_cv.engines import draw_velocities
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.neb import find_minimum_energy_path
from plumed_cv.paths.path import EnergyPath, load_path
from plumed_cv.structures.frame import Array
from python.references import common, defects, hops, plain_dynamics
from python.references.equivalent_hops import EquivalentHops, LearnedHops

DATA = Path(__file__).resolve().parents[2] / "docs" / "flux.json"
CASES = {
    "fe-1000K": defects.CASES["fe-1000K"],
    "fe-1200K": replace(defects.CASES["fe-1000K"], temperature_K=1200.0),
    "fe-1200K-learned": replace(defects.CASES["fe-1000K"], temperature_K=1200.0),
    "h-in-ni-500K": replace(defects.CASES["h-in-ni-700K"], temperature_K=500.0),
    "h-in-ni-700K": defects.CASES["h-in-ni-700K"],
    "h-in-ni-900K": replace(defects.CASES["h-in-ni-700K"], temperature_K=900.0),
    "h-in-pd-300K": replace(
        defects.CASES["h-in-ni-700K"],
        what="H in Pd (PdHHe), octahedral to tetrahedral",
        lattice_A=3.89,
        element="Pd",
        potential=("pair_style eam/he", "pair_coeff * * PdHHe.eam.he Pd H"),
        temperature_K=300.0,
    ),
}
SURFACES = {
    "fe-1000K": (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    "fe-1200K": (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    "fe-1200K-learned": (0.3, 0.35, 0.4, 0.45, 0.5),
    "h-in-ni-500K": (0.4, 0.5, 0.6, 0.7, 0.8),
    "h-in-ni-700K": (0.4, 0.5, 0.6, 0.7, 0.8),
    "h-in-ni-900K": (0.4, 0.5, 0.6, 0.7, 0.8),
    "h-in-pd-300K": (0.4, 0.5, 0.6, 0.7, 0.8),
}
LEARNED = ("fe-1200K-learned",)  # along the CV that was learned from the run along the linear one
SHOTS_THROUGH = {"fe-1000K": (0.3, 0.4, 0.5), "fe-1200K": (0.5,), "fe-1200K-learned": (0.5,)}
STEPS = {"h-in-ni-500K": 200_000, "h-in-ni-700K": 200_000, "h-in-pd-300K": 200_000}
NS = {"fe-1000K": 2.5, "h-in-ni-500K": 6.0, "h-in-pd-300K": 2.0}
PARTS = ("plain", "plumed_cv")
HALF_WIDTH = 0.02  # of the interval of xi in which the density is taken
EDGES = np.linspace(-0.5, 1.5, 401)
BLOCKS = 20  # of the jackknife

_INPUT = """
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = {case.temperature_K}
[engine]
potential = {potential}
[cv]
atoms = "all"
[sampling]
steps = {steps}
walkers = {walkers}
timestep_fs = {case.timestep_fs}
[iteration]
minimum = {iterations}
maximum = {iterations}
"""


def hops_of(name: str, folder: Path) -> EquivalentHops:
    """The CV of a case; a learned one is that of the run in its folder."""
    path = load_path(folder / "path.xyz")
    if name in LEARNED:
        learned = CollectiveVariable.load(folder / "run" / "cv-1.safetensors")
        return LearnedHops(CASES[name], path, learned)
    return EquivalentHops(CASES[name], path)


def minimum_path(case: defects.Case, file: Path) -> EnergyPath:
    """Read the minimum energy path of a case from a file, or find it and write it there."""
    if not file.exists():
        initial, final = case.end_states()
        with LammpsEngine(case.potential, initial) as engine:
            find_minimum_energy_path(initial, final, engine.calculator).save(file)
    return load_path(file)


def plain(name: str, folder: Path, ns: float, trajectories: int) -> dict[str, Any]:
    """Make plain dynamics; return histograms of xi and crossings from site to site.

    Parameters
    ----------
    name
        Of the case.
    folder
        Of the case; the files plain-*.npz in it are continued.
    ns
        Total length without equilibration, ns.
    trajectories
        Number of independent trajectories, which run at the same time.
    """
    minimum_path(CASES[name], folder / "path.xyz")
    first, frames = (
        plain_dynamics.EQUILIBRATION_BLOCKS,
        round(plain_dynamics.BLOCK_FS / plain_dynamics.FRAME_FS),
    )
    blocks = first + round(ns * 1e6 / plain_dynamics.BLOCK_FS / trajectories)
    with multiprocessing.get_context("spawn").Pool(trajectories) as pool:
        made = pool.starmap(trajectory, [(name, folder, k, blocks) for k in range(trajectories)])
    parts = np.array_split(np.concatenate([data["histograms"][first:] for data in made]), BLOCKS)
    crossings = []
    for data in made:
        kept = data["crossings"][data["crossings"][:, 0] > first * frames]
        kept[:, 0] -= first * frames
        crossings.append(kept.tolist())
    return {
        "speed": hops_of(name, folder).speed,
        "blocks": [len(part) * frames for part in parts],
        "histograms": [part.sum(axis=0).tolist() for part in parts],
        "frames": [(len(data["histograms"]) - first) * frames for data in made],
        "crossings": crossings,
    }


def trajectory(name: str, folder: Path, number: int, blocks: int) -> dict[str, Array]:
    """Make one trajectory, or continue it; return histograms and crossings of all its blocks.

    Parameters
    ----------
    name, folder
        As for `plain`.
    number
        Of the trajectory, from 0.
    blocks
        Its length in blocks of `plain_dynamics.BLOCK_FS`, those of the equilibration included.
    """
    case, file = CASES[name], folder / f"plain-{number}.npz"
    every = hops_of(name, folder)
    dynamics, (_, home) = plain_dynamics.Dynamics(case), case.start()
    if file.exists():
        with np.load(file) as saved:
            data = dict(saved)
    else:
        rng = np.random.default_rng([1, number])
        hot = draw_velocities(rng, dynamics.masses, 2 * case.temperature_K)
        data = {"positions": case.sites()[home], "velocities": hot, "assigned": home}
        data |= {"drift_A": np.zeros(3), "histograms": np.zeros((0, len(EDGES) - 1))}
        data |= {"crossings": np.zeros((0, 4), dtype=int)}
    sites = plain_dynamics.Sites(case, data["assigned"], data["drift_A"])
    frames = round(plain_dynamics.BLOCK_FS / plain_dynamics.FRAME_FS)
    while (k := len(data["histograms"])) < blocks:
        dynamics.place(data["positions"], data["velocities"])
        values, speeds, crossings = [], [], []
        for i, positions in enumerate(dynamics.frames(10_000 * (number + 1) + k), 1):
            crossings += [(k * frames + i, *crossing) for crossing in sites.update(positions)]
            if (found := every.frame(sites, positions)) is not None:
                values.append(found[0])
                speeds.append(found[1])
        data["positions"], data["velocities"] = dynamics.read()
        data["assigned"], data["drift_A"] = sites.assigned, sites.drift_A
        xi, weights = np.concatenate(values), np.concatenate(speeds)
        histogram = np.histogram(xi, EDGES, weights=weights)[0]
        data["histograms"] = np.concatenate([data["histograms"], histogram[None]])
        data["crossings"] = np.array([*data["crossings"].tolist(), *crossings], dtype=int)
        data["crossings"] = data["crossings"].reshape(-1, 4)
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **data)
    return data


def sampled(name: str, folder: Path, walkers: int) -> dict[str, Any]:
    """Run plumed_cv along the linear CV; return its rates through the surfaces."""
    case, run = CASES[name], folder / "run"
    for state, atoms in zip(("initial", "final"), case.end_states(), strict=True):
        atoms.write(folder / f"{state}.xyz", format="extxyz")
    potential, file = json.dumps(list(case.potential)), folder / "input.toml"
    text = _INPUT.format(
        case=case,
        potential=potential,
        steps=STEPS.get(name, 500_000),
        walkers=walkers,
        iterations=1 + (name in LEARNED),
    )
    write_text(file, text)
    workflow.run(input_file.load(file), run)
    rates = [
        workflow.transmission.compute_rate(run, surface=xi, error=0.05)
        for xi in SHOTS_THROUGH.get(name, ())
    ]
    result = read_json(run / "result.json")
    if not rates:  # those of the run itself
        names = ("transmission", "transmission_error", "rate_per_s", "rate_error_factor")
        own = {name: result[name] for name in names}
        rates = [own | {"surface": round(result["dividing_surface"], 3)}]
    answer = result["answer_iteration"]
    surfaces = read_json(run / f"iteration-{answer}" / "rate" / "surfaces.json")
    top = surfaces["surfaces"][0]["top_eV"]
    W = np.interp(SURFACES[name], surfaces["nodes"], surfaces["W_eV"])
    k_TST = result["steps"][0]["rate_per_s"] * np.exp((top - W) / (units.kB * case.temperature_K))
    error = result["steps"][0]["rate_error_per_s"]
    return {
        "tst_rates_per_s": k_TST.tolist(),
        "relative_error": None if error is None else error / result["steps"][0]["rate_per_s"],
        "through": rates,
        "surface": result["iterations"][answer - 1]["dividing_surface"],
        "delta_F_eV": result["delta_F_eV"],
        "delta_F_error_eV": result["delta_F_error_eV"],
    }


def tst_rates(name: str, data: dict[str, Any]) -> tuple[Array, Array]:
    """k_TST of one hop through the surfaces, and the errors, 1/s, shapes (n,)."""
    case, surfaces = CASES[name], np.array(SURFACES[name])
    histograms, frames = np.array(data["histograms"], dtype=float), np.array(data["blocks"])
    if case.interstitial is None:
        histograms += histograms[:, ::-1]
    middles = 0.5 * (EDGES[1:] + EDGES[:-1])
    near = np.abs(middles - surfaces[:, None]) < HALF_WIDTH
    counts = histograms @ (near / near.sum(axis=1, keepdims=True)).T / np.diff(EDGES)[0]
    thermal = np.sqrt(units.kB * case.temperature_K / (2 * np.pi)) * units.fs * 1e15
    unit = thermal * data["speed"] / case.neighbours
    without = (counts.sum(axis=0) - counts) / (frames.sum() - frames)[:, None]
    errors = np.sqrt((BLOCKS - 1) * np.var(without, axis=0))
    return unit * counts.sum(axis=0) / frames.sum(), unit * errors


def population_difference(name: str, data: dict[str, Any], surface: float) -> tuple[float, float]:
    """delta_F of a hop of an interstitial atom from the times on both sides, and its error, eV.

    Parameters
    ----------
    name, data
        The case, and its plain dynamics.
    surface
        The surface between the two sites. There are two tetrahedral sites for each octahedral one.
    """
    frames = np.array(data["blocks"], dtype=float)
    beyond = np.array(data["histograms"])[:, EDGES[:-1] > surface - 1e-9].sum(axis=1)
    kT = units.kB * CASES[name].temperature_K
    return common.compare_populations(np.stack([frames - beyond, beyond], axis=1), (1, 2), kT)


def joined(name: str, data: dict[str, Any]) -> tuple[hops.Found, list[hops.Hop]]:
    """The hops of all trajectories of plain dynamics, as if these were one, and its length."""
    found: list[hops.Hop] = []
    start = 0
    for frames, crossings in zip(data["frames"], data["crossings"], strict=True):
        own = hops.Found(frames, 0.0, 0.0, [tuple(row) for row in crossings])
        found += [
            hop._replace(time_fs=hop.time_fs + start * plain_dynamics.FRAME_FS)
            for hop in hops.find_hops(CASES[name], own)
        ]
        start += frames
    return hops.Found(start, 0.0, 0.0, []), found


def lasting(name: str, data: dict[str, Any]) -> hops.Rate:
    """The rate of hops that are not undone within 1 ps."""
    return hops.lasting(CASES[name], *joined(name, data))


def print_tables(every: dict[str, Any]) -> None:
    """Print a table for each case."""
    for name, data in every.items():
        rows: dict[float, list[str]] = {xi: [] for xi in SURFACES[name]}
        columns = ["surface ξ"]
        if "plain" in data:
            found = data["plain"]
            ns, rate = sum(found["blocks"]) * plain_dynamics.FRAME_FS * 1e-6, lasting(name, found)
            print(f"\n{name}: {ns:.2f} ns of plain dynamics, k_lasting = {rate}\n")
            columns += ["k_TST, plain (1/s)", "k_lasting / k_TST"]
            for xi, value, error in zip(rows, *tst_rates(name, found), strict=True):
                kappa = rate.per_s / value
                relative = np.hypot(rate.error_per_s / rate.per_s, error / value)
                rows[xi] += [
                    scientific(value, error, "").strip(),
                    f"{kappa:.3f} ± {kappa * relative:.3f}",
                ]
        if "plumed_cv" in data:
            found = data["plumed_cv"]
            columns += ["k_TST, plumed_cv (1/s)", "κ", "k (1/s)"]
            through = {each["surface"]: each for each in found["through"]}
            for xi, value in zip(rows, found["tst_rates_per_s"], strict=True):
                error = value * (found["relative_error"] or np.nan)
                rows[xi].append(scientific(value, error, "").strip())
                if (shot := through.get(xi)) is None:
                    rows[xi] += ["", ""]
                    continue
                k, factor = shot["rate_per_s"], shot["rate_error_factor"]
                rows[xi] += [
                    f"{shot['transmission']:.3f} ± {shot['transmission_error']:.3f}",
                    scientific(k, error_of_factor(k, factor), "").strip(),
                ]
        print("| " + " | ".join(columns) + " |")
        print("|" + " --- |" * len(columns))
        for xi, cells in rows.items():
            print("| " + " | ".join([f"{xi:g}", *cells]) + " |")
        found = data.get("plumed_cv", {})
        if CASES[name].interstitial and "plain" in data and found.get("delta_F_eV") is not None:
            value, error = population_difference(name, data["plain"], found["surface"])
            print(
                f"\ndelta F, from the times on both sides of ξ = {found['surface']:.2f}: "
                f"{value:.4f} ± {error:.4f} eV; plumed_cv: {found['delta_F_eV']:.4f} ± "
                f"{found['delta_F_error_eV']:.4f} eV"
            )


def main() -> None:
    """Run what is asked for and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", help="folder of the runs, made if absent")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--ns", type=float, help="total length of the plain dynamics, ns")
    parser.add_argument(
        "--processes", type=int, default=1, help="trajectories of plain dynamics, walkers of bABF"
    )
    given = parser.parse_args()
    data = read_json(DATA) if DATA.exists() else {}
    if given.runs is not None:
        for name in given.cases:
            folder = given.runs / name
            folder.mkdir(parents=True, exist_ok=True)
            found = data.setdefault(name, {})
            if "plumed_cv" in given.parts:
                found["plumed_cv"] = sampled(name, folder, given.processes)
            if "plain" in given.parts:
                found["plain"] = plain(name, folder, given.ns or NS.get(name, 4.0), given.processes)
            write_text(DATA, json.dumps(data, separators=(",", ":")) + "\n")
    print_tables(data)


if __name__ == "__main__":
    main()
