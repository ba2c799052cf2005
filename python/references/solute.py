"""An asymmetric process in a solid: a vacancy in iron moves away from a vanadium atom.

    python -m python.references.solute RUNS                # runs, or goes on, then the table
    python -m python.references.solute RUNS --parts plain --ns 8
    python -m python.references.solute                     # the table from docs/solute.json

Processes, by the site of the vacancy relative to the solute:

    second     from the first shell of neighbours, a/2 <111>, to the second, a <100>
    fifth      from the first shell to the fifth, a <111>, away from the solute

The difference of the free energies of the two states, delta_F, is known in two other ways:

Harmonic limit
    Energies and Hessians of both relaxed states. It holds at low temperature.
Populations
    The times that the vacancy spends in each shell in plain dynamics without a bias, divided by the
    numbers of sites (8, 6 and 8). There is no approximation. Errors are the jackknife over 20
    blocks. A frame belongs to the shell of the site without a nearest atom.

Potential: VFe_mm.eam.fs of LAMMPS. Cell: that of the packaged example, 126 Fe and 1 V.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from plumed_cv import config, workflow
from plumed_cv.common.files import read_json, replacing, write_text
from plumed_cv.engines import maxwell_boltzmann
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.path import load_path
from plumed_cv.rates.harmonic import Expansion
from plumed_cv.rates.stationary import stationary_point
from python.references import hops

DATA = Path(__file__).parents[2] / "docs" / "solute.json"

# Site of the vacancy in the final state, in units of the lattice parameter from the solute.
PROCESSES = {"second": (1.0, 0.0, 0.0), "fifth": (1.0, 1.0, 1.0)}
SHELLS = {"first": 8, "second": 6, "third": 12, "fourth": 24, "fifth": 8}
PLAIN_K = 1000.0
BLOCKS = 20  # of the jackknife
PARTS = ("runs", "harmonic", "plain")

_INPUT = """
[system]
initial = "initial.xyz"
final = "final.xyz"
temperature_K = {temperature_K}
[engine]
potential = {potential}
[sampling]
steps = {steps}
timestep_fs = 2.0
"""
RUNS = {
    (process, T): steps
    for T, steps in ((300.0, 150_000), (PLAIN_K, 500_000))
    for process in PROCESSES
}


@dataclass(frozen=True)
class Solute(hops.Case):
    """A vacancy next to a vanadium atom, which is the first atom."""

    def start(self) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Element and site of each atom: the solute on the first site, the vacancy next to it."""
        sites = np.arange(len(self.host()), dtype=np.int64)
        sites = np.delete(sites, self.site((0.5, 0.5, 0.5)))
        return ("V", *("Fe",) * (len(sites) - 1)), sites

    def site(self, from_solute: tuple[float, float, float]) -> int:
        """Number of the site at a distance from the first site, in lattice parameters."""
        off = self.sites() - np.array(from_solute) * self.lattice_A
        off -= self.edge_A * np.round(off / self.edge_A)
        return int(np.einsum("ij,ij->i", off, off).argmin())

    def shells(self) -> Any:
        """Shell of each site around each site, 0 for itself, shape (M, M)."""
        off = self.sites()[:, None] - self.sites()
        off -= self.edge_A * np.round(off / self.edge_A)
        squares = np.rint(4.0 * np.sum(off**2, axis=2) / self.lattice_A**2).astype(int)
        return np.unique(squares, return_inverse=True)[1].reshape(squares.shape)


CASE = Solute(
    "vacancy next to V in Fe (VFe_mm)",
    "bcc",
    11.5412 / 4,
    4,
    "Fe",
    ("pair_style eam/fs", "pair_coeff * * VFe_mm.eam.fs V Fe"),
    PLAIN_K,
    8,
)


def end_states(process: str) -> tuple[Atoms, Atoms]:
    """The states of a process, not relaxed."""
    elements, sites = CASE.start()
    initial = Atoms(elements, CASE.sites()[sites], cell=[CASE.edge_A] * 3, pbc=True)
    final = initial.copy()
    moving = int(np.flatnonzero(sites == CASE.site(PROCESSES[process]))[0])
    final.positions[moving] = CASE.sites()[CASE.site((0.5, 0.5, 0.5))]
    return initial, final


def write(process: str, temperature_K: float, steps: int, folder: Path) -> Path:
    """Write end states and input of a run; returns the input."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, atoms in zip(("initial", "final"), end_states(process), strict=True):
        atoms.write(folder / f"{name}.xyz", format="extxyz")
    potential = json.dumps(list(CASE.potential))
    file = folder / "solute.toml"
    write_text(file, _INPUT.format(temperature_K=temperature_K, potential=potential, steps=steps))
    return file


def sampled(process: str, temperature_K: float, steps: int, runs: Path) -> dict[str, float]:
    """Difference of the states and flux barrier by plumed_cv, eV."""
    folder = runs / f"{process}-{temperature_K:.0f}K"
    workflow.run(config.load(write(process, temperature_K, steps, folder)), folder / "run")
    result = read_json(folder / "run" / "result.json")
    names = ("delta_F_eV", "flux_barrier_eV")
    kept = {name: result[name] for name in names}
    kept |= {key: result[key] for name in names if (key := name.replace("_eV", "_error_eV"))}
    return kept | {"converged": result["converged"], "iterations": len(result["iterations"])}


def harmonic_difference(initial: Expansion, final: Expansion, temperature_K: float) -> float:
    """Classical harmonic delta_F, eV: the masses of the same atoms cancel."""
    logs = [float(np.log(state.modes()[0]).sum()) for state in (initial, final)]
    entropy = 0.5 * units.kB * temperature_K * (logs[1] - logs[0])
    return final.energy_eV - initial.energy_eV + entropy


def harmonic(process: str, runs: Path) -> dict[str, float]:
    """Harmonic delta_F of a process at the temperatures of its runs, eV; the runs must be there."""
    path = load_path(runs / f"{process}-300K" / "run" / "path.xyz")
    with LammpsEngine(CASE.potential, path.images[0]) as engine:
        initial, final = (
            stationary_point(engine, image.positions, path.cell)
            for image in (path.images[0], path.images[-1])
        )
    return {
        f"{T:.0f}": harmonic_difference(initial, final, T) for name, T in RUNS if name == process
    }


def plain(runs: Path, ns: float) -> dict[str, Any]:
    """Times in the shells in plain dynamics: shares of all frames and numbers of jumps.

    Parameters
    ----------
    runs
        Folder; plain.npz in it is continued.
    ns
        Length of the dynamics, ns.
    """
    file = runs / "plain.npz"
    _, home = CASE.start()
    dynamics = hops.Dynamics(CASE)
    if file.exists():
        with np.load(file) as saved:
            data = dict(saved)
    else:
        hot = maxwell_boltzmann(np.random.default_rng(1), dynamics.masses, 2.0 * PLAIN_K)
        data = {"positions": CASE.sites()[home], "velocities": hot, "assigned": home}
        data |= {"drift_A": np.zeros(3), "counts": np.zeros((0, 1 + len(SHELLS)), dtype=int)}
    shells, blocks = CASE.shells(), round(ns * 1e6 / hops.BLOCK_FS)
    sites = hops.Sites(CASE, data["assigned"], data["drift_A"])
    while len(data["counts"]) < blocks:
        k = len(data["counts"])
        dynamics.place(data["positions"], data["velocities"])
        counted = np.zeros(1 + len(SHELLS), dtype=int)
        for positions in dynamics.frames(k + 1):
            sites.update(positions)
            taken = np.bincount(sites.assigned, minlength=len(shells))
            empty = np.flatnonzero(taken == 0)
            # For a moment two atoms can be nearest to one site; then there are two empty ones.
            if len(empty) == 1:
                shell = shells[sites.assigned[0], empty[0]]
                counted[min(shell, len(SHELLS) + 1) - 1] += 1
        data["positions"], data["velocities"] = dynamics.read()
        data["assigned"], data["drift_A"] = sites.assigned, sites.drift_A
        data["counts"] = np.concatenate([data["counts"], counted[None]])
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **data)
    return {"counts": data["counts"][1:].tolist()}  # the first block is the equilibration


def populations(counts: NDArray[np.int64], shell: str) -> tuple[float, float]:
    """delta_F from the first to another shell and its error, eV, from frames of each block."""
    numbers = np.array(list(SHELLS.values()))
    which = list(SHELLS).index(shell)

    def difference(frames: NDArray[np.int64]) -> float:
        per_site = frames[: len(SHELLS)] / numbers
        return float(-units.kB * PLAIN_K * np.log(per_site[which] / per_site[0]))

    parts = np.array([part.sum(axis=0) for part in np.array_split(counts, BLOCKS)])
    without = [difference(parts.sum(axis=0) - part) for part in parts]
    error = float(np.sqrt((BLOCKS - 1) * np.var(without)))
    return difference(parts.sum(axis=0)), error


def print_table(data: dict[str, Any]) -> None:
    """Print a row for each run."""
    print("| process | T (K) | flux barrier (eV) | delta F (eV) | harmonic | populations |")
    print("|" + " --- |" * 6)
    for (process, T), _ in RUNS.items():
        run = data.get("runs", {}).get(f"{process}-{T:.0f}K")
        if run is None:
            continue
        harmonic_eV = data.get("harmonic", {}).get(process, {}).get(f"{T:.0f}")
        cells = [process, f"{T:.0f}"]
        cells += [
            f"{run[f'{name}_eV']:.3f} ± {run[f'{name}_error_eV']:.3f}"
            for name in ("flux_barrier", "delta_F")
        ]
        cells.append("" if harmonic_eV is None else f"{harmonic_eV:.3f}")
        counts = data.get("plain", {}).get("counts")
        if counts and T == PLAIN_K:
            value, error = populations(np.array(counts), process)
            cells.append(f"{value:.3f} ± {error:.3f}")
        else:
            cells.append("")
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", help="folder of the runs, made if absent")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--temperatures", nargs="+", type=float, default=[300.0, PLAIN_K])
    parser.add_argument("--ns", type=float, default=4.0, help="length of the plain dynamics, 4")
    given = parser.parse_args()
    data = read_json(DATA) if DATA.exists() else {}
    if given.runs is not None:
        given.runs.mkdir(parents=True, exist_ok=True)
        if "runs" in given.parts:
            data.setdefault("runs", {})
            for (process, T), steps in RUNS.items():
                if T not in given.temperatures:
                    continue
                data["runs"][f"{process}-{T:.0f}K"] = sampled(process, T, steps, given.runs)
                write_text(DATA, json.dumps(data) + "\n")
        if "harmonic" in given.parts:
            data["harmonic"] = {process: harmonic(process, given.runs) for process in PROCESSES}
        if "plain" in given.parts:
            data["plain"] = plain(given.runs, given.ns)
        write_text(DATA, json.dumps(data) + "\n")
    print_table(data)


if __name__ == "__main__":
    main()
