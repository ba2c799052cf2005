"""Events that `plumed-cv discover` finds, and checks of them: the numbers of docs/discover.md.

    python -m python.discovery run FOLDER       # the events, and elastic bands between their ends
    python -m python.discovery hot FOLDER       # events of plain dynamics, for comparison
    python -m python.discovery methods FOLDER   # saddle searches by several methods
    python -m python.discovery                  # prints the tables

Each of the first three writes its part of docs/discover.json. `hot` needs the catalogues of `run`.
`methods` compares with Sella where it is installed (`pip install sella`).
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import fcc100
from ase.constraints import FixAtoms
from ase.io import read
from ase.optimize import FIRE

from plumed_cv import input_file, sampling
from plumed_cv.common.errors import UserError
from plumed_cv.engines import Dynamics, Engine, Segment, State
from plumed_cv.events import Searcher, discover, find_defect_atoms
from plumed_cv.events.saddles import FMAX_EV_A, SAME_A, SAME_EV
from plumed_cv.paths import find_minimum_energy_path
from plumed_cv.structures.frame import Array
from python import surfaces
from python.zero_kelvin import systems

DATA = Path(__file__).parents[1] / "docs/discover.json"
INPUT = """
[system]
temperature_K = 500.0

[engine]
name = "lammps"
potential = {potential}
"""
_COPPER = ["pair_style eam/alloy", "pair_coeff * * Cu_mishin1.eam.alloy Cu"]


@dataclass(frozen=True)
class Case:
    """A state whose events are searched.

    Attributes
    ----------
    build
        Builds it.
    potential
        LAMMPS's lines for the potential.
    hot_K
        Temperature of the plain dynamics.
    max_barrier_eV
        Limit of the barriers; 1.5 times the lowest one if None.
    searches
        Number of searches at most.
    """

    build: Callable[[], Atoms]
    potential: list[str]
    hot_K: float
    max_barrier_eV: float | None = None
    searches: int = 1000


def island() -> Atoms:
    """Build three adatoms on Cu(100), in hollows around a corner; two layers are fixed."""
    atoms: Atoms = fcc100("Cu", size=(5, 5, 4), a=surfaces.LATTICE_A, vacuum=6.0)
    spacing = surfaces.LATTICE_A / 2**0.5
    corner = atoms.positions[next(each.index for each in atoms if each.tag == 1)].copy()
    for i, j in ((1, 1), (2, 1), (1, 2)):
        atoms.append("Cu")
        atoms.positions[-1] = corner + np.array([i + 0.5, j + 0.5, 1.75 / spacing]) * spacing
    atoms.info.clear()
    atoms.pbc = (True, True, False)
    atoms.set_constraint(FixAtoms([each.index for each in atoms if each.tag >= 3]))
    return atoms


CASES = {
    "vacancy in bcc Fe": Case(lambda: systems.vacancy()[0], list(systems.POTENTIAL), 1100.0),
    "dumbbell in bcc Fe": Case(lambda: systems.dumbbell()[0], list(systems.POTENTIAL), 800.0),
    "adatom on Cu(100)": Case(lambda: surfaces.end_states()[0], _COPPER, 1200.0, 1.0),
    "island of three atoms on Cu(100)": Case(island, _COPPER, 600.0, searches=400),
}


def prepare(name: str, folder: Path) -> tuple[Path, Path, Path]:
    """Write structure and input of a case; return these and the folder of the catalogue."""
    folder.mkdir(parents=True, exist_ok=True)
    base = name.split()[0]
    structure, given = folder / f"{base}.xyz", folder / f"{base}.toml"
    CASES[name].build().write(structure)
    given.write_text(INPUT.format(potential=json.dumps(CASES[name].potential)))
    return structure, given, folder / base


def run(folder: Path) -> dict[str, Any]:
    """Discover the events of all cases, and find the elastic band between the ends of each."""
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        structure, given, catalogue = prepare(name, folder)
        limits: dict[str, Any] = {
            "max_barrier_eV": case.max_barrier_eV,
            "searches": case.searches,
        }
        result = discover(structure, given, catalogue, **limits)
        for event in result["events"]:
            event["band_eV"] = _band(catalogue / event["input"])
        keys: tuple[str, ...]
        keys = ("id", "barrier_eV", "energy_eV", "length_A", "multiplicity", "passes", "band_eV")
        keys += ("reverse_multiplicity", "times_found", "copies", "copies_found")
        found[name] = {
            "events": [{key: event[key] for key in keys} for event in result["events"]],
            "discovery": result["discovery"],
        }
        print(name, json.dumps(found[name]["events"]), flush=True)
    return found


def _band(given: Path) -> float | None:
    """Barrier of the elastic band between the ends of an event, eV; None if there is none."""
    settings = input_file.load(given)
    initial, final = (_read(given.parent / f"{word}.xyz") for word in ("initial", "final"))
    with sampling.open_engine(settings, initial) as engine:
        try:
            path = find_minimum_energy_path(initial, final, engine.calculator, n_images=19)
        except UserError as error:
            print(f"{given}: {error}", flush=True)
            return None
    return float(path.barrier)


def _read(file: Path) -> Atoms:
    atoms = read(file)
    assert isinstance(atoms, Atoms)
    return atoms


def hot(folder: Path, steps: int = 20_000, piece: int = 100) -> dict[str, Any]:
    """Compare the events with those of plain dynamics from the same state.

    Trajectories begin at the state. Every `piece` steps the structure is relaxed. If it is then
    another minimum, it is compared with the final states, and the next trajectory begins.
    """
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        _, _, catalogue = prepare(name, folder)
        events = json.loads((catalogue / "catalogue.json").read_text())["events"]
        reactant = _read(catalogue / "search" / "initial.xyz")
        rng = np.random.default_rng(5)
        counts: Counter[str] = Counter()
        others: list[str] = []
        with sampling.open_engine(
            input_file.load(catalogue / events[0]["input"]), reactant
        ) as engine:
            searcher = Searcher(engine, reactant, np.array([0]))
            known = {
                event["id"]: searcher.images(searcher.step(_read(catalogue / event["final"])))
                for event in events
            }
            for event in events:
                if event["passes"]:
                    at = _read(catalogue / event["id"] / "passed.xyz")
                    known[event["id"] + ", shallow minimum"] = searcher.images(searcher.step(at))
            done = 0
            while done < steps:
                state = State.of(reactant)
                dynamics = Dynamics(case.hot_K, timestep_fs=1.0)
                while done < steps:
                    seed = int(rng.integers(2**31))
                    with TemporaryDirectory() as place:
                        segment = Segment(
                            Path(place), state, dynamics, piece, seed, snapshot_stride=0
                        )
                        state = engine.run(segment).end
                    done += piece
                    step, energy = _quenched(engine, searcher, reactant, state.positions)
                    if np.linalg.norm(step, axis=1).max() < SAME_A:
                        continue
                    event_id = _which(known, step)
                    if event_id is None:
                        first = _first(searcher, reactant, step, known)
                        others.append(f"{energy:+.3f} eV, first {first}")
                    else:
                        counts[event_id] += 1
                    break
        found[name] = {
            "temperature_K": case.hot_K,
            "steps": done,
            "events": dict(counts),
            "others": sorted(others),
        }
        print(name, found[name], flush=True)
    return found


def _quenched(
    engine: Engine, searcher: Searcher, reactant: Atoms, positions: Array
) -> tuple[Array, float]:
    """The minimum below a configuration: displacements from the reactant, and energy."""
    atoms = reactant.copy()
    atoms.positions = positions
    atoms.calc = engine.calculator()
    FIRE(atoms, logfile=None).run(fmax=0.005, steps=2000)
    return searcher.step(atoms), float(atoms.get_potential_energy()) - searcher.energy_eV


def _first(searcher: Searcher, reactant: Atoms, step: Array, known: dict[str, Array]) -> str:
    """In words, the first event on an elastic band to a minimum that is no final state."""
    other = reactant.copy()
    other.positions += step
    try:
        saddle = searcher.towards(other).saddle
    except UserError as error:
        return f"unknown: {error}"
    final = None if saddle is None else searcher.final_state(saddle)[0]
    if saddle is None or final is None:
        return "unknown: no saddle point of this state"
    return f"{_which(known, final) or 'an unknown event'}, barrier {saddle.barrier_eV:.3f} eV"


def _which(known: dict[str, Array], step: Array) -> str | None:
    """Name of the event whose final state this is."""
    for name, images in known.items():
        if np.linalg.norm(images - step, axis=2).max(axis=1).min() < SAME_A:
            return name
    return None


class _Gaussian(Searcher):
    """Searches from starts at which all atoms near one are displaced at random."""

    sigma_A = 0.2

    def start(self, atoms: Atoms, atom: int, rng: np.random.Generator) -> None:
        """Displace the atoms within 4 angstrom of one."""
        near = atoms.get_distances(atom, np.arange(len(atoms)), mic=True) < 4.0
        atoms.positions[near] += rng.normal(scale=self.sigma_A, size=(int(near.sum()), 3))


class _Sella(Searcher):
    """Searches by Sella."""

    def climb(self, atoms: Atoms, mode: Array, check: Callable[[], None]) -> Array:
        """Follow the lowest mode from a start to a saddle point by Sella."""
        sella: Any = import_module("sella")
        optimiser = sella.Sella(atoms, order=1, internal=False, eig=True, logfile=None)
        optimiser.attach(check)
        try:
            optimiser.run(fmax=FMAX_EV_A, steps=300)
        except (ValueError, np.linalg.LinAlgError) as error:
            raise UserError(f"Sella: {error}") from None
        return np.asarray(optimiser.pes.get_HL().evecs[:, 0]).reshape(-1, 3)


class _GaussianSella(_Gaussian, _Sella):
    """Both."""


METHODS: dict[str, tuple[type[Searcher], float]] = {  # and the energy at which a search ends, eV
    "one atom moved, dimer": (Searcher, 2.0),
    "one atom moved, Sella": (_Sella, 2.0),
    "random displacements, dimer": (_Gaussian, 10.0),
    "random displacements, Sella": (_GaussianSella, 10.0),
}


def methods(folder: Path, most_calls: int = 6000) -> dict[str, Any]:
    """Compare methods by the searches for the jump of the vacancy with as many calculations.

    The time is that of this process. LAMMPS is another one.
    """
    name = "vacancy in bcc Fe"
    _, _, catalogue = prepare(name, folder)
    event = json.loads((catalogue / "catalogue.json").read_text())["events"][0]
    reactant = _read(catalogue / "search" / "initial.xyz")
    settings = input_file.load(catalogue / event["input"])
    found = {}
    with sampling.open_engine(settings, reactant) as engine:
        for method, (kind, ceiling) in METHODS.items():
            if issubclass(kind, _Sella) and find_spec("sella") is None:
                print(f"{method}: needs sella")
                continue
            searcher = kind(engine, reactant, find_defect_atoms(reactant))
            saddles = searcher.images(searcher.step(_read(catalogue / event["saddle"])))
            row = {"searches": 0, "saddles": 0, "successes": 0, "force_calls": 0}
            began = time.process_time()
            while row["force_calls"] < most_calls:
                rng = np.random.default_rng([7, row["searches"]])
                outcome = searcher.search(rng, ceiling)
                row["searches"] += 1
                row["force_calls"] += outcome.calls
                if outcome.saddle is None:
                    continue
                row["saddles"] += 1
                apart = np.linalg.norm(saddles - outcome.saddle.step, axis=2).max(axis=1).min()
                near = abs(outcome.saddle.barrier_eV - event["barrier_eV"]) < SAME_EV
                row["successes"] += int(near and apart < SAME_A)
            found[method] = {**row, "cpu_seconds": time.process_time() - began}
            print(method, found[method], flush=True)
    return found


def show(found: dict[str, Any]) -> None:
    """Print the tables of the page."""
    print("| state | event | barrier (eV) | band (eV) | passes (eV) | energy (eV) ", end="")
    print("| moves (A) | events | found | copies |")
    print("|" + " --- |" * 10)
    for name, of in found["run"].items():
        for event in of["events"]:
            cells = [name, event["id"], f"{event['barrier_eV']:.4f}"]
            cells += ["" if event["band_eV"] is None else f"{event['band_eV']:.4f}"]
            cells += [f"{event['passes']['energy_eV']:+.4f}" if event["passes"] else ""]
            cells += [f"{event['energy_eV']:+.4f}", f"{event['length_A']:.2f}"]
            cells += [str(event["multiplicity"]), str(event["times_found"])]
            print("| " + " | ".join([*cells, f"{event['copies_found']} of {event['copies']}"]), "|")
    print()
    print("| state | limit (eV) | searches | force calculations | counted | confidence ", end="")
    print("| events above |")
    print("|" + " --- |" * 7)
    for name, of in found["run"].items():
        did = of["discovery"]
        cells = [name, f"{did['max_barrier_eV']:.3f}", str(did["searches"])]
        cells += [f"{did['force_calls']:,}", str(did["counted"]), f"{did['confidence']:.3f}"]
        cells += [str(len(did["left_out"]))]
        print("| " + " | ".join(cells) + " |")
    print()
    print("| state | T (K) | steps | first events |")
    print("|" + " --- |" * 4)
    for name, of in found["hot"].items():
        seen = [f"{n} x {event}" for event, n in sorted(of["events"].items())]
        seen += [f"another minimum at {each}" for each in of["others"]]
        cells = [name, f"{of['temperature_K']:g}", f"{of['steps']:,}", "; ".join(seen)]
        print("| " + " | ".join(cells) + " |")
    print()
    print("| method | searches | saddle points | jumps found | force calculations a jump ", end="")
    print("| CPU time a calculation without the forces (ms) |")
    print("|" + " --- |" * 6)
    for method, row in found["methods"].items():
        n = row["successes"]
        cells = [method, str(row["searches"]), str(row["saddles"]), str(n)]
        cells += [f"{row['force_calls'] / n:.0f}" if n else f"none in {row['force_calls']:,}"]
        cells += [f"{1e3 * row['cpu_seconds'] / row['force_calls']:.1f}"]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Do a part and keep its numbers, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    tasks = {"run": run, "hot": hot, "methods": methods}
    parser.add_argument("task", nargs="?", choices=tasks)
    parser.add_argument("folder", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.task is None:
        show(json.loads(DATA.read_text(encoding="utf-8")))
        return
    if arguments.folder is None:
        parser.error("name a folder")
    content = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    content[arguments.task] = tasks[arguments.task](arguments.folder)
    DATA.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
