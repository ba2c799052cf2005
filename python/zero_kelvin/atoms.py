"""Number of atoms that a CV needs: the tables of docs/atoms.md and docs/dislocations.md.

    python python/zero_kelvin/atoms.py PATHS                 # run what is missing, then print
    python python/zero_kelvin/atoms.py PATHS vacancy         # only this system
    python python/zero_kelvin/atoms.py                       # print the committed data

PATHS is the folder of `systems.py`, which also gets the paths of a larger vacancy and of one of the
dislocations gliding to the next valley. For each choice of atoms a CV is trained on the noisy path.
Its energy along the path is compared with that of the path (`energy.along_variable`). The energy
with all other atoms relaxed at constant CV, at values around the highest image, gives the barrier
of the profile at 0 K. The Hessian at the saddle point gives the harmonic flux through the plane of
the CV relative to that through the best plane. Both are computed for point defects only. For the
dislocation, the noise is that of thermal motion at three temperatures.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import FIRE
from scipy.interpolate import CubicSpline

from plumed_cv.common.files import write_text
from plumed_cv.cv import CollectiveVariable
from plumed_cv.cv.reconstruction import VARIANCE_A2, reconstruct
from plumed_cv.engines import Engine
from plumed_cv.engines.lammps import LammpsEngine
from plumed_cv.paths.noise import thermal_variance
from plumed_cv.paths.path import EnergyPath
from plumed_cv.rates.harmonic import Expansion
from plumed_cv.rates.stationary import find_saddle
from plumed_cv.structures.frame import Array
from python.zero_kelvin import systems

DATA = Path(__file__).resolve().parents[2] / "docs" / "zero-kelvin" / "atoms.json"
KELVIN = 300.0
SPRING_EV = 400.0  # holds the CV
AROUND = 3  # images on each side of the highest one
FMAX_EV_A = 2e-3


def large_vacancy() -> tuple[Any, Any]:
    """Build the vacancy of `systems.vacancy` in 1999 atoms."""
    site, neighbour = np.full(3, 1.0), np.full(3, 1.5)
    sites = [site, neighbour]
    return (
        systems.with_defect(10, sites, [neighbour]),
        systems.with_defect(10, sites, [site]),
    )


systems.SYSTEMS["vacancy-1999"] = systems.System(
    large_vacancy, 31, symmetric=True, interpolation="linear"
)
systems.SYSTEMS["dislocation"] = systems.System(
    lambda: systems.screw_dislocations()[:2], 29, symmetric=False, interpolation="linear"
)
systems.SYSTEMS["dislocation-21150"] = systems.System(
    lambda: systems.screw_dislocations(47, 25)[:2], 29, symmetric=False, interpolation="linear"
)
CASES: dict[str, tuple[str | float, ...]] = {
    "vacancy": (2.6, "auto", 4.5, 6.0, "all"),
    "vacancy-1999": (2.6, "auto", 4.5, 6.0, "all"),
    "dislocation": (6.0, 12.0, "auto", "all"),
    "dislocation-21150": (6.0, 12.0, "auto"),
}
KELVINS: dict[str, tuple[float | None, ...]] = {
    name: (0.1, 30.0, 300.0) if name.startswith("dislocation") else (None,) for name in CASES
}
RELAXED = WITH_HESSIAN = ("vacancy", "vacancy-1999")


class Held(Calculator):
    """A potential with a spring between a collective variable and a value."""

    def __init__(self, inner: Calculator, variable: CollectiveVariable, value: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.implemented_properties = ["energy", "forces"]
        self.inner, self.variable, self.value = inner, variable, value

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        """Fill `results`; `results["bare"]` is the energy of the potential alone."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        self.inner.calculate(atoms)
        chosen = self.variable.serials - 1
        positions, cell = atoms.positions[chosen], atoms.cell.array
        off = float(self.variable.value(positions, cell)[0]) - self.value
        forces = np.array(self.inner.results["forces"])
        forces[chosen] -= SPRING_EV * off * self.variable.gradient(positions, cell)[0]
        bare = float(self.inner.results["energy"])
        self.results = {"energy": bare + 0.5 * SPRING_EV * off**2, "forces": forces, "bare": bare}


def relaxed_barrier(engine: Engine, path: EnergyPath, variable: CollectiveVariable) -> float:
    """Highest energy along a CV with all other coordinates relaxed, from the first image, eV."""
    top = int(path.energies.argmax())
    first = path.images[0].get_potential_energy()
    chosen = variable.serials - 1
    xi, found = [], []
    for k in range(top - AROUND, top + AROUND + 1):
        atoms = path.images[k].copy()
        atoms.set_constraint()
        value = float(variable.value(atoms.positions[chosen], path.cell)[0])
        atoms.calc = Held(engine.calculator(), variable, value)
        FIRE(atoms, logfile=None).run(fmax=FMAX_EV_A, steps=2000)
        xi.append(float(variable.value(atoms.positions[chosen], path.cell)[0]))
        found.append(atoms.calc.results["bare"] - first)
    order = np.argsort(xi)
    spline = CubicSpline(np.array(xi)[order], np.array(found)[order])
    return float(spline(np.linspace(min(xi), max(xi), 2001)).max())


def lowering_eV(saddle: Expansion, path: EnergyPath, variable: CollectiveVariable) -> float:  # noqa: N802
    """Difference of the lowest harmonic flux barrier and that through the plane of a CV, eV.

    All atoms have one mass. With the unit normal n of the plane, the Hessian H and its negative
    eigenvalue -h it is -kT/2 ln(-h n.H^-1.n).
    """
    chosen = variable.serials - 1
    normal = np.zeros_like(saddle.positions)
    normal[chosen] = variable.gradient(saddle.positions[chosen], path.cell)[0]
    stiffness, modes = saddle.modes()
    compliance = np.sum((modes.T @ normal.ravel()) ** 2 / stiffness) / np.sum(normal**2)
    return -0.5 * units.kB * KELVIN * float(np.log(stiffness[0] * compliance))


def measured(
    engine: Engine,
    path: EnergyPath,
    saddle: Expansion | None,
    atoms: str | float,
    kelvin: float | None,
    relaxed: bool,
) -> dict[str, Any]:
    """Train a CV of some atoms and return a row of the table."""
    variance_A2 = VARIANCE_A2 if kelvin is None else noise_of(path, engine, kelvin)
    found = reconstruct(path, variance_A2=variance_A2, atoms=atoms)
    barrier = relaxed_barrier(engine, path, found.variable) if relaxed else None
    profiles = found.as_dict()["profiles"]
    return {
        "rule": atoms,
        "kelvin": kelvin,
        "noise_A2": variance_A2,
        "structures": found.n_structures,
        "atoms": len(found.selection.serials),
        "share_of_motion": found.selection.share,
        "loss_percent": -profiles["ae_pca"]["barrier_error_percent"],
        "loss_of_forces_percent": -profiles["forces"]["barrier_error_percent"],
        "relaxed_barrier_eV": barrier,
        "relaxed_loss_percent": None if barrier is None else 100.0 * (1.0 - barrier / path.barrier),
        "flux_barrier_lower_eV": None
        if saddle is None
        else lowering_eV(saddle, path, found.variable),
    }


def noise_of(path: EnergyPath, engine: Engine, kelvin: float) -> float:
    """Variance of a coordinate in thermal motion around the first image, A^2."""

    def forces(positions: Array) -> Array:
        return engine.forces(positions, path.cell)

    start = path.images[0].positions
    return thermal_variance(start, path.held, forces, units.kB * kelvin)


def run(names: list[str], folder: Path) -> None:
    """Compute the missing rows."""
    rows: dict[str, list[dict[str, Any]]] = {}
    if DATA.exists():
        rows = json.loads(DATA.read_text())
    for name in names:
        path = systems.build(name, folder)
        with LammpsEngine(systems.POTENTIAL, path.images[0]) as engine:
            saddle = None
            for kelvin, atoms in itertools.product(KELVINS[name], CASES[name]):
                done = rows.setdefault(name, [])
                if any((row["kelvin"], row["rule"]) == (kelvin, atoms) for row in done):
                    continue
                if saddle is None and name in WITH_HESSIAN:
                    saddle = find_saddle(engine, path)
                done.append(measured(engine, path, saddle, atoms, kelvin, name in RELAXED))
                write_text(DATA, json.dumps(rows, indent=1) + "\n")


def table(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Print the table."""
    print("| system | `cv.atoms` | atoms | motion (%) | loss (%) ", end="")
    print("| loss, relaxed (%) | flux barrier lower by (meV) |")
    print("|" + " --- |" * 7)
    for name, each in rows.items():
        if name not in RELAXED:
            continue
        for row in each:
            rule = row["rule"] if isinstance(row["rule"], str) else f"{row['rule']:g} Å"
            lower = row["flux_barrier_lower_eV"]
            cells = [name, rule, row["atoms"], f"{100 * row['share_of_motion']:.1f}"]
            losses = (row["loss_percent"], row["relaxed_loss_percent"])
            cells += [f"{round(loss, 2) + 0.0:.2f}" for loss in losses]  # no -0.00
            cells += ["" if lower is None else f"{1e3 * lower:.2f}"]
            print("| " + " | ".join(map(str, cells)) + " |")


def table_of_dislocations(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Print the table of docs/dislocations.md.

    The few images of the path make an error of the integral, which every CV has.
    """
    print("\n| `cv.atoms` | atoms | motion (%) | noise of (K) | structures | loss (%) |")
    print("|" + " --- |" * 6)
    for name in [name for name in CASES if name not in RELAXED]:
        for row in sorted(rows.get(name, []), key=lambda row: (row["kelvin"], row["atoms"])):
            rule = row["rule"] if isinstance(row["rule"], str) else f"{row['rule']:g} Å"
            loss = row["loss_percent"] - row["loss_of_forces_percent"]
            cells = [rule, row["atoms"], f"{100 * row['share_of_motion']:.1f}"]
            cells += [f"{row['kelvin']:g}", f"{row['structures']:,}", f"{loss:.2f}"]
            print("| " + " | ".join(map(str, cells)) + " |")
        if name in rows:
            above = -rows[name][0]["loss_of_forces_percent"]
            print(f"\n{name}: the integral of the forces is {above:.1f} % above the barrier")


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="?", type=Path, help="folder of the paths")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}")
    arguments = parser.parse_args()
    if arguments.paths is not None:
        run(arguments.names or list(CASES), arguments.paths)
    table(json.loads(DATA.read_text()))
    table_of_dislocations(json.loads(DATA.read_text()))


if __name__ == "__main__":
    main()
