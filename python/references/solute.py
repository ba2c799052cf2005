"""Asymmetric processes in solids: a vacancy moves away from a foreign atom.

    python -m python.references.solute RUNS                # runs, or goes on, then the table
    python -m python.references.solute RUNS --cases al-cu --parts plain --ns 10
    python -m python.references.solute                     # the table from docs/solute.json

Cases:

    fe-v       V in iron, 127 atoms (VFe_mm.eam.fs), in the cell of the packaged example
    fe-al      Al in iron, 127 atoms (AlFe_mm.eam.fs), in the cell of 0 K
    al-cu      Cu in aluminium, 107 atoms (AlCu.adp), in the cell of 0 K

A process leads from the first shell of neighbours of the foreign atom to the shell of its name:

    second     a <100> (bcc)
    fourth     a <110> (fcc), away from the foreign atom
    fifth      a <111> (bcc), away from the foreign atom

The difference of the free energies of the two states, delta_F, is known in three other ways:

Harmonic limit
    Energies and Hessians of both relaxed states. It holds at low temperature.
Integration
    Thermodynamic integration of each state from its harmonic crystal (integration.py). There is no
    approximation.
Populations
    The times that the vacancy spends in each shell in plain dynamics without a bias, divided by the
    numbers of sites. There is no approximation. Errors are the jackknife over 20 blocks. A frame
    belongs to the shell of the site without a nearest atom.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from plumed_cv import input_file, workflow
from plumed_cv.common.files import read_json, replacing, write_text
from plumed_cv.engines import draw_velocities
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.rates.harmonic import Expansion
from plumed_cv.rates.stationary import find_stationary_point
from python.references import common, defects, integration, plain_dynamics

DATA = Path(__file__).parents[2] / "docs" / "solute.json"

ORDINALS = ("first", "second", "third", "fourth", "fifth")
BLOCKS = 20  # of the jackknife
PARTS = ("runs", "harmonic", "integration", "plain")

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

Place = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Solute(defects.Case):
    """A vacancy next to a foreign atom, which is the first atom.

    Attributes
    ----------
    solute
        Element of the foreign atom.
    vacancy
        Site of the vacancy in the initial state, in lattice parameters from the foreign atom.
    processes
        Site of the vacancy in the final state of each process, in the same unit.
    runs
        Process, temperature (K) and steps an iteration of each run.
    """

    solute: str
    vacancy: Place
    processes: dict[str, Place]
    runs: tuple[tuple[str, float, int], ...]

    def start(self) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Element and site of each atom: the foreign atom on the first site."""
        sites = np.arange(len(self.host()), dtype=np.int64)
        sites = np.delete(sites, self.site(self.vacancy))
        return (self.solute, *(self.element,) * (len(sites) - 1)), sites

    def site(self, from_solute: Place) -> int:
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

    def states(self, process: str) -> tuple[Atoms, Atoms]:
        """The states of a process, not relaxed."""
        elements, sites = self.start()
        initial = Atoms(elements, self.sites()[sites], cell=[self.edge_A] * 3, pbc=True)
        final = initial.copy()
        moving = int(np.flatnonzero(sites == self.site(self.processes[process]))[0])
        final.positions[moving] = self.sites()[self.site(self.vacancy)]
        return initial, final


CASES = {
    "fe-v": Solute(
        "vacancy next to V in Fe",
        "bcc",
        11.5412 / 4,
        4,
        "Fe",
        ("pair_style eam/fs", "pair_coeff * * VFe_mm.eam.fs V Fe"),
        1000.0,
        8,
        solute="V",
        vacancy=(0.5, 0.5, 0.5),
        processes={"second": (1.0, 0.0, 0.0), "fifth": (1.0, 1.0, 1.0)},
        runs=(
            ("second", 300.0, 150_000),
            ("fifth", 300.0, 150_000),
            ("second", 1000.0, 500_000),
        ),
    ),
    "fe-al": Solute(
        "vacancy next to Al in Fe",
        "bcc",
        2.855,
        4,
        "Fe",
        ("pair_style eam/fs", "pair_coeff * * AlFe_mm.eam.fs Al Fe"),
        1000.0,
        8,
        solute="Al",
        vacancy=(0.5, 0.5, 0.5),
        processes={"second": (1.0, 0.0, 0.0)},
        runs=(("second", 1000.0, 500_000),),
    ),
    "al-cu": Solute(
        "vacancy next to Cu in Al",
        "fcc",
        4.05,
        3,
        "Al",
        ("pair_style adp", "pair_coeff * * AlCu.adp Cu Al"),
        850.0,
        12,
        solute="Cu",
        vacancy=(0.5, 0.5, 0.0),
        processes={"fourth": (1.0, 1.0, 0.0)},
        runs=(("fourth", 200.0, 150_000), ("fourth", 850.0, 300_000)),
    ),
}


def write(case: Solute, process: str, temperature_K: float, steps: int, folder: Path) -> Path:
    """Write end states and input of a run; returns the input."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, atoms in zip(("initial", "final"), case.states(process), strict=True):
        atoms.write(folder / f"{name}.xyz", format="extxyz")
    potential = json.dumps(list(case.potential))
    file = folder / "solute.toml"
    write_text(file, _INPUT.format(temperature_K=temperature_K, potential=potential, steps=steps))
    return file


def sample(
    case: Solute, process: str, temperature_K: float, steps: int, runs: Path
) -> dict[str, float]:
    """Difference of the states and flux barrier by plumed_cv, eV."""
    folder = runs / f"{process}-{temperature_K:.0f}K"
    file = write(case, process, temperature_K, steps, folder)
    workflow.run(input_file.load(file), folder / "run")
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


def expand_states(case: Solute, process: str) -> tuple[Expansion, Expansion]:
    """Expansions at the minima of the two states of a process."""
    states = case.states(process)
    cell = case.edge_A * np.eye(3)
    with LammpsEngine(case.potential, states[0]) as engine:
        initial, final = (find_stationary_point(engine, each.positions, cell) for each in states)
    return initial, final


def compute_harmonic(case: Solute) -> dict[str, float]:
    """Harmonic delta_F of each run, eV."""
    states = {process: expand_states(case, process) for process in case.processes}
    return {
        f"{process}-{T:.0f}K": harmonic_difference(*states[process], T)
        for process, T, _ in case.runs
    }


def integrate_states(
    case: Solute, runs: Path, ps: Callable[[float], float]
) -> dict[str, tuple[float, float]]:
    """delta_F of each run and its error by thermodynamic integration, eV.

    Parameters
    ----------
    case
        The crystal and the foreign atom.
    runs
        Folder; the dynamics in it is continued.
    ps
        Length of the dynamics at each node, as a function of the temperature.
    """
    states = {process: expand_states(case, process) for process in case.processes}
    found = {}
    for process, T, _ in case.runs:
        values, errors = [], []
        for name, state in zip(("initial", "final"), states[process], strict=True):
            file = runs / f"integration-{process}-{T:.0f}K-{name}.npz"
            parts = integration.sample_differences(case, state, T, ps(T), file)
            value, error = integration.integrate(parts)
            values.append(value)
            errors.append(error)
        difference = harmonic_difference(*states[process], T) + values[1] - values[0]
        found[f"{process}-{T:.0f}K"] = (difference, float(np.hypot(errors[0], errors[1])))
    return found


def count_frames(case: Solute, runs: Path, ns: float) -> list[list[int]]:
    """Frames of plain dynamics with the vacancy in each shell.

    Parameters
    ----------
    case
        The crystal and the foreign atom.
    runs
        Folder; plain.npz in it is continued.
    ns
        Length of the dynamics, ns.

    Returns
    -------
    Numbers of frames in each shell of ORDINALS, and beyond, for each block.
    """
    file = runs / "plain.npz"
    _, home = case.start()
    dynamics = plain_dynamics.Dynamics(case)
    if file.exists():
        with np.load(file) as saved:
            data = dict(saved)
    else:
        rng = np.random.default_rng(1)
        hot = draw_velocities(rng, dynamics.masses, 2.0 * case.temperature_K)
        data = {"positions": case.sites()[home], "velocities": hot, "assigned": home}
        data |= {"drift_A": np.zeros(3), "counts": np.zeros((0, 1 + len(ORDINALS)), dtype=int)}
    shells, blocks = case.shells(), round(ns * 1e6 / plain_dynamics.BLOCK_FS)
    sites = plain_dynamics.Sites(case, data["assigned"], data["drift_A"])
    while len(data["counts"]) < blocks:
        k = len(data["counts"])
        dynamics.place(data["positions"], data["velocities"])
        counted = np.zeros(1 + len(ORDINALS), dtype=int)
        for positions in dynamics.frames(k + 1):
            sites.update(positions)
            taken = np.bincount(sites.assigned, minlength=len(shells))
            empty = np.flatnonzero(taken == 0)
            # For a moment two atoms can be nearest to one site; then there are two empty ones.
            if len(empty) == 1:
                shell = shells[sites.assigned[0], empty[0]]
                counted[min(shell, len(ORDINALS) + 1) - 1] += 1
        data["positions"], data["velocities"] = dynamics.read()
        data["assigned"], data["drift_A"] = sites.assigned, sites.drift_A
        data["counts"] = np.concatenate([data["counts"], counted[None]])
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **data)
    counts: list[list[int]] = data["counts"][1:].tolist()  # the first block is the equilibration
    return counts


def population_difference(
    case: Solute, counts: NDArray[np.int64], process: str
) -> tuple[float, float]:
    """delta_F of a process and its error, eV, from frames in each shell of each block."""
    numbers = np.bincount(case.shells()[0])[1:]
    ends = [0, int(case.shells()[0, case.site(case.processes[process])]) - 1]
    parts = np.array([part.sum(axis=0) for part in np.array_split(counts, BLOCKS)])
    sites = int(numbers[ends[0]]), int(numbers[ends[1]])
    return common.compare_populations(parts[:, ends], sites, units.kB * case.temperature_K)


def print_table(data: dict[str, Any]) -> None:
    """Print a row for each run."""
    others = "harmonic | integration | populations"
    print(f"| process | T (K) | flux barrier (eV) | delta F (eV) | {others} |")
    print("|" + " --- |" * 7)
    for name, case in CASES.items():
        found = data.get(name, {})
        for process, T, _ in case.runs:
            run = found.get("runs", {}).get(f"{process}-{T:.0f}K")
            if run is None:
                continue
            cells = [f"{case.what}, {process} shell", f"{T:.0f}"]
            cells += [
                f"{run[f'{value}_eV']:.3f} ± {run[f'{value}_error_eV']:.3f}"
                for value in ("flux_barrier", "delta_F")
            ]
            harmonic_eV = found.get("harmonic", {}).get(f"{process}-{T:.0f}K")
            cells.append("" if harmonic_eV is None else f"{harmonic_eV:.3f}")
            exact = found.get("integration", {}).get(f"{process}-{T:.0f}K")
            cells.append("" if exact is None else f"{exact[0]:.3f} ± {exact[1]:.3f}")
            counts = found.get("plain")
            if counts and case.temperature_K == T:
                value, error = population_difference(case, np.array(counts), process)
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
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--ns", type=float, default=5.0, help="length of the plain dynamics, 5")
    parser.add_argument(
        "--ps", type=float, default=120.0, help="length of the integration at 1000 K, ps, 120"
    )
    given = parser.parse_args()
    data = read_json(DATA) if DATA.exists() else {}
    for name in given.cases if given.runs is not None else ():
        case, runs, found = CASES[name], given.runs / name, data.setdefault(name, {})
        runs.mkdir(parents=True, exist_ok=True)
        for process, T, steps in case.runs if "runs" in given.parts else ():
            key = f"{process}-{T:.0f}K"
            found.setdefault("runs", {})[key] = sample(case, process, T, steps, runs)
            write_text(DATA, json.dumps(data) + "\n")
        if "harmonic" in given.parts:
            found["harmonic"] = compute_harmonic(case)
            write_text(DATA, json.dumps(data) + "\n")
        if "integration" in given.parts:
            found["integration"] = integrate_states(case, runs, lambda T: given.ps * T / 1000.0)
            write_text(DATA, json.dumps(data) + "\n")
        if "plain" in given.parts:
            found["plain"] = count_frames(case, runs, given.ns)
            write_text(DATA, json.dumps(data) + "\n")
    print_table(data)


if __name__ == "__main__":
    main()
